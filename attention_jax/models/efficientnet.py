"""EfficientNet (Tan & Le 2019, arXiv 1905.11946) and EfficientNet-Lite: one small network, scaled in width, depth and image.

Stages, filters and rounding are those of tensorflow/tpu, models/official/efficientnet and its `lite/`; names are timm's.
`efficientnet_*` pads symmetrically with PyTorch's epsilon; `tf_efficientnet_*` pads and normalises as the released TensorFlow
weights need it, with TensorFlow's momentum. (torchvision's B5 to B7 pad like the former and have epsilon 1e-3.)
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from attention_jax.errors import UserError
from attention_jax.models.gate import Gate
from attention_jax.models.registry import register_model
from attention_jax.models.stages import DTYPES, GATE_PLACES, Network, check_choices, check_image_size, check_rates
from attention_jax.nn.conv import Conv, StochasticDepth
from attention_jax.nn.gates import SqueezeExcite
from attention_jax.nn.norm import BatchNorm

# (kernel, stride, expansion, filters, blocks) of B0's stages: Table 1 of the paper.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_ENDS = (1, 2, 3, 5, 7)  # stages before one of stride 2, or before the head: the last maps of strides 2, 4, 8, 16 and 32
_he_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # sqrt(2 / k·k), one filter a channel
_CHOICES = {
    "padding": ("symmetric", "tensorflow"),
    "gate_at": GATE_PLACES,
    "norm_running_var": ("biased", "unbiased"),
    "dtype": DTYPES,
}


def round_filters(filters: float) -> int:
    """Returns the nearest multiple of 8, at least 8; the next one if that is less than 90 % of `filters`."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * filters else rounded + 8


