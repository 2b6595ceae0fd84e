"""The configs of published recipes for ImageNet: their numbers are the papers', and decay acts on the parameters it should."""

import jax
import jax.numpy as jnp
import pytest

from attention_jax import tree
from attention_jax.config import config as configs
from attention_jax.errors import UserError
from attention_jax.models import create_model, list_models
from attention_jax.optim.schedules import make_schedule
from attention_jax.tasks.resolve import resolve_config
from tests.helpers.small import ROOT

LINES_OF_CONFIG = 45
EPOCH = {256: 5004, 1024: 1251, 4096: 312}  # full batches in 1,281,167 images

# file: (batch, epochs, peak rate, rate at the last step, warm-up epochs), (optimizer, weight decay, clipping),
# (smoothing, drop path, dropout, average), (mixup, CutMix, erasing, RandAugment).
_SGD, _AUGMENTED = (0.0, 0.0, 0.0, 0.0), (0.8, 1.0, 0.25, (2, 9, 0.5, "timm"))
RECIPES = {
    # He et al. 2015, Section 3.4; Xie et al. 2017 and models/resnext.lua; Jongchan/attention-module, README.
    "he2015": ((256, 600_000 / 5004, 0.1, 0.001, 0), ("sgd", 1e-4, 0), _SGD, (0, 0, 0, None)),
    "resnet50": ((256, 90, 0.1, 0.001, 0), ("sgd", 1e-4, 0), _SGD, (0, 0, 0, None)),
    "resnext": ((256, 100, 0.1, 0.0001, 0), ("sgd", 1e-4, 0), _SGD, (0, 0, 0, None)),
    "bam": ((256, 90, 0.1, 0.001, 0), ("sgd", 1e-4, 0), _SGD, (0, 0, 0, None)),
    # Bello et al. 2021, Table 8; its first and its last row, and the first with stochastic depth.
    "resnet_rs": ((4096, 350, 1.6, 0, 5), ("sgd", 4e-5, 0), (0.1, 0, 0.25, 0.9999), (0, 0, 0, (2, 10, 0.0, "tf1"))),
    "resnet_rs:resnetrs200@256": (
        *((4096, 350, 1.6, 0, 5), ("sgd", 4e-5, 0)),
        *((0.1, 0.1, 0.25, 0.9999), (0, 0, 0, (2, 15, 0.0, "tf1"))),
    ),
    "resnet_rs:resnetrs420@320": (
        *((4096, 350, 1.6, 0, 5), ("sgd", 4e-5, 0)),
        *((0.1, 0.1, 0.4, 0.9999), (0, 0, 0, (2, 15, 0.0, "tf1"))),
    ),
    # tensorflow/tpu, efficientnet/main.py and utils.py: 145 falls by 3 % in 350 epochs.
    "efficientnet": (
        *((4096, 350, 0.256, 0.256 * 0.97**145, 5), ("rmsprop", 1e-5, 0)),
        *((0.1, 0.2, 0.2, 0.9999), (0, 0, 0, None)),
    ),
    # Liu et al. 2022, Table 5 and Section A.1; facebookresearch/ConvNeXt, TRAINING.md and main.py.
    "convnext": ((4096, 300, 4e-3, 1e-6, 20), ("adamw", 0.05, 0), (0.1, 0.1, 0, 0.9999), _AUGMENTED),
    "convnext:convnext_base": ((4096, 300, 4e-3, 1e-6, 20), ("adamw", 0.05, 0), (0.1, 0.5, 0, 0.9999), _AUGMENTED),
    "convnext:convnext_isotropic_base": ((4096, 300, 4e-3, 1e-6, 50), ("adamw", 0.05, 0), (0.1, 0.2, 0, 0.9999), _AUGMENTED),
    # facebookresearch/deit and microsoft/Swin-Transformer: rates for 512 images, times 2.
    "deit": ((1024, 300, 1e-3, 1e-5, 5), ("adamw", 0.05, 0), (0.1, 0.1, 0, 0.99996), _AUGMENTED),
    "swin": ((1024, 300, 1e-3, 1e-5, 20), ("adamw", 0.05, 5), (0.1, 0.2, 0, 0), _AUGMENTED),
    "swin:swin_base_patch4_window7_224": ((1024, 300, 1e-3, 1e-5, 20), ("adamw", 0.05, 5), (0.1, 0.5, 0, 0), _AUGMENTED),
}
FILES = {path.stem.removeprefix("imagenet_") for path in (ROOT / "configs").glob("imagenet_*.py")}


def load(name: str):
    file, _, argument = name.partition(":")
    return configs.load_config(f"{ROOT}/configs/imagenet_{file}.py{':' * bool(argument)}{argument}")


