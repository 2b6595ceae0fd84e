"""Building blocks of networks; they import flax, the kernels and the modules that import nothing else of this package."""
