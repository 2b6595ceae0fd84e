"""The parser of the command line: commands, options, and errors in the user's words."""

import argparse
import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from attention_jax.cli.completion import WITH_FIELDS
from attention_jax.config.describe import describe_fields
from attention_jax.errors import suggest_name


class _Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, with the nearest known option."""

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        unknown = message.removeprefix("unrecognized arguments: ").split("=")[0]
        nearest = suggest_name(unknown, options) if message.startswith("unrecognized") else ""
        print(f"error: {self.prog}: {message}{nearest}.", file=sys.stderr)
        sys.exit(2)


parsers: dict[str, argparse.ArgumentParser] = {}  # {command: its parser}


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; `parsers` has those of each."""
    parser = _Parser(prog="attention_jax", description="Attention in vision and language: train, evaluate, tabulate.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def command(name: str, text: str) -> Callable[..., Any]:
        fields = describe_fields() if name in WITH_FIELDS else None
        sub = commands.add_parser(
            name, help=text, description=text, epilog=fields, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.set_defaults(parser=sub)
        parsers[name] = sub
        return sub.add_argument

    _add_runs(command)
    _add_translation(command)
    _add_comparison_of_runs(command)
    _add_tables(command)
    _add_rest(command)
    return parser


def _add_run_options(add: Callable[..., Any]) -> None:
    add("--workdir", required=True, type=_place, metavar="DIR", help="a run's folder, or that of one of its checkpoints")
    add("--weights", choices=("ema", "params"), help="default: the average if the run has one")
    add("--average", type=_integer_from(1), default=1, metavar="N", help="use the mean of the newest N checkpoints")
    add("--best", action="store_true", help="use the kept checkpoint with the best headline metric, not the newest")
    add("--trust-code", action="store_true", help="run the code that the run came with, whatever it is")


def _add_runs(command: Callable[..., Any]) -> None:
    """Adds the commands that train, or use a trained run."""
    add = command("train", "Train a config; the same command resumes. Any field: --config.key=value.")
    add("--config", required=True, type=_place, metavar="FILE.py[:ARG]", help="defines get_config()")
    add("--workdir", required=True, type=_place, metavar="DIR", help="for checkpoints and logs; or a URI, as gs://bucket/run")
    add("--saved-code", action="store_true", help="go on with the code that the run was begun with, where files have changed")
    add("--trust-code", action="store_true", help="also where someone else began it")
    add(
        "--extend",
        nargs="?",
        const="",
        metavar="total_UNIT=N",
        help="let a shorter run in the workdir go on to this larger total, or to the config's, and say what changes",
    )

    add = command("evaluate", "Evaluate the newest checkpoint of a run. Any field: --config.key=value.")
    _add_run_options(add)
    add(
        "--predictions",
        type=_place,
        metavar="FILE",
        help="also what it found for each example, as .jsonl or .npz; must not exist",
    )
    add(
        "--on",
        action="append",
        type=_place,
        metavar="SET",
        help="in place of the run's own split: a folder of classes, one of such folders (ImageNet-C), tfds:NAME:SPLIT, or a "
        "file of real labels, .json; several times for several",
    )

    add = command(
        "export", "Write a run's network as safetensors with a config and a card, for timm, torchvision or this library."
    )
    _add_run_options(add)
    add("--output", required=True, type=_place, metavar="DIR", help="made at once; one with something else stays as it is")
    add("--format", required=True, choices=("timm", "torchvision", "native"), help="whose names; native has every network")
    add("--license", dest="licence", metavar="TEXT", help="of the weights, for config and card; default none is stated")

    add = command(
        "probe", "Classify by the frozen features of a run: nearest neighbours, logistic regression. --config.key=value."
    )
    _add_run_options(add)
    add("--neighbours", type=_integer_from(1), default=20, metavar="K", help="that vote; default 20")
    add("--temperature", type=_positive, default=0.07, metavar="T", help="of the votes exp(cosine / T); default 0.07")


def _add_translation(command: Callable[..., Any]) -> None:
    """Commands of translation runs."""
    add = command("translate", "Translate a line of input into a line of output. --config.search.KEY=value.")
    _add_run_options(add)
    add("--input", dest="source", type=_place, metavar="FILE", help="UTF-8 text, one sentence per line; default standard input")
    add("--output", type=_place, metavar="FILE", help="must not exist; default standard output")
    add("--beam", type=_integer_from(1), metavar="K", help="hypotheses kept open, 1 for greedy search; default the config's")
    add("--alpha", type=_not_negative, metavar="A", help="of the length penalty; default the config's")
    add("--nbest", type=_integer_from(1), metavar="N", help="write the N best as line number<TAB>score<TAB>text")
    add("--scores", action="store_true", help="write score<TAB>text; a score is the log probability, penalised")
    add("--target-prefix", metavar="TEXT", help="with which every translation begins; its tokens are forced, and scored")
    add(
        "--target-prefix-file",
        type=_place,
        metavar="FILE",
        help="a line with such a beginning, or empty, for each of the input",
    )
    add(
        "--alignments",
        nargs="?",
        const="mean",
        type=_layer_and_head,
        metavar="LAYER[.HEAD]",
        help="also write <TAB>pairs source-target of words, from 0, that cross-attention joins; default its mean; from 1",
    )
    add("--attention", type=_place, metavar="OUT.png", help="also plot the attention of each head in the first sentence")
    add("--attention-lines", type=_lines, metavar="I,J", help="of these lines, each into OUT-I.png; default the first sentence")
    add("--attention-of", choices=("cross", "encoder", "decoder"), default="cross", help="default cross")
    _add_batch_options(add)
    add("--shard", type=_shard, metavar="I/N", help="the I-th of N parts of the file alone; joined, they are all of it")
    add("--resume", action="store_true", help="go on from OUTPUT.partial, which a stopped command leaves")

    add = command("score", "Write how probable given translations are, or rerank an n-best list. --config.search.KEY=value.")
    _add_run_options(add)
    add("--source", required=True, type=_place, metavar="FILE", help="UTF-8 text, one sentence per line")
    add("--target", type=_place, metavar="FILE", help="its translations: writes score<TAB>log probability for each line")
    add("--nbest", type=_place, metavar="FILE", help="or a list of translate --nbest, which is written by its new scores")
    add("--output", type=_place, metavar="FILE", help="must not exist; default standard output")
    add("--per-token", action="store_true", help="also write <TAB>tokens<TAB>log probabilities")
    add("--alpha", type=_not_negative, metavar="A", help="of the length penalty, 0 for none; default the config's")
    _add_batch_options(add)
    add("--weight", type=_share, metavar="W", help="of a new score beside 1 - W of the list's own; default 1")


def _add_batch_options(add: Callable[..., Any]) -> None:
    add("--batch-tokens", type=_integer_from(1), metavar="N", help="most tokens of sources in a batch; default the config's")
    add("--batch-size", type=_integer_from(1), metavar="N", help="most sentences in a batch; default any number")
    add("--memory", type=_positive, metavar="GIB", help="that a batch may plan on a device; default 4/5 of what is free")


def _add_comparison_of_runs(command: Callable[..., Any]) -> None:
    add = command("compare-runs", "Compare translations by sacrebleu's paired tests, each with the first.")
    add("systems", nargs="+", metavar="RUN", help="workdirs with a last evaluation, evaluation.npz, or files of translations")
    add("--reference", type=_place, metavar="FILE", help="by default the references that runs keep")
    add("--metrics", default="bleu,chrf,ter", metavar="NAMES", help="default bleu,chrf,ter")
    add("--tokenize", metavar="NAME", help="of BLEU; default that of the first run, or 13a")
    add("--paired-ar", action="store_true", help="approximate randomisation in place of the paired bootstrap")
    add("--json", dest="as_json", action="store_true", help="print what sacrebleu --format=json does")


def _add_tables(command: Callable[..., Any]) -> None:
    """Adds the commands that train the rows of a table."""
    add = command("table", "Run the rows of a table file and write the table; the same command resumes.")
    add(
        "file",
        metavar="FILE.py",
        help="title, source, base, rows, scales; all: every file in experiments/, then docs/results.md; "
        "merge: shards' folders into --workdir; page: docs/results.md alone",
    )
    add("folders", nargs="*", metavar="DIR", help="with merge: the --workdir of each shard")
    add("--shard", metavar="I/N", help="with all: every N-th row of all tables, from the I-th on, for one of N machines")
    add("--scale", help="one of the file's scales; default its first")
    add("--rows", metavar="LABELS", help="comma-separated labels or patterns; the others stay 'not run'")
    add("--seeds", type=_integer_from(1), metavar="N", help="seeds per row; default the scale's")
    add("--workdir", type=_place, metavar="DIR", help="default runs/<file>[-<scale>]")
    add("--output", type=_place, metavar="DIR", help="for the table, chart and pictures; default the workdir")
    add("--dry-run", action="store_true", help="print what would run, and about what it costs")
    add("--slice", dest="topology", metavar="SLICE", help="with --dry-run, also chip-hours on a TPU slice, such as v5e-16")
    add("--aa", action="store_true", help="train each row twice, with other seeds, and count how often they seem to differ")
    add("--files", action="store_true", help="with --dry-run, also print the code and data that the rows name")
    add("--rerun-stale", action="store_true", help="move runs aside whose code or data have changed, and train them again")
    add("--trust-code", action="store_true", help="run the code that the runs came with, whatever it is")

    add = command(
        "compare",
        "Train your block beside none, controls and published ones, all at the same places, and write a page that begins with "
        "the verdict; the same command resumes. Any field: --config.key=value.",
    )
    add("--gate", action="append", metavar="FILE.py:Name", help="your block; several times for several")
    add("--recipe", action="append", metavar="FILE.py:piece", help="a recipe piece, in place of a block")
    add(
        "--on",
        default="cued_digits",
        metavar="TASK",
        help="cued_digits (default), cued_arrow, cluttered_digits, cifar10, imagenet, or a data source",
    )
    add("--base", metavar="NETWORK", help="a model's name, or a config file in place of --on")
    add("--at", choices=("stage", "block"), default="stage", help="after stages (default), or in every residual branch")
    add("--scale", help="one of the task's; default its first")
    add("--rows", metavar="LABELS", help="comma-separated labels or patterns; the others are left out")
    add("--seeds", type=_integer_from(1), metavar="N", help="seeds per row; default the scale's")
    add("--tune", metavar="lr:N", help="choose each row's learning rate from N on the validation split")
    add("--match", choices=("params", "macs"), help="adjust every other row to the cost of your first block")
    add("--workdir", type=_place, metavar="DIR", help="default runs/compare-<blocks>-<task>[-<scale>]")
    add("--output", type=_place, metavar="DIR", help="for the page and its charts; default the workdir")
    add("--dry-run", action="store_true", help="print what would run")
    add("--rerun-stale", action="store_true", help="move runs aside whose code or data have changed, and train them again")
    add("--trust-code", action="store_true", help="run the code that the runs came with, whatever it is")


def _add_rest(command: Callable[..., Any]) -> None:
    add = command("config", "Print a config with all its fields and their meanings; * marks what is not the default.")
    add("file", nargs="?", metavar="FILE.py[:ARG]", help="defines get_config(); any field: --config.key=value")
    add("--check", action="store_true", help="print nothing if the config and what it names are right")
    add("--files", action="store_true", help="also print the code and data that it names")
    add("--fields", action="store_true", help="print the page of all fields, docs/fields.md")

    command("completion", "Print the completion script of bash: source <(./launch.sh completion).")

    add = command("plot", "Plot the learning curves of runs: score and training loss by epoch.")
    add("workdirs", nargs="+", metavar="[LABEL=]DIR", help="runs' folders; the default label is the folder")
    add("--output", required=True, type=_place, metavar="OUT.png", help="must not exist")

    add = command("watch", "Print live curves of runs and tables on the terminal, until Ctrl-C.")
    add("places", nargs="+", metavar="DIR", help="a run's folder, or a table's, or one above them")
    add("--every", type=_positive, default=10.0, metavar="SECONDS", help="default 10")
    add("--once", action="store_true", help="print the state of now, and end")

    add = command("report", "Write a page about a run: scores, curves, what it gets wrong, where it looked, config.")
    add("--workdir", required=True, type=_place, metavar="DIR", help="a run's folder, or that of one of its checkpoints")
    add("--output", type=_place, metavar="OUT.html", help="must not exist; default report.html in the run's folder, made anew")
    add("--examples", type=_integer_from(1), default=8, metavar="N", help="of each kind, right and wrong; default 8")
    add("--trust-code", action="store_true", help="run the code that the run came with, whatever it is")

    add = command("summary", "Parameters and multiply-adds of a network.")
    add(
        "model", help="a name; a pattern such as '*' or 'bam_*' gives a line for each that matches, with its published accuracy"
    )
    add("--image-size", type=_integer_from(1), default=224, metavar="PIXELS")
    add("--channels", type=_integer_from(1), default=3)
    add("--length", type=_integer_from(1), default=64, metavar="TOKENS", help="of source and target, for translation")
    add("--depth", type=_integer_from(0), default=1, help="levels of the module path in a row")

    add = command("preflight", "Predict what a config's train step needs on a TPU slice, without the slice.")
    add("file", nargs="?", metavar="FILE.py", help="rows of a table, in place of --config and --topology")
    add("--config", metavar="FILE.py[:ARG]", help="defines get_config()")
    add("--topology", metavar="SLICE", help="v5e-16, v5e:4x4, v4-8, v5p-8, v6e-8, ...")
    add("--rows", metavar="PATTERNS", help="of a table, comma-separated 'label @ slice'; the others stay as they are")
    add("--output", type=_place, metavar="DIR", help="for a table; default experiments/results; the same command resumes")
    add("--json", dest="as_json", action="store_true", help="print everything as one JSON object")
    add(
        "--probe-data", action="store_true", help="also read the config's data here, and say whether they keep up with the step"
    )

    add = command("prepare", "Prepare sentence pairs, or a data set of TensorFlow Datasets (needs the extra 'prepare').")
    known = "multi30k, multi30k_bpe, tatoeba_ko_en, tldr_ko_en"
    add("name", nargs="?", metavar="NAME", help=f"{known}, or as TensorFlow Datasets spells it, e.g. cifar10")
    add("--data_dir", type=_place, metavar="DIR", help="for the data set and its downloads")
    add("--manual_dir", type=_place, metavar="DIR", help="files fetched by hand; default DIR/downloads/manual")
    add("--config", metavar="FILE.py[:ARG]", help="of translation: keep its tokens in --config.data.cache_dir=DIR")


def refuse_misspelled(arguments: Sequence[str]) -> None:
    """Reports an option that its command does not have, before reporting arguments that are missing because of it."""
    command = parsers.get(arguments[0]) if arguments else None
    if command is None:
        return
    options = [option for action in command._actions for option in action.option_strings]
    for word in itertools.takewhile(lambda word: word != "--", arguments[1:]):
        name = word.split("=")[0]
        if name.startswith("--") and not any(option.startswith(name) for option in options):
            command.error(f"unrecognized arguments: {word}")


def _integer_from(low: int) -> Callable[[str], int]:
    """Returns a converter for whole numbers from `low`."""

    def convert(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not right: give a whole number from {low}")
        return int(text)

    return convert


def _not_negative(text: str) -> float:
    """Converts a number that is at least 0."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not right: give a number, 0 or more")


def _share(text: str) -> float:
    """Converts a share."""
    if (number := _not_negative(text)) <= 1:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is not right: give a number from 0 to 1")


def _lines(text: str) -> tuple[int, ...]:
    """Numbers of lines of the command line."""
    return tuple(_integer_from(1)(number) for number in text.split(","))


def _layer_and_head(text: str) -> tuple[int | None, int | None]:
    """Converts "mean", "LAYER" or "LAYER.HEAD"."""
    numbers = [] if text == "mean" else text.split(".")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not right: give LAYER or LAYER.HEAD, such as 6 or 6.2, counted from 1")
    layer, head = [*map(int, numbers), None, None][:2]
    return layer, head


def _shard(text: str) -> tuple[int, int]:
    """Converts "I/N", two whole numbers."""
    place, slash, number = text.partition("/")
    if slash and place.isdecimal() and number.isdecimal() and 1 <= int(place) <= int(number):
        return int(place), int(number)
    raise argparse.ArgumentTypeError(f"{text!r} is not right: give I/N, such as 1/4, with I from 1 to N")


def _positive(text: str) -> float:
    """Converts a number above 0."""
    if (number := _not_negative(text)) > 0:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is not right: give a number above 0")


def _place(text: str) -> str:
    """Converts a path or a URI."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give a path")
    return text
