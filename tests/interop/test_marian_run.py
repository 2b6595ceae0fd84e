"""A folder of Marian's in Hugging Face's form, opened without PyTorch, against what that library wrote for it."""

import json
import shutil

import numpy as np
import pytest

import attention_jax as aj
from attention_jax import UserError
from attention_jax.data.text.tokenizer import UNKNOWN
from attention_jax.interop.marian_run import open_marian
from tests.helpers.marian_folder import FOLDER, OURS, SENTENCES


@pytest.fixture(scope="module")
def run():
    """With one length of batches, so that each way compiles one program."""
    run = aj.load_pretrained(f"marian:{FOLDER}")
    run.config.data.bucket_lengths = (64,)
    return run


@pytest.fixture(scope="module")
def expected():
    return json.loads((FOLDER / "expected.json").read_text())


@pytest.mark.parametrize("way", ["own", "full"])
def test_texts_and_beam_scores_are_hugging_faces(run, expected, way):
    """With the folder's own options, and by another beam, penalty and rule of stopping."""
    found = run.predict(SENTENCES, **OURS[way])
    assert [text for each in found for text in each.texts] == expected[way]["texts"]
    if expected[way]["scores"]:
        np.testing.assert_allclose([s for each in found for s in each.scores], expected[way]["scores"], atol=5e-5)


def test_sentences_are_split_as_hugging_face_does(run, expected):
    """By source.spm and its rules of normalisation; a language code is a token; what vocab.json lacks is unknown."""
    source = run.predictor.tokenizers.source
    known = {*source.pieces(range(source.vocab_size))}
    for sentence, theirs in zip(SENTENCES, expected["own"]["tokens"]):
        assert source.pieces(source.encode(sentence)) == [piece if piece in known else "<unk>" for piece in theirs]
    assert UNKNOWN in source.encode(SENTENCES[8])  # Ω
    text = "der erste Hund sieht ½ des Hauses"  # the target's rules leave ½ as it is, the source's do not
    target = run.predictor.tokenizers.target
    assert target.decode(target.encode(text)) == text != source.decode(source.encode(text))


def test_a_torch_file_gives_the_weights_of_the_safetensors(run, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "torch", ignore=shutil.ignore_patterns("*.safetensors"))
    again = open_marian(tmp_path / "torch")
    assert again.variables["params"].keys() == run.variables["params"].keys()
    table = run.variables["params"]["target_embedding"]["embedding"]
    np.testing.assert_array_equal(again.variables["params"]["target_embedding"]["embedding"], table)
    assert run.config.model.vocab_size == len(table) == run.predictor.tokenizer.vocab_size


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", None, "config.json: No such file or directory: give marian:FOLDER with config.json"),
        ("source.spm", None, "source.spm: No such file"),
        ("model.safetensors", None, "model.safetensors: No such file"),
        ("vocab.json", lambda found: {k: v for k, v in found.items() if k != "<unk>"}, "vocab.json: it has no <unk>"),
        ("vocab.json", lambda found: {**found, "a": 0}, "two pieces have the same number"),
        ("vocab.json", lambda found: {**found, "zz": 999}, "a piece with the number 999, and config.json has only"),
        ("vocab.json", lambda found: [*found], "is a list: give the object"),
        ("config.json", lambda found: {**found, "eos_token_id": 5}, "and config.json says eos_token_id=5"),
        ("config.json", lambda found: {**found, "d_model": 18}, "the weights do not fit"),
    ],
)  # fmt: skip
def test_missing_and_contradicting_files(tmp_path, name, change, said):
    folder = tmp_path / "broken"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("pytorch_model.bin"))
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))
    with pytest.raises(UserError) as error:
        open_marian(folder)
    assert said in str(error.value)


def test_options_that_this_search_does_not_have_are_named(tmp_path, capsys):
    folder = tmp_path / "other"
    shutil.copytree(FOLDER, folder)
    options = json.loads((folder / "generation_config.json").read_text())
    options.update(no_repeat_ngram_size=3, repetition_penalty=1.0, max_length=10)
    (folder / "generation_config.json").write_text(json.dumps(options))
    assert open_marian(folder).config.search.max_length == 9  # the start symbol counts there
    assert "this search has no no_repeat_ngram_size=3, which the folder asks for" in capsys.readouterr().err
    with pytest.raises(UserError, match="give a network's name and a file, or 'marian:FOLDER' and nothing else"):
        aj.load_pretrained(f"marian:{FOLDER}", "file.bin")