class MBConv(nn.Module):
    """The inverted residual block of MobileNetV2 and MnasNet: 1x1 to expand, depthwise k x k, gate, 1x1 to project.

    The shortcut joins equal shapes only, and nothing follows the addition.

    Attributes:
        filters: channels of the output.
        kernel, stride: side and stride of the depthwise convolution.
        expansion: inner filters per input channel; 1 leaves out the first 1x1.
        gate: makes squeeze-and-excitation, or the gate in its place; None for no gate.
        conv, norm, act: the network's convolution, normalisation and activation.
        drop_rate, train: with `train`, the residual branch is dropped with this probability.
    """

    filters: int
    kernel: int
    stride: int
    expansion: int
    gate: Callable[[], nn.Module] | None
    conv: Callable[..., jax.Array]
    norm: Callable[..., nn.Module]
    act: Callable[[jax.Array], jax.Array]
    drop_rate: float
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H/stride, W/stride, filters]."""
        y, inside = x, x.shape[-1] * self.expansion
        if self.expansion != 1:
            y = self.act(self.norm(name="expand_norm")(self.conv(y, inside, 1, name="expand_conv")))
        y = self.conv(y, inside, self.kernel, self.stride, inside, name="depthwise_conv")
        y = self.act(self.norm(name="depthwise_norm")(y))
        if self.gate:
            y = self.gate()(y)
        y = self.norm(name="project_norm")(self.conv(y, self.filters, 1, name="project_conv"))
        if x.shape != y.shape:
            return y
        return x + StochasticDepth(self.drop_rate, deterministic=not self.train)(y)


class EfficientNet(Network):
    """Stem 3x3 of stride 2, seven stages of MBConv, 1x1 to 1,280 filters, global average pooling, linear classifier.

    Attributes:
        num_classes: number K of classes.
        width, depth: factors of B0's filters (rounded to multiples of 8) and blocks (rounded up).
        lite: EfficientNet-Lite: no squeeze-and-excitation, ReLU6 for swish; `width` leaves the stem and the last 1x1 as they
            are, `depth` the first and the last stage.
        padding: "symmetric" as PyTorch pads, or "tensorflow", whose strided convolutions have the odd zero after the image.
        gate: attention to put in, by name (`gate.GATES`), dotted path, `file.py:Name` or class; None leaves the network's own
            squeeze-and-excitation alone.
        gate_at: "stage" gates the output of stages, beside squeeze-and-excitation; "block" takes its place in every block.
        gate_stages: numbers of the stages, from 1 to 7, that have it; None is all of them for "block", those before a stage
            of stride 2 for "stage", the places of BAM in a ResNet.
        gate_args: keyword arguments of the gate.
        drop_path_rate: stochastic depth: block i of n is dropped at rate·i/n (timm, tensorflow/tpu).
        dropout_rate: dropout before the classifier.
        features: True returns maps in place of logits, and leaves out the head.
        norm_epsilon, norm_momentum: settings of batch normalisation, see `BatchNorm`.
        norm_group_size: examples that share batch statistics; None is the entire batch that the module sees.
        norm_running_var: "biased" or "unbiased", see `BatchNorm`.
        dtype: dtype of activations and products, "float32" or "bfloat16"; parameters, statistics and logits are float32.
    """

    num_classes: int = 1000
    width: float = 1.0
    depth: float = 1.0
    lite: bool = False
    padding: str = "symmetric"
    gate: str | Callable[..., nn.Module] | None = None
    gate_at: str = "stage"
    gate_stages: tuple[int, ...] | None = None
    gate_args: Mapping[str, Any] = FrozenDict()
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    features: bool = False
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    norm_group_size: int | None = None
    norm_running_var: str = "biased"
    dtype: str = "float32"

    def check(self) -> None:
        """Raises UserError for a field whose value is not one of those the class docstring lists."""
        check_choices(self, _CHOICES)
        check_rates(self, "drop_path_rate", "dropout_rate")
        for field in ("width", "depth"):
            if not (factor := getattr(self, field)) > 0:
                raise UserError(f"model.{field}={factor} is not right: give a factor above 0.")
        gated = self.gate_stages
        if gated is not None and not (isinstance(gated, (tuple, list)) and set(gated) <= {*range(1, 8)}):
            raise UserError(f"model.gate_stages={gated!r} is not right: give a tuple of numbers from 1 to 7, as in (2,).")

    def scale_stages(self) -> list[tuple[int, int, int, int, int]]:
        """Returns (kernel, stride, expansion, filters, blocks) of every stage of this network."""
        ends = (0, len(STAGES) - 1) if self.lite else ()
        return [
            (k, s, e, round_filters(filters * self.width), blocks if i in ends else math.ceil(blocks * self.depth))
            for i, (k, s, e, filters, blocks) in enumerate(STAGES)
        ]

    def gated_stages(self) -> tuple[int, ...]:
        """Returns the numbers of the stages that have the gate, counted from 1."""
        if self.gate is None:
            return ()
        if self.gate_stages is not None:
            return tuple(self.gate_stages)
        return tuple(range(1, 8)) if self.gate_at == "block" else _ENDS[:-1]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array | tuple[jax.Array, ...]:
        """[B, H, W, C] -> [B, K] float32, or with `features` the maps [B, H/s, W/s, C] of strides s = 4, 8, 16, 32.

        A map is the output of the last stage of its stride, as timm's `features_only` has it.
        With `train` it updates the collection "batch_stats", and stochastic depth and dropout draw from the key "dropout".
        Raises UserError when the image has fewer pixels a side than the network's stride.
        """
        self.check()
        b, h, w, c = images.shape
        check_image_size(h, w, 32, "use larger images")
        dtype = jnp.dtype(self.dtype)
        act: Callable[[jax.Array], jax.Array] = nn.relu6 if self.lite else nn.silu
        norm = functools.partial(
            BatchNorm, not train, self.norm_group_size, self.norm_momentum, self.norm_epsilon, self.norm_running_var
        )

        def conv(x: jax.Array, filters: int, kernel: int, stride: int = 1, groups: int = 1, name: str = "") -> jax.Array:
            more: dict[str, Any] = {} if groups == 1 else {"kernel_init": _he_depthwise}
            if self.padding == "tensorflow":
                more["padding"] = jax.lax.padtype_to_pads(x.shape[1:3], (kernel,) * 2, (stride,) * 2, "SAME")
            return Conv(filters, (kernel,) * 2, stride, feature_group_count=groups, dtype=dtype, name=name, **more)(x)

        gate = None if self.gate is None else functools.partial(Gate, self.gate, self.gate_args, norm, dtype, train)
        gated, stages, maps = self.gated_stages(), self.scale_stages(), []
        total, before = sum(blocks for *_, blocks in stages), 0
        block = functools.partial(MBConv, conv=conv, norm=norm, act=act, train=train)

        stem = 32 if self.lite else round_filters(32 * self.width)
        x = act(norm(name="stem_norm")(conv(images.astype(dtype), stem, 3, 2, name="stem_conv")))
        for stage, (kernel, stride, expansion, filters, blocks) in enumerate(stages, 1):
            # The hidden units are a quarter of the block's input channels, not of its expanded channels.
            squeeze = functools.partial(SqueezeExcite, 4 * expansion, activation=nn.silu, dtype=dtype, name="gate")
            inside: Callable[[], nn.Module] | None = None if self.lite else squeeze
            if gate and self.gate_at == "block" and stage in gated:
                inside = functools.partial(gate, name="gate")
            for i in range(blocks):
                x = block(
                    filters=filters,
                    kernel=kernel,
                    stride=1 if i else stride,
                    expansion=expansion,
                    gate=inside,
                    drop_rate=self.drop_path_rate * (before + i) / total,
                    name=f"stage{stage}_block{i + 1}",
                )(x)
            before += blocks
            if gate and self.gate_at == "stage" and stage in gated:
                x = gate(name=f"stage{stage}_gate")(x)
            if stage in _ENDS[1:]:
                maps.append(x)
        if self.features:
            return tuple(maps)

        head = 1280 if self.lite else round_filters(1280 * self.width)
        x = act(norm(name="head_norm")(conv(x, head, 1, name="head_conv")))
        x = x.astype(jnp.promote_types(dtype, jnp.float32)).mean((1, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        # tensorflow/tpu: uniform within 1/sqrt(K).
        init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        return nn.Dense(self.num_classes, kernel_init=init, name="head")(x)


_B = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8), 5: (1.6, 2.2), 6: (1.8, 2.6), 7: (2.0, 3.1)}
_TENSORFLOW = dict(padding="tensorflow", norm_epsilon=1e-3, norm_momentum=0.99)
for _number, (_width, _depth) in _B.items():
    for _name, _lite in ((f"b{_number}", False), (f"lite{_number}", True)):
        if not _lite or _number < 5:
            _net: dict[str, Any] = dict(width=_width, depth=_depth, lite=_lite)
            register_model(f"efficientnet_{_name}", EfficientNet, **_net)
            register_model(f"tf_efficientnet_{_name}", EfficientNet, **_net, **_TENSORFLOW)
