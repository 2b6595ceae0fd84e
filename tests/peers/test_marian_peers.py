"""Folders of Marian's, translated by Hugging Face's library and by ours, live."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'peers' is not installed")
pytest.importorskip("transformers")

import attention_jax as aj
from tests.helpers.marian_folder import OURS, SENTENCES, WAYS
from tests.peers import torch_marian

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_texts_and_scores_of_fifty_sentences(tmp_path, separate):
    """By greedy search and two beams, with one vocabulary and with two."""
    torch_marian.write_folder(tmp_path / "marian", separate)
    words = " ".join(SENTENCES[1:8]).split()
    rng = np.random.default_rng(0)
    sentences = [*SENTENCES[1:], *(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(39))]
    run = aj.load_pretrained(f"marian:{tmp_path / 'marian'}")
    run.config.data.bucket_lengths = (64,)
    for way, options in WAYS.items():
        theirs = torch_marian.translate(tmp_path / "marian", sentences, **options)
        found = run.predict(sentences, **OURS[way])
        assert [text for each in found for text in each.texts] == theirs["texts"], way
        if theirs["scores"]:
            np.testing.assert_allclose([score for each in found for score in each.scores], theirs["scores"], atol=5e-5)
