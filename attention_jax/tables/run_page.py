"""The report of a run: one self-contained HTML page with its scores, its errors, and maps of where it looked."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attention_jax import storage
from attention_jax.analysis import evaluation_plots, plots, saliency, translation_maps
from attention_jax.config.config import flatten_config
from attention_jax.data.images.decoding import BrokenImage
from attention_jax.errors import UserError, one_sentence
from attention_jax.load import Run, load_run
from attention_jax.models.vit import VisionTransformer
from attention_jax.tables.html import render_html
from attention_jax.tasks import classification
from attention_jax.train import metrics, restore
from attention_jax.train.metrics import TIMING
from attention_jax.train.outcomes import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_MODULES = 6  # beside Grad-CAM, in a figure that can be read
_CLASSES = 10


class _Page:
    """A page of Markdown that grows block by block, with its figures."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.images: dict[str, bytes] = {}

    def add(self, *blocks: str) -> None:
        self.blocks += blocks

    def add_table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
        self.add("\n".join(lines))

    def add_figure(self, name: str, text: str, figure: "Figure") -> None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        self.images[f"{name}.png"] = buffer.getvalue()
        self.add(f"![{text}]({name}.png)")

    def attempt(self, what: str, act: Callable[[], None]) -> None:
        """Calls `act`, or writes into the page why it failed."""
        try:
            act()
        except UserError as error:
            self.add(f"{what} left out: {quote_text(one_sentence(error))}.")


def quote_text(text: Any) -> str:
    """Returns a text of the data's as code in a cell, in which Markdown has no meaning."""
    plain = " ".join(str(text).replace("`", "'").replace("\0", "").split()) or " "
    return f"`{plain}`".replace("|", "\\|")


def write_report(workdir: str, output: str | None = None, examples: int = 8, trust_code: bool = False) -> Path:
    """Writes the report of a run's newest checkpoint; returns its path, by default `report.html` in the workdir.

    Args:
        examples: images or sentences of each kind, right and wrong.
        trust_code: True runs the code that the run came with, unchecked; False leaves out the parts that need it.

    Raises:
        UserError: no run, or a file that exists or cannot be written; a report of before, in the workdir, is replaced.
    """
    if output is None and storage.is_remote(workdir):
        raise UserError(f"report: workdir={workdir} is remote: give --output=FILE.html.")
    if output is not None and Path(output).suffix != ".html":
        raise UserError(f"--output={output}: give a name that ends in .html.")
    if output is not None and Path(output).expanduser().exists():
        raise UserError(f"--output={output} exists already: give another name, or remove it.")
    run = load_run(workdir, trust_code=trust_code)
    target = Path(output).expanduser() if output else run.path.parent.parent / "report.html"
    page = _Page()
    page.add(f"# Report of {quote_text(Path(workdir).name or workdir)}")
    _describe_outcome(page, run)
    page.add("## What it gets wrong")
    page.attempt("What needs an evaluation is", lambda: _describe_examples(page, run, run.evaluation, examples))
    _describe_config(page, run)
    partial = target.with_suffix(".partial")
    try:
        partial.write_text(render_html("\n\n".join(page.blocks), page.images), encoding="utf-8", errors="replace")
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({one_sentence(error)}): give --output=FILE.html.") from error
    return target


def _describe_outcome(page: _Page, run: Run) -> None:
    """Adds scores and curves."""
    page.add(
        f"Checkpoint of step {run.step}, weights {quote_text(run.weights)}, network {quote_text(run.config.model.name)}, data "
        f"{quote_text(run.config.data.source)}, evaluated on split {quote_text(run.config.data.eval_split)}."
    )
    if evaluated := [line for line in run.metrics if "headline" in line]:
        scores = {name: value for name, value in evaluated[-1].items() if "/" in name}
        rows = [(quote_text(name), f"{v:.4f}" if isinstance(v, float) else quote_text(v)) for name, v in scores.items()]
        page.add("## Scores", f"Of the evaluation after step {evaluated[-1]['step']}.")
        page.add_table(("score", "value"), rows)
    page.add("## Curves")
    name = {"classification": "accuracy"}.get(run.config.task, "score")
    page.attempt(
        "Curves are",
        lambda: page.add_figure("curves", "learning curves", plots.plot_learning_curves({"run": [run.metrics]}, metric=name)),
    )


