"""Opens a folder of Marian's in Hugging Face's form, such as the published opus-mt models, as a run that translates text.

    run = aj.load_pretrained("marian:opus-mt-en-de")
    run.predict(["How are you?"])[0].text

Tokens get our numbers (`data/text/tokenizer.py`), so the rows of embeddings and bias change places. The start symbol is a row
of its own: a copy of the row with which the network was trained to start, which is padding's, and never written.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax import tree
from attention_jax.config import defaults
from attention_jax.config.config import complete_config
from attention_jax.data.text.tokenizer import BOS, EOS, PAD, ListedPieces, Tokenizers
from attention_jax.data.text.vocabularies import order_pieces
from attention_jax.errors import UserError, one_sentence
from attention_jax.interop.marian import convert_generation_options, convert_marian
from attention_jax.interop.read_tensors import open_weights, select_weights
from attention_jax.load import Run
from attention_jax.models.registry import describe_model

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_NEVER = -1e9  # bias of what is never written
# Options of `generate` that `SearchOptions` does not have, with the values at which they do nothing.
_WITHOUT = dict(
    do_sample=(False,), no_repeat_ngram_size=(0,), repetition_penalty=(1.0,), encoder_no_repeat_ngram_size=(0,),
    num_beam_groups=(1,), diversity_penalty=(0.0,), forced_bos_token_id=(), suppress_tokens=(), begin_suppress_tokens=(),
)  # fmt: skip


def open_marian(folder: str | Path) -> Run:
    """Returns a run, step 0 and without metrics, whose search is the one that the folder's options describe.

    Args:
        folder: has `config.json`, `vocab.json`, `source.spm`, `target.spm`, `model.safetensors` or `pytorch_model.bin`, and may
            have `generation_config.json` and, with separate vocabularies, `target_vocab.json`.

    Raises:
        UserError: a file that is missing, cannot be read or contradicts another.
    """
    path = Path(folder).expanduser().absolute()
    about = _read_json(path, "config.json")
    options = _read_json(path, "generation_config.json") if (path / "generation_config.json").exists() else about
    options = {name: value for name, value in options.items() if value is not None}
    target_file = "target_vocab.json" if (path / "target_vocab.json").exists() else "vocab.json"
    vocabularies = [_read_json(path, name) for name in ("vocab.json", target_file)]
    sizes = about.get("vocab_size", 0), about.get("decoder_vocab_size") or about.get("vocab_size", 0)
    ordered = [
        _order_vocabulary(vocabulary, about, size, path / name)
        for vocabulary, size, name in zip(vocabularies, sizes, ("vocab.json", target_file))
    ]
    sides = ((pieces, _read(path, f"{side}.spm")) for (pieces, _), side in zip(ordered, ("source", "target")))
    tokenizers = Tokenizers(*(ListedPieces(model, pieces) for pieces, model in sides))
    model, variables = convert_marian(about, _read_weights(path))
    rows = [np.array(rows) for _, rows in ordered]
    if model.embeddings == "shared" and target_file != "vocab.json":
        raise UserError(f"{path}: it has target_vocab.json, and config.json says that embeddings are shared: one is not right.")
    params = {name: _reorder(name, array, *rows) for name, array in tree.flatten_by_path(variables["params"]).items()}
    source_size = None if target_file == "vocab.json" else len(rows[0])
    model = model.clone(vocab_size=len(rows[1]), source_vocab_size=source_size, pad=PAD)

    config = defaults.translation()
    config.update(batch_size=4096, total_steps=1)
    config.model.update(describe_model(model), vocab_size=model.vocab_size)
    files = {"tokenizer": str(path / target_file)} | (
        {} if source_size is None else {"source_tokenizer": str(path / "vocab.json")}
    )
    config.data.update(source="files", args={}, num_examples=1, num_batches=1, bucket_lengths=(16, 32, 64, 128), **files)
    config.data.max_length = about.get("max_position_embeddings", 512)
    config.search.update(_describe_search(about, options))
    config.schedule.learning_rate = 0.0
    run = Run(path, 0, complete_config(config), model, {"params": tree.nest_by_path(params)}, "params", tokenizers.assets(), [])
    nothing = {**_WITHOUT, "bad_words_ids": ([[about["pad_token_id"]]],)}
    if ignored := [
        f"{name}={options[name]!r}" for name in nothing.keys() & options.keys() if options[name] not in nothing[name]
    ]:
        print(f"{path}: this search has no {', '.join(ignored)}, which the folder asks for.", file=sys.stderr)
    return run


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        wanted = "config.json, vocab.json, source.spm, target.spm and model.safetensors or pytorch_model.bin"
        raise UserError(f"{folder / name}: {error.strerror}: give marian:FOLDER with {wanted}.") from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(_read(folder, name))
    except ValueError as error:
        raise UserError(f"{folder / name} is no JSON ({one_sentence(error)}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{folder / name} is a {type(found).__name__}: give the object {{name: value}} that the library saved.")
    return found


def _order_vocabulary(
    vocabulary: Mapping[str, Any], about: Mapping[str, Any], size: int, where: Path
) -> tuple[list[str], list[int]]:
    """Returns the pieces in our order, and the rows of the network's tables in that order."""
    pieces, rows = order_pieces(vocabulary, str(where), size)
    for field, symbol in (("pad_token_id", PAD), ("eos_token_id", EOS)):
        if about.get(field) != rows[symbol]:
            raise UserError(
                f"{where}: {pieces[symbol]} has the number {rows[symbol]}, and config.json says {field}={about.get(field)}: "
                "give files of one model."
            )
    if len(rows) - 1 > size:
        raise UserError(
            f"{where} has a piece with the number {max(rows)}, and config.json has only {size} tokens: give files of one model."
        )
    rows[BOS] = about.get("decoder_start_token_id", rows[PAD])
    return pieces, rows


def _reorder(name: str, array: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns a parameter with the rows of tokens in our order."""
    if name == "logits_bias":
        bias = np.maximum(array[target], _NEVER)  # files may have -inf for padding
        bias[BOS] = _NEVER
        return bias
    sides = {"source_embedding/embedding": source, "target_embedding/embedding": target}
    return array[sides[name]] if name in sides else array


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    """Returns the tensors under the names of `MarianMTModel`."""
    file = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if file is None:
        _read(folder, _WEIGHTS[0])
        raise AssertionError
    tensors, notes = select_weights(open_weights(file), str(file))
    if "without the prefix 'model.'" in notes:  # the file lacks final_logits_bias
        tensors = {f"model.{name}": array for name, array in tensors.items()}
    return tensors


def _describe_search(about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section `search` of a config."""
    found = convert_generation_options({"decoder_start_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}, options)
    names = ("beam", "alpha", "penalty", "late_ends", "stop", "force_end", "renormalise", "min_length")
    longest = options.get("max_new_tokens") or options.get("max_length", about.get("max_length", 20)) - 1  # 20 is the library's
    return {name: getattr(found, name) for name in names} | {"max_length": longest}
