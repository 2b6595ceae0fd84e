"""Data sets that are fetched or converted once, before training."""
