"""Building blocks; they import flax and the ground floor only."""
