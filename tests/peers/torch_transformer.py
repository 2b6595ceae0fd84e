"""`torch.nn.Transformer` and Hugging Face's Marian with numbers drawn by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import parity
from tests.helpers import parity_translation as shared

Part = tuple[str, slice, bool]  # our path, the rows of PyTorch's array, whether it is transposed


_ATTENTION = {"self_attn": "self_attention", "multihead_attn": "cross_attention"}
_DENSE = {"linear1": "mlp/hidden", "linear2": "mlp/output", "out_proj": "output"}
_NORMS = {
    "encoder": {"norm1": "self_attention_sum", "norm2": "mlp_sum"},
    "decoder": {"norm1": "self_attention_sum", "norm2": "cross_attention_sum", "norm3": "mlp_sum"},
}


def parts(name: str, features: int) -> list[Part]:
    """Where the parameter of `Net` called `name` is in our tree."""
    if name == "embedding.weight":
        return [("target_embedding/embedding", slice(None), False)]
    _, side, *module, leaf = name.split(".")
    if module[0] == "norm":
        return [(f"{side}_norm/{'scale' if leaf == 'weight' else leaf}", slice(None), False)]
    layer, module = f"{side}_{module[1]}", module[2:]
    if module[0] in _ATTENTION:
        layer += f"/{_ATTENTION[module[0]]}"
    if leaf.startswith("in_proj"):
        kind = "kernel" if leaf.endswith("weight") else "bias"
        rows = [slice(i * features, (i + 1) * features) for i in range(3)]
        return [(f"{layer}/{part}/{kind}", r, kind == "kernel") for part, r in zip(("query", "key", "value"), rows)]
    if module[-1] in _DENSE:
        place = f"{layer}/{_DENSE[module[-1]]}"
        return [(f"{place}/{'kernel' if leaf == 'weight' else leaf}", slice(None), leaf == "weight")]
    place = f"{layer}/{_NORMS[side][module[0]]}/layer_norm"
    return [(f"{place}/{'scale' if leaf == 'weight' else leaf}", slice(None), False)]


class Net(nn.Module):
    """Embeddings times the root of d and sinusoids, `torch.nn.Transformer`, and the embedding again for the logits."""

    def __init__(self, case: shared.Case):
        super().__init__()
        fields = case.network
        d, heads, layers, self.norm = fields["features"], fields["heads"], fields["layers"], fields.get("norm", "post")
        self.embedding = nn.Embedding(fields["vocab_size"], d)
        sizes = dict(dim_feedforward=fields["hidden"], dropout=0.0, activation=fields.get("activation", "relu"))
        sizes |= dict(layer_norm_eps=fields.get("norm_eps", 1e-6), batch_first=True, norm_first=self.norm == "pre")
        stacks = {}
        if self.norm == "post" and not fields.get("final_norm"):
            stacks["custom_encoder"] = nn.TransformerEncoder(nn.TransformerEncoderLayer(d, heads, **sizes), layers)
            stacks["custom_decoder"] = nn.TransformerDecoder(nn.TransformerDecoderLayer(d, heads, **sizes), layers)
        self.transformer = nn.Transformer(d, heads, layers, layers, **sizes, **stacks)
        if not fields.get("attention_bias"):
            for name, parameter in self.named_parameters():
                if name.endswith(("in_proj_bias", "out_proj.bias")):
                    parameter.requires_grad_(False)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        hidden = source == 0
        future = torch.triu(torch.ones(target.shape[1], target.shape[1], dtype=torch.bool), 1)
        sides = dict(tgt_mask=future, src_key_padding_mask=hidden, memory_key_padding_mask=hidden)
        y = self.transformer(self.embedded(source), self.embedded(target), **sides)
        return y @ self.embedding.weight.T

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        d = self.embedding.embedding_dim
        angle = np.arange(tokens.shape[1])[:, None] / 10000 ** (np.arange(0, d, 2) / d)
        table = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(-1, d)
        return self.embedding(tokens) * d**0.5 + torch.from_numpy(table)


def filled(case: shared.Case) -> Net:
    """In float64, with `parity.draw`; biases that our network does not have are zero."""
    net = Net(case).double()
    d = case.network["features"]
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.zero_()
            for path, rows, transposed in parts(name, d) if parameter.requires_grad else ():
                target = parameter[rows].T if transposed else parameter[rows]
                target.copy_(torch.from_numpy(parity.draw(case.seed, path, tuple(target.shape))))
    return net


def _ours(net: Net, of: Callable[[nn.Parameter], torch.Tensor]) -> dict[str, np.ndarray]:
    """{our path: of(parameter)}, whole."""
    found = {}
    for name, parameter in net.named_parameters():
        for path, rows, transposed in parts(name, net.embedding.embedding_dim) if parameter.requires_grad else ():
            value = of(parameter).detach()[rows].numpy()
            found[path] = value.T.copy() if transposed else value.copy()
    return found


def run(case: shared.Case) -> tuple[parity.Results, float, float]:
    """What `parity.check` compares, in float64; how near a ReLU came to its kink; the gradient of Adam's most doubtful sign.

    The last is the smallest absolute gradient as a share of its array's largest.
    """
    net = filled(case).train()
    source, target_in, target_out = (torch.from_numpy(x).long() for x in case.batch())
    into_relu: list[torch.Tensor] = []
    if case.network.get("activation", "relu") == "relu":
        for name, module in net.named_modules():
            if name.endswith("linear1"):
                module.register_forward_hook(lambda *args: into_relu.append(args[2].detach()))
    logits = net(source, target_in)
    loss = F.cross_entropy(
        logits.flatten(0, 1), target_out.flatten(), ignore_index=0, reduction="sum", label_smoothing=case.label_smoothing
    )
    loss.backward()
    gradients = _ours(net, lambda parameter: parameter.grad)
    before = _ours(net, lambda parameter: parameter)
    rate = case.network["features"] ** -0.5 * case.warmup_steps**-1.5  # of step 1 in Section 5.3
    betas = (shared.ADAM["b1"], shared.ADAM["b2"])
    torch.optim.Adam([p for p in net.parameters() if p.requires_grad], rate, betas, shared.ADAM["eps"]).step()
    after = _ours(net, lambda parameter: parameter)
    results = {
        "logits": {"": logits.detach().numpy()},
        "loss": {"": np.array([loss.item()])},
        "gradients": {path: parity.compress(path, value) for path, value in gradients.items()},
        "changes": {path: parity.compress(path, after[path] - before[path]) for path in after if shared.has_gradient(path)},
    }
    sizes = [np.abs(value) for path, value in gradients.items() if shared.has_gradient(path)]
    doubtful = min((size[size > 0] / size.max()).min() for size in sizes)
    return results, min([np.inf, *(x.abs().min().item() for x in into_relu)]), doubtful


def marian(name: str) -> Any:
    """Hugging Face's network with the numbers of `marian_weights`, in evaluation mode."""
    from transformers import MarianConfig, MarianMTModel

    config = shared.MARIANS[name]
    net = MarianMTModel(MarianConfig(**config)).eval()
    weights = {key: torch.from_numpy(value) for key, value in shared.marian_weights(config).items()}
    missing, unknown = net.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
    tables = {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    assert not unknown and set(missing) <= tied | tables, (missing, unknown)
    return net


def run_marian(name: str) -> parity.Results:
    """Logits in float64, and for each way of generating tokens [N, 1 + NEW_TOKENS] and scores, in float32."""
    config, net = shared.MARIANS[name], marian(name)
    source, target = (torch.from_numpy(x).long() for x in shared.marian_batch(config))
    seen = source != config["pad_token_id"]
    results: parity.Results = {"tokens": {}, "scores": {}}
    with torch.no_grad():
        for way, options in shared.GENERATIONS.items():
            found = net.generate(
                source,
                attention_mask=seen,
                max_new_tokens=shared.NEW_TOKENS,
                do_sample=False,
                bad_words_ids=[[config["pad_token_id"]]],
                return_dict_in_generate=True,
                output_scores=True,
                **{"forced_eos_token_id": None, "length_penalty": 1.0, "early_stopping": False, **options},
            )
            rows = np.full((len(found.sequences), 1 + shared.NEW_TOKENS), config["pad_token_id"])
            rows[:, : found.sequences.shape[1]] = found.sequences.numpy()
            results["tokens"][way] = rows
            if options["num_beams"] > 1:
                results["scores"][way] = found.sequences_scores.numpy()
        logits = net.double()(source, attention_mask=seen, decoder_input_ids=target).logits
    return {"logits": {"": logits.numpy()}, **results}
