"""The commands: python -m attention_jax train | evaluate | export | probe | translate | table | summary, and others.

Exit code 0: done, or stopped by a signal after saving, unless AJ_STOPPED_CODE gives that another code. 1: rows of a table
failed, or a step does not fit a slice. 2: a user error, explained in one sentence.
"""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from attention_jax.cli.completion import WITH_FIELDS
from attention_jax.cli.parser import make_parser, refuse_misspelled
from attention_jax.cli.without_training import (
    export_weights,
    plot_curves,
    print_completion,
    print_summary,
    report_run,
    watch_curves,
)
from attention_jax.config.describe import describe_config, render_fields_page
from attention_jax.errors import UserError, get_stopped_exit_code, one_sentence

_LOST = ("Gloo", "NCCL", "reset by peer")  # words in the error of a failed exchange between processes
Overrides = dict[str, str]  # {"batch_size": "64"}: text as on the command line


class _Unbreakable:
    """A standard stream whose reader may close it, as `head` does: further output is dropped, and the command goes on."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._without_reader(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        self._without_reader(self._stream.flush)

    def _without_reader(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # covers the output of C++ too


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    try:
        arguments, overrides = _split_overrides(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parser = make_parser()
    refuse_misspelled(arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    values = vars(options)
    command, _ = (values.pop(name) for name in ("command", "parser"))
    if argv is None and command in ("train", "table", "compare"):
        sys.stdout, sys.stderr = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("attention_jax").setLevel(logging.INFO)
    try:
        if values.pop("best", False):
            values["workdir"] = _find_best(values["workdir"], values["average"])
        if command in WITH_FIELDS:
            values["overrides"] = overrides
        elif overrides:
            *first, last = WITH_FIELDS
            takers = f"{', '.join(first)} and {last}"
            raise UserError(f"--config.{next(iter(overrides))}: only {takers} take --config.key=value.")
        return _RUN[command](**values)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _leave(2)
    except Exception as error:
        if not _is_one_of_several():
            raise
        if any(word in str(error) for word in _LOST):
            reason = one_sentence(error)
            print(
                f"error: this process has lost another process ({reason}): see the messages of that process.", file=sys.stderr
            )
        else:
            traceback.print_exc()
        return _leave(1)


def _find_best(workdir: str, average: int) -> str:
    """Returns the folder of the best checkpoint, and says which it is."""
    from attention_jax.load import find_best_checkpoint

    if average > 1:
        raise UserError(f"--best with --average={average}: the mean is of the newest checkpoints: leave one of the two out.")
    folder, text = find_best_checkpoint(workdir)
    print(text, file=sys.stderr)
    return str(folder)


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _leave(code: int) -> int:
    """Returns the code; with several processes it ends the process at once, because JAX would let it wait minutes for the
    others.

    Process 0 ends last: when it is gone, the runtime ends the others with a stack trace.
    """
    if _is_one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        if os.environ.get("AJ_PROCESS") == "0":
            time.sleep(1)
        os._exit(code)
    return code


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], Overrides]:
    """Separates `--config.key=value` and `--config.key value` from the other arguments."""
    rest, overrides = [], {}
    words = iter(argv)
    for word in words:
        if word.startswith("--config."):
            name, has_value, value = word[2:].partition("=")
            if not has_value:
                value = next(words, "--")
                if value.startswith("--"):
                    raise UserError(f"--{name} has no value: give --{name}=VALUE.")
            overrides[name.removeprefix("config.")] = value
        else:
            rest.append(word)
    return rest, overrides


def _start(task: str | None = None) -> None:
    """Prepares for the first use of JAX: repairs the compilation cache, keeps freed memory and joins the other processes.

    Freed memory is kept for translation, whose steps have few and large temporaries; all threads then share one arena.
    """
    from attention_jax.cli.compile_cache import remove_damaged_entries
    from attention_jax.cli.malloc import keep_freed_memory
    from attention_jax.distributed.mesh import join_processes

    remove_damaged_entries()
    if task == "translation":
        keep_freed_memory()
    join_processes()


def _apply_overrides(config: Any, overrides: Overrides) -> Any:
    from attention_jax.config.config import override

    return override(config, _parse_overrides(config, overrides))


def _parse_overrides(config: Any, overrides: Overrides) -> dict[str, Any]:
    from attention_jax.config.config import parse_value
    from attention_jax.tasks import list_text_arguments

    has_arguments = any(name.startswith("data.args.") for name in overrides)
    texts = list_text_arguments(config.task, overrides.get("data.source", config.data.source)) if has_arguments else ()
    return {
        name: text if name.removeprefix("data.args.") in texts and text != "None" else parse_value(config, name, text)
        for name, text in overrides.items()
    }


def _load_config(spec: str, trust_code: bool = False) -> Any:
    """Returns the config of a Python file, or of a run's config.json."""
    from attention_jax.config.code import load_saved_config
    from attention_jax.config.config import load_config
    from attention_jax.models.registry import list_origins

    return load_saved_config(spec, list_origins(), trust_code) if spec.endswith(".json") else load_config(spec)


