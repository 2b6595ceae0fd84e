"""Image data sets and what becomes of an image before it reaches a network."""
