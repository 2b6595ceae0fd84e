"""Finds settings that nothing reads, because another field selects something that does not use them.

Such a setting is a mistake in the layer that sets its selector, or in a later layer. In an earlier layer, it has no effect.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from attention_jax.config.accepted import Field
from attention_jax.config.fields import OPTIMIZERS, SCHEDULES
from attention_jax.errors import UserError

Flat = Mapping[str, Any]  # dotted name -> value


class Reader(NamedTuple):
    """A field that is read only in configs for which `ok` is true; `text` describes these configs."""

    text: str
    ok: Callable[[Flat], Any]


def _where(selector: str, *values: Any) -> Reader:
    return Reader(f"{selector}={' or '.join(map(repr, values))}", lambda flat: flat.get(selector) in values)


def _other(selector: str, *values: str) -> Reader:
    return Reader(f"{selector} other than {', '.join(map(repr, values))}", lambda flat: flat.get(selector) not in values)


def _on(selector: str) -> Reader:
    return Reader(f"{selector} above 0", lambda flat: flat.get(selector))


def _tokenizer(text: str, ok: Callable[[str], bool]) -> Reader:
    fields = ("data.tokenizer", "data.source_tokenizer")
    return Reader(f"data.tokenizer={text}", lambda flat: any(ok(flat[name]) for name in fields if flat.get(name)))


_MIXES = ("mix.mixup_alpha", "mix.cutmix_alpha")
READERS = {
    "optimizer.args": _other("optimizer.name", *OPTIMIZERS),
    "optimizer.momentum": _where("optimizer.name", "sgd", "rmsprop"),
    "optimizer.nesterov": _where("optimizer.name", "sgd"),
    "optimizer.rate_in_velocity": _where("optimizer.name", "sgd"),
    "optimizer.rmsprop": _where("optimizer.name", "rmsprop"),
    "optimizer.b1": _where("optimizer.name", "adamw"),
    "optimizer.b2": _where("optimizer.name", "adamw", "rmsprop"),
    "optimizer.eps": _where("optimizer.name", "adamw", "rmsprop"),
    "optimizer.decay": _where("optimizer.name", "sgd", "rmsprop"),
    "schedule.args": _other("schedule.name", *SCHEDULES),
    "schedule.warmup_start": _other("schedule.name", "noam"),
    "schedule.final_share": _where("schedule.name", "cosine", "linear"),
    "schedule.boundaries": _where("schedule.name", "step"),
    "schedule.factor": _where("schedule.name", "step"),
    "schedule.d_model": _where("schedule.name", "noam"),
    "loss.target_threshold": _where("loss.function", "binary_cross_entropy"),
    "loss.smoothing_over": _on("loss.label_smoothing"),
    "ema.warmup": _on("ema.decay"),
    "profile.first_step": _on("profile.num_steps"),
    "data.crop_padding": _where("data.crop", "pad"),
    "data.crop_scale": _where("data.crop", "random_resized"),
    "data.crop_ratio": _where("data.crop", "random_resized"),
    "data.crop_shorter": _where("data.crop", "random_scaled"),
    "data.randaugment_magnitude": _on("data.randaugment_layers"),
    "data.randaugment_std": _on("data.randaugment_layers"),
    "data.randaugment_ops": _on("data.randaugment_layers"),
    "data.tokenizer_options": _tokenizer("'sentencepiece'", lambda name: name == "sentencepiece"),
    "data.vocab_size": _tokenizer("'sentencepiece' or 'words'", lambda name: name in ("sentencepiece", "words")),
    "data.joiner": _tokenizer(
        "'words' or a file of words", lambda name: name != "sentencepiece" and not name.endswith((".model", ".spm", ".json"))
    ),
    "mix.probability": Reader(
        "mix.mixup_alpha or mix.cutmix_alpha above 0", lambda flat: flat.get("mix.mixup_alpha") or flat.get("mix.cutmix_alpha")
    ),
    "mix.switch_probability": Reader(
        "mix.mixup_alpha and mix.cutmix_alpha above 0",
        lambda flat: flat.get("mix.mixup_alpha") and flat.get("mix.cutmix_alpha"),
    ),
}


def find_unread(flat: Flat, names: Collection[str]) -> dict[str, Reader]:
    """Returns the names among `names` that nothing reads, each with the setting that would read it."""
    found = {}
    for name in names:
        owner = name if name in READERS else next((key for key in READERS if name.startswith(f"{key}.")), None)
        if owner and not READERS[owner].ok(flat):
            found[name] = READERS[owner]
    return found


def refuse_unread(flat: Flat, names: Collection[str], fields: Mapping[str, Field]) -> None:
    """Raises UserError for the first of the fields that a layer sets and that nothing reads after it."""
    # An empty section sets nothing, and a default that is written out changes nothing.
    own = [name for name in names if name in flat and (name not in fields or flat[name] != fields[name].default)]
    for name, reader in find_unread(flat, own).items():
        raise UserError(
            f"config.{name}={flat[name]!r} is read by nothing: it is for {reader.text}; leave it out, or set that too."
        )


def list_resting(flat: Flat, fields: Mapping[str, Field]) -> list[str]:
    """Returns "field=value (what would read it)" for settings of earlier layers that nothing reads any more."""
    own = [name for name in flat if name not in fields or flat[name] != fields[name].default]
    return [f"{name}={flat[name]!r} (for {reader.text})" for name, reader in find_unread(flat, own).items()]
