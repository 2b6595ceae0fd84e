"""Recipe pieces: ConfigDict -> ConfigDict, named like the rows of the papers' ablation tables.

A piece changes a copy. An additive ablation is a tuple of pieces; its row i is the base with the first i applied.
Bind arguments with `functools.partial(piece, ...)` or a lambda. Defaults are the values of the paper that a piece names;
"ResNet-RS" is Bello et al. 2021 (arXiv 2103.07579), whose eleven rows of Table 1 are `RESNET_RS` one after another.
"""

import functools

from ml_collections import ConfigDict

from attention_jax.errors import UserError

_UNITS = ("steps", "epochs", "examples")


def _changed(config: ConfigDict, section: str, **values: object) -> ConfigDict:
    """A copy with the values in a section; a duration takes the place of the same one in another unit."""
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
    """The peak rate to the end, after the config's warm-up."""
    return _changed(config, "schedule", name="constant")


def step_lr(config: ConfigDict, boundaries: tuple[float, ...] = (1 / 3, 2 / 3), factor: float = 0.1) -> ConfigDict:
    """The rate times `factor` at shares of the run: a tenth at 30 and 60 of 90 epochs in fb.resnet.torch."""
    return _changed(config, "schedule", name="step", boundaries=tuple(boundaries), factor=factor)


def cosine_lr(config: ConfigDict, final_share: float = 0.0) -> ConfigDict:
    """Cosine decay in place of the config's schedule; peak and warm-up stay (Loshchilov & Hutter 2017; to 0 in ResNet-RS)."""
    return _changed(config, "schedule", name="cosine", final_share=final_share)


def linear_lr(config: ConfigDict, final_share: float = 0.0) -> ConfigDict:
    """Straight down to 0 in place of the config's schedule; peak and warm-up stay."""
    return _changed(config, "schedule", name="linear", final_share=final_share)


# preset -> (factor, warm-up steps). tensor2tensor's first preset is the paper's curve; transformer_base_v2 and _v3, which
# is today's transformer_base, have twice the rate and twice the warm-up.
NOAM = {"paper": (1.0, 4000), "tensor2tensor": (2.0, 8000)}


def noam_lr(config: ConfigDict, d_model: int | None = None, preset: str = "paper") -> ConfigDict:
    """Sets factor·d_model^-0.5·min(s^-0.5, s·W^-1.5) (Vaswani et al. 2017, Section 5.3); `preset` is a key of `NOAM`.

    `d_model` None takes the network's features.
    """
    if preset not in NOAM:
        raise UserError(f"noam_lr: preset={preset!r} is not one of {', '.join(map(repr, NOAM))}.")
    factor, warmup_steps = NOAM[preset]
    return _changed(config, "schedule", name="noam", learning_rate=factor, d_model=d_model, warmup_steps=warmup_steps)


def warmup(config: ConfigDict, epochs: float = 5.0, start: float = 0.0) -> ConfigDict:
    """The rate rises linearly to its peak (Goyal et al. 2017: 5 epochs, as in ResNet-RS)."""
    return _changed(config, "schedule", warmup_start=start, warmup_epochs=epochs)


def more_epochs(config: ConfigDict, epochs: float = 350.0) -> ConfigDict:
    """The length of the run (ResNet-RS, Table 1, "increase training epochs": 90 to 350); warm-up given in epochs stays."""
    return _changed(config, "", total_epochs=epochs)


# Optimizer


def nesterov(config: ConfigDict, momentum: float = 0.9) -> ConfigDict:
    """SGD with Nesterov momentum (Sutskever et al. 2013; 0.9 in fb.resnet.torch and ResNet-RS)."""
    return _changed(config, "optimizer", name="sgd", momentum=momentum, nesterov=True)


def rmsprop(config: ConfigDict, decay: float = 0.9, momentum: float = 0.9, eps: float = 1e-3) -> ConfigDict:
    """RMSProp as TensorFlow computes it, with EfficientNet's values (Tan & Le 2019); Inception-v3 has eps 1.0."""
    return _changed(config, "optimizer", name="rmsprop", rmsprop="tensorflow", b2=decay, momentum=momentum, eps=eps)


