"""Meshes of devices, how arrays lie on them, and how the processes of a run find each other."""
