"""A tiny folder of Marian's, as Hugging Face's library writes and reads it: two sentencepiece models, a vocabulary, weights.

`python -m tests.peers.torch_marian` writes tests/fixtures/marian anew.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from tests.helpers import parity_translation as shared
from tests.helpers.marian_folder import FOLDER, SENTENCES, TARGETS, WAYS

# Unicode's own rules would make each model 240 kB.
_RULES = {"ﬁ": "fi", "½": "1/2", "\u3000": " ", "…": "..."}
_SIZE = 60


def _train(folder: Path, side: str, lines: list[str]) -> list[str]:
    rules = folder / "rules.tsv"
    rules.write_text("".join(f"{ord(a):X}\t{' '.join(f'{ord(c):X}' for c in b)}\n" for a, b in _RULES.items()))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / side), vocab_size=_SIZE, character_coverage=1.0,
        normalization_rule_tsv=str(rules) if side == "source" else "", hard_vocab_limit=False, minloglevel=2,
        **({} if side == "source" else {"normalization_rule_name": "identity"}),
    )  # fmt: skip
    (folder / f"{side}.model").rename(folder / f"{side}.spm")
    pieces = [line.split("\t")[0] for line in (folder / f"{side}.vocab").read_text().splitlines()]
    for name in (f"{side}.vocab", rules):
        (folder / name).unlink()
    return [piece for piece in pieces if piece not in ("<unk>", "<s>", "</s>")]


def write_folder(folder: Path, separate: bool = False) -> None:
    """Writes a random network with the numbers of `parity.draw`, once more as `pytorch_model.bin`.

    Args:
        separate: True gives source and target a vocabulary each.
    """
    folder.mkdir(parents=True)
    sides = [
        _train(folder, side, lines)
        for side, lines in (("source", [s.replace(">>de<<", "").replace("Ω", "") for s in SENTENCES]), ("target", TARGETS))
    ]
    if not separate:
        sides = [list(dict.fromkeys([">>de<<", *sides[0], *sides[1]]))]
    for name, pieces in zip(("vocab.json", "target_vocab.json"), sides):
        numbers = {"</s>": 0, "<unk>": 1, **{piece: i for i, piece in enumerate(pieces, 2)}}
        longest = max(map(len, sides)) + 2
        numbers["<pad>"] = longest
        (folder / name).write_text(json.dumps(numbers, ensure_ascii=False))
    size = longest + 1
    config = {**shared.MARIANS["marian_separate" if separate else "marian_shared"], "vocab_size": size}
    config.update(
        encoder_layers=1,
        decoder_layers=1,
        d_model=16,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        pad_token_id=size - 1,
        decoder_start_token_id=size - 1,
    )
    net = MarianMTModel(MarianConfig(**config)).eval()
    weights = {key: torch.from_numpy(value) for key, value in shared.marian_weights(config).items()}
    # Heavier layers, for translations of many lengths.
    weights = {key: 2.2 * value if re.search(r"(_proj|fc\d)\.weight", key) else value for key, value in weights.items()}
    missing, unknown = net.load_state_dict(weights, strict=False)
    assert not unknown, unknown
    net.generation_config.update(
        max_length=17,
        num_beams=4,
        bad_words_ids=[[size - 1]],
        forced_eos_token_id=0,
        renormalize_logits=True,
        length_penalty=1.0,
    )
    net.save_pretrained(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    if separate:
        (folder / "tokenizer_config.json").write_text(json.dumps({"separate_vocabs": True}))


def translate(folder: Path, sentences: list[str], **options: Any) -> dict[str, list[Any]]:
    """Returns texts and scores of `generate`; each sentence's n best follow one another."""
    net = MarianMTModel.from_pretrained(folder).eval()
    tokenizer = MarianTokenizer.from_pretrained(folder)
    batch = tokenizer(sentences, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = net.generate(**batch, return_dict_in_generate=True, output_scores=True, **options)
    texts = tokenizer.batch_decode(found.sequences, skip_special_tokens=True, use_source_tokenizer=False)
    scores = found.sequences_scores.tolist() if "sequences_scores" in found else []
    return {"texts": texts, "scores": scores, "tokens": [tokenizer.tokenize(each) for each in sentences]}


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_folder(FOLDER)
    expected = {name: translate(FOLDER, SENTENCES[:12], **options) for name, options in WAYS.items()}
    (FOLDER / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1))
