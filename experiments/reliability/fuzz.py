"""Damages what users bring and what runs leave, and judges what each command does: right, refused in one sentence, or a fault.

    nice ./launch.sh python experiments/reliability/fuzz.py [--only=PATTERN] [--draws=2] [--subprocesses=50] [--seed=0]
                                                           [--output=DIR]

Hypothesis draws the damage (corrupt.py). A pair is a command and a kind of damage: to a file in the workdir of a finished run,
or of one that was stopped half-way; the value of a config field; an image; a text; a table file. Every pair is tried `draws`
times on a fresh copy, in this process through the command line's `main`, and some of them again in a process of their own.
A fault is a traceback, an exit code without a sentence, exit code 0 with another result than without the damage, or the loss
of what was not damaged. Exit code 0 must be right: training ends with bitwise the state and the log of an undisturbed run, an
evaluation, an opened run and a table have the numbers of the checkpoint that they name. It takes ten minutes of two cores.
"""

import argparse
import contextlib
import dataclasses
import fnmatch
import functools
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from attention_jax.config.config import get_fields  # noqa: E402
from experiments.benchmarks.page import render_page  # noqa: E402
from experiments.reliability import calls, corrupt  # noqa: E402
from experiments.reliability.calls import Ended, Problem, open_run  # noqa: E402
from experiments.reliability.judge import judge_workdir, list_hashes, read_truth  # noqa: E402

