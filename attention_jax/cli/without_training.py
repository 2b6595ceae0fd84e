"""Commands that neither train nor evaluate; each returns its exit code and raises UserError."""

import os
from typing import Any

from attention_jax.cli.completion import render_completion
from attention_jax.cli.parser import parsers
from attention_jax.errors import UserError


def export_weights(workdir: str, output: str, format: str, **options: Any) -> int:
    """Writes a run's weights for another library."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed
    from attention_jax.interop.export import export_run

    new = export_run(workdir, output, format, **options)
    print(f"{output} is written in the format {format}." if new else f"{output} exists already, with the same content.")
    return 0


def plot_curves(workdirs: list[str], output: str) -> int:
    """Plots learning curves of runs."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # plotting needs no accelerator
    from attention_jax.analysis.plots import plot_runs

    plot_runs(workdirs, output)
    print(f"{output} is written.")
    return 0


def report_run(**options: Any) -> int:
    """Writes the report of a run."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # some images are a matter of seconds
    from attention_jax.tables.run_page import write_report

    print(f"{write_report(**options)} is written.")
    return 0


def watch_curves(places: list[str], every: float, once: bool) -> int:
    """Prints live curves of runs; returns 130 after Ctrl-C, as shells have it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed
    from attention_jax.analysis.terminal import watch_runs

    try:
        watch_runs(places, every, once)
    except KeyboardInterrupt:
        return 130
    return 0


def print_summary(model: str, image_size: int, channels: int, length: int, depth: int) -> int:
    """Prints parameters and multiply-adds of a network, or one line for each network that a pattern matches."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # counting needs no accelerator
    from attention_jax.models import create_model, list_models
    from attention_jax.models.summary import list_references, summary

    if any(character in model for character in "*?["):
        if not (found := list_models(model)):
            raise UserError(f"summary: no model matches {model!r}: attention_jax.list_models() lists the names.")
        known = list_references()
        unknown = {"params": "", "macs": "", "input": "-", "top1": "-", "published": "-"}  # a user's network
        width = max(map(len, found))
        print(f"{'name':<{width}} {'params':>12} {'MACs':>16} {'input':>9} {'top-1 %':>7}  published by")
        for name in found:
            row = known.get(name, unknown)
            counts = [f"{int(row[column]):,}" if row["params"] else "-" for column in ("params", "macs")]
            print(f"{name:<{width}} {counts[0]:>12} {counts[1]:>16} {row['input']:>9} {row['top1']:>7}  {row['published']}")
        return 0
    import jax

    network = create_model(model)
    shape: Any = (1, image_size, image_size, channels)
    if hasattr(network, "vocab_size"):  # the network reads source and target tokens
        shape = (jax.ShapeDtypeStruct((1, length), "int32"),) * 2
    print(summary(network, shape, depth))
    return 0


def print_completion() -> int:
    """Prints the completion script."""
    print(render_completion(parsers), end="")
    return 0
