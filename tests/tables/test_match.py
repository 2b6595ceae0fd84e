"""Networks brought to one size."""

import functools
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import attention_jax as aj
from attention_jax.config import load_config, override
from attention_jax.models.summary import Summary
from attention_jax.tables import match
from attention_jax.tables.match import match_costs
from tests.helpers.small import CONFIG, small_config

INPUT = (1, 8, 8, 1)
MODULE = """
from flax import linen as nn


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))
"""


def counts(config: ConfigDict) -> Summary:
    return aj.summary(aj.create_model(**{"num_classes": 10, **config.model.to_dict()}), INPUT)


@pytest.fixture(scope="module")
def rows() -> dict[str, ConfigDict]:
    wide = functools.partial(small_config, model__widths=(16, 32), model__gate_at="block")
    return {
        "none": small_config(model__widths=(16, 32)),
        "mine": wide(model__gate="se", model__gate_args={"reduction": 4}),
        "se": wide(model__gate="se", model__gate_args={"reduction": 16}),
        "copy": wide(model__gate="se", model__gate_args={"reduction": 4}),
        "eca": wide(model__gate="eca"),
        "large": small_config(model__widths=(24, 48)),
    }


@pytest.mark.parametrize("by", ["params", "macs"])
def test_all_rows(rows: dict[str, ConfigDict], by: str) -> None:
    """The target and what is near to it stay; a gate with a reduction gets another, all others widths, within 1 %."""
    matched, sentences = match_costs(rows, "mine", by)
    assert list(matched) == list(rows) and matched["mine"] == rows["mine"] and matched["copy"] == rows["copy"]
    target = getattr(counts(rows["mine"]), by)
    for label, config in matched.items():
        assert abs(getattr(counts(config), by) / target - 1) <= 0.01, label
    changed = {label for label in rows if matched[label] != rows[label]}
    assert changed == sentences.keys()
    if by == "params":
        assert matched["se"].model.gate_args.reduction == 4 and matched["se"].model.widths == (16, 32)
        assert sentences["se"] == f"reduction 4 in place of 16: {target:,} parameters, as many as mine."
        width = matched["large"].model.widths
        assert width[0] < 24 and sentences["large"].startswith(
            f"widths {width} in place of (24, 48): {counts(matched['large']).params:,}"
        )
        assert changed == {"none", "se", "eca", "large"}


def test_a_reduction_that_does_not_suffice_stays(rows: dict[str, ConfigDict]) -> None:
    """Then the widths alone are scaled, each of them, in few counts."""
    calls: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match, "summary", lambda *args: calls.append(args) or aj.summary(*args))
        matched, sentences = match_costs({name: rows[name] for name in ("large", "se")}, "large")
    model = matched["se"].model
    assert model.gate_args.reduction == 16 and 22 <= model.widths[0] <= 25 and 45 <= model.widths[1] <= 49
    assert sentences["se"].startswith(f"widths {model.widths} in place of (16, 32): ")
    assert len(calls) <= 22


def test_rows_that_stay_off(rows: dict[str, ConfigDict], tmp_path: Path) -> None:
    """They say how far, and what was tried."""
    (tmp_path / "net.py").write_text(MODULE)
    own = override(load_config(str(CONFIG)), {"model.name": f"{tmp_path}/net.py:Net"})
    small = small_config(model__stage_sizes=(1,), model__widths=(1,))
    matched, sentences = match_costs({"large": rows["large"], "own": own, "small": small}, "large")
    target, count = counts(rows["large"]).params, 64 * 10 + 10
    assert matched["own"] == own
    assert sentences["own"] == (
        f"the network as it is: {count} parameters, {100 - 100 * count / target:.2g} % fewer than large; "
        "it has neither widths nor a gate with a reduction."
    )
    assert matched["small"].model.widths == (4,)
    assert sentences["small"].endswith(" % fewer than large; no other scale of its widths is closer.")


@pytest.mark.parametrize(("label", "by", "message"), [("others", "params", "the rows are 'none'"), ("none", "time", "'macs'")])
def test_mistakes(rows: dict[str, ConfigDict], label: str, by: str, message: str) -> None:
    with pytest.raises(aj.UserError, match=message):
        match_costs(rows, label, by)
