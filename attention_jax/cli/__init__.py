"""The command line, and what a command prepares before it imports JAX."""
