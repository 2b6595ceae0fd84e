"""The pieces as the papers' tables have them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax import recipes, tree
from attention_jax.config import config as configs
from attention_jax.errors import UserError
from attention_jax.models import create_model
from attention_jax.optim.schedules import make_schedule
from attention_jax.tasks.resolve import resolve_config
from tests.helpers.small import CONFIG

# Bello et al. 2021, Table 1, row by row, with the values of Section 3 and Table 8 for a ResNet-200 at 256 pixels.
TABLE_1 = [
    ("Cosine LR Decay", {"schedule.name": "cosine", "schedule.final_share": 0.0}),
    ("Increase training epochs", {"total_epochs": 350.0}),
    ("EMA of weights", {"ema.decay": 0.9999, "ema.warmup": True}),
    ("Label Smoothing", {"loss.label_smoothing": 0.1, "loss.smoothing_over": "uniform"}),
    ("Stochastic Depth", {"model.drop_path_rate": 0.1, "model.drop_path_by": "stage"}),
    ("RandAugment", {"data.randaugment_layers": 2, "data.randaugment_magnitude": 15}),
    ("Dropout on FC", {"model.dropout_rate": 0.25}),
    ("Decrease weight decay", {"optimizer.weight_decay": 4e-5}),
    ("Squeeze-and-Excitation", {"model.gate": "se", "model.gate_at": "block", "model.gate_args.reduction": 4}),
    ("ResNet-D", {"model.stem": "rs", "model.shortcut": "D", "model.stride_at": "3x3"}),
]


@pytest.fixture
def base():
    """A recipe in which none of the rows is taken: 90 epochs of step decay, 1e-4."""
    cosine = configs.override(configs.load_config(str(CONFIG)), {"schedule.name": "cosine", "schedule.final_share": 0.5})
    return configs.override(cosine, {"total_epochs": 90.0, "optimizer.weight_decay": 1e-4, "schedule.name": "step"})


def test_resnet_rs_is_table_1_row_by_row(base):
    assert len(recipes.RESNET_RS) == len(TABLE_1)
    config, expected = base, configs.flatten_config(base)
    for piece, (row, values) in zip(recipes.RESNET_RS, TABLE_1, strict=True):
        config, expected = piece(config), {**expected, **values}
        assert configs.flatten_config(config) == expected, row


def test_longer_training_moves_the_schedule_and_not_the_warmup(base):
    base = configs.override(base, {"data.num_examples": 312 * base.batch_size})
    base = recipes.warmup(recipes.cosine_lr(base), epochs=5)
    before, after = (resolve_config(config).durations for config in (base, recipes.more_epochs(base)))
    assert (before.total, before.warmup) == (28_080, 1560) and (after.total, after.warmup) == (109_200, 1560)


def test_durations_replace_those_in_other_units(base):
    config = recipes.more_epochs(recipes.noam_lr(configs.override(base, {"total_steps": 7})), epochs=3)
    configs.complete_config(config)
    assert config.total_epochs == 3 and config.schedule.warmup_steps == 4000 and "warmup_epochs" not in config.schedule
    config = recipes.warmup(config, epochs=2.0, start=0.01)
    assert config.schedule.warmup_epochs == 2.0 and "warmup_steps" not in config.schedule
    assert config.schedule.warmup_start == 0.01


@pytest.mark.parametrize(("preset", "peak_step", "times"), [("paper", 4000, 1.0), ("tensor2tensor", 8000, np.sqrt(2))])
def test_noam_presets(base, preset, peak_step, times):
    """tensor2tensor's factor 2 and warm-up 8000 have sqrt(2) times the paper's peak of 6.9877e-4."""
    chosen = recipes.noam_lr(base, d_model=512, preset=preset).schedule
    schedule = make_schedule(chosen.name, chosen.learning_rate, 100_000, chosen.warmup_steps, d_model=chosen.d_model)
    rates = np.asarray([float(schedule(step)) for step in range(peak_step - 3, peak_step + 3)])
    assert rates.argmax() == 2 and rates.max() == pytest.approx(times * 6.9877e-4, rel=1e-4)


def test_unknown_noam_preset(base):
    with pytest.raises(UserError, match="preset='t2t' is not one of 'paper', 'tensor2tensor'"):
        recipes.noam_lr(base, preset="t2t")


@pytest.mark.parametrize(
    ("piece", "fields"),
    [
        ("step_lr", {"schedule.name": "step", "schedule.boundaries": (1 / 3, 2 / 3), "schedule.factor": 0.1}),
        ("linear_lr", {"schedule.name": "linear", "schedule.final_share": 0.0}),
        ("constant_ema", {"ema.decay": 0.9999, "ema.warmup": False}),
        ("clip_gradients", {"optimizer.clip_norm": 1.0}),
        ("adamw", {"optimizer.name": "adamw", "optimizer.weight_decay": 0.05, "optimizer.b2": 0.999, "optimizer.eps": 1e-8}),
        ("rmsprop", {"optimizer.name": "rmsprop", "optimizer.momentum": 0.9, "optimizer.b2": 0.9, "optimizer.eps": 1e-3}),
        ("mixup", {"mix.mixup_alpha": 0.2, "mix.cutmix_alpha": 0.0}),
        ("cutmix", {"mix.mixup_alpha": 0.0, "mix.cutmix_alpha": 1.0}),
        ("mixup_or_cutmix", {"mix.mixup_alpha": 0.8, "mix.cutmix_alpha": 1.0, "mix.switch_probability": 0.5}),
        ("label_smoothing_over_others", {"loss.label_smoothing": 0.1, "loss.smoothing_over": "others"}),
        ("random_erasing", {"mix.erasing_probability": 0.25, "mix.mixup_alpha": 0.0}),
        ("colour_jitter", {"data.colour_jitter": 0.4, "data.randaugment_layers": 0}),
        ("lighting", {"data.lighting": 0.1, "data.colour_jitter": 0.0}),
        ("binary_cross_entropy", {"loss.function": "binary_cross_entropy", "loss.target_threshold": 0.0}),
        ("accumulate", {"accumulation": 2, "batch_size": 32}),
        ("bf16", {"precision": "bfloat16"}),
    ],
)
def test_values_of_the_papers(base, piece, fields):
    flat = configs.flatten_config(configs.apply_pieces(base, (piece,)))
    assert {name: flat[name] for name in fields} == fields


def test_what_decays_is_what_each_paper_says(base):
    """ResNet-RS's code decays the biases of squeeze-and-excitation and of the classifier, and nothing of a batch norm."""
    paths = [
        "stem_conv/kernel",
        "stem_norm/scale",
        "stage1_block1/norm1/bias",
        "stage1_block1/gate/expand/bias",
        "head/bias",
        "stage1_gate/channel_norm/scale",
    ]
    for piece, expected in (
        (recipes.no_decay_on_norm_and_bias, [True, False, False, False, False, False]),
        (recipes.no_decay_on_norm, [True, False, False, True, True, False]),
    ):
        rules = piece(base).optimizer.decay_rules
        assert [tree.find_first_match(rules, path, "decay_rules") for path in paths] == expected