def _describe_examples(page: _Page, run: Run, evaluation: Evaluation, number: int) -> None:
    if run.config.task == "translation":
        _describe_sentences(page, run, evaluation, number)
    elif run.config.task == "classification":
        _describe_images(page, run, evaluation, number)
    else:
        page.add(f"{len(evaluation)} examples; task {quote_text(run.config.task)} has no classes, and no sentences.")


def _describe_images(page: _Page, run: Run, evaluation: Evaluation, number: int) -> None:
    accuracy, labels = evaluation.measure_classes(), evaluation.labels
    top = f", {100 * evaluation.measure_top():.2f} % are among the first five choices" if len(labels) > _CLASSES else ""
    page.add(f"{len(evaluation):,} images, {100 * evaluation.accuracy:.2f} % right{top}.")
    page.add_figure("confusions", "confusions", evaluation_plots.plot_confusions(evaluation))
    counts = evaluation.count_confusions()
    worst = [i for i in np.argsort(accuracy, kind="stable") if counts[i].sum()][:_CLASSES]
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    cells = [
        (quote_text(labels[i]), int(counts[i].sum()), f"{100 * accuracy[i]:.1f}", _name_most(labels, wrong[i])) for i in worst
    ]
    page.add("### Classes with the lowest accuracy")
    page.add_table(("class", "images", "accuracy %", "most often taken for"), cells)
    page.add("### How sure it is")
    page.add_figure("calibration", "reliability diagram", evaluation_plots.plot_calibration(evaluation))
    page.add("### The surest wrong ones")
    places = evaluation.find_surest_wrong(number)
    rows = [
        (quote_text(evaluation.name(i)), quote_text(line["label"]), quote_text(line["classes"][0]), line["probabilities"][0])
        for i, line in ((i, evaluation.lines[i]) for i in places)
    ]
    if not rows:
        page.add("There are none: every image is right.")
        return
    page.add_table(("image", "right class", "first choice", "probability"), rows)
    page.attempt("Images are", lambda: _plot_examples(page, run, evaluation, places))


def _name_most(labels: Sequence[str], counts: np.ndarray) -> str:
    return f"{quote_text(labels[i])} ({counts[i]})" if counts[i := int(counts.argmax())] else "-"


def _plot_examples(page: _Page, run: Run, evaluation: Evaluation, wrong: np.ndarray) -> None:
    """Adds the surest wrong images, and maps of where the network looked in wrong and right ones."""
    right = evaluation.find_surest_right(4)
    images = read_images(run, evaluation, [*wrong, *right])
    captions = [_caption(evaluation, i) for i in wrong]
    page.add_figure("wrong", "the surest wrong images", evaluation_plots.plot_images(images[: len(wrong)], captions))
    page.add("## Where it looked")
    drawn = [*range(min(4, len(wrong))), *range(len(wrong), len(images))]
    places = [int([*wrong, *right][i]) for i in drawn]
    chosen = np.stack([images[i] for i in drawn])

    def look() -> None:
        inputs = classification.preprocess(run.config, chosen)
        located = saliency.locate_attention(run.model, run.variables, inputs)
        left_out = list(located)[:-_MOST_MODULES]
        maps = {name: located[name] for name in list(located)[-_MOST_MODULES:]}
        if isinstance(run.model, VisionTransformer):
            maps["roll-out"] = saliency.compute_rollout(run.model, run.variables, inputs)
        page.attempt(
            "Grad-CAM is", lambda: maps.update({"Grad-CAM": saliency.compute_grad_cam(run.model, run.variables, inputs)})
        )
        if not located:
            page.add("This network has no attention module that gives maps.")
        if left_out:
            page.add(f"The last {_MOST_MODULES} attention modules of {len(located)}; `locate_attention` gives all of them.")
        if maps:
            texts = [_caption(evaluation, i) for i in places]
            page.add_figure("attention", "maps over images", evaluation_plots.plot_overlays(chosen, maps, texts))

    page.attempt("Maps are", look)


