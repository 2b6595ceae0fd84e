"""Fetches or converts data sets once, before training."""