def test_layerwise_rates_are_the_convnext_authors(base):
    """Their 14 numbers of layers: stem 0, stages 1 and 2, three blocks each of stage 3, then stage 4, then head and norm."""
    rules = recipes.layerwise_lr_decay(base, recipes.CONVNEXT_GROUPS, 0.8).optimizer.rate_rules
    numbers = {
        **{"stem_conv/kernel": 0, "stage1_block3/norm/scale": 1, "downsample2_norm/bias": 2, "stage2_block1/expand/kernel": 2},
        **{"downsample3_conv/kernel": 3, "stage3_block3/layer_scale": 3, "stage3_block4/norm/bias": 4},
        **{"stage3_block10/norm/bias": 6, "stage3_block27/project/kernel": 11, "downsample4_conv/kernel": 12},
        **{"stage4_block1/depthwise/kernel": 12, "head_norm/scale": 13, "head/kernel": 13},
    }
    found = {path: tree.find_first_match(rules, path, "rate_rules") for path in numbers}
    assert found == {path: pytest.approx(0.8 ** (13 - number)) for path, number in numbers.items()}


def test_groups_are_those_of_the_networks(base):
    """Every parameter but those of the head and the norm before it has a group, and every group parameters."""
    for name, groups, fields in (
        ("convnext_base", recipes.CONVNEXT_GROUPS, dict(widths=(8,) * 4)),
        ("deit_small_distilled_patch16_224", recipes.VIT_GROUPS, dict(width=8, heads=2, image_size=32)),
    ):
        shapes = jax.eval_shape(create_model(name, **fields).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        rules = [*((group, group) for group in groups), (".*", "head")]
        found = {path: tree.find_first_match(rules, path, "groups") for path in tree.flatten_by_path(shapes)}
        assert {*found.values()} == {*groups, "head"}
        heads = {path.partition("/")[0] for path, group in found.items() if group == "head"}
        assert heads <= {"head", "head_norm", "head_distillation", "norm"}


def test_stochastic_depth_of_networks_with_one_rule(base):
    assert "drop_path_by" not in recipes.stochastic_depth(base, 0.2, by=None).model
