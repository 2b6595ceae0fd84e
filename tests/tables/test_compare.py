"""A stranger's block beside the published ones: rows, verdicts, the page, and what is refused before anything is trained."""

import dataclasses
import re
import types
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

from attention_jax.config.config import flatten_config
from attention_jax.data.splits import VALIDATION
from attention_jax.errors import UserError
from attention_jax.nn.gates import SqueezeExcite
from attention_jax.tables import compare as module
from attention_jax.tables import compare_page
from attention_jax.tables.bases import BASES, get_base
from attention_jax.tables.compare import compare
from attention_jax.tables.compare_page import CONTROL, PUBLISHED, YOURS, describe_verdict, find_best_control
from attention_jax.tables.html import render_html
from attention_jax.tables.render import draw_conclusions
from attention_jax.tables.table import Row
from attention_jax.tables.tuning import FIRST_SEED, Tuning, plan_tuning
from tests.tables.test_render import TABLE, complete
from tests.tables.test_verdicts import result

GATE = """
import flax.linen as nn


class Mine(nn.Module):
    reduction: int = 16

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        weights = nn.sigmoid(nn.Dense(c)(nn.relu(nn.Dense(c // self.reduction)(x.mean((1, 2))))))
        self.sow("attention", "where", x.mean(-1))
        return x * weights[:, None, None, :]


class Wrong(nn.Module):
    def __call__(self, x):
        return x[:, ::2]
"""


