"""Image data sets, and the transforms of an image on its way to a network."""
