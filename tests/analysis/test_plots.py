"""Pictures: what is drawn is what was given, and nothing overlaps or is cut off."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from attention_jax.analysis import plots
from attention_jax.cli import main as cli
from attention_jax.errors import UserError
from attention_jax.load import Run, load_run
from attention_jax.tasks import classification, get_task
from tests.helpers.make_tiny_run import RUN
from tests.helpers.small import small_config


def lines(offset: float, steps: int = 8) -> list[dict]:
    """A log of 10 steps an epoch."""
    log = []
    for i in range(1, steps + 1):
        log.append({"step": 10 * i, "epoch": float(i), "train/loss": 1 / i + offset})
        log.append({"step": 10 * i, "headline": 0.9 + 0.01 * i - offset})
    return log


def nothing_is_cut_off(figure) -> bool:
    """Whether all that is drawn lies inside the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    return box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01


def overlapping(texts) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other."""
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text().strip()]
    return [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[:i] if x.overlaps(y)]


def test_row_chart_shows_every_seed_and_interval():
    bars = [plots.Bar("plain", [0.90, 0.91, 0.95], 0.92, 0.89, 0.96), plots.Bar("one seed", [0.98], 0.98, 0.97, 1.01)]
    figure = plots.plot_rows(bars, "A title with " + "many words that need more than a line " * 3)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "one seed"]
    drawn = [line.get_xdata() for line in axes.lines]
    for i, bar in enumerate(bars):
        band, tick, dots = drawn[3 * i : 3 * i + 3]
        np.testing.assert_allclose(band, [100 * bar.low, min(100 * bar.high, 100)])  # no accuracy above 100 %
        np.testing.assert_allclose(tick, 100 * bar.value)
        np.testing.assert_allclose(dots, 100 * np.array(bar.by_seed))
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top
    assert nothing_is_cut_off(figure)


def test_row_chart_of_differences_has_a_line_at_zero():
    bars = [plots.Bar("deeper", [-0.01, 0.03], 0.01, -0.02, 0.04), plots.Bar("wider", [0.2, 0.22], 0.21, 0.19, 0.23)]
    figure = plots.plot_rows(bars, "A title", "exact match", baseline="a row with a rather long name")
    (axes,) = figure.axes
    assert nothing_is_cut_off(figure)
    assert "points above a row" in axes.get_xlabel()
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [-2, 4])
    np.testing.assert_allclose(axes.lines[-1].get_xdata(), 0)
    assert axes.get_xlim()[0] < -2 and axes.get_xlim()[1] > 23


def test_rows_of_one_kind_have_one_colour():
    kinds = ("training", "training", "architecture", "")
    figure = plots.plot_rows(
        [plots.Bar(f"row {i}", [0.1], 0.1, 0.0, 0.2, kind) for i, kind in enumerate(kinds)], baseline="none"
    )
    (axes,) = figure.axes
    one, two, three, without = (line.get_color() for line in axes.lines[:12:3])
    assert one == two != three and without not in (one, three)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "architecture"]
    assert nothing_is_cut_off(figure)


def test_learning_curves_mean_over_seeds_by_epoch():
    runs = {"a": [lines(0.0), lines(0.02)], "b": [lines(0.01)], "stopped early": [lines(0.0), lines(0.0, steps=5)]}
    figure = plots.plot_learning_curves(runs, "A title")
    scores, losses = figure.axes
    mean = next(line for line in scores.lines if line.get_label() == "a")
    np.testing.assert_allclose(mean.get_xdata(), np.arange(1, 9))
    np.testing.assert_allclose(mean.get_ydata(), 100 * (0.9 + 0.01 * np.arange(1, 9) - 0.01))
    loss = next(line for line in losses.lines if line.get_label() == "a")
    np.testing.assert_allclose(loss.get_ydata(), 1 / np.arange(1, 9) + 0.01)
    assert len(scores.lines) == 3 + 1 + 3  # seeds and mean; of one seed only itself
    early = next(line for line in scores.lines if line.get_label() == "stopped early")
    np.testing.assert_allclose(early.get_xdata(), np.arange(1, 6))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)
    assert nothing_is_cut_off(figure)


def test_learning_curves_of_a_run_without_a_log():
    with pytest.raises(UserError, match="a: 'headline' was not logged"):
        plots.plot_learning_curves({"a": [[{"step": 1, "epoch": 0.1, "train/loss": 1.0}]]})


def test_the_verb_plot_draws_the_logs_of_runs(tmp_path, monkeypatch, capsys):
    drawn = {}
    monkeypatch.setattr(plots, "plot_learning_curves", lambda runs, **_: drawn.update(runs) or plots.make_figure(1, 1))
    picture = tmp_path / "curves.png"
    assert cli.main(["plot", str(RUN), f"twice={RUN}", f"twice={RUN}", f"--output={picture}"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in capsys.readouterr().out
    assert {label: len(seeds) for label, seeds in drawn.items()} == {RUN.name: 1, "twice": 2}
    assert drawn["twice"][0] == load_run(RUN).metrics
    for arguments, said in (
        ([str(RUN), f"--output={picture}"], "exists already"),
        ([str(tmp_path), f"--output={tmp_path / 'b.png'}"], "is no folder of a run"),
        ([str(RUN), f"--output={tmp_path / 'b.txt'}"], "ends in .png"),
        ([str(RUN), f"--output={tmp_path / 'none' / 'b.png'}"], "cannot be written"),
    ):
        assert cli.main(["plot", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_a_notebook_shows_a_figure_without_pyplot(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # another test may have imported it
    figure = plots.plot_rows([plots.Bar("a", [0.9], 0.9, 0.8, 1.0)])
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


def test_many_rows_look_different():
    looks = {tuple(plots.choose_style(i).values()) for i in range(20)}
    assert len(looks) == 20


@pytest.fixture(scope="module")
def run_and_images():
    """A network with BAM in one place that was initialised and not trained, as `load_run` would give it."""
    gate = {"model.gate": "bam", "model.gate_at": "stage", "model.gate_args": {"reduction": 4}}
    config = classification.resolve(small_config(**gate))
    images = np.stack([classification.loader(config, "test", (0, 1), False).source[i]["image"] for i in range(3)])
    return make_run(config), images


def make_run(config) -> Run:
    """A network of random weights; to draw them is quicker than to compile an initialisation."""
    model, rng = get_task("classification").model(config), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *classification.example_inputs(config))
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(x.dtype), shapes)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    assets = classification.assets(config)
    return Run("runs/x", 0, config, model, variables, "params", assets, [])


def test_attention_picture_draws_the_maps(run_and_images):
    run, images = run_and_images
    figure = plots.plot_attention(run, images, ["zero", "one", "two"])
    maps = plots.attention_maps(run.model, run.variables, run.preprocess(images))
    place = "stage1_gate"
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images and axes.images[0].get_array().ndim == 2]
    expected = [
        *(image[..., 0] for image in images),
        *(np.asarray(maps[f"{place}/input"]).mean(-1)),  # after a ReLU, so its own absolute value
        *np.asarray(maps[f"{place}/spatial"]),
        *np.asarray(maps[f"{place}/map"]).mean(-1),
        *np.abs(np.asarray(maps[f"{place}/output"])).mean(-1),
    ]
    for picture in expected:
        assert any(np.shape(array) == picture.shape and np.allclose(array, picture, atol=1e-6) for array in shown)
    bars = [[bar.get_y() + bar.get_height() for bar in axes.patches] for axes in figure.axes if len(axes.patches) == 4]
    np.testing.assert_allclose(bars, maps[f"{place}/channel"], atol=1e-6)
    assert nothing_is_cut_off(figure)
    assert overlapping([*figure.texts, *(axes.title for axes in figure.axes)]) == []
    columns = ["F", "channel", "spatial", "M(F)", "F'"]
    assert [axes.get_title() for axes in figure.axes if axes.get_title() in columns] == columns
    sides = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    predicted = run.predict(images).labels
    assert sides == [f"true: {true}\npredicted: {seen}" for true, seen in zip(["zero", "one", "two"], predicted, strict=True)]


def test_long_labels_are_wrapped_and_not_cut(run_and_images):
    run, images = run_and_images
    label = "a " + "very long name of a class, " * 4 + "with_a_word_that_is_longer_than_a_line_of_the_label"
    figure = plots.plot_attention(run, images, [label] * 3)
    sides = [axes.yaxis.label for axes in figure.axes if axes.get_ylabel()]
    assert all(label.replace(" ", "") in side.get_text().replace("\n", "").replace(" ", "") for side in sides)
    assert nothing_is_cut_off(figure) and overlapping(sides) == []


def test_f_and_f_prime_share_a_scale(run_and_images):
    run, images = run_and_images
    axes = [
        axes for axes in plots.plot_attention(run, images).axes if axes.images and axes.images[0].get_cmap().name == "viridis"
    ]
    assert len(axes) == 2 * len(images)
    assert len({a.images[0].get_clim() for a in axes}) == 1


# Of the other gates, SE and ECA have maps of channels alone, as CBAM's, the global context block one of positions, and the
# non-local block self-attention's.
GATES = {"cbam": ["channel", "spatial"], "self_attention": ["weights"], "coord": ["M(F)"]}


@pytest.mark.parametrize("gate", GATES)
def test_attention_picture_of_other_gates(run_and_images, gate):
    """What their maps allow: bars of channels, images of positions; self-attention as the mean over its queries."""
    args = {"reduction": 4, **({"value_reduction": 4} if gate == "self_attention" else {})}
    fields = {"model.gate": gate, "model.gate_at": "stage" if gate == "self_attention" else "block", "model.gate_args": args}
    run, images = make_run(classification.resolve(small_config(**fields))), run_and_images[1]
    figure = plots.plot_attention(run, images)
    maps = plots.attention_maps(run.model, run.variables, run.preprocess(images))
    places = len(maps) // len(GATES[gate])
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["image", *GATES[gate] * places]
    bars = [[bar.get_y() + bar.get_height() for bar in axes.patches] for axes in figure.axes]
    for array in map(np.asarray, maps.values()):
        shown = bars if array.ndim == 2 else [axes.images[0].get_array() for axes in figure.axes if axes.images]
        for expected in array.mean({4: 3, 5: (1, 2)}.get(array.ndim, ())):
            assert any(np.shape(s) == expected.shape and np.allclose(s, expected, atol=1e-6) for s in shown)
    assert nothing_is_cut_off(figure) and overlapping([*figure.texts, *(axes.title for axes in figure.axes)]) == []


def test_attention_picture_of_a_network_without_attention(run_and_images):
    run = make_run(classification.resolve(small_config()))
    with pytest.raises(UserError, match="no attention module that gives maps of images"):
        plots.plot_attention(run, run_and_images[1])


def test_matplotlib_loads_when_a_picture_is_made():
    code = "import sys, attention_jax.analysis.plots; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
