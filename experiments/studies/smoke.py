"""Overrides with which a run of a config takes seconds, for the scale "smoke" of several tables."""

CUED_DIGITS = {
    "batch_size": 4,
    "data.args.number": 40,
    "total_steps": 4,
    "schedule.warmup_steps": 1,
    "evaluation.every_steps": 2,
    "evaluation.batch_size": 20,
    "checkpoint.every_steps": 4,
    "logging.every_steps": 2,
}
