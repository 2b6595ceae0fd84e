"""python -m attention_jax translate: a line out for a line in, files that are complete or absent, figures of attention."""

import io
import os
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.analysis.translation_maps import (
    choose_fonts,
    compute_translation_maps,
    plot_attention_grid,
    romanize_korean,
)
from attention_jax.cli import main as cli
from attention_jax.cli import translate
from attention_jax.cli.line_files import take_parts
from attention_jax.data.text.tokenizer import Tokenizers, train_tokenizer
from attention_jax.errors import UserError
from attention_jax.tasks.translator import Translator
from tests.helpers.small import ROOT
from tests.helpers.small_text import small_config, untrained_run, write_pairs

pytestmark = pytest.mark.usefixtures("quickly")

LINES = ["a b c", "", "h g f e d c b a " * 4, "zebra", "  ", "d", "c b", "a a"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = write_pairs(tmp_path_factory.mktemp("pairs"))
    return untrained_run(small_config(folder), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run(workdir):
    return aj.load_run(workdir)


@pytest.fixture
def call(workdir, monkeypatch, capfdbinary):
    """`call("--beam=2", given=b"lines")` -> (exit code, standard output, standard error)"""

    def call(*options: object, given: bytes = b"", path: object = workdir) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "ascii"))  # whatever the terminal speaks
        code = cli.main(["translate", f"--workdir={path}", *map(str, options)])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def joined(lines, end: str = "\n") -> bytes:
    return "".join(line + end for line in lines).encode()


@pytest.mark.slow
def test_a_line_out_for_each_line_in(call, run):
    expected = [translation.text for translation in run.predict(LINES)]
    assert len(set(expected)) > 4, "translations that differ, so that their order says something"
    assert call(given=joined(LINES)) == (0, joined(expected).decode(), "")
    code, out, _ = call(given=b"\xef\xbb\xbf" + joined(LINES, "\r\n") + b"a b")  # a byte order mark, no end of the last line
    assert code == 0 and out.split("\n")[:-1] == [*expected, run.predict("a b")[0].text]
    assert call(given=b"") == (0, "", "")


def test_in_parts_as_together(run):
    together = [translation.text for translation in run.predict(LINES)]
    read = []
    lines = (read.append(line) or line for line in LINES)
    found = translate.translate_parts(run.predictor, take_parts(lines, sizes=(2, 3)))
    assert next(found).text == together[0] and len(read) == 2, "the rest is not read before the first is written"
    assert [translation.text for translation in found] == together[1:]


def test_files(call, run, tmp_path):
    expected = joined(translation.text for translation in run.predict(LINES))
    given, made = tmp_path / "in.txt", tmp_path / "out.txt"
    given.write_bytes(joined(LINES))
    options = (f"--input={given}", f"--output={made}")
    assert call(*options) == (0, "", "")
    assert made.read_bytes() == expected
    code, out, err = call(*options)
    assert (code, out) == (2, "") and f"--output={made} exists already" in err and made.read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]


@pytest.mark.parametrize("to_file", [False, True])
def test_what_is_not_utf_8(call, tmp_path, to_file):
    options = [f"--output={tmp_path}/out.txt"] if to_file else []
    code, _, err = call(*options, given=b"a b\nca\xff\n")
    assert code == 2 and err.startswith("error: standard input:2 is not UTF-8 (byte 2 is 0xff)") and err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left of a file that is not complete"


@pytest.mark.slow
def test_scores_and_the_n_best(call, run):
    found = run.predict(LINES, beam=3, n_best=3, alpha=1.0)
    code, out, _ = call("--nbest=3", "--alpha=1", given=joined(LINES))  # the beam is as large as it must be
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and [int(row[0]) for row in rows] == [i for i, each in enumerate(found, 1) for _ in each.texts]
    assert [row[2] for row in rows] == [text for each in found for text in each.texts]
    np.testing.assert_allclose([float(row[1]) for row in rows], [score for each in found for score in each.scores], atol=1e-4)
    code, out, _ = call("--beam=3", "--scores", "--alpha=1", given=joined(LINES))
    assert code == 0 and out.splitlines() == ["\t".join(row[1:]) for row in rows if row[0] not in seen(rows, row)]


def seen(rows: list[list[str]], row: list[str]) -> set[str]:
    """The line numbers of the rows before one."""
    return {before[0] for before in rows[: rows.index(row)]}