def _train(config: str, workdir: str, saved_code: bool, trust_code: bool, extend: str | None, overrides: Overrides) -> int:
    if extend:
        name, _, total = extend.partition("=")
        if not name.startswith("total_") or not total:
            raise UserError(f"--extend={extend}: give the unit and the new total, as in --extend=total_epochs=40.")
        overrides = {**overrides, name: total}
    loaded = _apply_overrides(_load_config(config, trust_code), overrides)
    _start(loaded.task)
    from attention_jax.distributed.mesh import is_main_process
    from attention_jax.models.registry import check_model
    from attention_jax.preflight.chips import find_peak
    from attention_jax.train import report
    from attention_jax.train.loop import train_model
    from attention_jax.train.program import build_program
    from attention_jax.train.workdir import use_saved_code

    loaded = use_saved_code(loaded, workdir, trust_code) if saved_code else loaded
    check_model(loaded.model.to_dict())
    program = build_program(loaded)
    is_main = is_main_process()  # only its folder has the log if each process has a folder for a remote workdir
    if is_main:
        print(report.describe_run(program, overrides))
        if extend is not None and (change := report.describe_extension(program, workdir)):
            print(change)
    with report.show_progress(program.durations.total, active=is_main) as progress:
        peak, notice = find_peak(program.mesh.devices.flat), progress.show_line
        result = train_model(loaded, workdir, program, progress, extend=extend is not None, peak=peak, notice=notice)
    if is_main:
        print(report.describe_outcome(result))
    return get_stopped_exit_code() if result.stopped else 0


def _open_run(workdir: str, weights: str | None, average: int, trust_code: bool, overrides: Overrides) -> tuple[Any, Any, Any]:
    """Returns (run, task, program) for a run's config with overrides, on the present devices, whatever devices trained it."""
    from attention_jax.config.config import override
    from attention_jax.load import load_run
    from attention_jax.tasks import get_task
    from attention_jax.train.program import build_program

    run = load_run(workdir, weights, average, trust_code)
    _ = run.model  # raises UserError if it is not trusted
    # An evaluation is there to score translations; training may leave the scores out, because they take long.
    translate = {"evaluation.translate": "True"} if run.config.task == "translation" else {}
    here = {"parallel.mode": "jit", "parallel.data": -1, "parallel.fsdp": 1, "parallel.model": 1, "parallel.slices": 0}
    config = _apply_overrides(override(run.config, here), {**translate, **overrides})
    task = get_task(config.task)
    task.adopt(config, run.assets)
    return run, task, build_program(config)


def _probe(
    workdir: str, weights: str | None, average: int, trust_code: bool, neighbours: int, temperature: float, overrides: Overrides
) -> int:
    _start()
    from attention_jax.analysis.probes import measure_probes
    from attention_jax.distributed.mesh import is_main_process

    run, _, program = _open_run(workdir, weights, average, trust_code, overrides)
    scores = measure_probes(program, run, neighbours, temperature)
    if is_main_process():
        print(json.dumps({"workdir": workdir, "step": run.step, "weights": run.weights, **scores}))
    return 0


def _evaluate(**options: Any) -> int:
    _start()
    from attention_jax.cli.evaluate import evaluate_run

    evaluate_run(_open_run, **options)
    return 0


def _translate(**options: Any) -> int:
    _start("translation")
    from attention_jax.cli.translate import translate_file

    return _stop_quietly(translate_file, **_collect_limits(options))


def _score(**options: Any) -> int:
    _start("translation")
    from attention_jax.cli.score import score_file

    return _stop_quietly(score_file, **_collect_limits(options))


