"""Meshes of devices, the sharding of arrays over them, and how the processes of a run find each other."""
