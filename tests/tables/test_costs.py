"""Costs of networks measured in turn."""

from types import SimpleNamespace

import jax
import pytest

import attention_jax as aj
from attention_jax.preflight.measure import measure_program
from attention_jax.tables import costs
from attention_jax.train.program import Program, build_program
from tests.helpers.small import small_config

INPUT = (1, 8, 8, 1)
MS = {"narrow": [90, 80, 1, 2, 3, 4], "wide": [90, 80, 3, 4, 12, 8]}


@pytest.fixture(scope="module")
def made() -> dict[tuple[int, ...], costs._Timed]:
    """What was compiled, by the widths of the network."""
    return {}


@pytest.fixture(scope="module", params=[1, 2], ids=["states stay", "states are put away"])
def measured(request: pytest.FixtureRequest, made: dict[tuple[int, ...], costs._Timed]) -> SimpleNamespace:
    """Costs of two small networks whose steps are said to take `MS`, and the order of the steps."""
    labels = {(4,): "narrow", (8,): "wide"}
    configs = {label: small_config(model__stage_sizes=(1,), model__widths=widths) for widths, label in labels.items()}
    order: list[str] = []
    kind = costs._Timed

    def make(program: Program) -> costs._Timed:
        widths = program.config.model.widths
        made[widths] = made.get(widths) or kind(program)
        made[widths].times = []
        return made[widths]

    def take(self: costs._Timed) -> None:
        label = next(label for widths, label in labels.items() if made[widths] is self)
        really_take(self)
        assert self.times[-1] > 0
        self.times[-1] = MS[label][len(self.times) - 1]
        order.append(label)

    really_take = kind.take_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "take_step", take)
        patch.setattr(costs, "_Timed", make)
        if request.param == 2:
            patch.setattr(costs, "_HELD", 0)
        found = costs.measure_costs(configs, repeats=4)
    return SimpleNamespace(found=found, order=order, configs=configs, run=request.param)


def test_times(measured: SimpleNamespace) -> None:
    """Medians and quartiles without the first two rounds; ratios are of one round each, not of the medians."""
    narrow, wide = measured.found["narrow"], measured.found["wide"]
    assert (narrow.step_low_ms, narrow.step_ms, narrow.step_high_ms) == (1.75, 2.5, 3.25)
    assert (narrow.ratio_low, narrow.ratio, narrow.ratio_high) == (1, 1, 1)
    assert (wide.ratio_low, wide.ratio, wide.ratio_high) == (2, 2.5, 3.25) and wide.step_ms / narrow.step_ms == 2.4
    assert wide.device == f"{jax.device_count()} x {jax.devices()[0].device_kind}, {costs.count_threads()} CPU threads"


def test_rounds(measured: SimpleNamespace) -> None:
    """Each network once a round, not always in the same order."""
    rounds = list(zip(measured.order[::2], measured.order[1::2], strict=True))
    assert len(rounds) == 6 and {frozenset(each) for each in rounds} == {frozenset(MS)} and len(set(rounds)) == 2


def test_every_step_goes_on_from_the_one_before(measured: SimpleNamespace, made: dict[tuple[int, ...], costs._Timed]) -> None:
    for each in made.values():
        assert each.state.step == 6 * measured.run
        assert isinstance(each.state.step, jax.Array) is (measured.run == 1)


def test_counts_and_memory(measured: SimpleNamespace) -> None:
    for label, config in measured.configs.items():
        cost, program = measured.found[label], build_program(config)
        counts = aj.summary(program.model, INPUT)
        assert (cost.params, cost.macs) == (counts.params, counts.macs)
        if measured.run == 1:
            assert cost.memory_bytes == measure_program(program)[0].needed
