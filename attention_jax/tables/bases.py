"""Tasks on which `compare` tries blocks, each with its network, recipe, places for gates, and sizes of runs.

Everything is made here, so an installed wheel can compare blocks in an empty folder.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import defaults
from attention_jax.config.config import apply_pieces, load_config, override
from attention_jax.config.plugins import load_object
from attention_jax.data.images.sources import SOURCES
from attention_jax.errors import UserError, suggest_name
from attention_jax.tables.table import Scale


@dataclasses.dataclass(frozen=True)
class Base:
    """A task on which blocks are compared.

    Attributes:
        config: function that makes the config of the row without a block.
        scales: {name: Scale}; the first is the default.
        reduction: reduction of every gate and control that takes one; None keeps their own defaults.
        gate_stages: numbers, from 1, of the stages that gates follow; None is all but the last.
        notes: a few sentences on the task of the network.
    """

    config: Callable[[], ConfigDict]
    scales: Mapping[str, Scale]
    reduction: int | None = None
    gate_stages: tuple[int, ...] | None = None
    notes: str = ""


_SMOKE = {
    "batch_size": 4,
    "total_steps": 4,
    "schedule.warmup_steps": 1,
    "evaluation.every_steps": 2,
    "evaluation.batch_size": 20,
    "checkpoint.every_steps": 4,
    "logging.every_steps": 2,
    "logging.tensorboard": False,
}
_LONG = {"total_steps": 1200, "evaluation.every_steps": 120, "checkpoint.every_steps": 1200}
_EPOCHS = {"schedule.name": "cosine", "evaluation.every_epochs": 1.0, "checkpoint.every_epochs": 1.0}
_EMBEDDED = {
    "quick": Scale(seeds=5),
    "long": Scale(seeds=5, overrides=_LONG),
    "smoke": Scale(overrides={**_SMOKE, "data.args.number": (40, 40), "model.widths": (8, 8)}),
}
_GUESSING = "Guessing which of the two digits is meant is right in about half of the cases."


def _make_arrows() -> ConfigDict:
    return override(defaults.cued_digits(), {"data.args.key": "arrow"})


def _make_clutter() -> ConfigDict:
    """Returns the network and recipe of cued digits, on square images."""
    data = {"source": "cluttered_digits", "args": {"canvas": (16, 16), "number": (2000, 2000), "pieces": 2, "piece": 4}}
    config = override(defaults.cued_digits(), {f"data.{name}": value for name, value in data.items()})
    return override(config, {"data.mean": (0.2,) * 3, "data.std": (0.34,) * 3, "batch_size": 50, "total_steps": 800})


def _make_imagenet() -> ConfigDict:
    """Returns the recipe of configs/imagenet_resnet50.py."""
    config = defaults.imagenet()
    config.model.name = "resnet50"
    config.update(batch_size=256, total_epochs=90.0)
    config.batch_norm.granularity = "per_replica"
    config.optimizer.weight_decay = 1e-4
    config.schedule.learning_rate = 0.1
    return apply_pieces(config, (recipes.step_lr, recipes.nesterov))


def _make_own(source: str) -> ConfigDict:
    """Returns a ResNet-20 and the recipe of cued digits, on a source that the user names."""
    config = override(defaults.cued_digits(), {"model.name": "resnet20", "data.source": source})
    return override(config, {"data.mean": (0.5,) * 3, "data.std": (0.25,) * 3, "total_steps": 2000})


BASES = {
    "cued_digits": Base(
        config=defaults.cued_digits,
        scales=_EMBEDDED,
        reduction=1,
        notes=(
            "Two UCI digits, one red and one green, and between them a framed patch of one of their colours: the label is the "
            f"digit of that colour. {_GUESSING}"
        ),
    ),
    "cued_arrow": Base(
        config=_make_arrows,
        scales=_EMBEDDED,
        reduction=1,
        gate_stages=(2,),
        notes=f"Two UCI digits, and between them an arrow: the label is the digit that it points to. {_GUESSING}",
    ),
    "cluttered_digits": Base(
        config=_make_clutter, scales=_EMBEDDED, reduction=1, notes="One UCI digit between two pieces of others."
    ),
    "cifar10": Base(
        config=defaults.cifar10,
        scales={
            "quick": Scale(seeds=3, overrides={**_EPOCHS, "total_epochs": 10.0, "schedule.warmup_epochs": 1.0}),
            "paper": Scale(seeds=5),
            "smoke": Scale(overrides=_SMOKE),
        },
        reduction=4,
        notes="The recipe of He et al. 2016, Section 4.2; at the scale quick ten epochs with a cosine schedule.",
    ),
    "imagenet": Base(
        config=_make_imagenet,
        scales={
            "quick": Scale(seeds=3, overrides={**_EPOCHS, "total_epochs": 18.0, "schedule.warmup_epochs": 1.0}),
            "paper": Scale(seeds=3),
            "smoke": Scale(overrides=_SMOKE),
        },
        notes="The recipe of fb.resnet.torch, 90 epochs; at the scale quick 18 with a cosine schedule.",
    ),
}


def get_base(on: str, network: str | None) -> Base:
    """Returns the task that `on` names, with another network if one is given.

    Args:
        on: a name in `BASES`, of a data source of this package, or `path/to/file.py:source`.
        network: a model's name, or `path/to/config.py`, whose data and recipe then replace those of `on`.

    Raises UserError for an unknown name.
    """
    if on in BASES:
        base = BASES[on]
    elif on in SOURCES or on.endswith(".py") or "." in on:
        load_object(on, SOURCES, "data source")
        notes = f"The source {on} with the recipe that this library's tables on digits have."
        scales = {"quick": Scale(seeds=3), "smoke": Scale(overrides=_SMOKE)}
        base = Base(functools.partial(_make_own, on), scales, notes=notes)
    else:
        known = [*BASES, *SOURCES]
        raise UserError(
            f"--on={on}: there is no such task{suggest_name(on, known)}: give one of {', '.join(known)}, or "
            "path/to/file.py:source."
        )
    if network is None:
        return base
    if network.endswith(".py"):
        scales = {"quick": Scale(seeds=3), "smoke": Scale(overrides=_SMOKE)}
        return Base(functools.partial(load_config, network), scales, notes=f"Network, data and recipe of {network}.")
    scales = {name: _drop_widths(scale) for name, scale in base.scales.items()}
    config = functools.partial(_replace_network, base.config, network)
    return dataclasses.replace(base, config=config, scales=scales, gate_stages=None)


def _replace_network(make: Callable[[], ConfigDict], name: str) -> ConfigDict:
    return override(make(), {"model.name": name})


def _drop_widths(scale: Scale) -> Scale:
    """Returns the scale for another network, which may have other widths or none."""
    kept = {name: value for name, value in scale.overrides.items() if name != "model.widths"}
    return dataclasses.replace(scale, overrides=kept)
