"""Compiles a config's real train step for a named TPU slice on a machine without one, and reports what the step needs."""
