"""The command line, and the preparations of a command before it imports JAX."""
