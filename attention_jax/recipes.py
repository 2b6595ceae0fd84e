"""Recipe pieces: ConfigDict -> ConfigDict, named like the rows of the papers' ablation tables.

A piece changes a copy. An additive ablation is a tuple of pieces; its row i is the base with the first i pieces applied.
Bind arguments with `functools.partial(piece, ...)` or a lambda. Defaults are the values of the paper that a piece names;
"ResNet-RS" is Bello et al. 2021 (arXiv 2103.07579), whose eleven rows of Table 1 are `RESNET_RS` one after another.
"""

import functools

from ml_collections import ConfigDict

from attention_jax.errors import UserError

_UNITS = ("steps", "epochs", "examples")


def _changed(config: ConfigDict, section: str, **values: object) -> ConfigDict:
    """Returns a copy with new values in a section; a duration replaces the same duration in another unit."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        part = config[section] if section else config
        for stem, _, unit in (name.rpartition("_") for name in values):
            for sibling in {f"{stem}_{other}" for other in _UNITS if unit in _UNITS} & set(part):
                del part[sibling]
        part.update(values)
    return config


# Schedule


def constant_lr(config: ConfigDict) -> ConfigDict:
    """Keeps the peak rate to the end, after the config's warm-up."""
    return _changed(config, "schedule", name="constant")


def step_lr(config: ConfigDict, boundaries: tuple[float, ...] = (1 / 3, 2 / 3), factor: float = 0.1) -> ConfigDict:
    """Multiplies the rate by `factor` at shares of the run: a tenth at 30 and 60 of 90 epochs in fb.resnet.torch."""
    return _changed(config, "schedule", name="step", boundaries=tuple(boundaries), factor=factor)


def cosine_lr(config: ConfigDict, final_share: float = 0.0) -> ConfigDict:
    """Replaces the schedule by cosine decay; peak and warm-up stay (Loshchilov & Hutter 2017; to 0 in ResNet-RS)."""
    return _changed(config, "schedule", name="cosine", final_share=final_share)


def linear_lr(config: ConfigDict, final_share: float = 0.0) -> ConfigDict:
    """Replaces the schedule by a straight line down to 0; peak and warm-up stay."""
    return _changed(config, "schedule", name="linear", final_share=final_share)


# preset -> (factor, warm-up steps). tensor2tensor's first preset is the paper's curve; transformer_base_v2 and _v3, which
# is today's transformer_base, have twice the rate and twice the warm-up.
NOAM = {"paper": (1.0, 4000), "tensor2tensor": (2.0, 8000)}


def noam_lr(config: ConfigDict, d_model: int | None = None, preset: str = "paper") -> ConfigDict:
    """Sets factor·d_model^-0.5·min(s^-0.5, s·W^-1.5) (Vaswani et al. 2017, Section 5.3); `preset` is a key of `NOAM`.

    If `d_model` is None, it is the network's `features`.
    """
    if preset not in NOAM:
        raise UserError(f"noam_lr: preset={preset!r} is not one of {', '.join(map(repr, NOAM))}.")
    factor, warmup_steps = NOAM[preset]
    return _changed(config, "schedule", name="noam", learning_rate=factor, d_model=d_model, warmup_steps=warmup_steps)


def warmup(config: ConfigDict, epochs: float = 5.0, start: float = 0.0) -> ConfigDict:
    """Raises the rate linearly to its peak (Goyal et al. 2017: 5 epochs, as in ResNet-RS)."""
    return _changed(config, "schedule", warmup_start=start, warmup_epochs=epochs)


def more_epochs(config: ConfigDict, epochs: float = 350.0) -> ConfigDict:
    """Sets the length of the run (ResNet-RS, Table 1, "increase training epochs": 90 to 350); warm-up given in epochs stays."""
    return _changed(config, "", total_epochs=epochs)


# Optimizer


def nesterov(config: ConfigDict, momentum: float = 0.9) -> ConfigDict:
    """Sets SGD with Nesterov momentum (Sutskever et al. 2013; 0.9 in fb.resnet.torch and ResNet-RS)."""
    return _changed(config, "optimizer", name="sgd", momentum=momentum, nesterov=True)


def rmsprop(config: ConfigDict, decay: float = 0.9, momentum: float = 0.9, eps: float = 1e-3) -> ConfigDict:
    """Sets RMSProp as TensorFlow computes it, with EfficientNet's values (Tan & Le 2019); Inception-v3 has eps 1.0."""
    return _changed(config, "optimizer", name="rmsprop", rmsprop="tensorflow", b2=decay, momentum=momentum, eps=eps)


