"""A folder of Marian's in Hugging Face's form, opened without PyTorch, against what that library wrote for it."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import UserError
from attention_jax.cli.main import main
from attention_jax.data.text.tokenizer import BOS, EOS, UNKNOWN
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


def test_the_start_symbol_has_no_probability(run):
    """It is a row that the network does not have: with a share of the probability, every score would be too low."""
    tokens = np.array([run.predictor.tokenizers.source.encode(SENTENCES[4])], np.int32)
    logits = jax.jit(functools.partial(run.model.apply, run.variables))(tokens, tokens[:, ::-1])
    shares = np.asarray(jax.nn.softmax(logits))
    assert shares[..., BOS].max() == 0 < shares[..., EOS].min()


def test_the_command_translates(run, tmp_path, capsys):
    """As `predict` does, a sentence at a time or all together; a beam of one is greedy."""
    lines, target = SENTENCES[3:6], tmp_path / "out"
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in lines))
    files = (f"--workdir=marian:{FOLDER}", "--beam=1", "--config.evaluation.batch_size=64")
    assert main(["translate", *files, f"--input={tmp_path}/in", f"--output={target}", "--scores"]) == 0
    rows = [row.split("\t") for row in target.read_text().splitlines()]
    alone = [run.predict([line], beam=1)[0] for line in lines]
    assert [text for _, text in rows] == [each.text for each in alone]
    np.testing.assert_allclose([float(score) for score, _ in rows], [each.scores[0] for each in alone], atol=1e-4)
    assert main(["translate", *files, "--average=3", f"--input={tmp_path}/in", f"--output={tmp_path}/no"]) == 2
    assert "has one set of weights: leave --weights and --average out" in capsys.readouterr().err


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
