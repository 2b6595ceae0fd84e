"""One training loop for all tasks; it knows tasks only by their interface."""
