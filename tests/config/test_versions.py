"""Saved configs of earlier versions mean what they did."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from attention_jax.config import config as configs
from attention_jax.config import fields as config_fields
from attention_jax.config import versions
from attention_jax.errors import UserError
from tests.helpers.small import ROOT, small_config


def test_old_configs_are_brought_up_to_date_one_version_at_a_time(monkeypatch):
    today = config_fields.VERSION

    def to_next(config):
        plain = config.to_dict()
        plain["optimizer"]["momentum"] = plain["optimizer"].pop("beta")
        return ConfigDict({**plain, "version": today + 1})

    def to_last(config):
        assert config.version == today + 1
        return ConfigDict({**config.to_dict(), "version": today + 2, "batch_size": 2 * config.batch_size})

    now = small_config()
    old = {**now.to_dict(), "version": today}
    old["optimizer"]["beta"] = old["optimizer"].pop("momentum")
    text = configs.config_to_json(ConfigDict(old))
    for module in (versions, config_fields):
        monkeypatch.setattr(module, "VERSION", today + 2)
    monkeypatch.setitem(config_fields.COMMON, "version", dataclasses.replace(config_fields.COMMON["version"], ok=bool))
    monkeypatch.setattr(versions, "UPGRADES", {today: to_next, today + 1: to_last})
    new = configs.config_from_json(text)
    configs.complete_config(new)
    assert new.version == today + 2 and new.batch_size == 64 and new.optimizer.momentum == now.optimizer.momentum == 0.9
    assert configs.config_from_json(configs.config_to_json(new)) == new


def test_version_1_means_what_it_did():
    """The committed run's config, and AdamW, whose first-moment decay version 1 called momentum."""
    saved = json.loads((ROOT / "tests" / "fixtures" / "tiny_run" / "config.json").read_text())
    assert saved["version"] == 1
    config = configs.config_from_json(json.dumps(saved))
    configs.complete_config(config)
    kept = configs.flatten_config(config)
    for name, value in configs.flatten_config(saved).items():
        assert kept[name] == (config_fields.VERSION if name == "version" else value), name
    assert (config.precision, config.optimizer.decay, config.optimizer.clip_norm) == ("float32", "l2", 0)
    assert (config.schedule.final_share, config.mix.mixup_alpha, config.mix.cutmix_alpha) == (0, 0, 0)

    saved["optimizer"].update(name="adamw", momentum=0.8)
    assert configs.config_from_json(json.dumps(saved)).optimizer.b1 == 0.8
    saved["optimizer"].update(name="sgd")
    assert configs.config_from_json(json.dumps(saved)).optimizer.b1 == 0.9


def test_versions_7_and_8_added_to_each_task_what_it_reads():
    """Losses, erasing, colours and crops are of images; factors of the rate of all tasks."""
    old = small_config().to_dict()
    for section, names in (("loss", ("function", "target_threshold")), ("mix", ("erasing_probability",))):
        for name in names:
            del old[section][name]
    del old["data"]["colour_jitter"], old["data"]["lighting"], old["data"]["crop_shorter"], old["optimizer"]["rate_rules"]
    new = configs.upgrade_config(ConfigDict({**old, "version": 6}))
    assert configs.flatten_config(new) == configs.flatten_config(small_config())
    new = configs.upgrade_config(ConfigDict({**old, "version": 6, "task": "translation"}))
    assert "function" not in new.loss and new.optimizer.rate_rules == ((".*", 1.0),)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "bam_resnet18.code"}, {"combine": "product", "batch_norm": "code", "fit_dilation": True}),
        ({"name": "bam_resnet18.code", "gate_args": {"reduction": 8}}, {"reduction": 8}),
        ({"name": "bam_resnet18.code", "gate": "bam"}, {"combine": "product", "batch_norm": "code", "fit_dilation": True}),
        (
            {"name": "bam_resnet18.code", "gate": "attention_jax.nn.bam.BAM"},
            {"combine": "product", "batch_norm": "code", "fit_dilation": True},
        ),
        ({"name": "bam_resnet18.code", "gate": "mine.nn.bam.BAM"}, None),
        ({"name": "bam_resnet18.code", "gate_args": {}}, {}),
        ({"name": "bam_resnet18.code", "gate": "se"}, None),
        ({"name": "bam_resnet18.code", "gate": None}, None),
        ({"name": "bam_resnet18"}, None),
    ],
)
def test_released_code_of_bam_from_version_5_fits_its_dilation(model, expected):
    """The name kept its dilation from version 6 on; fields of the config's own stay as they are."""
    old = {**small_config().to_dict(), "version": 5, "model": model}
    new = configs.upgrade_config(ConfigDict(old))
    assert new.version == config_fields.VERSION and new.model.to_dict().get("gate_args") == expected
    kept = configs.upgrade_config(ConfigDict({**old, "version": 6}))
    assert kept.model.to_dict() == model


@pytest.mark.parametrize("version", [0, -1, config_fields.VERSION + 1, "1", None])
def test_versions_that_nobody_knows(version):
    with pytest.raises(UserError, match=f"version={version!r} is not right: this installation reads versions 1 to"):
        configs.upgrade_config(ConfigDict({"version": version}))


def test_every_version_up_to_this_one_has_its_upgrade():
    assert sorted(versions.UPGRADES) == list(range(1, config_fields.VERSION))