def test_who_reads_may_stop_reading(workdir, monkeypatch, tmp_path):
    (tmp_path / "in.txt").write_bytes(joined(["a b c"] * 3))
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(os.fdopen(write, "wb")))
    assert cli.main(["translate", f"--workdir={workdir}", f"--input={tmp_path}/in.txt"]) == 0
    sys.stdout.close()  # as the interpreter does at its end


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--input=nowhere.txt"], "--input=nowhere.txt cannot be read (No such file or directory)."),
        (["--output=nowhere/out.txt"], "--output=nowhere/out.txt: there is no folder nowhere."),
        (["--attention=there.png"], "--attention=there.png exists already"),
        (["--attention=new.jpg"], "--attention=new.jpg: give a name that ends in .png, .pdf, .svg."),
        (["--attention=new.png"], "--attention: there is no sentence whose attention could be plotted."),
        (["--nbest=3", "--beam=2"], "search: n_best=3 is not from 1 to beam=2."),
        (["--average=7"], "average=7 but there are 1 checkpoints"),
        (["--attention-of=all"], "argument --attention-of: invalid choice: 'all'"),
        (["--config.search.beams=5"], "unknown config field 'search.beams' (did you mean 'search.beam'?)"),
        (["--config.batch_size=5"], "--config.batch_size: translate reads the fields search., evaluation.batch_size alone"),
    ],
)
def test_mistakes(call, monkeypatch, tmp_path, capfdbinary, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_bytes(b"mine")
    try:
        code, _, err = call(*options, given=b"\n" if "new.png" in options[0] else b"a\n")
    except SystemExit as exit:
        code, err = exit.code, capfdbinary.readouterr().err.decode()
    assert code == 2 and said in err and err.startswith("error: ") and err.count("\n") == 1
    assert (tmp_path / "there.png").read_bytes() == b"mine" and os.listdir(tmp_path) == ["there.png"]


def test_a_run_of_another_task(call):
    code, _, err = call(path=ROOT / "tests" / "fixtures" / "tiny_run", given=b"a\n")
    assert code == 2 and "is a run of the task 'classification': translate takes one of 'translation'." in err


# Attention


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cross", "encoder", "decoder"])
def test_picture_of_the_first_sentence(call, tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, out, err = call(f"--attention={tmp_path}/a.png", f"--attention-of={kind}", given=b"\na b c\nd\n")
    assert (code, err) == (0, "") and len(out.split("\n")) == 4
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and os.listdir(tmp_path) == ["a.png"]


def test_pictures_of_any_lines(call, tmp_path):
    code, _, err = call(f"--attention={tmp_path}/a.png", "--attention-lines=2,3", given=b"d\na b c\nd\n")
    assert (code, err) == (0, "") and sorted(os.listdir(tmp_path)) == ["a-2.png", "a-3.png"]
    code, _, err = call(f"--attention={tmp_path}/b.png", "--attention-lines=2,9", given=b"d\na\n")
    assert code == 2 and "--attention-lines: line 9 is empty, or not there" in err
    assert call("--attention-lines=2")[0] == 2


@pytest.mark.slow
def test_maps_are_those_of_the_translation(run):
    (found,) = run.predict("a b c", beam=2)
    maps = compute_translation_maps(run, "a b c", beam=2)
    s, t, heads = 4, len(found.tokens[0]), run.config.model.heads
    assert {name: array.shape for name, array in maps.maps.items()} == {
        "cross/0": (heads, t, s),
        "encoder/0": (heads, s, s),
        "decoder/0": (heads, t, t),
    }
    for array in maps.maps.values():
        np.testing.assert_allclose(array.sum(-1), 1, atol=1e-5)
    assert not np.triu(maps["decoder/0"], 1).any() and maps["decoder/0"][:, 0, 0] == pytest.approx(1)
    assert maps.source == ["a", "b", "c", "</s>"] and maps.target == found.tokens[0] and maps.text == found.text
    assert maps.seen == ["<s>", *found.tokens[0][:-1]]
    for given in (found, " ".join(token for token in found.tokens[0] if token != "</s>")):
        again = compute_translation_maps(run.predictor, "a b c", given)
        np.testing.assert_allclose(again["cross/0"][:, : t - 1], maps["cross/0"][:, : t - 1], atol=1e-6)
    with pytest.raises(UserError, match="an empty sentence"):
        compute_translation_maps(run, " ")


@pytest.mark.slow
def test_networks_with_cross_attention_alone(run):
    words = train_tokenizer("words", ["I am", "나는 다"], None, "", {})
    model = aj.create_model("lstm_seq2seq_attention", vocab_size=words.vocab_size, layers=1, features=8)
    variables = model.init(jax.random.key(0), jnp.ones((1, 3), int), jnp.ones((1, 3), int))
    maps = compute_translation_maps(Translator(run.config, Tokenizers(words, words), model, variables), "I am", "나는 다")
    assert list(maps.maps) == ["cross/0"] and maps["cross/0"].shape == (1, 3, 3)
    np.testing.assert_allclose(maps["cross/0"].sum(-1), 1, atol=1e-6)
    assert len(plot_attention_grid(maps).axes) == 1
    with pytest.raises(UserError, match="no encoder attention, only cross"):
        plot_attention_grid(maps, "encoder")


def test_korean_is_readable_whatever_fonts_there_are():
    assert romanize_korean("▁나는 학생입니다 (x)") == "▁naneun hagsaengibnida (x)"
    texts = ["▁나는", "student"]
    shown, families = choose_fonts(texts)
    assert families[0] == "DejaVu Sans" and shown[1] == "student" and not any("Last Resort" in name for name in families)
    assert shown == texts or (shown[0] == "▁naneun" and families == ["DejaVu Sans"])