def adamw(config: ConfigDict, weight_decay: float = 0.05, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> ConfigDict:
    """Sets AdamW (Loshchilov & Hutter 2019) with ConvNeXt's and DeiT's values; the rate stays (4e-3 in ConvNeXt)."""
    return _changed(config, "optimizer", name="adamw", weight_decay=weight_decay, b1=b1, b2=b2, eps=eps)


def clip_gradients(config: ConfigDict, norm: float = 1.0) -> ConfigDict:
    """Scales the batch's gradient down to a largest global norm, before decay joins it (Pascanu et al. 2013)."""
    return _changed(config, "optimizer", clip_norm=norm)


def decrease_weight_decay(config: ConfigDict, weight_decay: float = 4e-5) -> ConfigDict:
    """Sets less weight decay, to go with stronger regularisation (ResNet-RS, Tables 1 and 2: 1e-4 to 4e-5)."""
    return _changed(config, "optimizer", weight_decay=weight_decay)


def no_decay_on_norm_and_bias(config: ConfigDict) -> ConfigDict:
    """Limits weight decay to kernels (He et al. 2019, Section 3.1, "no bias decay")."""
    return _changed(config, "optimizer", decay_rules=(("(bias|scale)$", False), (".*", True)))


def no_decay_on_norm(config: ConfigDict) -> ConfigDict:
    """Limits weight decay to kernels and to biases outside of normalisation, as ResNet-RS's released code does."""
    return _changed(config, "optimizer", decay_rules=((r"norm\d*/(bias|scale)$", False), (".*", True)))


# Groups of layers from the input to the output, as path expressions. For ConvNeXt they are the authors' twelve and the stem:
# three
# blocks of stage 3 make one, and a downsampling layer belongs to the stage after it. For a ViT with twelve layers, each is one
# (BEiT).
CONVNEXT_GROUPS = (
    *("^stem_", "^stage1_", "^(downsample2|stage2)_", r"^(downsample3_|stage3_block[123]/)"),
    *(rf"^stage3_block({i}|{i + 1}|{i + 2})/" for i in range(4, 28, 3)),
    "^(downsample4|stage4)_",
)
VIT_GROUPS = ("^(patches/|positions|class_token|distillation_token)", *(rf"^block{i}/" for i in range(1, 13)))


def layerwise_lr_decay(config: ConfigDict, groups: tuple[str, ...] = CONVNEXT_GROUPS, factor: float = 0.8) -> ConfigDict:
    """Multiplies the rate by `factor` for each group below the head, for fine-tuning (Clark et al. 2020; BEiT, ConvNeXt).

    ConvNeXt, Table 6: 0.8 for weights from ImageNet-22K, 0.7 for weights from ImageNet-1K. Parameters that no group matches,
    such
    as the head and the norm before it, keep the full rate.
    """
    rules = tuple((group, factor ** (len(groups) - i)) for i, group in enumerate(groups))
    return _changed(config, "optimizer", rate_rules=(*rules, (".*", 1.0)))


def freeze(config: ConfigDict, patterns: tuple[str, ...] = ("^(?!head)",)) -> ConfigDict:
    """Keeps the initial weights of parameters that a path expression finds; by default of all but the classifier's.

    Statistics of batch norm stay too with `batch_norm.granularity="stored"`.
    """
    frozen = tuple((pattern, 0.0) for pattern in patterns)
    others = (rule for rule in config.optimizer.rate_rules if rule not in frozen)
    return _changed(config, "optimizer", rate_rules=(*frozen, *others))


def accumulate(config: ConfigDict, parts: int = 2) -> ConfigDict:
    """Splits the same batch into `parts` micro-batches; batch statistics are then those of a micro-batch."""
    return _changed(config, "", accumulation=parts)


def bf16(config: ConfigDict) -> ConfigDict:
    """Computes activations and products in bfloat16, weights and statistics in float32 (as ResNet-RS trains)."""
    return _changed(config, "", precision="bfloat16")


# Averages and losses


def binary_cross_entropy(config: ConfigDict, threshold: float = 0.0) -> ConfigDict:
    """Asks yes or no for each class, in place of one choice (Wightman et al. 2021; timm has threshold 0.2)."""
    return _changed(config, "loss", function="binary_cross_entropy", target_threshold=threshold)


def ema(config: ConfigDict, decay: float = 0.9999) -> ConfigDict:
    """Evaluates an exponential moving average of weights and batch statistics (ResNet-RS: 0.9999 with warm-up)."""
    return _changed(config, "ema", decay=decay, warmup=True)


def constant_ema(config: ConfigDict, decay: float = 0.9999) -> ConfigDict:
    """Evaluates the same average with a constant decay, as timm's ModelEma and ConvNeXt keep it (0.9999; DeiT 0.99996)."""
    return _changed(config, "ema", decay=decay, warmup=False)


def label_smoothing(config: ConfigDict, smoothing: float = 0.1) -> ConfigDict:
    """Smooths the target distribution over all classes (Szegedy et al. 2016; 0.1 in ResNet-RS)."""
    return _changed(config, "loss", label_smoothing=smoothing, smoothing_over="uniform")


def label_smoothing_over_others(config: ConfigDict, smoothing: float = 0.1) -> ConfigDict:
    """Smooths the target distribution over the other classes, as tensor2tensor and He et al. 2019 write it (0.1 in both)."""
    return _changed(config, "loss", label_smoothing=smoothing, smoothing_over="others")


def mixup(config: ConfigDict, alpha: float = 0.2) -> ConfigDict:
    """Mixes two images and their labels linearly (Zhang et al. 2018; 0.2 on ImageNet in He et al. 2019)."""
    return _changed(config, "mix", mixup_alpha=alpha)


def cutmix(config: ConfigDict, alpha: float = 1.0) -> ConfigDict:
    """Pastes a box of another image; labels by area (Yun et al. 2019; alpha 1). After `mixup`: one of the two, at random."""
    return _changed(config, "mix", cutmix_alpha=alpha)


def mixup_or_cutmix(config: ConfigDict) -> ConfigDict:
    """Applies mixup (alpha 0.8) or CutMix (alpha 1) to every batch, each half the time, as DeiT, Swin and ConvNeXt train."""
    return _changed(config, "mix", mixup_alpha=0.8, cutmix_alpha=1.0, probability=1.0, switch_probability=0.5)


def random_erasing(config: ConfigDict, probability: float = 0.25) -> ConfigDict:
    """Fills a box with noise in some images (Zhong et al. 2020; 0.25 and noise in every pixel in DeiT, Swin and ConvNeXt)."""
    return _changed(config, "mix", erasing_probability=probability)


# Model and data


def stochastic_depth(config: ConfigDict, rate: float = 0.1, by: str | None = "stage") -> ConfigDict:
    """Drops residual branches, more often the deeper they lie (Huang et al. 2016).

    ResNet-RS has 0.1 at the last stage and one rate per stage; `by="block"` is timm's linear rule over blocks. `by=None` is for
    ConvNeXt and Transformers, which have no other.
    """
    return _changed(config, "model", drop_path_rate=rate, **({} if by is None else {"drop_path_by": by}))


def randaugment(config: ConfigDict, layers: int = 2, magnitude: float = 15) -> ConfigDict:
    """Applies N random operations of magnitude M (Cubuk et al. 2020; N = 2, M = 15 in ResNet-RS, M = 10 when small)."""
    return _changed(config, "data", randaugment_layers=layers, randaugment_magnitude=magnitude)


def colour_jitter(config: ConfigDict, strength: float = 0.4) -> ConfigDict:
    """Changes brightness, contrast and saturation at random (0.4 in fb.resnet.torch; ConvNeXt has RandAugment instead)."""
    return _changed(config, "data", colour_jitter=strength)


def lighting(config: ConfigDict, deviation: float = 0.1) -> ConfigDict:
    """Shifts colours at random along their principal components (Krizhevsky et al. 2012; 0.1 there and in fb.resnet.torch)."""
    return _changed(config, "data", lighting=deviation)


def dropout(config: ConfigDict, rate: float = 0.25) -> ConfigDict:
    """Drops features before the classifier (ResNet-RS: 0.25; 0.4 for its largest)."""
    return _changed(config, "model", dropout_rate=rate)


def zero_init_gamma(config: ConfigDict) -> ConfigDict:
    """Starts each residual branch at 0 (Goyal et al. 2017, Section 5.1; He et al. 2019, Section 3.1)."""
    return _changed(config, "model", zero_gamma=True)


def no_shortcuts(config: ConfigDict) -> ConfigDict:
    """Leaves out the shortcuts: the plain network of the same layers (He et al. 2016, Section 3.3)."""
    return _changed(config, "model", residual=False)


def resnet_d(config: ConfigDict, stem: str = "deep") -> ConfigDict:
    """Moves the stride to the 3x3, and sets three 3x3 in the stem and pooled shortcuts (He et al. 2019, Section 4).

    `stem="rs"` has ResNet-RS's convolution in place of the max-pool, `stem="cifar"` keeps the size of small images.
    """
    return _changed(config, "model", stem=stem, stride_at="3x3", shortcut="D")


def squeeze_excite(config: ConfigDict, reduction: int = 16) -> ConfigDict:
    """Puts squeeze-and-excitation on every residual branch (Hu et al. 2018; r = 16 there, 4 in ResNet-RS)."""
    return _changed(config, "model", gate="se", gate_at="block", gate_args=ConfigDict({"reduction": reduction}))


def bam(config: ConfigDict, reduction: int = 16) -> ConfigDict:
    """Puts BAM after each stage but the last (Park et al. 2018; r = 16 there)."""
    return _changed(config, "model", gate="bam", gate_at="stage", gate_args=ConfigDict({"reduction": reduction}))


# ResNet-RS, Table 1, below its first row, which is a ResNet-200 with 90 epochs of step decay.
RESNET_RS = (
    cosine_lr,
    more_epochs,
    ema,
    label_smoothing,
    stochastic_depth,
    randaugment,
    dropout,
    decrease_weight_decay,
    functools.partial(squeeze_excite, reduction=4),
    functools.partial(resnet_d, stem="rs"),
)
