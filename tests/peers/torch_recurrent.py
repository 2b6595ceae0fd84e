"""PyTorch's LSTM, and the networks of Sutskever, Luong and Bahdanau et al. written out, with numbers drawn by name.

Sentences go through one at a time and have no padding, and a reversed source is reversed before it is read.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.helpers import parity
from tests.helpers import parity_recurrent as shared

Weights = Mapping[str, torch.Tensor]
State = tuple[torch.Tensor, torch.Tensor]


def _drawn(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    return {path: torch.from_numpy(shared.draw(seed, path, shape)).double().requires_grad_() for path, shape in shapes.items()}


def _gradients(weights: Weights) -> dict[str, np.ndarray]:
    return {path: parity.compress(path, weight.grad.numpy()) for path, weight in weights.items()}


def _layer(path: str, inputs: int, features: int, gates: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes = {f"{path}/input/kernel": (inputs, gates * features), f"{path}/hidden/kernel": (features, gates * features)}
    return {**shapes, **({f"{path}/input/bias": (gates * features,)} if bias else {})}


def _torch_weights(
    weights: Weights, path: str, forget_bias: float, feed: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """What torch calls weight_ih, weight_hh, bias_ih and bias_hh, out of ours."""
    kernel, hidden = weights[f"{path}/input/kernel"], weights[f"{path}/hidden/kernel"]
    kernel = kernel if feed is None else torch.cat([kernel, feed])
    bias = weights.get(f"{path}/input/bias", torch.zeros(len(hidden.T), dtype=torch.float64))
    forget = torch.zeros_like(bias)
    forget[len(hidden) : 2 * len(hidden)] = forget_bias
    return {"weight_ih": kernel.T, "weight_hh": hidden.T, "bias_ih": bias, "bias_hh": forget}


def run_stack(stack: shared.Stack) -> parity.Results:
    """`torch.nn.LSTM` over packed sequences: outputs at real steps, last states, and gradients of a weighted sum of both."""
    shapes, n = {}, len(stack.directions)
    for i in range(stack.layers):
        for way in stack.directions:
            shapes |= _layer(f"{way}_{i}", n * stack.features if i else stack.inputs, stack.features, 4)
    weights = _drawn(shapes, 0)
    tensors = {}
    for i in range(stack.layers):
        for way in stack.directions:
            suffix = f"_l{i}{'_reverse' if way == 'backward' else ''}"
            ours = _torch_weights(weights, f"{way}_{i}", stack.forget_bias)
            tensors |= {f"{name}{suffix}": value for name, value in ours.items()}
    given = {name: torch.from_numpy(stack.numbers(name)).double().requires_grad_() for name in ("inputs", "h", "c")}
    net = nn.LSTM(stack.inputs, stack.features, stack.layers, bidirectional=stack.bidirectional).double()
    packed = pack_padded_sequence(given["inputs"], torch.tensor(stack.lengths))
    y, (h, c) = functional_call(net, tensors, (packed, (given["h"], given["c"])))
    y, _ = pad_packed_sequence(y)
    of = {name: torch.from_numpy(stack.numbers(f"of_{name}")).double() for name in ("outputs", "h", "c")}
    ((y * of["outputs"]).sum() + (h * of["h"]).sum() + (c * of["c"]).sum()).backward()
    outputs = {"outputs": y.detach().numpy(), "h": h.detach().numpy(), "c": c.detach().numpy()}
    return {"outputs": outputs, "gradients": _gradients({**weights, **given})}


class Network:
    """One sentence pair at a time."""

    def __init__(self, case: shared.Case):
        self.fields = case.network
        self.e, self.h = self.fields["embedding_size"], self.fields["features"]
        tables = {
            "source_embedding/embedding": (shared.SOURCE_VOCABULARY, self.e),
            "target_embedding/embedding": (shared.VOCABULARY, self.e),
        }
        self.weights = _drawn({**tables, **self.shapes()}, case.seed)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        raise NotImplementedError

    def embedded(self, side: str, tokens: np.ndarray) -> torch.Tensor:
        return self.weights[f"{side}_embedding/embedding"][torch.from_numpy(tokens)]

    def affine(self, path: str, x: torch.Tensor) -> torch.Tensor:
        bias = self.weights.get(f"{path}/bias")
        return x @ self.weights[f"{path}/kernel"] + (0 if bias is None else bias)

    def additive(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.affine("cross_attention/query", query) + self.affine("cross_attention/key", memory))
        return self.affine("cross_attention/vector", hidden)[:, 0]


class Seq2Seq(Network):
    """Stacked `torch.nn.LSTM` and `LSTMCell`, and Luong et al.'s or Bahdanau et al.'s attention between them."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        fields, e, h = self.fields, self.e, self.h
        self.kind, self.feeding = fields.get("attention", "none"), fields.get("input_feeding", False)
        self.bias = fields.get("use_bias", True)
        shapes = {"output/kernel": (h, shared.VOCABULARY), **({"output/bias": (shared.VOCABULARY,)} if self.bias else {})}
        for i in range(fields["layers"]):
            for side in ("encoder", "decoder"):
                shapes |= _layer(f"{side}/forward_{i}", h if i else e, h, 4, self.bias)
        if self.kind != "none":
            shapes["combine/kernel"] = (2 * h, h)
        if self.kind == "general":
            shapes["cross_attention/key/kernel"] = (h, h)
        if self.kind in ("concat", "bahdanau"):
            a = fields["alignment_size"]
            shapes |= {f"cross_attention/{name}/kernel": (h, a) for name in ("query", "key")}
            shapes["cross_attention/vector/kernel"] = (a, 1)
        fed = self.feeding + (self.kind == "bahdanau")
        return {**shapes, **({"feed/kernel": (fed * h, 4 * h)} if fed else {})}

    def encode(self, source: np.ndarray) -> tuple[torch.Tensor, list[State]]:
        """Top outputs in the order of the source, and each layer's last state."""
        layers, turned = self.fields["layers"], self.fields.get("reverse_source", True)
        tensors = {}
        for i in range(layers):
            ours = _torch_weights(self.weights, f"encoder/forward_{i}", self.fields.get("forget_bias", 0.0))
            tensors |= {f"{name}_l{i}": value for name, value in ours.items()}
        x = self.embedded("source", source[::-1].copy() if turned else source)
        y, (h, c) = functional_call(nn.LSTM(self.e, self.h, layers).double(), tensors, (x,))
        return y.flip(0) if turned else y, list(zip(h, c))

    def ask(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """The context of one query."""
        if self.kind in ("concat", "bahdanau"):
            scores = self.additive(query, memory)
        elif self.kind == "general":
            scores = self.affine("cross_attention/key", memory) @ query
        else:
            scores = memory @ query
        return torch.softmax(scores, 0) @ memory

    def logits(self, source: np.ndarray, target: np.ndarray) -> torch.Tensor:
        """[T, V]."""
        memory, states = self.encode(source)
        fed, rows = torch.zeros(self.h, dtype=torch.float64), []
        for word in self.embedded("target", target):
            x = [word, *([fed] if self.feeding else [])]
            if self.kind == "bahdanau":
                context = self.ask(states[-1][0], memory)
                x.append(context)
            x = torch.cat(x)
            for i, state in enumerate(states):
                feed = self.weights.get("feed/kernel") if i == 0 else None
                ours = _torch_weights(self.weights, f"decoder/forward_{i}", self.fields.get("forget_bias", 0.0), feed)
                states[i] = functional_call(nn.LSTMCell(len(x), self.h).double(), ours, (x, state))
                x = states[i][0]
            if self.kind != "none":
                context = context if self.kind == "bahdanau" else self.ask(x, memory)
                x = fed = torch.tanh(self.affine("combine", torch.cat([context, x])))
            rows.append(self.affine("output", x))
        return torch.stack(rows)


class RNNSearch(Network):
    """Bahdanau et al. 2014, Appendix A."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        fields, e, h = self.fields, self.e, self.h
        a, out = fields["alignment_size"], fields["readout_size"]
        self.nearest = float("inf")
        shapes = {
            "cross_attention/query/kernel": (h, a),
            "cross_attention/key/kernel": (2 * h, a),
            "cross_attention/vector/kernel": (a, 1),
            "feed/kernel": (2 * h, 3 * h),
        }
        for path in ("encoder/forward_0", "encoder/backward_0", "decoder"):
            shapes |= _layer(path, e, h, 3)
        sizes = {"first_state": (h, h), "readout": (h + e + 2 * h, 2 * out), "output": (out, shared.VOCABULARY)}
        for path, size in sizes.items():
            shapes |= {f"{path}/kernel": size, f"{path}/bias": size[1:]}
        return shapes

    def cell(self, path: str, x: torch.Tensor, s: torch.Tensor, fed: torch.Tensor | None = None) -> torch.Tensor:
        r_x, z_x, n_x = (self.affine(f"{path}/input", x) + (0 if fed is None else self.affine("feed", fed))).chunk(3)
        u_r, u_z, u_n = self.weights[f"{path}/hidden/kernel"].chunk(3, dim=1)
        r, z = torch.sigmoid(r_x + s @ u_r), torch.sigmoid(z_x + s @ u_z)
        return (1 - z) * s + z * torch.tanh(n_x + (r * s) @ u_n)

    def logits(self, source: np.ndarray, target: np.ndarray) -> torch.Tensor:
        """[T, V]."""
        words, read = self.embedded("source", source), {}
        for way, places in (("forward", range(len(words))), ("backward", range(len(words) - 1, -1, -1))):
            s = torch.zeros(self.h, dtype=torch.float64)
            for j in places:
                s = read[way, j] = self.cell(f"encoder/{way}_0", words[j], s)
        memory = torch.stack([torch.cat([read["forward", j], read["backward", j]]) for j in range(len(words))])
        s, rows = torch.tanh(self.affine("first_state", read["backward", 0])), []
        for word in self.embedded("target", target):
            context = torch.softmax(self.additive(s, memory), 0) @ memory
            pairs = self.affine("readout", torch.cat([s, word, context])).reshape(-1, 2)
            self.nearest = min(self.nearest, (pairs[:, 0] - pairs[:, 1]).abs().min().item())
            rows.append(self.affine("output", pairs.amax(1)))
            s = self.cell("decoder", word, s, context)
        return torch.stack(rows)


def run(case: shared.Case) -> tuple[parity.Results, float]:
    """Logits at real tokens (zero elsewhere), gradients of the summed cross entropy of the next tokens; and how near a
    maximum came to its kink."""
    net, loss = (RNNSearch if case.gru else Seq2Seq)(case), 0.0
    _, targets = case.batch()
    logits = np.zeros((len(targets), targets.shape[1] - 1, shared.VOCABULARY))
    for i, (source, target) in enumerate(case.sentences()):
        rows = net.logits(source, target[:-1])
        logits[i, : len(rows)] = rows.detach().numpy()
        loss = loss + F.cross_entropy(rows, torch.from_numpy(target[1:]), reduction="sum")
    loss.backward()
    return {"logits": {"": logits}, "gradients": _gradients(net.weights)}, getattr(net, "nearest", float("inf"))
