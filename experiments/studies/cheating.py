"""A translator that saw later target tokens in training, asked for the next token without them.

Letters in names: B sentences, S source and T target tokens, V vocabulary.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.config import override
from attention_jax.data.text.tokenizer import PAD
from attention_jax.load import Run
from attention_jax.optim.losses import right_tokens, token_cross_entropy
from attention_jax.tasks.translation import shift_right
from attention_jax.train.evaluate import evaluate_model
from attention_jax.train.program import Program


def predict_from_past(model: nn.Module, variables: dict[str, Any], source: jax.Array, target: jax.Array) -> jax.Array:
    """[B, S], [B, T] -> logits [B, T, V] of each target token, from the right tokens before it and no others.

    Each prefix is decoded by itself, padding after it and no cache: its tokens see each other as they did in training.
    """
    given_BT, memory = shift_right(target), model.apply(variables, source, method="encode")
    places = jnp.arange(given_BT.shape[1])

    def predict_token(t: jax.Array) -> jax.Array:
        prefix_BT = jnp.where(places <= t, given_BT, PAD)
        return jnp.asarray(model.apply(variables, memory, source, prefix_BT, method="decode"))[:, t]

    return jax.lax.map(predict_token, places).swapaxes(0, 1)


def measure_cheating(program: Program, run: Run) -> dict[str, float]:
    """Measures, for a table, next tokens of the evaluation split, given the reference as in training, and from the past alone.

    Columns: right ones in percent, perplexity, and in percent the texts all of whose tokens are right from the past alone,
    which are those that greedy search without a cache finds.
    """
    config = override(run.config, {"evaluation.translate": False, "evaluation.headline": "token_accuracy"})

    def outputs(variables: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        target, kept = batch["target"], {name: batch[name] for name in ("weight", "index")}
        logits, counts = predict_from_past(run.model, variables, batch["source"], target), target != PAD
        sums = {"loss": token_cross_entropy(logits, target), "right": right_tokens(logits, target), "tokens": counts}
        return {**kept, **{name: (values * counts).sum(1) for name, values in sums.items()}}

    past, found = evaluate_model(dataclasses.replace(program, outputs=jax.jit(outputs)), run.variables, config)
    given = {name: run.curve(f"eval/{name}")[1][-1] for name in ("token_accuracy", "perplexity")}
    return {
        "next tokens right %, reference given": 100 * given["token_accuracy"],
        "perplexity, reference given": given["perplexity"],
        "next tokens right %, past alone": 100 * past["token_accuracy"],
        "exact match %, past alone": 100 * float((found["correct"] == 1).mean()),
    }