def test_every_file_is_in_the_table_and_short():
    assert {name.partition(":")[0] for name in RECIPES} == FILES
    long = {path.name for path in (ROOT / "configs").glob("*.py") if len(path.read_text().splitlines()) > LINES_OF_CONFIG}
    assert not long, f"more than {LINES_OF_CONFIG} lines: {long}"


@pytest.mark.parametrize(("file", "table"), [("convnext", "DROP_PATH"), ("swin", "DROP_PATH"), ("efficientnet", "SIZES")])
def test_every_variant_is_a_network_and_others_are_refused(file, table):
    """Those of ResNet-RS have their size behind their name."""
    variants = getattr(configs.load_file(ROOT / "configs" / f"imagenet_{file}.py"), table)
    assert {*variants} <= {*list_models()}
    with pytest.raises(UserError, match=r"imagenet_\w+.py: 'resnet18' is none of its variants"):
        load(f"{file}:resnet18")


@pytest.mark.parametrize("name", RECIPES)
def test_numbers_are_the_published(name):
    (batch, epochs, peak, last, warmup), optimizer, (smoothing, drop_path, dropout, average), images = RECIPES[name]
    resolved = resolve_config(load(name))
    config, steps = resolved.config, resolved.durations
    schedule = config.schedule
    rate = make_schedule(
        *(schedule.name, schedule.learning_rate, steps.total, steps.warmup, schedule.boundaries, schedule.factor),
        *(schedule.warmup_start, schedule.final_share),
    )
    assert (config.batch_size, steps.total, steps.warmup) == (batch, round(epochs * EPOCH[batch]), warmup * EPOCH[batch])
    assert schedule.learning_rate == pytest.approx(peak)
    assert float(rate(max(0, steps.warmup - 1))) == pytest.approx(peak)
    assert float(rate(steps.total - 1)) == pytest.approx(last, rel=1e-3, abs=1e-8)
    assert (config.optimizer.name, config.optimizer.weight_decay, config.optimizer.clip_norm) == optimizer
    assert (config.loss.label_smoothing, config.model.get("drop_path_rate", 0), config.model.get("dropout_rate", 0)) == (
        *(smoothing, drop_path, dropout),
    )
    assert config.ema.decay == average
    data, mix = config.data, config.mix
    operations = (data.randaugment_layers, data.randaugment_magnitude, data.randaugment_std, data.randaugment_ops)
    found = (mix.mixup_alpha, mix.cutmix_alpha, mix.erasing_probability, operations if data.randaugment_layers else None)
    assert found == images


def test_efficientnet_falls_with_the_epochs_since_the_start():
    """0.256 · 0.97^floor(epoch / 2.4) after the warm-up, which two falls have passed by then (utils.build_learning_rate)."""
    config = load("efficientnet")
    rate = make_schedule(
        "step", config.schedule.learning_rate, 350 * 312, 5 * 312, config.schedule.boundaries, config.schedule.factor
    )
    for epoch, falls in ((5, 2), (7.1, 2), (7.3, 3), (100.7, 41), (100.9, 42)):
        assert float(rate(round(epoch * 312))) == pytest.approx(0.256 * 0.97**falls, rel=1e-4), epoch


@pytest.mark.parametrize(
    ("name", "fields", "not_decayed"),
    [
        ("convnext", dict(widths=(8,) * 4, stage_sizes=(1,) * 4), ()),
        ("deit:deit_tiny_distilled_patch16_224", dict(width=8, heads=2, layers=1, image_size=32), ("positions", "token")),
        ("swin", dict(width=8, heads=(1,) * 4, stage_sizes=(1,) * 4), ("relative_bias",)),
    ],
)
def test_matrices_alone_decay(name, fields, not_decayed):
    """As `optim_factory.py` of ConvNeXt and timm: no vectors, biases, positions, tokens or tables of relative positions."""
    config = load(name)
    shapes = jax.eval_shape(create_model(config.model.name, **fields).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    for path, shape in tree.flatten_by_path(shapes["params"]).items():
        expected = len(shape.shape) > 1 and not path.endswith(not_decayed or ("nothing",))
        assert tree.find_first_match(config.optimizer.decay_rules, path, "decay_rules") == expected, path


@pytest.mark.parametrize("name", ["resnet_rs", "efficientnet"])
def test_tensorflow_code_decays_all_but_batch_norm(name):
    """`'batch_normalization' not in v.name` in both of their programs: biases outside of it decay too."""
    rules = load(name).optimizer.decay_rules
    paths = ["head/bias", "head/kernel", "stage1_block1/gate/expand/bias", "stage1_block1/norm1/scale", "head_norm/bias"]
    assert [tree.find_first_match(rules, path, "decay_rules") for path in paths] == [True, True, True, False, False]
