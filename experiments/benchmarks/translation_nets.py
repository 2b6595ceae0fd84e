"""What `translation.py` compares with: the Transformer in plain Flax and PyTorch, and a Marian model for three libraries.

Everything is imported when it is used: PyTorch and the libraries of Marian may live in another environment.
"""

import json
from pathlib import Path
from typing import Any

EOS = 0  # of the Marian model, whose last token is padding


def flax_net(vocab_size: int, layers: int, features: int, hidden: int, heads: int, dropout: float) -> Any:
    """A Linen module as a user would write it out of `flax.linen` alone."""
    import flax.linen as nn
    import jax.numpy as jnp
    import numpy as np

    def sinusoids(length: int) -> Any:
        angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, features, 2) / features)
        return jnp.asarray(np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, features), jnp.float32)

    class Layer(nn.Module):
        decoder: bool

        @nn.compact
        def __call__(self, x, mask, memory, memory_mask):
            def add(x, y):
                return nn.LayerNorm()(x + nn.Dropout(dropout, deterministic=False)(y))

            x = add(x, nn.MultiHeadDotProductAttention(heads)(x, mask=mask))
            if self.decoder:
                x = add(x, nn.MultiHeadDotProductAttention(heads)(x, memory, mask=memory_mask))
            return add(x, nn.Dense(features)(nn.relu(nn.Dense(hidden)(x))))

    class Transformer(nn.Module):
        @nn.compact
        def __call__(self, source, target):
            embedding = nn.Embed(vocab_size, features)
            drop = nn.Dropout(dropout, deterministic=False)

            def embedded(tokens):
                return drop(embedding(tokens) * features**0.5 + sinusoids(tokens.shape[1]))

            seen = source > 0
            memory = embedded(source)
            for _ in range(layers):
                memory = Layer(False)(memory, nn.make_attention_mask(seen, seen), None, None)
            memory = nn.LayerNorm()(memory)
            x, past = embedded(target), nn.make_causal_mask(target)
            for _ in range(layers):
                x = Layer(True)(x, past, memory, nn.make_attention_mask(target >= 0, seen))
            return embedding.attend(nn.LayerNorm()(x))

    return Transformer()


def torch_net(vocab_size: int, layers: int, features: int, hidden: int, heads: int, dropout: float) -> Any:
    """`torch.nn.Transformer` between embeddings with sinusoids and the same embeddings for the logits."""
    import numpy as np
    import torch
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(vocab_size, features)
            nn.init.normal_(self.embedding.weight, std=features**-0.5)
            self.drop = nn.Dropout(dropout)
            self.body = nn.Transformer(features, heads, layers, layers, hidden, dropout, batch_first=True)
            # Dropout is where the paper has it: after each sub-layer, not on the weights or between two products.
            for layer in (*self.body.encoder.layers, *self.body.decoder.layers):
                layer.dropout = nn.Identity()
            for module in self.body.modules():
                if isinstance(module, nn.MultiheadAttention):
                    module.dropout = 0.0
            angles = np.arange(512)[:, None] / 10000 ** (np.arange(0, features, 2) / features)
            waves = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(512, features)
            self.register_buffer("waves", torch.from_numpy(waves).float())

        def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.drop(self.embedding(tokens) * features**0.5 + self.waves[: tokens.shape[1]])

        def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            hidden = source == 0
            future = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=torch.bool)
            sides = dict(tgt_mask=future, src_key_padding_mask=hidden, memory_key_padding_mask=hidden, tgt_is_causal=True)
            return self.body(self.embedded(source), self.embedded(target), **sides) @ self.embedding.weight.T

    return Transformer()


def write_marian(folder: Path, vocab_size: int, layers: int, features: int, hidden: int, heads: int) -> None:
    """A Marian model of random weights as Hugging Face's library saves it, for CTranslate2 in ct2, and as weights.npz."""
    import ctranslate2
    import numpy as np
    import torch
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", layers), ("ffn_dim", hidden), ("attention_heads", heads))
    }
    pad = vocab_size - 1
    config = MarianConfig(
        vocab_size=vocab_size,
        d_model=features,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=EOS,
        forced_eos_token_id=None,
        scale_embedding=True,
        activation_function="swish",
        max_position_embeddings=512,
        init_std=0.06,  # with the library's 0.02 every sentence would repeat one word
        **sides,
    )
    net = MarianMTModel(config)
    net.save_pretrained(folder)
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in net.state_dict().items()})

    class Words:
        """Stands for the tokenizer, whose vocabulary a conversion takes."""

        eos_token, unk_token = "0", "1"

        def get_vocab(self) -> dict[str, int]:
            return {"<pad>" if i == pad else str(i): i for i in range(vocab_size)}

    class Converter(ctranslate2.converters.TransformersConverter):
        def load_tokenizer(self, *args: Any, **kwargs: Any) -> Words:
            return Words()

    Converter(str(folder)).convert(str(folder / "ct2"))


def marian_translator(who: str, folder: Path, source: Any, new_tokens: int, beam: int, threads: int) -> Any:
    """What translates `source` [B, S] to [B, new_tokens] whenever it is called, by "ours", "marian" or "ct2"."""
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    if who == "ct2":
        import ctranslate2

        translator = ctranslate2.Translator(str(folder / "ct2"), compute_type="float32", intra_threads=threads)
        words = [[str(token) for token in row] for row in source]
        lengths = dict(min_decoding_length=new_tokens, max_decoding_length=new_tokens)

        def by_ct2() -> Any:
            found = translator.translate_batch(words, beam_size=beam, max_batch_size=0, **lengths)
            return np.array([[int(word) for word in result.hypotheses[0]] for result in found])

        return by_ct2

    if who == "marian":
        import torch
        from transformers import MarianMTModel

        torch.set_num_threads(threads)
        net = MarianMTModel.from_pretrained(folder).eval()
        tokens = torch.from_numpy(source).long()
        options = dict(num_beams=beam, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False)

        def by_marian() -> Any:
            with torch.no_grad():
                found = net.generate(
                    tokens, attention_mask=torch.ones_like(tokens), bad_words_ids=[[config["pad_token_id"]]], **options
                )
            return found[:, 1:].numpy()

        return by_marian

    import dataclasses

    import jax

    from attention_jax.interop.marian import convert_generation_options, convert_marian
    from attention_jax.tasks.translator import TranslationOptions, translate_tokens

    model, variables = convert_marian(config, np.load(folder / "weights.npz"))
    search = dataclasses.replace(convert_generation_options(config, {"num_beams": beam}), min_length=new_tokens)
    options = TranslationOptions(search, fixed=new_tokens)
    compiled = jax.jit(lambda variables, source: translate_tokens(model, variables, source, options)[0][:, 0])
    variables = jax.device_put(variables)
    return lambda: np.asarray(compiled(variables, source))
