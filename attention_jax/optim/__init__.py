"""Schedules, optimizers, weight averages, losses and the mixing of examples, as the recipe pieces choose them."""
