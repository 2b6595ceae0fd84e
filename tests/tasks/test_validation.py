"""What validates a network is seen neither by its training nor by its tokenizer."""

import numpy as np
import pytest

from attention_jax.tasks import translation
from tests.helpers.small_text import small_config


@pytest.fixture
def folder(tmp_path):
    """150 pairs for training, each with words of its own, and 10 for the test."""
    for split, number in (("train", 150), ("test", 10)):
        for side in "xy":
            (tmp_path / f"{split}.{side}").write_text("".join(f"{side}{split}{i}\n" for i in range(number)))
    return tmp_path


def test_the_tokenizer_is_trained_without_the_carved_pairs(folder):
    """In both orders, as rows of a table share a process."""
    configs = [small_config(folder, data__eval_split=split) for split in ("test", "validation", "test")]
    sizes = [translation.get_tokenizers(config).target.vocab_size for config in configs]
    assert sizes == [4 + 300, 4 + 270, 4 + 300]
    words, carved = translation.get_tokenizers(configs[1]).target, translation.source(configs[1], "validation")
    assert len(carved) == 15
    for i in range(len(carved)):
        assert words.decode(words.encode(carved[i][0])) != carved[i][0], "an unknown word"
    assert words.decode(words.encode(translation.source(configs[1], "train")[0][1])).startswith("ytrain")


def test_the_pairs_that_are_trained_on_are_counted(folder):
    config = translation.resolve(small_config(folder, data__eval_split="validation"))
    assert config.data.num_examples == 135 and config.model.vocab_size == 4 + 270
    assert translation.resolve(small_config(folder)).data.num_examples == 150
    loader = translation.loader(config, "train", (0, 1), training=True)
    assert len(loader.plan.lengths) == 135
    batches = list(translation.evaluation_loader(config, (0, 1), {}).evaluation())
    assert sum(int(batch["weight"].sum()) for batch in batches) == 15


def test_translations_are_compared_with_the_carved_references(folder):
    config = translation.resolve(small_config(folder, data__eval_split="validation"))
    carved = translation.source(config, "validation")
    _, references = translation.read_texts(config, {"hypothesis": np.zeros((15, 3), int)})
    assert references == [carved[i][1] for i in range(15)]