class InThisFile(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x


@pytest.fixture
def requests(monkeypatch):
    """The requests that would run."""
    made = []

    def keep(request, *others):
        made.append(request)
        return compare_page.BlockComparison("", [], Path("page.md"), 0)

    monkeypatch.setattr(module, "run_comparison", keep)
    return made


@pytest.fixture
def gate_file(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "blocks.py"
    path.write_text(GATE)
    return path


def configs_of(request):
    return {row.label: request.table.config(row, request.scale) for row in request.table.rows}


def test_all_blocks_stand_at_the_same_places_with_the_same_reduction(requests, gate_file):
    compare(f"{gate_file}:Mine", on="cued_digits", scale="quick")
    compare(f"{gate_file}:Mine", on="cued_digits", at="block", overrides={"model.gate_stages": (2,)})
    assert [request.folder.name for request in requests] == ["compare-mine-cued_digits", "compare-mine-cued_digits-block"]
    for request, place in zip(requests, [{"gate_at": "stage", "gate_stages": None}, {"gate_at": "block", "gate_stages": (2,)}]):
        configs = configs_of(request)
        kinds = {row.label: row.kind for row in request.table.rows}
        assert list(kinds) == [
            *("none", "a block more", "added branch", "added mean", "SE", "BAM", "BAM (released code)", "CBAM", "ECA"),
            *("global context", "self-attention", "Mine"),
        ]
        for label, config in configs.items():
            if kinds[label] in (PUBLISHED, YOURS) or label.startswith("added"):
                own = {name: config.model.get(name) for name in place}
                assert own == place, label
                if label not in ("ECA", "added mean", "self-attention"):
                    assert config.model.gate_args["reduction"] == 1, label
        assert configs["none"].model.get("gate") is None
        assert configs["a block more"].model.stage_sizes == ((2, 1) if place["gate_at"] == "stage" else (1, 2))
        assert kinds["a block more"] == CONTROL
        first = {name: value for name, value in flatten_config(configs["none"]).items() if not name.startswith("model.")}
        for label, config in configs.items():  # nothing but the network differs
            assert {n: v for n, v in flatten_config(config).items() if not n.startswith("model.")} == first, label


def test_rows_that_are_left_out_are_named_and_the_first_stays(gate_file, monkeypatch):
    made = []
    monkeypatch.setattr(module, "run_comparison", lambda request, notes, *others: made.append((request.table, notes)))
    compare(f"{gate_file}:Mine", rows=["SE", "Mine", "added*"])
    ((table, (note,)),) = made
    assert [row.label for row in table.rows] == ["none", "added branch", "added mean", "SE", "Mine"]
    assert table.also_compared == (("Mine", "added branch"), ("Mine", "added mean"), ("Mine", "SE"))
    assert note.startswith("Rows that were left out: a block more, BAM, ") and note.endswith(", self-attention.")


def test_bam_has_both_readings(requests, gate_file):
    compare(f"{gate_file}:Mine")
    configs = configs_of(requests[0])
    paper, code = (configs[label].model.gate_args for label in ("BAM", "BAM (released code)"))
    assert "combine" not in paper and code["combine"] == "product" and code["batch_norm"] == "code"


def test_an_object_is_known_by_its_name(requests):
    compare(SqueezeExcite)
    assert requests[0].table.rows[-1].overrides["model.gate"] == "attention_jax.nn.gates:SqueezeExcite"
    notebook = types.new_class("Cell", (nn.Module,))
    notebook.__module__ = "__main__"
    with pytest.raises(UserError, match=r"write it to a file, with %%writefile my_block.py"):
        compare(notebook)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give either --gate=FILE.py:Name or --recipe=FILE.py:piece"),
        ({"gate": "se", "recipe": "ema"}, "give either --gate"),
        ({"gate": "se", "at": "head"}, "--at=head is not right: give stage or block"),
        ({"gate": "se", "on": "cued_digit"}, r"--on=cued_digit: .*did you mean 'cued_digits'"),
        ({"gate": "se", "on": "cued_digits", "scale": "papre"}, "--scale=papre"),
        ({"gate": "no_file.py:Mine"}, "no_file.py: there is no such file"),
        ({"gate": "{gate}:Main"}, "has no 'Main'.*did you mean 'Mine'"),
        ({"gate": "{gate}:Wrong"}, "Wrong' turns float32 .* into float32 .*: a gate keeps the shape"),
        ({"gate": "se", "on": "cifar10", "overrides": {"data.args.data_dir": "/nowhere"}}, "/nowhere.*cifar10"),
        ({"gate": "se", "tune": "lr:2"}, "--tune=lr:2 is not right: give lr:N with an odd number of rates from 3"),
        ({"gate": "se", "rows": ["SEE"]}, "no row is called 'SEE'"),
        ({"recipe": "emma"}, "unknown recipe piece 'emma'"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(arguments, said, gate_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {name: value.format(gate=gate_file) if name == "gate" else value for name, value in arguments.items()}
    with pytest.raises(UserError, match=said) as error:
        compare(**given)
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_recipes_are_compared_with_pieces_that_change_something(requests, tmp_path):
    (tmp_path / "mine.py").write_text("def slower(config):\n    config.schedule.learning_rate = 1e-4\n    return config\n")
    compare(recipe=f"{tmp_path / 'mine.py'}:slower")
    configs = configs_of(requests[0])
    first, *_, last = configs
    assert (first, last) == ("none", "slower") and "mixup" in configs
    assert "cosine lr" not in configs, "the recipe has it already"
    assert configs["slower"].schedule.learning_rate == 1e-4 and configs["mixup"].mix.mixup_alpha > 0


@pytest.mark.parametrize("on", ["cued_arrow", "cluttered_digits"])
def test_every_task_has_a_network_without_a_block_first(on, requests, gate_file):
    compare(f"{gate_file}:Mine", on=on, scale="smoke")
    assert requests[0].table.rows[0].label == "none" and requests[0].table.source == BASES[on].notes


def test_another_network_takes_the_place_of_the_tasks():
    config = get_base("cued_digits", "resnet32").config()
    assert config.model.name == "resnet32" and config.model.get("widths") is None
    assert "model.widths" not in get_base("cued_digits", "resnet32").scales["smoke"].overrides


# --- the verdict, from made-up results ------------------------------------------------------------------------------------


def conclude(*scores: float, seeds: int = 5, kinds: tuple[str, ...] = ("", CONTROL, PUBLISHED, YOURS)):
    """(table, conclusions) of rows with these accuracies."""
    rng = np.random.default_rng(0)
    results = complete([result(label, rng.random((seeds, 400)) < score) for label, score in zip("abcd", scores)])
    for each, kind in zip(results, kinds):
        best = "b" if kind in (PUBLISHED, YOURS) else None
        each.plan.row = Row(each.label, kind=kind, against=best)
    table = dataclasses.replace(
        TABLE, rows=tuple(each.plan.row for each in results), also_compared=(("d", "b"), ("d", "c")), compare_to="baseline"
    )
    return table, draw_conclusions(table, results)


def test_the_verdict_names_none_the_best_control_and_the_others():
    text = describe_verdict(*conclude(0.5, 0.7, 0.5, 0.9))
    found = re.fullmatch(
        r"d: better than the network without it \(a\), by \+\d+\.\d\d points \[\+.*\]; better than the best control, b, by "
        r"\+.*; better than c\.",
        text,
    )
    assert found, text
    text = describe_verdict(*conclude(0.5, 0.7, 0.9, 0.7))
    assert "no difference found to the best control, b (" in text and "worse than c" in text
    assert describe_verdict(*conclude(0.9, 0.7, 0.5, 0.3)).startswith("d: worse than the network without it (a), by -")


@pytest.mark.parametrize(("seeds", "reason"), [(1, "one seed"), (2, "two seeds")])
def test_with_few_seeds_nothing_is_judged(seeds, reason):
    text = describe_verdict(*conclude(0.1, 0.2, 0.3, 0.9, seeds=seeds))
    assert "better" not in text and text.startswith(f"d: not judged against the network without it (a) ({reason}: +")


def test_the_best_control_has_the_highest_score():
    rng = np.random.default_rng(0)
    results = complete([result(label, rng.random((3, 400)) < score) for label, score in zip("abc", (0.9, 0.5, 0.7))])
    for each, kind in zip(results, ("", CONTROL, CONTROL)):
        each.plan.row = Row(each.label, kind=kind)
    assert find_best_control(results) == "c" and find_best_control(results[:1]) is None


# --- rates ----------------------------------------------------------------------------------------------------------------


def test_every_row_gets_as_many_rates_on_the_validation_split(requests, gate_file):
    compare(f"{gate_file}:Mine", scale="smoke", tune="lr:3")
    tuning = plan_tuning(requests[0], "lr:3")
    configs = configs_of(tuning.request)
    assert len(configs) == 3 * len(requests[0].table.rows) and tuning.request.first_seed == FIRST_SEED >= 100
    for label in ("none", "Mine"):
        own, *others = (configs[name] for name in (label, f"{label} (rate × 0.333)", f"{label} (rate × 3)"))
        assert {config.data.eval_split for config in (own, *others)} == {VALIDATION}
        rates = [config.schedule.learning_rate for config in (own, *others)]
        np.testing.assert_allclose(rates, [3e-3, 1e-3, 9e-3], rtol=1e-5)


def test_the_best_rate_is_trained_beside_the_given_one(requests, gate_file, monkeypatch):
    compare(f"{gate_file}:Mine", scale="smoke", tune="lr:3", rows=["none", "Mine"])
    tuning = plan_tuning(requests[0], "lr:3")
    scores = {row.label: [0.5, 0.5, 0.4] for row in requests[0].table.rows} | {"Mine": [0.5, 0.4, 0.9]}
    monkeypatch.setitem(vars(tuning), "scores", scores)
    assert tuning.choose_factor("none") == 1 and tuning.choose_factor("Mine") == 3
    request = tuning.add_rows()
    assert [row.label for row in request.table.rows[-2:]] == ["Mine", "Mine (rate × 3)"]
    assert request.selected == {"none", "Mine", "Mine (rate × 3)"}
    config = request.table.config(request.table.rows[-1], "smoke")
    assert config.schedule.learning_rate == pytest.approx(9e-3) and config.data.eval_split == "test"
    assert tuning.choose_labels(tuned=False)["Mine"] == "Mine" and tuning.choose_labels(tuned=True)["Mine"] == "Mine (rate × 3)"
    assert "**90.00**" in tuning.describe() and isinstance(tuning, Tuning)


# --- the page -------------------------------------------------------------------------------------------------------------


def test_html_has_all_of_the_page_in_one_file():
    page = (
        "# A & B\n\nFirst **bold** `a*b<c>`.\n\n| row | x \\| y |\n| --- | ---: |\n| a | **1** |\n\n![chart](c.png)\n\n"
        "## More\n\nline\nline"
    )
    text = render_html(page, {"c.png": b"PNG"})
    assert "<h1>A &amp; B</h1>" in text and "<strong>bold</strong>" in text and "<code>a*b&lt;c&gt;</code>" in text
    assert "<th>x | y</th>" in text and "<td><strong>1</strong></td>" in text and "line<br>line" in text
    assert 'src="data:image/png;base64,UE5H"' in text and "<h2>More</h2>" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
