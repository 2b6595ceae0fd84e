"""Looking at what was trained: attention maps and plots."""
