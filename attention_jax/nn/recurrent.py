"""Recurrent layers over padded sequences: LSTM (without peepholes) and the GRU of Bahdanau et al. (2014).

Letters in names: T tokens, B sentences, D features of the input, H of the state, G gates of all units together. The time axis
comes first, as a scan needs it. One product computes the inputs' part of the gates for all tokens; the scan does the rest.

A layer has `input/kernel` [D, G], `input/bias` [G] and `hidden/kernel` [H, G]. torch.nn.LSTM has the same gates in the same
order (input, forget, candidate, output): weight_ih_l0 = input/kernelᵀ, weight_hh_l0 = hidden/kernelᵀ, and bias_ih_l0 +
bias_hh_l0 = input/bias with `forget_bias` added to its second quarter. torch.nn.GRU is another cell: it applies the reset
gate after the product, and its update gate is 1 minus the one here.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.kernels.lstm import scan_lstm
from attention_jax.kernels.switch import kernels_are_on
from attention_jax.nn.dropout import drop

State = tuple[jax.Array, ...]  # [B, H] each, the output first
Advance = Callable[[jax.Array, State], State]


class Affine(nn.Module):
    """Computes `x W + b` with sizes given in advance: the kernel must exist before a scan, which cannot call a module."""

    inputs: int
    outputs: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.kernel = self.param("kernel", self.kernel_init, (self.inputs, self.outputs))
        self.bias = self.param("bias", self.bias_init, (self.outputs,)) if self.use_bias else None

    def __call__(self, x: jax.Array, precision: Any = None) -> jax.Array:
        """[..., D] -> [..., outputs] in `dtype`, or in `precision` if given."""
        kernel, bias = self.kernel.astype(self.dtype), self.bias
        y = jnp.matmul(x.astype(self.dtype), kernel, preferred_element_type=precision or self.dtype)
        return y if bias is None else y + bias.astype(y.dtype)

    def pure(self) -> Callable[[jax.Array], jax.Array]:
        """Returns the layer as a pure function, for use in a scan."""
        kernel, bias, scope = self.kernel.astype(self.dtype), self.bias, "/".join(self.path)

        def affine(x: jax.Array) -> jax.Array:
            with jax.named_scope(scope):
                y = x @ kernel
            return y if bias is None else y + bias.astype(y.dtype)

        return affine


class RecurrentLayer(nn.Module):
    """The common part of LSTM and GRU.

    Attributes:
        inputs: number D of input features.
        features: number H of units.
        use_bias: True gives the layer one set of biases.
        dtype: dtype of products and outputs; gates and an LSTM's cells are float32.
    """

    inputs: int
    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.glorot_uniform()
    recurrent_init: Callable = nn.initializers.orthogonal()
    bias_init: Callable = nn.initializers.zeros_init()
    dtype: Any = jnp.float32

    gates: ClassVar[int]

    def setup(self) -> None:
        affine = functools.partial(Affine, outputs=self.gates * self.features, dtype=self.dtype)
        self.input = affine(self.inputs, use_bias=self.use_bias, kernel_init=self.kernel_init, bias_init=self.bias_init)
        self.hidden = affine(self.features, use_bias=False, kernel_init=self._by_gates)

    def _by_gates(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Draws each gate's square matrix separately, since an orthogonal one must be square."""
        keys = jax.random.split(key, self.gates)
        return jnp.concatenate([self.recurrent_init(k, (shape[0], self.features)) for k in keys], axis=1)

    def __call__(
        self, x_TBD: jax.Array, mask_TB: jax.Array | None = None, state: State | None = None, reverse: bool = False
    ) -> tuple[jax.Array, State]:
        """[T, B, D] -> outputs [T, B, H] and the last state.

        Args:
            mask_TB: False at padding, which keeps the state; the output there repeats the state.
            state: state before the first token; zeros by default.
            reverse: True reads from the last token to the first; outputs keep the positions of their tokens.
        """
        state = self.zeros(x_TBD.shape[1]) if state is None else state
        return self.scan(self.project(x_TBD), mask_TB, state, reverse)

    def scan(self, gates_TBG: jax.Array, mask_TB: jax.Array | None, state: State, reverse: bool) -> tuple[jax.Array, State]:
        """Does the same as `__call__`, given the output of `project`."""
        advance = self.recurrence("hidden")

        def step(state: State, inputs: tuple[jax.Array, jax.Array | None]) -> tuple[State, jax.Array]:
            gates_BG, mask_B = inputs
            new = advance(gates_BG, state)
            if mask_B is not None:
                new = tuple(jnp.where(mask_B[:, None], a, b) for a, b in zip(new, state, strict=True))
            return new, new[0]

        last, y_TBH = jax.lax.scan(step, state, (gates_TBG, mask_TB), reverse=reverse)
        return y_TBH, last

    def project(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., G], the input's part of the gates."""
        return self.input(x)

    def zeros(self, batch: int) -> State:
        """Returns the state before the first token."""
        return (jnp.zeros((batch, self.features), self.dtype),)

    def recurrence(self, scope: str) -> Advance:
        """Returns a pure function (output of `project` [B, G], state) -> next state.

        A summary lists its products under the name `scope`.
        """
        raise NotImplementedError


