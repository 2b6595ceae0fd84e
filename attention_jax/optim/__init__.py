"""What the recipe pieces switch on: schedules, optimizers, weight averages, losses."""
