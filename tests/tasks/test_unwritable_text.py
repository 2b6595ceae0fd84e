"""References that the vocabulary of a translation cannot write are counted before the first step."""

import unicodedata
from pathlib import Path

import pytest

from attention_jax.errors import UserError
from attention_jax.tasks import translation
from attention_jax.train.loop import train_model
from tests.helpers.small_text import small_config, write_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pairs(tmp_path)


def test_a_network_with_fewer_tokens_than_the_tokenizer_is_refused(folder, tmp_path):
    config = small_config(folder, model__vocab_size=12)
    with pytest.raises(UserError, match=r"model.vocab_size=12 is fewer than the 20 tokens of data.tokenizer=words: give None"):
        train_model(config, tmp_path / "run")
    more = translation.resolve(small_config(folder, model__vocab_size=64))  # padded, as for devices that share it
    assert translation.evaluation_loader(more, (0, 1), {})


def test_references_with_unknown_words_are_counted(folder, caplog):
    config = translation.resolve(small_config(folder))
    translation.evaluation_loader(config, (0, 1), {})
    assert not caplog.messages
    lines = (folder / "test.y").read_text().splitlines()
    lines[3], lines[7] = "A Ö B", "A  B"  # a word that training never shows; two spaces, which the tokenizer takes for one
    (folder / "test.y").write_text("".join(f"{line}\n" for line in lines))
    translation.evaluation_loader(config, (0, 1), {})
    (said,) = caplog.messages
    assert said == (
        "data: 2 of 40 references of split 'test' (5.0 %), 0 of them for their Unicode normal form alone, contain what the "
        "tokenizer cannot write, for example 'A Ö B', which it writes as 'A <unk> B': no translation can equal them."
    )


def test_references_in_another_normal_form_are_counted(folder, caplog):
    lines = ["나는 학생입니다", "너는 학생입니다", "한 시간", "두 시간"] * 10
    for split in ("train", "test"):
        number = len((folder / f"{split}.x").read_text().splitlines())
        text = (lines * 8)[:number]
        if split == "test":
            text[0], text[1] = unicodedata.normalize("NFD", text[0]), "１시간"
        (folder / f"{split}.y").write_text("".join(f"{line}\n" for line in text))
    fields = {"data__tokenizer": "sentencepiece", "data__vocab_size": 60, "data__tokenizer_options": {"model_type": "char"}}
    config = translation.resolve(small_config(folder, **fields))
    translation.evaluation_loader(config, (0, 1), {})
    said, unknown = caplog.messages
    assert "1 of 275 target tokens of split 'test' (0.4 %) are not in the vocabulary and become <unk>" in unknown
    assert "2 of 40 references of split 'test' (5.0 %), 1 of them for their Unicode normal form alone" in said
