"""Kept tokens are those that would be made anew."""

import numpy as np

from attention_jax.cli import main as cli
from attention_jax.tasks import translation
from tests.helpers.small_text import as_options, small_config, write_pairs


def test_tokens_are_made_once(tmp_path, monkeypatch, caplog, capsys):
    """Kept files give the same pairs without training a tokenizer or encoding anything, until the texts or settings change."""
    (tmp_path / "pairs").mkdir()
    pairs = write_pairs(tmp_path / "pairs")
    changes = {"data__cache_dir": str(tmp_path / "cache"), "data__drop_duplicates": True, "data__max_length": 6}
    config, plain = small_config(pairs, **changes), small_config(pairs, **{**changes, "data__cache_dir": None})

    def forget():
        monkeypatch.setattr(translation, "_tokenizers", {})
        monkeypatch.setattr(translation, "_encoded", {})

    def open_tokens(config):
        forget()
        return translation._tokens(config, "train", "drop", training=True)

    expected, made = open_tokens(plain), []
    said = [record.message for record in caplog.records if "pairs of split" in record.message]
    assert any("pairs of split 'train' have come before and are left out" in text for text in said)
    forget()
    assert cli.main(["prepare", *as_options(pairs, **changes)]) == 0
    assert f"split 'train' has {len(expected):,} pairs" in capsys.readouterr().out
    for name in ("train_tokenizer", "encode_pairs"):
        make = getattr(translation, name)
        monkeypatch.setattr(translation, name, lambda *args, name=name, make=make: made.append(name) or make(*args))

    def expect(names):
        caplog.clear()
        made.clear()
        tokens = open_tokens(config)
        for name in ("tokens", "starts", "kept"):
            np.testing.assert_array_equal(getattr(tokens, name), getattr(expected, name))
        assert isinstance(tokens.tokens, np.memmap) and made == names

    expect([])
    assert [record.message for record in caplog.records if "pairs of split" in record.message] == said
    (file,) = [path for path in (tmp_path / "cache").glob("tokens-*/tokens") if path.stat().st_size == expected.tokens.nbytes]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    expect(["encode_pairs"])
    assert "is damaged (tokens has another checksum) and is made anew" in caplog.text and file.read_bytes() == content
    lines = (pairs / "train.y").read_text().splitlines()
    (pairs / "train.y").write_text("\n".join([*lines[:150], "H H H", *lines[151:]]) + "\n")  # a sample may not see it
    expected = open_tokens(plain)
    expect(["train_tokenizer", "encode_pairs"])
    assert cli.main(["prepare", "--config=configs/cifar10.py"]) == 2 and cli.main(["prepare", "multi30k"]) == 2
