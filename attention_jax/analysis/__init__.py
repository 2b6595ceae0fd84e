"""Attention maps, probes and plots for any run."""
