"""Upgrades saved configs, and old config files' configs, to the fields of this version."""

import functools
import re
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.fields import VERSION
from attention_jax.errors import UserError

# version -> the fields that it added, with the behaviour of the library before they existed.
_ADDED: dict[int, dict[str, Any]] = {
    2: {
        "precision": "float32",
        "optimizer": {
            "rate_in_velocity": False,
            "rmsprop": "tensorflow",
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "clip_norm": 0.0,
            "decay": "l2",
        },
        "schedule": {"warmup_start": 0.0, "final_share": 0.0, "d_model": 512},
        "loss": {"smoothing_over": "uniform"},
        "mix": {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "probability": 1.0, "switch_probability": 0.5},
        "data": {
            "crop": "pad",
            "crop_scale": (0.08, 1.0),
            "crop_ratio": (3 / 4, 4 / 3),
            "randaugment_layers": 0,
            "randaugment_magnitude": 9,
            "randaugment_std": 0.0,
            "randaugment_ops": "paper",
            "interpolation": "bilinear",
            "eval_resize": None,
            "on_broken": "skip",
        },
    },
    3: {"parallel": {"fsdp": 1, "model": 1, "rules": ()}},
    4: {"optimizer": {"args": {}}, "schedule": {"args": {}}},
    5: {},
    6: {},
    7: {"optimizer": {"rate_rules": ((".*", 1.0),)}},
    8: {},
    9: {"init_from": None},
    10: {"parallel": {"slices": 0}},
    11: {"evaluation": {"patience": 0}, "data": {"cache_dir": None}},
}
_ADDED_TO_IMAGES: dict[int, dict[str, Any]] = {
    5: {"data": {"exif_rotation": False}},
    7: {
        "data": {"colour_jitter": 0.0},
        "mix": {"erasing_probability": 0.0},
        "loss": {"function": "cross_entropy", "target_threshold": 0.0},
    },
    8: {"data": {"crop_shorter": (256, 480), "lighting": 0.0}},
    10: {"data": {"cache_dir": None}},
}
_ADDED_TO_TEXTS: dict[int, dict[str, Any]] = {
    10: {
        "evaluation": {"split_compounds": False},
        "search": {"expand": 2, "late_ends": True, "stop": "settled", "force_end": False, "renormalise": False},
    },
    11: {"data": {"max_ratio": 0.0, "drop_duplicates": False, "source_tokenizer": None}},
}
# bam_resnet*.code fitted its dilation to small maps before version 6, as the released code does not.
_CODE_BAM = {"combine": "product", "batch_norm": "code", "fit_dilation": True}


def _add_fields(version: int, config: ConfigDict) -> ConfigDict:
    plain = config.copy_and_resolve_references().to_dict()
    of_task = {"classification": _ADDED_TO_IMAGES, "translation": _ADDED_TO_TEXTS}.get(str(plain.get("task")), {})
    for added in (_ADDED[version], of_task.get(version, {})):
        for name, default in added.items():
            plain[name] = {**default, **plain.get(name, {})} if isinstance(default, dict) else plain.get(name, default)
    if version == 2 and plain["optimizer"].get("name") == "adamw":  # version 1 called its first-moment decay momentum
        plain["optimizer"]["b1"] = plain["optimizer"]["momentum"]
    model = plain.get("model", {})
    is_bam = re.fullmatch(r"bam|attention_jax\.[\w.]+[.:]BAM", str(model.get("gate", "bam")))
    is_code_bam = re.fullmatch(r"bam_\w+\.code", model.get("name", "")) and is_bam
    if version == 6 and is_code_bam and "gate_args" not in model:  # {} states BAM's own defaults
        plain["model"] = {**model, "gate_args": _CODE_BAM}
    return ConfigDict({**plain, "version": version}, type_safe=False)


# One function for each old version: ConfigDict of that version -> ConfigDict of the next.
UPGRADES = {version - 1: functools.partial(_add_fields, version) for version in _ADDED}


def upgrade_config(config: ConfigDict) -> ConfigDict:
    """Returns a config of any earlier version, upgraded to this version."""
    version = config.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UserError(f"config.version={version!r} is not right: this installation reads versions 1 to {VERSION}.")
    for old in range(version, VERSION):
        config = UPGRADES[old](config)
    return ConfigDict(config.to_dict(), type_safe=False)  # equal to any other with these values
