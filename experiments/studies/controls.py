"""The controls of several tables, under the name that their runs have them by."""

from attention_jax.nn.controls import AddedBranch, AddedMean

__all__ = ["AddedBranch", "AddedMean"]