def _caption(evaluation: Evaluation, place: int) -> str:
    line = evaluation.lines[place]
    first = f"{line['classes'][0]} ({100 * line['probabilities'][0]:.0f} %)"
    return f"right: {first}" if line["correct"] else f"wrong: {first}, is {line['label']}"


def read_images(run: Run, evaluation: Evaluation, places: Sequence[int]) -> list[np.ndarray]:
    """Reads images of an evaluation, uint8 [H, W, C] as the network gets them but for normalisation.

    Raises UserError if the data are missing, or are not those that were evaluated.
    """
    loader = classification.evaluation_loader(run.config, (0, 1), run.assets)
    images = []
    for place in places:
        index = int(evaluation.outputs["index"][place])
        if index >= len(loader.source):
            raise UserError(f"the data are not those that were evaluated: they have no example {index}.")
        try:
            made = loader.transform(loader.source[index], None)
        except BrokenImage as error:
            raise UserError(f"{evaluation.name(place)} cannot be decoded ({error})") from error
        if int(made["label"]) != int(evaluation.outputs["label"][place]):
            raise UserError(f"the data are not those that were evaluated: example {index} has another class.")
        images.append(made["image"])
    return images


def _describe_sentences(page: _Page, run: Run, evaluation: Evaluation, number: int) -> None:
    lines = evaluation.lines
    loss = np.array([line["loss"] / max(line["tokens"], 1) for line in lines])
    order = np.argsort(-loss, kind="stable")
    page.add(f"{len(lines):,} sentences; loss in nats a target token, of the reference; score: that of the search.")
    for title, places in (("The least probable references", order[:number]), ("The most probable ones", order[::-1][:number])):
        page.add(f"### {title}")
        columns = [name for name in ("source", "reference", "hypothesis", "score") if name in lines[0]]
        texts = [[f"{x:.2f}" if isinstance(x, float) else x for x in map(lines[i].get, columns)] for i in places]
        page.add_table((*columns, "loss"), [[*map(quote_text, row), f"{loss[i]:.2f}"] for row, i in zip(texts, places)])
    page.add("## Where it looked")
    wrong, right = ([i for i in order.tolist() if (lines[i]["correct"] == 1) == is_right] for is_right in (False, True))
    for what, chosen in (("wrong", wrong[:1]), ("right", right[-1:])):
        for i in chosen:

            def look(place: int = i, what: str = what) -> None:
                maps = translation_maps.compute_translation_maps(run, lines[place]["source"])
                kind = "cross" if any(name.startswith("cross/") for name in maps.maps) else "encoder"
                page.add(
                    f"A sentence that is {what}: {quote_text(lines[place]['source'])}, written as {quote_text(maps.text)}."
                )
                page.add_figure(f"attention-{what}", f"attention, {what}", translation_maps.plot_attention_grid(maps, kind))

            page.attempt("Attention is", look)


def _describe_config(page: _Page, run: Run) -> None:
    """Adds config and environment."""
    page.add("## Config")
    page.add_table(("field", "value"), [(quote_text(k), quote_text(repr(v))) for k, v in flatten_config(run.config).items()])
    page.add("## Environment")
    workdir = run.path.parent.parent
    page.add_table(("what", "value"), list(_list_environment(workdir)))


def _list_environment(workdir: Path) -> Iterator[tuple[str, str]]:
    about = restore.read_description(workdir) or {}
    for name, version in (about.get("packages") or {}).items():
        yield quote_text(name), quote_text(version)
    timing = metrics.read_timing(workdir / TIMING) if (workdir / TIMING).exists() else []
    starts = [line for line in timing if line["event"] == "start"]
    if starts:
        yield "processes, devices", f"{starts[-1].get('processes', '?')}, {starts[-1].get('devices', '?')}"
        yield "starts", str(len(starts))
    rates = [line["examples_per_second"] for line in timing if "examples_per_second" in line]
    if rates:
        yield "examples a second, median", f"{np.median(rates):,.0f}"
    seconds = sum(line.get("seconds", 0.0) for line in timing if line["event"] == "call")
    if seconds:
        yield (
            "time of all calls",
            time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86400 else f"{seconds / 86400:.1f} days",
        )
