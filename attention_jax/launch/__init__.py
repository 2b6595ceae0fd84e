"""Launchers: they run a command of launch.sh on several processes, on a Slurm cluster, or on a TPU slice.

They only compose the commands of the tools that a user would call by hand (gcloud, sbatch), print them under --dry-run,
and read their output. They run on any Python from 3.9 on with the standard library alone: a laptop that asks for the state
of a slice needs no JAX, and a worker's own Python starts before the environment exists. They are not part of launch.sh
because each word passes two or three shells: lists of words survive that, text does not.
"""
