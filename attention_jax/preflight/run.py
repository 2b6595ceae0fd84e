"""The verb `preflight` for one config."""

import json

from ml_collections import ConfigDict

from attention_jax.errors import UserError
from attention_jax.preflight.chips import find_slice
from attention_jax.preflight.input_rate import images_a_second
from attention_jax.preflight.measure import described, measure
from attention_jax.preflight.report import Report, fits


def preflight(config: ConfigDict, topology: str) -> Report:
    """What the train step of a checked config will need on a slice that need not be there. Raises UserError."""
    slice_ = find_slice(topology)
    config = resolved(config)
    devices = described(slice_)
    measured = measure(config, devices)
    return Report(slice_, measured, images_a_second(config))


def resolved(config: ConfigDict) -> ConfigDict:
    """The config with what its data say. Raises UserError that says what to give when they are not here."""
    from attention_jax.tasks import get_task

    task = get_task(config.task)
    missing = task.unresolved(config)
    try:
        return task.resolve(config)
    except UserError as error:
        if not missing:
            raise
        raise UserError(f"{str(error).rstrip('.')}; without the data, state config.{', '.join(missing)}.") from error


def run(config: ConfigDict, topology: str, as_json: bool) -> int:
    """Prints a report; 0 when the step fits and 1 when it does not."""
    report = preflight(config, topology)
    print(json.dumps(report.numbers()) if as_json else report.text())
    return 0 if fits(report.measured, report.slice) else 1
