"""Numbers to put into blocks, and how close two results must be."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from attention_jax import tree
from attention_jax.nn.norm import BatchNorm
from tests.helpers.parity import draw

TINY = dict(num_classes=3, stem="cifar", widths=(4, 8), stage_sizes=(1, 1), block="basic")

# A test computes once what it compiles: compiling is what takes the time. Before 0.11 jaxlib has other emitters too, which
# compile in half of it.
_OLD = {"xla_cpu_use_fusion_emitters": False} if jax.version.__version_info__ < (0, 11) else {}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, **_OLD})


def numbers(name: str, *shape: int) -> np.ndarray:
    """Standard normal numbers that depend on the name."""
    return draw(0, f"{name}/bias", shape) / np.float32(0.3)


def drawn(module: nn.Module, *inputs: Any, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    """Variables of `module`, none at a value that hides a mistake."""
    shapes = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, **kwargs), *inputs)
    return {
        name: tree.map_with_path(lambda path, leaf: draw(seed, path, leaf.shape), dict(shapes)[name])
        for name in shapes
        if name in ("params", "batch_stats")
    }


def close(a: Any, b: Any, tolerance: float = 2e-6) -> None:
    """Asserts equality up to `tolerance` of the largest value, for trees of one structure."""

    def leaf(path: str, x: Any, y: Any) -> None:
        y = np.asarray(y)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * (np.abs(y).max() + 1e-30), err_msg=path)

    a, b = jax.device_get((a, b))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    tree.map_with_path(leaf, a, b)


def evaluating(**kwargs: Any) -> BatchNorm:
    return BatchNorm(use_running_average=True, **kwargs)
