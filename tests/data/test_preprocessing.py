"""Sizes, crops and colours by name; whose numbers they are is compared in `tests/peers/test_preprocessing_peers.py`."""

import pytest

import attention_jax as aj
from attention_jax.config import defaults
from attention_jax.config.config import complete_config
from attention_jax.data.images import preprocessing as module
from attention_jax.errors import UserError
from attention_jax.models.summary import list_references

TEXT = ("transformer", "lstm", "gru")


def test_every_image_network_has_one_that_a_config_takes():
    table = module._read_table()
    assert sorted(table) == sorted(name for name in list_references() if not name.startswith(TEXT))
    config = defaults.classification()
    config.update(batch_size=2, total_steps=1)
    config.model.name = "resnet50"
    config.schedule.learning_rate = 0.1
    for own in {row for sources in table.values() for row in sources.values()}:
        for test in (False, True):
            config.data.update(source="digits", **own.to_fields(test))
            complete_config(config)
            assert config.data.eval_resize >= config.data.image_shape[0], own


@pytest.mark.parametrize(
    ("name", "source", "test", "resize", "size", "interpolation"),
    [
        ("resnet50", None, False, 235, 224, "bicubic"),  # timm's 0.95 of 235.8, rounded down as timm rounds
        ("resnet50", "timm", True, 288, 288, "bicubic"),
        ("resnet50", "torchvision", True, 232, 224, "bilinear"),
        ("resnet50", "torchvision_v1", True, 256, 224, "bilinear"),
        ("bam_resnet50", None, True, 256, 224, "bilinear"),
        ("resnet20", None, True, 32, 32, "bilinear"),
        ("convnext_from_resnet50.width", None, True, 256, 224, "bicubic"),
    ],
)
def test_sources_differ(name, source, test, resize, size, interpolation):
    fields = aj.preprocessing(name, source).to_fields(test)
    assert (fields["eval_resize"], fields["image_shape"]) == (resize, (size, size, 3))
    assert fields["interpolation"] == interpolation


def test_colours_differ():
    assert aj.preprocessing("vit_base_patch16_224").mean == (0.5, 0.5, 0.5)
    assert aj.preprocessing("vit_base_patch16_224", "torchvision").mean == (0.485, 0.456, 0.406)
    assert aj.preprocessing("resnet20").source == "akamaster" and aj.preprocessing("resnet20").mean[0] == 0.485
    assert aj.preprocessing("resnet20", "attention_jax").mean[0] == 0.4914


def test_what_there_is_not_is_said():
    with pytest.raises(UserError, match=r"preprocessing\('resnet5'\): there is none of that name .did you mean 'resnet5\d'"):
        aj.preprocessing("resnet5")
    with pytest.raises(UserError, match=r"source='torchvision'\): give 'official' or 'attention_jax'"):
        aj.preprocessing("bam_resnet50", "torchvision")
