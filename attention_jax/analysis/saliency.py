"""Maps of where an image network looks (attention modules, Grad-CAM, roll-out), and features by module path.

Letters in shapes: N images of H x W pixels, maps of h x w positions.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax import tree
from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.errors import UserError, suggest_name
from attention_jax.models.swin import SwinTransformer, lay_windows
from attention_jax.models.vit import VisionTransformer

_SOWN = {  # name of a map that modules sow -> its description
    "map": "what the module multiplies by",
    "spatial": "the factor of each position",
    "weights": "the share of each position",
}


@dataclasses.dataclass(frozen=True)
class SaliencyMap:
    """Maps [N, h, w] float32 of N images, and a sentence that describes them."""

    maps: np.ndarray
    caption: str


def list_modules(model: nn.Module, variables: Any, *inputs: Any) -> dict[str, tuple[int, ...]]:
    """Returns {module path: shape of its output} of all modules that return one array, in the order in which they end."""
    found: dict[str, tuple[int, ...]] = {}

    def record(function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = function(*args, **kwargs)
        if context.method_name == "__call__" and hasattr(output, "shape") and context.module.path:
            found.pop(path := "/".join(context.module.path), None)  # the last call counts
            found[path] = tuple(output.shape)
        return output

    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, *inputs)
    return found


def capture_outputs(
    model: nn.Module, variables: Any, *inputs: Any, modules: str | Sequence[str] = "*"
) -> dict[str, np.ndarray]:
    """Returns {module path: output} of the modules whose paths match a pattern, such as "stage*_block1" or "*/conv1".

    Raises UserError that names the modules if none matches.
    """
    patterns = [modules] if isinstance(modules, str) else list(modules)
    known = list_modules(model, variables, *inputs)
    chosen = {path for path in known if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)}
    if not chosen:
        text = f"modules={modules!r} matches none of the network's modules{suggest_name(patterns[0], known)}"
        raise UserError(f"{text}: {', '.join(list(known)[:20])}{', …' * (len(known) > 20)}.")

    def is_chosen(module: nn.Module, method: str) -> bool:
        return method == "__call__" and "/".join(module.path) in chosen

    @jax.jit
    def apply(variables: Any, *inputs: Any) -> Any:
        _, kept = model.apply(variables, *inputs, mutable=["intermediates"], capture_intermediates=is_chosen)
        flat = tree.flatten_by_path(
            jax.tree.map(lambda x: x[-1], kept["intermediates"], is_leaf=lambda x: isinstance(x, tuple))
        )
        return {path.removesuffix("/__call__"): array for path, array in flat.items() if path.endswith("/__call__")}

    found = jax.device_get(apply(variables, *inputs))
    return {path: found[path] for path in known if path in found}


def locate_attention(model: nn.Module, variables: Any, images: Any) -> dict[str, SaliencyMap]:
    """Returns {module path: map of its attention} for every attention module of an image network.

    A module that weighs positions has the map that it sows: the mean over channels of its factors (BAM, coordinate
    attention, gather-excite), its map of positions (CBAM, global context), or each position's weight, averaged over all
    queries (self-attention, the non-local block). Vision Transformers have the attention of their class token, or without one
    the mean over patches. A module that weighs only channels (squeeze-and-excitation, ECA) has no positions: its map is
    the mean of |F'| over channels, where F' are the features that it returns. For a custom module, the last sown [N, h, w] or
    [N, h, w, C] array counts, else F'. Modules whose outputs have no positions are left out.

    Args:
        images: normalised images [N, H, W, C].
    """
    images = jnp.asarray(images)
    sown = {path: np.asarray(array, np.float32) for path, array in attention_maps(model, variables, images).items()}
    places: dict[str, dict[str, np.ndarray]] = {}
    for path, array in sown.items():
        place, _, name = path.rpartition("/")
        places.setdefault(place, {})[name] = array
    if isinstance(model, (VisionTransformer, SwinTransformer)):
        lay: Callable[..., SaliencyMap] = _lay_tokens if isinstance(model, VisionTransformer) else _lay_windows
        return {place: lay(model, place, arrays["weights"], images) for place, arrays in places.items()}
    found = {place: choose_map(arrays, len(images)) for place, arrays in places.items()}
    if missing := [place for place, chosen in found.items() if chosen is None]:
        known = list_modules(model, variables, images)
        spatial = [place for place in missing if len(known.get(place, ())) == 4]
        outputs = capture_outputs(model, variables, images, modules=[*map(_literal, spatial)]) if spatial else {}
        caption = "mean of |F'| over channels, the features that the module returns: it weighs channels and no places"
        for place, array in outputs.items():
            found[place] = SaliencyMap(np.abs(array.astype(np.float32)).mean(-1), caption)
    return {place: chosen for place, chosen in found.items() if chosen is not None}


def _literal(path: str) -> str:
    """Returns a pattern that matches only this path."""
    return re.sub(r"([\[*?])", r"[\1]", path)


def choose_map(arrays: Mapping[str, np.ndarray], n: int, query: tuple[float, float] | None = None) -> SaliencyMap | None:
    """Returns the map of positions among the arrays of `n` images that modules have sown; None if there is none.

    Args:
        arrays: {name: array}.
        query: a point (row, column), in shares of the image's sides, whose self-attention counts; None takes the mean over all.
    """
    own = {name: array for name, array in arrays.items() if name not in ("input", "output") and array.shape[:1] == (n,)}
    for name, array in [*((name, own[name]) for name in _SOWN if name in own), *reversed(own.items())]:
        if array.ndim == 5 and query:
            row, column = (int(at * side) for at, side in zip(query, array.shape[1:3]))
            return SaliencyMap(array[:, row, column], "attention of one position")
        if array.ndim == 5:
            return SaliencyMap(array.mean((1, 2)), "attention that each position gets, mean over all queries")
        if array.ndim not in (3, 4) or min(array.shape[1:3]) == 1:
            continue
        if array.ndim == 3:
            return SaliencyMap(array, _SOWN.get(name, f"sown {name!r}"))
        if name != "weights":
            return SaliencyMap(array.mean(-1), f"{_SOWN.get(name, f'sown {name!r}')}, mean over channels")
    return None


def _lay_tokens(model: VisionTransformer, place: str, weights: np.ndarray, images: Any) -> SaliencyMap:
    """[N, heads, T, T] of a ViT's layer -> its map."""
    prefix, heads = len(model.prefix()), weights.mean(1)
    query = heads[:, 0] if prefix else heads.mean(1)
    whose = "attention of the class token" if prefix else "attention that each patch gets, mean over patches"
    return SaliencyMap(_to_patches(query[:, prefix:], model, images), f"{whose}, mean over heads")