class LSTM(RecurrentLayer):
    """State (h, c): c' = σ(f)·c + σ(i)·tanh(g), h' = σ(o)·tanh(c').

    Attributes:
        forget_bias: a constant added to the forget gate before its σ; no parameter.
    """

    forget_bias: float = 0.0
    gates: ClassVar[int] = 4

    def zeros(self, batch: int) -> State:
        """See `RecurrentLayer.zeros`."""
        return *super().zeros(batch), jnp.zeros((batch, self.features))

    def scan(self, gates_TBG: jax.Array, mask_TB: jax.Array | None, state: State, reverse: bool) -> tuple[jax.Array, State]:
        """See `RecurrentLayer.scan`."""
        if not kernels_are_on():
            return super().scan(gates_TBG, mask_TB, state, reverse)
        cell = functools.partial(_units, forget_bias=self.forget_bias)
        with jax.named_scope("hidden"):
            return scan_lstm(cell, self.hidden.kernel.astype(self.dtype), gates_TBG, mask_TB, state, reverse)

    def recurrence(self, scope: str) -> Advance:
        """See `RecurrentLayer.recurrence`."""
        kernel_HG = self.hidden.kernel.astype(self.dtype)

        def advance(gates_BG: jax.Array, state: State) -> State:
            h_BH, c_BH = state
            with jax.named_scope(scope):
                gates_BG = gates_BG + jnp.matmul(h_BH, kernel_HG, preferred_element_type=jnp.float32)
            h, c = _units(gates_BG, c_BH, self.forget_bias)
            return h.astype(h_BH.dtype), c

        return advance


def _units(gates_BG: jax.Array, c_BH: jax.Array, forget_bias: float) -> tuple[jax.Array, jax.Array]:
    """Returns the LSTM's new h and c."""
    i, f, g, o = jnp.split(gates_BG, 4, axis=-1)
    c_BH = nn.sigmoid(f + forget_bias) * c_BH + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(c_BH), c_BH


class GRU(RecurrentLayer):
    """State (h,): h' = (1 - z)·h + z·tanh(input + U(r·h)), gates in the order r, z, candidate (Appendix A.1.1)."""

    gates: ClassVar[int] = 3

    def recurrence(self, scope: str) -> Advance:
        """See `RecurrentLayer.recurrence`."""
        kernel_HG, n = self.hidden.kernel.astype(self.dtype), self.features
        product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

        def advance(gates_BG: jax.Array, state: State) -> State:
            (h,) = state
            with jax.named_scope(scope):
                gates = nn.sigmoid(gates_BG[:, : 2 * n] + product(h, kernel_HG[:, : 2 * n]))
                r, z = jnp.split(gates, 2, axis=-1)
                candidate = jnp.tanh(gates_BG[:, 2 * n :] + product((r * h).astype(h.dtype), kernel_HG[:, 2 * n :]))
            return (((1 - z) * h + z * candidate).astype(h.dtype),)

        return advance


class Stack(nn.Module):
    """Stacks layers on top of each other, with dropout between them.

    Attributes:
        layer: function that makes a layer, given `inputs`.
        inputs: number D of input features of the first layer.
        layers: number of layers.
        bidirectional: every layer reads from both ends and gives both outputs, [forward, backward], to the next.
        dropout: share dropped between layers, not along time (Zaremba et al. 2014).
    """

    layer: Callable[..., RecurrentLayer]
    inputs: int
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0

    def setup(self) -> None:
        first = [self.layer(inputs=self.inputs)]
        width = first[0].features * (2 if self.bidirectional else 1)
        above = [self.layer(inputs=width) for _ in range(self.layers - 1)]
        self.forward = first + above
        if self.bidirectional:
            self.backward = [self.layer(inputs=layer.inputs) for layer in self.forward]

    def __call__(
        self,
        x_TBD: jax.Array,
        mask_TB: jax.Array | None = None,
        states: list[State] | None = None,
        reverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, list[State]]:
        """[T, B, D] -> outputs [T, B, H or 2H] of the last layer and the last state of every layer.

        The arguments are `RecurrentLayer`'s. A layer with both directions has two states, the forward one first, as in torch.
        """
        t, b, _ = x_TBD.shape
        scales = self.dropout_scales(t, b, train)
        directions = [self.forward, self.backward] if self.bidirectional else [self.forward]
        last = []
        for i in range(self.layers):
            outputs = []
            for backward, layers in enumerate(directions):
                state = None if states is None else states[len(directions) * i + backward]
                y_TBH, state = layers[i](x_TBD, mask_TB, state, reverse != bool(backward))
                outputs.append(y_TBH)
                last.append(state)
            x_TBD = jnp.concatenate(outputs, axis=-1) if self.bidirectional else outputs[0]
            if scales and i < self.layers - 1:
                x_TBD = x_TBD * scales[i]
        return x_TBD, last

    def project(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., G], the input's part of the first layer's gates."""
        return self.forward[0].project(x)

    def dropout_scales(self, length: int, batch: int, train: bool) -> list[jax.Array]:
        """Returns the factors [T, B, H] of the outputs of every layer but the last; an empty list without dropout."""
        if not (self.dropout and train):
            return []
        shape = (length, batch, self.forward[0].features * (2 if self.bidirectional else 1))
        dtype = self.forward[0].dtype
        return [drop(jnp.ones(shape, dtype), self.dropout, self.make_rng("dropout")) for _ in range(self.layers - 1)]

    def recurrence(self) -> Callable[[jax.Array, list[State], list[jax.Array]], list[State]]:
        """Returns a pure function of one token through all layers, for a scan whose inputs depend on its outputs.

        Its arguments are the output [B, G] of `project`, the states, and the token's part of `dropout_scales`. It supports one
        direction only.
        """
        advances = [layer.recurrence("/".join(layer.hidden.path)) for layer in self.forward]
        projections = [layer.input.pure() for layer in self.forward]

        def advance(gates_BG: jax.Array, states: list[State], scales: list[jax.Array]) -> list[State]:
            new = [advances[0](gates_BG, states[0])]
            for i in range(1, self.layers):
                x_BH = new[-1][0] * scales[i - 1] if scales else new[-1][0]
                new.append(advances[i](projections[i](x_BH), states[i]))
            return new

        return advance
