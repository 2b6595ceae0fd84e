"""Attention maps and plots of any run."""
