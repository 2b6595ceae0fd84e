"""Scaling on paper: from one compiled step to more chips and slices."""

import pytest

from attention_jax.config.plugins import load_file
from attention_jax.errors import UserError
from attention_jax.preflight import scaling, table
from attention_jax.preflight.chips import find_slice
from attention_jax.preflight.report import Report
from tests.preflight.test_preflight import SLICE, made_up

G = 2**30  # bytes of gradients
STEP = Report(SLICE, made_up(laid_out={"params": G, "opt_state": G, "batch": G}, traffic=20 * G), None)


def test_the_same_chips_take_as_long():
    same = scaling.scale_report(STEP, SLICE)
    assert (same.bounds["compute"], same.bounds["memory"]) == (STEP.bounds["compute"], STEP.bounds["memory"])
    assert same.bounds["interconnect"] == pytest.approx(2 * G * 15 / 16 / SLICE.egress)
    assert same.cost.steps == STEP.cost.steps and same.rate == STEP.cost.examples / same.step


def test_slices_exchange_what_each_has_summed():
    four = scaling.scale_report(STEP, find_slice("4xv5e-16"))
    assert four.bounds["compute"] == STEP.bounds["compute"] and four.cost.steps == STEP.cost.steps / 4
    assert four.bounds["network"] == pytest.approx(2 * G / 16 * 3 / 4 / SLICE.chip.network)
    assert four.bounds["interconnect"] == pytest.approx(2 * G * 15 / 16 / SLICE.egress)


def test_half_a_batch_per_chip_reads_the_state_all_the_same():
    half = scaling.scale_report(STEP, find_slice("v5e-32"), share=0.5)
    assert half.bounds["compute"] == pytest.approx(STEP.bounds["compute"] / 2)
    assert half.cost.traffic == 6 * G + 14 * G / 2  # parameters, optimizer and gradients twice
    assert (half.cost.examples, half.cost.steps) == (STEP.cost.examples, STEP.cost.steps)


def test_slices_are_those_that_there_are():
    found = scaling.list_slices(SLICE, (16, 512, 1024), (1, 2, 4))
    assert [slice_.topology for slice_ in found] == [
        *("v5e:4x4", "2xv5e:2x4", "4xv5e:2x2", "2xv5e:16x16", "4xv5e:8x16", "4xv5e:16x16"),
    ]


def test_a_divided_state_is_refused():
    row = table.PreflightRow("net", "a.py", {}, "v5e-16")
    with pytest.raises(UserError, match="divide nothing but the batch"):
        scaling.refuse_division(made_up(mesh={"data": 8, "fsdp": 2}), row)


def test_the_committed_page_is_that_of_its_numbers(root):
    module = load_file(root / "experiments/scaling_pods.py")
    rows = [row for name in ("rows", "checks") for row in table.list_preflight_rows(module, name)]
    found = table.read_kept_rows(root / "experiments/results/scaling_pods.json", rows)
    assert (root / "experiments/results/scaling_pods.md").read_text() == scaling.render_scaling(module, found)