def adamw(config: ConfigDict, weight_decay: float = 0.05, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> ConfigDict:
    """AdamW (Loshchilov & Hutter 2019) with ConvNeXt's and DeiT's values; the rate stays the schedule's (4e-3 in ConvNeXt)."""
    return _changed(config, "optimizer", name="adamw", weight_decay=weight_decay, b1=b1, b2=b2, eps=eps)


def clip_gradients(config: ConfigDict, norm: float = 1.0) -> ConfigDict:
    """The batch's gradient scaled down to a largest global norm, before decay joins it (Pascanu et al. 2013)."""
    return _changed(config, "optimizer", clip_norm=norm)


def decrease_weight_decay(config: ConfigDict, weight_decay: float = 4e-5) -> ConfigDict:
    """Less weight decay beside stronger regularisation (ResNet-RS, Tables 1 and 2: 1e-4 to 4e-5)."""
    return _changed(config, "optimizer", weight_decay=weight_decay)


def no_decay_on_norm_and_bias(config: ConfigDict) -> ConfigDict:
    """Weight decay on kernels alone (He et al. 2019, Section 3.1, "no bias decay")."""
    return _changed(config, "optimizer", decay_rules=(("(bias|scale)$", False), (".*", True)))


def no_decay_on_norm(config: ConfigDict) -> ConfigDict:
    """Weight decay on kernels and on biases outside of normalisation, as ResNet-RS's released code decays."""
    return _changed(config, "optimizer", decay_rules=((r"norm\d*/(bias|scale)$", False), (".*", True)))


# Groups of layers from the input to the output, as path expressions. The ConvNeXt authors' twelve and the stem: three blocks of
# stage 3 are one, and a downsampling layer belongs to what follows it. Of a ViT with twelve layers, every layer is one (BEiT).
CONVNEXT_GROUPS = (
    *("^stem_", "^stage1_", "^(downsample2|stage2)_", r"^(downsample3_|stage3_block[123]/)"),
    *(rf"^stage3_block({i}|{i + 1}|{i + 2})/" for i in range(4, 28, 3)),
    "^(downsample4|stage4)_",
)
VIT_GROUPS = ("^(patches/|positions|class_token|distillation_token)", *(rf"^block{i}/" for i in range(1, 13)))


def layerwise_lr_decay(config: ConfigDict, groups: tuple[str, ...] = CONVNEXT_GROUPS, factor: float = 0.8) -> ConfigDict:
    """The rate times `factor` for each group below the head, for fine-tuning (Clark et al. 2020; BEiT, ConvNeXt).

    ConvNeXt, Table 6: 0.8 for weights from ImageNet-22K, 0.7 for those from 1K. What no group matches, such as the head and
    the norm before it, keeps the full rate.
    """
    rules = tuple((group, factor ** (len(groups) - i)) for i, group in enumerate(groups))
    return _changed(config, "optimizer", rate_rules=(*rules, (".*", 1.0)))


def freeze(config: ConfigDict, patterns: tuple[str, ...] = ("^(?!head)",)) -> ConfigDict:
    """Parameters that a path expression finds keep their initial weights; by default all but the classifier's.

    Statistics of batch norm stay too with `batch_norm.granularity="stored"`.
    """
    frozen = tuple((pattern, 0.0) for pattern in patterns)
    others = (rule for rule in config.optimizer.rate_rules if rule not in frozen)
    return _changed(config, "optimizer", rate_rules=(*frozen, *others))


def accumulate(config: ConfigDict, parts: int = 2) -> ConfigDict:
    """The same batch in `parts` micro-batches; batch statistics are then a micro-batch's."""
    return _changed(config, "", accumulation=parts)


def bf16(config: ConfigDict) -> ConfigDict:
    """Activations and products in bfloat16, weights and statistics in float32 (ResNet-RS trains so)."""
    return _changed(config, "", precision="bfloat16")


# Averages and losses


def binary_cross_entropy(config: ConfigDict, threshold: float = 0.0) -> ConfigDict:
    """A yes or no for each class in place of one choice (Wightman et al. 2021; timm's settings for it have threshold 0.2)."""
    return _changed(config, "loss", function="binary_cross_entropy", target_threshold=threshold)


def ema(config: ConfigDict, decay: float = 0.9999) -> ConfigDict:
    """Evaluate an exponential moving average of weights and batch statistics (ResNet-RS: 0.9999 with warm-up)."""
    return _changed(config, "ema", decay=decay, warmup=True)


def constant_ema(config: ConfigDict, decay: float = 0.9999) -> ConfigDict:
    """The same average with a constant decay, as timm's ModelEma and ConvNeXt keep it (0.9999; DeiT 0.99996)."""
    return _changed(config, "ema", decay=decay, warmup=False)


def label_smoothing(config: ConfigDict, smoothing: float = 0.1) -> ConfigDict:
    """Smooth the target distribution over all classes (Szegedy et al. 2016; 0.1 in ResNet-RS)."""
    return _changed(config, "loss", label_smoothing=smoothing, smoothing_over="uniform")


def label_smoothing_over_others(config: ConfigDict, smoothing: float = 0.1) -> ConfigDict:
    """Smooth the target distribution over the other classes, as tensor2tensor and He et al. 2019 write it (0.1 in both)."""
    return _changed(config, "loss", label_smoothing=smoothing, smoothing_over="others")


def mixup(config: ConfigDict, alpha: float = 0.2) -> ConfigDict:
    """Convex combinations of two images and their labels (Zhang et al. 2018; 0.2 on ImageNet in He et al. 2019)."""
    return _changed(config, "mix", mixup_alpha=alpha)


def cutmix(config: ConfigDict, alpha: float = 1.0) -> ConfigDict:
    """A box of another image, labels by area (Yun et al. 2019; alpha 1). After `mixup`: one or the other, at random."""
    return _changed(config, "mix", cutmix_alpha=alpha)


def mixup_or_cutmix(config: ConfigDict) -> ConfigDict:
    """Every batch by mixup (alpha 0.8) or CutMix (alpha 1), each half the time, as DeiT, Swin and ConvNeXt train."""
    return _changed(config, "mix", mixup_alpha=0.8, cutmix_alpha=1.0, probability=1.0, switch_probability=0.5)


def random_erasing(config: ConfigDict, probability: float = 0.25) -> ConfigDict:
    """A box of noise in some images (Zhong et al. 2020; 0.25 and noise in every pixel in DeiT, Swin and ConvNeXt)."""
    return _changed(config, "mix", erasing_probability=probability)


# Model and data


def stochastic_depth(config: ConfigDict, rate: float = 0.1, by: str | None = "stage") -> ConfigDict:
    """Drop residual branches, more often the deeper they lie (Huang et al. 2016).

    ResNet-RS: 0.1 at the last stage, one rate a stage; `by="block"` is the linear rule over blocks of timm. `by=None` is for
    ConvNeXt and Transformers, which have no other.
    """
    return _changed(config, "model", drop_path_rate=rate, **({} if by is None else {"drop_path_by": by}))


def randaugment(config: ConfigDict, layers: int = 2, magnitude: float = 15) -> ConfigDict:
    """N random operations of magnitude M (Cubuk et al. 2020; N = 2 and M = 15 in ResNet-RS, M = 10 at its smallest sizes)."""
    return _changed(config, "data", randaugment_layers=layers, randaugment_magnitude=magnitude)


def colour_jitter(config: ConfigDict, strength: float = 0.4) -> ConfigDict:
    """Random brightness, contrast and saturation (0.4 in fb.resnet.torch; in DeiT and ConvNeXt RandAugment takes its place)."""
    return _changed(config, "data", colour_jitter=strength)


def lighting(config: ConfigDict, deviation: float = 0.1) -> ConfigDict:
    """Random shifts along the principal components of colours (Krizhevsky et al. 2012; 0.1 there and in fb.resnet.torch)."""
    return _changed(config, "data", lighting=deviation)


def dropout(config: ConfigDict, rate: float = 0.25) -> ConfigDict:
    """Dropout on the features before the classifier (ResNet-RS: 0.25; 0.4 for its largest)."""
    return _changed(config, "model", dropout_rate=rate)


def zero_init_gamma(config: ConfigDict) -> ConfigDict:
    """Each residual branch starts at 0 (Goyal et al. 2017, Section 5.1; He et al. 2019, Section 3.1)."""
    return _changed(config, "model", zero_gamma=True)


def no_shortcuts(config: ConfigDict) -> ConfigDict:
    """The plain network of the same layers (He et al. 2016, Section 3.3)."""
    return _changed(config, "model", residual=False)


def resnet_d(config: ConfigDict, stem: str = "deep") -> ConfigDict:
    """Stride in the 3x3, three 3x3 in the stem, pooled shortcuts (He et al. 2019, Section 4).

    `stem="rs"` has ResNet-RS's convolution in place of the max-pool, `stem="cifar"` leaves small images as large as they are.
    """
    return _changed(config, "model", stem=stem, stride_at="3x3", shortcut="D")


def squeeze_excite(config: ConfigDict, reduction: int = 16) -> ConfigDict:
    """Squeeze-and-excitation on every residual branch (Hu et al. 2018; r = 16 there, 4 in ResNet-RS)."""
    return _changed(config, "model", gate="se", gate_at="block", gate_args=ConfigDict({"reduction": reduction}))


def bam(config: ConfigDict, reduction: int = 16) -> ConfigDict:
    """BAM after each stage but the last (Park et al. 2018; r = 16 there)."""
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
