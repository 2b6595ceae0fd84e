"""Vocabularies of other programs have our numbers, and lose nothing that theirs keep."""

import json

import pytest
import sentencepiece

from attention_jax import UserError
from attention_jax.data.text.tokenizer import EOS, PAD, SYMBOLS, UNKNOWN, Tokenizers, load_tokenizer, load_tokenizers
from attention_jax.data.text.vocabularies import list_vocabulary_files, read_tokenizer
from attention_jax.models import create_model
from attention_jax.tasks import translation
from tests.helpers.marian_folder import FOLDER, TARGETS
from tests.helpers.small_text import small_config, write_pairs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Sentencepiece's default numbers: unknown 0, start 1, end 2, no padding."""
    prefix = tmp_path_factory.mktemp("model") / "x"
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(TARGETS), model_prefix=str(prefix), vocab_size=60, minloglevel=2, hard_vocab_limit=False)
    return f"{prefix}.model"


def test_a_sentencepiece_model_with_its_default_numbers_gets_ours(model):
    theirs, ours = sentencepiece.SentencePieceProcessor(model_file=model), read_tokenizer(model)
    assert ours.pieces(range(4)) == ["<pad>", "<s>", "</s>", "<unk>"] and ours.vocab_size == theirs.vocab_size() + 1
    assert len({*ours.pieces(range(ours.vocab_size))}) == ours.vocab_size
    for text in TARGETS:
        tokens = ours.encode(text)
        assert min(tokens) > UNKNOWN and ours.pieces(tokens) == theirs.encode(text, out_type=str)
        assert load_tokenizer(ours.assets()).decode([*tokens, EOS, PAD]) == theirs.decode(theirs.encode(text))
    assert ours.encode("Ω")[-1] == UNKNOWN


@pytest.mark.parametrize("content", ["<s> 9 #fairseq:overwrite\na@@ 7\nb 5\n", "<s>\r\n</s>\r\n<unk>\r\na@@\r\nb\r\n"])
def test_lists_of_words(tmp_path, content):
    """fairseq's dict.txt, where a line may overwrite a symbol, and a word a line, where symbols are ours."""
    (tmp_path / "dict.txt").write_bytes(content.encode())
    words = load_tokenizer(read_tokenizer(f"{tmp_path}/dict.txt", joiner="@@").assets())
    own = ["<s>"] if "overwrite" in content else []
    assert words.pieces(range(words.vocab_size)) == [*SYMBOLS, *own, "a@@", "b"]
    assert words.decode(words.encode("a@@ b b")) == "ab b" and words.encode("c <unk>") == [UNKNOWN] * 2
    assert (words.encode("<s>") == [UNKNOWN]) == (not own)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a 1\nb\n", "dict.txt:2 is 'b': give 'word count'"),
        (b"a\nb 1\n", "dict.txt:2 is 'b 1': give one word"),
        (b"a 1\nb 2\na 3\n", "dict.txt:3: 'a' is in line 1 too"),
        (b"a\n\xff\n", "byte 2 is not UTF-8"),
        (b"<s>\n", "there is no word in it"),
    ],
)
def test_lists_that_are_none(tmp_path, content, said):
    (tmp_path / "dict.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_tokenizer(f"{tmp_path}/dict.txt")
    assert said in str(error.value)


def test_a_vocab_json_splits_each_side_with_its_own_model(tmp_path):
    path = str(FOLDER / "vocab.json")
    both = Tokenizers(read_tokenizer(path, "source"), read_tokenizer(path, "target"))
    again = load_tokenizers(both.assets())
    assert again.source.encode("½") == again.source.encode("1/2") != again.target.encode("½")
    assert again.source.pieces(range(84)) == again.target.pieces(range(84))
    assert len(list_vocabulary_files(path)) == 3
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 2, "</s>": 0, "<unk>": 1}))
    with pytest.raises(UserError, match="beside it should lie source.spm and target.spm"):
        read_tokenizer(f"{tmp_path}/vocab.json")


def test_source_and_target_with_a_vocabulary_each(tmp_path, caplog):
    (write_pairs(tmp_path) / "words").write_text("a\nb\nc\n")
    changes = {"data__source_tokenizer": f"{tmp_path}/words", "model__embeddings": "target", "data__num_examples": None}
    config = translation.resolve(small_config(tmp_path, **changes))
    assert (config.model.source_vocab_size, config.model.vocab_size) == (7, 12)
    assert "source tokens of split 'train'" in caplog.text and "target tokens of split" not in caplog.text
    both = load_tokenizers(translation.assets(config))
    assert both.source.encode("a d") == [4, UNKNOWN] and sorted(both.target.pieces(range(4, 12))) == [*"ABCDEFGH"]
    with pytest.raises(UserError, match="model.embeddings='shared' is one table for source and target"):
        create_model("transformer_base", source_vocab_size=7).check()