def _to_patches(values: np.ndarray, model: VisionTransformer, images: Any) -> np.ndarray:
    """[N, h · w] -> [N, h, w]."""
    return values.reshape(len(images), -(-images.shape[1] // model.patch_size), -(-images.shape[2] // model.patch_size))


def _lay_windows(model: SwinTransformer, place: str, weights: np.ndarray, images: Any) -> SaliencyMap:
    """[N · windows, heads, window², window²] of a Swin Transformer's layer -> its map."""
    stage, block = map(int, re.findall(r"\d+", place)[:2])
    patch = model.patch_size * 2 ** (stage - 1)
    (rows, columns), side = (-(-pixels // patch) for pixels in images.shape[1:3]), model.window_size
    places, _ = lay_windows(rows, columns, side, shifted=block % 2 == 0)
    flat = np.zeros((len(images), places.size), np.float32)
    flat[:, places.ravel()] = weights.mean((1, 2)).reshape(len(images), -1)
    maps = flat.reshape(len(images), -1, -(-columns // side) * side)[:, :rows, :columns]
    return SaliencyMap(maps, "attention that each position gets in its window, mean over queries and heads")


def weigh_features(features: Any, weights: Any) -> Any:
    """Features [N, h, w, C], a weight for each channel [N, C] -> [N, h, w], the sum's positive part (Grad-CAM, Equation 2)."""
    return jax.nn.relu(jnp.einsum("nhwc,nc->nhw", features, weights))


def compute_grad_cam(
    model: nn.Module, variables: Any, images: Any, classes: Any = None, module: str | None = None
) -> SaliencyMap:
    """Computes Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, Section 3), [N, h, w] not scaled.

    A channel's weight is the mean over positions of the gradient of a class's logit with respect to the channel's features.

    Args:
        images: normalised images [N, H, W, C].
        classes: [N] class numbers; by default the predicted classes.
        module: path of the module whose output is explained; by default the last one with a map [N, h, w, C] of more than one
            position, for a Vision Transformer the first norm of its last block. Outputs [N, tokens, C] of a Vision Transformer
            are laid on the patches.

    Raises:
        UserError: the network has no such module, or none with maps.
    """
    images, known = jnp.asarray(images), list_modules(model, variables, jnp.asarray(images))
    prefix = len(model.prefix()) if isinstance(model, VisionTransformer) else 0
    if module is None:
        usual = f"block{model.layers}/norm1" if isinstance(model, VisionTransformer) else None
        maps = [path for path, shape in known.items() if len(shape) == 4 and shape[1] * shape[2] > 1]
        module = usual or next(reversed(maps), None)
    if module is None or module not in known:
        given = "no module with maps [N, h, w, C]" if module is None else f"no module {module!r}{suggest_name(module, known)}"
        raise UserError(f"Grad-CAM: {type(model).__name__} has {given}: list_modules gives those that it has.")
    if len(known[module]) not in ((3, 4) if isinstance(model, VisionTransformer) else (4,)):
        raise UserError(f"Grad-CAM: the output of module {module!r} is {known[module]}, which is no map [N, h, w, C].")

    @jax.jit
    def explain(variables: Any, images: Any, classes: Any) -> tuple[Any, Any]:
        def score(change: jax.Array) -> tuple[Any, Any]:
            kept: list[Any] = []

            def add(function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
                if context.method_name != "__call__" or "/".join(context.module.path) != module or kept:
                    return function(*args, **kwargs)  # `kept`: the module inside a gate's slot has the same path
                kept.append(None)
                kept[0] = function(*args, **kwargs)
                return kept[0] + change.astype(kept[0].dtype)

            with nn.intercept_methods(add):
                logits: Any = model.apply(variables, images)
            return logits[jnp.arange(len(images)), classes].sum(), kept[0].astype(jnp.float32)

        return jax.grad(score, has_aux=True)(jnp.zeros(known[module], jnp.float32))

    predicted: Any = jax.jit(model.apply)(variables, images).argmax(-1) if classes is None else jnp.asarray(classes)
    gradient, features = explain(variables, images, predicted)
    if gradient.ndim == 3:  # tokens
        side = -(-images.shape[2] // model.patch_size)  # type: ignore[attr-defined]
        gradient, features = (x[:, prefix:].reshape(len(images), -1, side, x.shape[-1]) for x in (gradient, features))
    what = "the predicted class" if classes is None else "the given class"
    found = np.asarray(weigh_features(features, gradient.mean((1, 2))))
    return SaliencyMap(found, f"Grad-CAM for {what}, of the output of {module}")


def roll_out_attention(weights: Sequence[Any]) -> np.ndarray:
    """[N, heads, T, T] of each layer, in order -> [N, T, T], the attention of the last layer's tokens to the first layer's.

    Each layer is half the mean over heads and half the identity, for the residual branch, and the layers are
    multiplied (Abnar & Zuidema 2020, arXiv 2005.00928, Section 3). A row sums to 1.
    """
    if not len(weights):
        raise UserError("roll_out_attention: there are no layers: give the weights of at least one.")
    total = np.eye(np.shape(weights[0])[-1])
    for layer in weights:
        mean = np.asarray(layer, np.float64).mean(1)
        total = (0.5 * mean + 0.5 * np.eye(mean.shape[-1])) @ total
    return total


def compute_rollout(model: nn.Module, variables: Any, images: Any) -> SaliencyMap:
    """Computes the attention roll-out of a Vision Transformer on its patches, of the class token or else of the mean patch.

    Raises UserError for another network: in windows, or behind convolutions, attention cannot be multiplied.
    """
    if not isinstance(model, VisionTransformer):
        raise UserError(
            f"attention roll-out is for a VisionTransformer, whose layers all see all tokens, not {type(model).__name__}."
        )
    sown = attention_maps(model, variables, images)
    total = roll_out_attention([sown[f"block{i + 1}/attention/weights"] for i in range(model.layers)])
    prefix = len(model.prefix())
    query = total[:, 0] if prefix else total.mean(1)
    whose = "the class token" if prefix else "the mean over patches"
    return SaliencyMap(_to_patches(query[:, prefix:], model, images).astype(np.float32), f"attention roll-out of {whose}")