IMAGE_CONFIG = """from attention_jax.config import defaults


def get_config():
    config = defaults.classification()
    config.batch_size = 32
    config.total_steps = 4
    config.model.update(name="resnet20", stage_sizes=(1,), widths=(4,))
    config.data.update(source="digits", mean=(0.3,), std=(0.38,))
    config.schedule.update(name="cosine", learning_rate=0.05, warmup_steps=1)
    config.evaluation.update(every_steps=2, batch_size=200)
    config.checkpoint.update(every_steps=2, keep_last=2)
    config.logging.update(every_steps=1, tensorboard=False)
    return config
"""
TEXT_CONFIG = """from attention_jax.config import defaults


def get_config():
    config = defaults.translation()
    config.batch_size = 200
    config.total_steps = 1
    config.model.update(name="transformer_base", layers=1, features=8, hidden=8, heads=2)
    config.data.update(source="files", tokenizer="words", vocab_size=None, max_length=16, bucket_lengths=1, rows_multiple=4)
    config.data.args.update(source="pairs/{split}.x", target="pairs/{split}.y")
    config.schedule.update(name="cosine", learning_rate=1e-2, warmup_steps=0)
    config.search.max_extra = 2
    config.evaluation.update(every_steps=1, batch_size=200, bleu="none")
    config.checkpoint.every_steps = 1
    config.logging.update(every_steps=1, tensorboard=False)
    return config
"""
GATE = "import flax.linen as nn\n\n\nclass Gate(nn.Module):\n    def __call__(self, x):\n        return x * 2\n"
GATED = "--config.model.gate=my_gate.py:Gate"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A command and a kind of damage; `attempt(example)` raises Problem, or returns how it ended."""

    entry: str
    fault: str
    examples: st.SearchStrategy[Any]
    attempt: Callable[[Any], str]


class Fuzz:
    """The undisturbed runs, and the pairs."""

    def __init__(self, folder: Path):
        self.folder, self.here = folder, folder / "files"
        self.processes = False  # True tries in processes of their own
        self.here.mkdir(parents=True)
        files = {"base.py": IMAGE_CONFIG, "text.py": TEXT_CONFIG, "my_gate.py": GATE, "table.py": corrupt.TABLE}
        for name, text in files.items():
            (self.here / name).write_text(text)
        os.environ.update(XDG_STATE_HOME=str(folder / "state"))
        self.whole = folder / "whole"
        self._must("table", "table.py", "--rows=a", f"--workdir={self.whole}")
        self.half = shutil.copytree(self.whole, folder / "half")
        self._leave_half(self.half / "a" / "0")
        self.truth = read_truth(
            self.whole, self._list_each_step("evaluate", "--workdir={}"), self._list_each_step("open", "{}")
        )

    @functools.cached_property
    def translator(self) -> Path:
        """The workdir of a network that translates letters."""
        self._write_pairs(self.here / "pairs", b"a b c\nd e\nf g h\n" * 8, b"A B C\nD E\nF G H\n" * 8)
        self._must("train", "--config=text.py", f"--workdir={self.folder / 'translator'}")
        return self.folder / "translator"

    def _must(self, *command: str) -> Ended:
        ended = self.call(*command)
        if ended.code or ended.traceback:
            raise SystemExit(f"{' '.join(command)} ended with {ended.code}: {ended.err or ended.traceback}")
        return ended

    def _leave_half(self, workdir: Path) -> None:
        """Leaves a run as a kill after its first save leaves it."""
        shutil.rmtree(workdir / "checkpoints" / "4")
        (workdir / "evaluation.npz").unlink()

    def _list_each_step(self, command: str, place: str) -> dict[int, dict[str, Any]]:
        """What a command prints for the two checkpoints."""
        ends = (self._must(command, place.format(runs / "a" / "0")) for runs in (self.half, self.whole))
        printed = (json.loads(ended.out.splitlines()[-1]) for ended in ends)
        return {found["step"]: found for found in printed}

    def _write_pairs(self, folder: Path, source: bytes, target: bytes) -> None:
        folder.mkdir(exist_ok=True)
        for split in ("train", "test"):
            (folder / f"{split}.x").write_bytes(source)
            (folder / f"{split}.y").write_bytes(target)

    def call(self, *command: str) -> Ended:
        """Runs a command of the command line, or "open" of a run as a notebook does, to its end."""
        return (calls.call_process if self.processes else calls.call_here)(command, self.here)

    def pairs(self) -> Iterator[Pair]:
        """Yields all pairs."""
        draws = st.integers(0, 2**32 - 1).map(random.Random)
        commands = {
            "train, finished": (self.whole, ("train", "--config=base.py", GATED, "--workdir={run}")),
            "train, stopped half-way": (self.half, ("train", "--config=base.py", GATED, "--workdir={run}")),
            "evaluate": (self.whole, ("evaluate", "--workdir={run}")),
            "load_run": (self.whole, ("open", "{run}")),
            "table": (self.whole, ("table", "table.py", "--rows=a", "--workdir={runs}")),
            "table --dry-run": (self.whole, ("table", "table.py", "--dry-run", "--workdir={runs}")),
            "plot": (self.whole, ("plot", "{run}", "--output={runs}/new.png")),
        }
        for entry, (place, command) in commands.items():
            for name, damages in corrupt.FILES.items():
                for fault, damage in damages.items():
                    attempt = functools.partial(self.try_workdir, entry, place, command, name, damage)
                    yield Pair(entry, f"{name}: {fault}", draws, attempt)
        for entry in ("config --check", "train"):
            for fault, values in corrupt.VALUES.items():
                yield Pair(entry, f"a field: {fault}", st.tuples(draws, values), functools.partial(self.try_value, entry))
        yield Pair("config --check", "a field: a misspelled name", draws, self.try_misspelled)
        for fault, write in corrupt.IMAGES.items():
            yield Pair("train", f"an image: {fault}", draws, functools.partial(self.try_image, fault, write))
        for fault, texts in corrupt.TEXTS.items():
            yield Pair("train", f"a text: {fault}", texts, functools.partial(self.try_text, fault))
            yield Pair("translate", f"a text: {fault}", texts, self.try_translation)
        for fault, make in corrupt.TABLES.items():
            yield Pair("table --dry-run", f"a table file: {fault}", draws, functools.partial(self.try_table, make))

    def try_workdir(
        self, entry: str, place: Path, command: Sequence[str], name: str, damage: corrupt.Damage, rng: random.Random
    ) -> str:
        with self._scratch() as scratch:
            runs = shutil.copytree(place, scratch / "runs")
            run = runs / "a" / "0"
            file = corrupt.find_file(run, name, rng)
            if name == "failure.txt":
                file.touch()
            elif not file.exists():
                return "not there"
            damage(file, rng)
            before, log = list_hashes(run), run / "metrics.jsonl"
            text = log.read_bytes() if log.is_file() else b""
            ended = self.call(*(word.format(run=run, runs=runs) for word in command))
            ended.refuse_traceback()
            judge_workdir(entry, self.truth, run, name, before, text, ended)
            return ended.describe()

    def try_value(self, entry: str, example: tuple[random.Random, str]) -> str:
        rng, value = example
        name = rng.choice(self._list_fields(for_training=entry == "train"))
        option = f"--config.{name}={value}"
        if entry == "train":
            with self._scratch() as scratch:
                ended = self.call("train", "--config=base.py", "--config.total_steps=1", option, f"--workdir={scratch / 'run'}")
                ended.refuse_traceback()
                if ended.code == 0 and '"eval/loss": nan' in ended.out.lower():
                    raise Problem(f"{option}: trained to a loss that is no number")
        else:
            ended = self.call("config", "base.py", option, "--check")
            ended.refuse_traceback()
        return ended.describe()

    def try_misspelled(self, rng: random.Random) -> str:
        names = self._list_fields(for_training=False)
        wrong = corrupt.misspell(rng.choice(names), rng)
        ended = self.call("config", "base.py", f"--config.{wrong}=1", "--check")
        ended.refuse_traceback()
        is_open = any(wrong.startswith(f"{part}.") for part in ("model", "data.args", "optimizer.args", "schedule.args"))
        if ended.code == 0 and wrong not in names and not is_open:
            raise Problem(f"--config.{wrong}=1 was taken")
        return ended.describe()

    def _list_fields(self, for_training: bool) -> list[str]:
        spelled = [each for name, field in get_fields({"task": "classification"}).items() for each in field.names(name)]
        long = ("total", "batch_size", "data.num_examples", "data.threads", "profile", "evaluation.batch_size")  # of a try
        return [name for name in spelled if not (for_training and name.startswith(long))]

    def try_image(self, fault: str, write: Callable[[Path, random.Random], None], rng: random.Random) -> str:
        with self._scratch() as scratch:
            for split in ("train", "test"):
                for label in ("a", "b"):
                    (scratch / "images" / split / label).mkdir(parents=True)
                    for number in range(8):
                        corrupt.write_image(scratch / "images" / split / label / f"{number}.png", rng)
            suffix = {"CMYK": ".jpg", "turned by EXIF": ".jpg", "an animation": ".gif"}.get(fault, ".png")
            file = scratch / "images" / "test" / "a" / f"odd{suffix}"  # all of whose images are read
            write(file, rng)
            options = {"source": "folder", "args.path": scratch / "images", "image_shape": "(8, 8, 1)"}
            words = [f"--config.data.{name}={value}" for name, value in options.items()]
            small = ["--config.total_steps=1", "--config.batch_size=8", "--config.schedule.warmup_steps=0"]
            ended = self.call("train", "--config=base.py", *words, *small, f"--workdir={scratch / 'run'}")
            ended.refuse_traceback()
            if ended.code == 0 and file.is_file() and not corrupt.is_image(file) and "odd" not in ended.err:
                raise Problem("an image that cannot be read was left out without a word")
            return ended.describe()

    def try_text(self, fault: str, text: bytes) -> str:
        with self._scratch() as scratch:
            self._write_pairs(scratch / "pairs", text, b"A B\n" * max(1, text.count(b"\n")))
            sides = (("source", "x"), ("target", "y"))
            words = [f"--config.data.args.{side}={scratch}/pairs/{{split}}.{end}" for side, end in sides]
            ended = self.call("train", "--config=text.py", *words, f"--workdir={scratch / 'run'}")
            ended.refuse_traceback()
            if ended.code == 0 and fault in ("no UTF-8", "UTF-16", "nothing", "ends of CR alone"):
                raise Problem("it was taken as text")
            return ended.describe()

    def try_translation(self, text: bytes) -> str:
        with self._scratch() as scratch:
            (scratch / "in.txt").write_bytes(text)
            places = f"--input={scratch}/in.txt", f"--output={scratch}/out.txt"
            ended = self.call("translate", f"--workdir={self.translator}", *places)
            ended.refuse_traceback()
            if ended.code == 0:
                lines = text.count(b"\n") + (not text.endswith(b"\n") and bool(text))
                written = (scratch / "out.txt").read_bytes().count(b"\n")
                if written != lines:
                    raise Problem(f"{lines} lines in, {written} lines out")
            return ended.describe()

    def try_table(self, make: Callable[[random.Random], str], rng: random.Random) -> str:
        name = f"table_{rng.randrange(2**60)}.py"
        (self.here / name).write_text(make(rng))
        ended = self.call("table", name, "--dry-run", f"--workdir={self.folder / 'none'}")
        ended.refuse_traceback()
        return ended.describe()

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder)


def try_pairs(pairs: Sequence[Pair], draws: int, number: int) -> dict[tuple[str, str], list[str]]:
    """Tries pairs with examples drawn from a seed; returns {(entry, fault): outcomes}; that of a fault begins with "FAULT"."""
    return {(pair.entry, pair.fault): _try_pair(pair, draws, number) for pair in pairs}


def _try_pair(pair: Pair, draws: int, number: int) -> list[str]:
    ended: list[str] = []

    @seed(number)
    @settings(
        max_examples=draws, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(pair.examples)
    def attempt(example: Any) -> None:
        try:
            ended.append(pair.attempt(example))
        except Problem as problem:
            ended.append(f"FAULT: {problem}")
            print(f"{pair.entry} / {pair.fault}: {problem}", flush=True)

    attempt()
    return ended


def render_table(here: dict[tuple[str, str], list[str]], there: dict[tuple[str, str], list[str]]) -> str:
    """Returns the results as Markdown."""
    both = {pair: [*here.get(pair, []), *there.get(pair, [])] for pair in here | there}
    tried = {pair: [end for end in ends if end != "not there"] for pair, ends in both.items()}
    tried = {pair: ends for pair, ends in tried.items() if ends}
    faults = sum(end.startswith("FAULT") for ends in tried.values() for end in ends)
    calls = sum(map(len, tried.values()))
    apart = sum(len(ends) for ends in there.values())
    entries = list(dict.fromkeys(entry for entry, _ in tried))
    sums, folded = ["| command | kinds of damage | right | refused | faults |", "| --- | ---: | ---: | ---: | ---: |"], {}
    for entry in entries:
        rows = {fault: ends for (e, fault), ends in tried.items() if e == entry}
        total = _count([end for ends in rows.values() for end in ends])
        sums.append(f"| {entry} | {len(rows)} | {' | '.join(map(str, total))} |")
        folded[entry] = _list_outcomes({fault: _count(ends) for fault, ends in rows.items()})
    return render_page(
        "Damaged files and odd inputs",
        f"{len(tried)} pairs of a command and a kind of damage were tried {calls} times: {faults} faults.",
        "\n".join(sums),
        f"`nice ./launch.sh python experiments/reliability/fuzz.py`, {apart} of the tries in a process of their own. Right: "
        "exit "
        "code 0 and the result of the undamaged files. Refused: one sentence and another exit code. Anything else is a fault.",
        folded=folded,
    )


def _list_outcomes(counts: dict[str, list[int]]) -> str:
    """Returns a table with a row for each damaged thing and outcome: kinds of damage and the number of tries."""
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for fault, (right, refused, faults) in counts.items():
        thing, _, damage = fault.rpartition(": ")
        outcome = "FAULT" if faults else "right or refused" if right and refused else "right" if right else "refused"
        rows.setdefault((thing or "–", outcome), {})[damage] = right + refused + faults
    lines = ["| damaged | how | outcome | tries |", "| --- | --- | --- | ---: |"]
    lines += [
        f"| {thing} | {', '.join(kinds)} | {outcome} | {sum(kinds.values())} |" for (thing, outcome), kinds in rows.items()
    ]
    return "\n".join(lines)


def _count(ends: Sequence[str]) -> list[int]:
    return [sum(end.startswith(kind) for end in ends) for kind in ("right", "refused", "FAULT")]


def main(argv: Sequence[str] | None = None) -> int:
    """Tries the pairs and writes the table; returns 1 when there was a fault."""
    parser = argparse.ArgumentParser(description="Damages what users bring and what runs leave.")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of 'command / damage'")
    parser.add_argument("--draws", type=int, default=2, metavar="N", help="tries of each pair")
    parser.add_argument(
        "--subprocesses", type=int, default=50, metavar="N", help="pairs that are tried in a process of their own"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "fuzz", metavar="DIR", help="of fuzz.md")
    parser.add_argument("--open", metavar="RUN", help=argparse.SUPPRESS)  # what a try of load_run starts
    options = parser.parse_args(argv)
    if options.open:
        return open_run(options.open)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
        fuzz = Fuzz(Path(folder))
        pairs = [pair for pair in fuzz.pairs() if fnmatch.fnmatch(f"{pair.entry} / {pair.fault}", options.only)]
        here = try_pairs(pairs, options.draws, options.seed)
        fuzz.processes = True
        chosen = random.Random(options.seed).sample(pairs, min(options.subprocesses, len(pairs)))
        there = try_pairs(chosen, 1, options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    text = render_table(here, there)
    (options.output / "fuzz.md").write_text(text)
    print(text.splitlines()[2])
    return 1 if "FAULT" in json.dumps([*here.values(), *there.values()]) else 0


if __name__ == "__main__":
    sys.exit(main())
