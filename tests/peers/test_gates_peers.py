"""Our gates against timm's, live: outputs, gradients and statistics of each alone, and counts of ResNet-50 with them."""

import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")

import timm
import torch

import attention_jax as aj
from attention_jax import tree
from attention_jax.models.gate import GATES
from attention_jax.nn.norm import BatchNorm
from tests.helpers import parity
from tests.helpers.blocks import drawn, quick
from tests.models.test_counts import TIMM_GATES
from tests.peers import torch_nets
from tests.peers.torch_gates import TIMM_LAYERS, mended_timm, timm_gate

pytestmark = pytest.mark.peers
CHANNELS = 16
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "ese": ("ese", {}),
    "ge": ("ge", {}),
    "ge as timm has it": ("ge", dict(mlp=True, reduction=4)),
    "ge of pairs": ("ge", dict(extent=2)),
    "ge of pairs, convolved": ("ge", dict(extent=2, gather="conv")),
    "ge of eight, convolved, with weights": ("ge", dict(extent=8, gather="conv", mlp=True, reduction=4)),
    "ge of four with weights": ("ge", dict(extent=4, mlp=True, reduction=4)),
    "gc as timm has it": ("gc", dict(fuse="scale", reduction=2, epsilon=1e-6)),
    "gca": ("gca", dict(reduction=2)),
    "coord": ("coord", {}),
    "coord as timm has it": ("coord", dict(reduction=24, divisor=8, use_bias=False)),
    "nl": ("nl", dict(reduction=2)),
    "nl as timm has it": ("nl", dict(reduction=8, scaled=True)),
}


def path_of(name: str, tensor: torch.Tensor) -> str:
    """Our path of a tensor of timm's gate."""
    module, _, leaf = name.rpartition(".")
    where = next(
        re.sub(theirs, ours.replace(r"\3", r"\1"), module)
        for theirs, ours in TIMM_LAYERS.items()
        if re.fullmatch(theirs, module)
    )
    leaf = {"weight": "scale" if tensor.ndim == 1 else "kernel", **torch_nets.STATISTICS}.get(leaf, leaf)
    return f"gate/{where}/{leaf}"


def run_timm(gate: torch.nn.Module, x: np.ndarray, weights: np.ndarray, train: bool) -> parity.Results:
    """What `run_ours` gives, in float64."""
    tensors = {name: tensor for name, tensor in gate.state_dict().items() if "batches" not in name}
    paths = {name: path_of(name, tensor) for name, tensor in tensors.items()}
    torch_nets.fill(gate.double(), 0, paths).train(train)
    image = torch_nets.nchw(x).requires_grad_()
    y = gate(image)
    (y * torch_nets.nchw(weights)).sum().backward()
    gradients = {paths[name]: torch_nets.to_ours(paths[name], p.grad.numpy()) for name, p in gate.named_parameters()}
    statistics = {paths[name]: tensor.numpy() for name, tensor in gate.state_dict().items() if "running" in name}
    channels_last = [t.detach().permute(0, 2, 3, 1).numpy() for t in (y, image.grad)]
    return {"logits": {"": channels_last[0]}, "gradients": {"x": channels_last[1], **gradients}, "statistics": statistics}


def run_ours(name: str, args: dict[str, Any], x: np.ndarray, weights: np.ndarray, train: bool) -> parity.Results:
    """Output, gradients of its weighted sum, and running statistics after the call."""
    takes_norm = "norm" in GATES[name].__dataclass_fields__
    norm = {"norm": functools.partial(BatchNorm, not train, running_var="unbiased")} if takes_norm else {}
    module = Named(GATES[name], {**args, **norm})
    variables = drawn(module, x)

    def loss(params: Any, x: jax.Array) -> tuple:
        y, changed = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return (y * weights).sum(), (y, changed.get("batch_stats", {}))

    (_, (y, statistics)), (of_params, of_x) = quick(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        variables.get("params", {}), x
    )
    gradients = {"x": of_x, **tree.flatten_by_path(of_params)}
    return {"logits": {"": y}, "gradients": gradients, "statistics": tree.flatten_by_path(statistics)}


class Named(nn.Module):
    """A gate by the name of its place."""

    make: Any
    args: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.make(**self.args, name="gate")(x)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [(8, 12), (7, 9)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gate(form: str, size: tuple[int, int], train: bool) -> None:
    """The same output, gradients of parameters and input, and running statistics."""
    name, args = FORMS[form]
    x, weights = (np.random.RandomState(seed).standard_normal((3, *size, CHANNELS)).astype(np.float32) for seed in (1, 2))
    gate = timm_gate(name, CHANNELS, **args)
    results = run_ours(name, args, x, weights, train)
    parity.check(results, run_timm(gate, x, weights, train))
    count = sum(np.size(gradient) for path, gradient in results["gradients"].items() if path != "x")
    assert count == sum(p.numel() for p in gate.parameters())


def test_timm_pads_the_global_convolution() -> None:
    """Why ours differs there: timm's gives a map and not one place."""
    gate = mended_timm()(CHANNELS, feat_size=(7, 7), extra_params=True, use_mlp=False)
    assert gate.gather(torch.zeros(1, CHANNELS, 7, 7)).shape[2:] == (7, 7)


@pytest.mark.parametrize("name", TIMM_GATES)
def test_count_of_resnet50(name: str) -> None:
    """Parameters of timm's own network with its default gate in every block, and of ours with the arguments of that."""
    with torch.device("meta"):
        theirs = timm.create_model("resnet50", block_args=dict(attn_layer=mended_timm() if name == "ge" else name))
    args, count = TIMM_GATES[name]
    assert count == sum(p.numel() for p in theirs.parameters())
    model = aj.create_model("resnet50", gate=name, gate_at="block", gate_args=args)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))["params"]
    assert count == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
