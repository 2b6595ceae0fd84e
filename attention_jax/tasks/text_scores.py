"""Scores of texts: BLEU, chrF and TER of sacrebleu (Post 2018), with the signatures that say how they were computed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attention_jax.errors import UserError, require_package

TEXT_METRICS = ("BLEU", "chrF", "TER")


def make_text_metrics(tokenize: str, names: Sequence[str] = ("BLEU", "chrF")) -> Mapping[str, Any]:
    """Returns {name: metric of sacrebleu} of some of `TEXT_METRICS`; `tokenize` is BLEU's tokenization."""
    require_package("sacrebleu", "text", "scoring translations")
    from sacrebleu.metrics import BLEU, CHRF, TER

    makers: dict[str, Any] = {"BLEU": lambda: BLEU(tokenize=tokenize, force=True), "chrF": CHRF, "TER": TER}
    return {name: makers[name]() for name in names}


def name_bleu(tokenize: str) -> str:
    """Returns the name of BLEU in logs; for tokenised texts ("none") and for characters it is another score."""
    return {"none": "bleu_tokenised", "char": "bleu_char"}.get(tokenize, "bleu")


def check_bleu(tokenize: str) -> None:
    """Raises UserError with the missing package that scores in a tokenization need."""
    require_package("sacrebleu", "text", "config.evaluation.translate=True")
    from sacrebleu.metrics import BLEU

    try:
        BLEU(tokenize=tokenize)
    except RuntimeError as error:
        command = next((line.strip() for line in str(error).splitlines() if "pip install" in line), "")
        raise UserError(f"config.evaluation.bleu={tokenize!r} needs a package that is missing: {command}.") from error


def score_texts(hypotheses: list[str], references: list[str], tokenize: str) -> tuple[dict[str, Any], np.ndarray]:
    """Returns scores of sacrebleu (Post 2018) with their signatures, and which texts match exactly, [N] float32.

    Args:
        tokenize: sacrebleu's name of a tokenization for BLEU; "none" for texts that are tokenised, whose score is the papers'
            tokenised BLEU, not comparable with others.
    """
    metrics, name = make_text_metrics(tokenize), name_bleu(tokenize)
    bleu, chrf = metrics["BLEU"], metrics["chrF"]
    scores = {
        name: bleu.corpus_score(hypotheses, [references]).score,
        "chrf": chrf.corpus_score(hypotheses, [references]).score,
    }
    equal = np.array([a == b for a, b in zip(hypotheses, references, strict=True)], np.float32)
    signatures = {f"{name}_signature": str(bleu.get_signature()), "chrf_signature": str(chrf.get_signature())}
    return {**scores, "exact_match": float(equal.mean()), **signatures}, equal


def score_split_compounds(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns BLEU, 0 to 100, of tokens that are split at hyphens, as tensor2tensor's `get_ende_bleu.sh` splits compounds.

    The script takes Moses' tokenizer, for which 13a stands here, so that the two differ a little.
    """
    require_package("sacrebleu", "text", "config.evaluation.split_compounds=True")
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()

    def split(text: str) -> str:
        return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", tokenize(text))

    bleu = make_text_metrics("none", ("BLEU",))["BLEU"]
    return float(bleu.corpus_score([*map(split, hypotheses)], [[*map(split, references)]]).score)
