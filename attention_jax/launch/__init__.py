"""Doors to machines that are not this one: `./launch.sh tpu` and `./launch.sh slurm`.

Each runs a verb of launch.sh elsewhere, through the tools that a user would call by hand (gcloud, sbatch): a door only
composes their commands, shows them under --dry-run, and reads what they answer.

Written for any Python from 3.9 on, with nothing but the standard library: who asks for the state of a slice needs no JAX
on the laptop, and a worker's own Python has to start before the environment exists. The alternative was more of
launch.sh; but here every word passes two or three shells on its way, and lists of words survive that where text does not.
"""
