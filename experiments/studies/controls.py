"""The controls of several tables, under the name that their rows have them by."""

from attention_jax.nn.controls import AddedBranch, AddedMean

__all__ = ["AddedBranch", "AddedMean"]