def _collect_limits(options: dict[str, Any]) -> dict[str, Any]:
    from attention_jax.tasks.batch_limits import BatchLimits

    tokens, sentences, memory = (options.pop(name) for name in ("batch_tokens", "batch_size", "memory"))
    return {**options, "limits": BatchLimits(tokens, sentences, memory and int(memory * 2**30))}


def _stop_quietly(act: Callable[..., None], **options: Any) -> int:
    """Calls `act` and returns the exit code, even if the reader of its output or the user ends it."""
    try:
        act(**options)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
    except KeyboardInterrupt:
        return 130
    return 0


def _table(**options: Any) -> int:
    from attention_jax.cli.tables import call_table

    return call_table(_start, **options)


def _compare(rows: str | None, base: str | None, on: str, overrides: Overrides, **options: Any) -> int:
    _start("classification")
    from attention_jax.distributed.mesh import is_main_process
    from attention_jax.tables.bases import get_base
    from attention_jax.tables.compare import compare

    changes = _parse_overrides(get_base(on, base).config(), overrides)
    result = compare(base=base, on=on, rows=rows.split(",") if rows else None, overrides=changes, **options)
    if is_main_process() and result.verdict:
        print(f"\n{result.verdict}")
    return result.code


def _compare_runs(**options: Any) -> int:
    from attention_jax.cli.compare_runs import compare_runs

    compare_runs(**options)
    return 0


def _config(file: str | None, check: bool, fields: bool, files: bool, overrides: Overrides) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from attention_jax.cli.files import load_named, print_files

    if fields:
        print(render_fields_page(), end="")
        return 0
    if not file:
        raise UserError("config: give a config file, or --fields.")
    config = _apply_overrides(_load_config(file), overrides)
    load_named(config)
    if not check:
        print(describe_config(config))
    if files:
        print_files(file, config)
    return 0


def _prepare(name: str | None, data_dir: str | None, manual_dir: str | None, config: str | None, overrides: Overrides) -> int:
    if bool(name) == bool(config) or bool(name) != bool(data_dir) or (overrides and not config):
        raise UserError("prepare: give NAME and --data_dir=DIR, or --config=FILE.py and --config.data.cache_dir=DIR.")
    if name:
        from attention_jax.data.download.tfds_sets import describe_usage, prepare_dataset

        folder = prepare_dataset(name, str(data_dir), manual_dir)
        print(f"{folder} is ready: train with {describe_usage(name, str(data_dir))}")
        return 0
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed
    from attention_jax.tasks import translation

    loaded = _apply_overrides(_load_config(str(config)), overrides)
    if loaded.task != "translation":
        raise UserError(f"prepare --config keeps tokens of sentence pairs, and {config} has the task {loaded.task!r}.")
    print(*translation.prepare_tokens(loaded), sep="\n")
    print("train with the same --config.data.cache_dir, or with AJ_CACHE_DIR.")
    return 0


def _preflight(file: str | None, rows: str | None, output: str | None, overrides: Overrides, **step: Any) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # the slice is only described; libtpu compiles for it
    from attention_jax.config.plugins import load_file
    from attention_jax.preflight.report import print_report
    from attention_jax.preflight.scaling import run_scaling
    from attention_jax.preflight.table import run_preflight_table

    if file:
        if overrides or any(step.values()):
            raise UserError(f"preflight {file}: its rows name the configs and slices; leave the other options out.")
        run = run_scaling if hasattr(load_file(file), "counts") else run_preflight_table
        return run(file, rows.split(",") if rows else ["*"], output)
    if not (step["config"] and step["topology"]):
        raise UserError("preflight: give --config=FILE.py and --topology=SLICE, or a file with the rows of a table.")
    return print_report(
        _apply_overrides(_load_config(step["config"]), overrides), step["topology"], step["as_json"], step["probe_data"]
    )


_RUN: dict[str, Callable[..., int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "export": export_weights,
    "probe": _probe,
    "translate": _translate,
    "score": _score,
    "table": _table,
    "compare": _compare,
    "compare-runs": _compare_runs,
    "config": _config,
    "completion": print_completion,
    "plot": plot_curves,
    "watch": watch_curves,
    "report": report_run,
    "summary": print_summary,
    "preflight": _preflight,
    "prepare": _prepare,
}
