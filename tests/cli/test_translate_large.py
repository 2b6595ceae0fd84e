"""Large files: stopped and gone on with, in shards, within memory, and lines of a pipe at once. None of it changes a line."""

import dataclasses
import functools
import io
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.analysis.translation_maps import compute_translation_maps
from attention_jax.cli import main as cli
from attention_jax.cli import translate
from attention_jax.errors import UserError
from attention_jax.search import SearchOptions
from attention_jax.tasks import translator as translators
from attention_jax.tasks.batch_limits import BatchLimits, find_free_memory, plan_memory
from attention_jax.tasks.translator import TranslationOptions, Translator, translate_tokens
from tests.helpers.small import ROOT
from tests.helpers.small_text import small_config, untrained_run, write_pairs

pytestmark = pytest.mark.usefixtures("quickly")

LINES = ["a b c", "", "h g f e", "zebra", "d", "c b", "a a", "b b d", "e", "f e d"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = write_pairs(tmp_path_factory.mktemp("pairs"))
    return untrained_run(small_config(folder), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def predictor(workdir):
    return aj.load_run(workdir).predictor


@pytest.fixture
def call(workdir, predictor, monkeypatch, capfdbinary, tmp_path):
    """`call("--beam=2", ...)` -> (exit code, standard error), of a file in parts of 2 and 3 lines; programs are kept."""
    (tmp_path / "in").write_text("".join(line + "\n" for line in LINES))
    monkeypatch.setattr(translate, "CHUNKS", (2, 3))
    monkeypatch.setattr(Translator, "_programs", predictor._programs)
    monkeypatch.setattr(Translator, "_variables", predictor._variables)

    def call(*options: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), "ascii"))
        code = cli.main(["translate", f"--workdir={workdir}", f"--input={tmp_path}/in", *map(str, options)])
        return code, capfdbinary.readouterr().err.decode()

    return call


def stop_after(monkeypatch, parts: int) -> None:
    """The next call of `translate` gets Ctrl-C after this many parts."""
    count, whole = iter(range(99)), Translator.translate

    def translate(self, sentences, **search):
        if next(count) == parts:
            monkeypatch.setattr(Translator, "translate", whole)
            raise KeyboardInterrupt
        return whole(self, sentences, **search)

    monkeypatch.setattr(Translator, "translate", translate)


@pytest.mark.parametrize("options", [["--scores", "--config.search.beam=2", "--config.search.stop=full"], ["--nbest=2"]])
def test_gone_on_with_is_left_alone(call, monkeypatch, tmp_path, predictor, options):
    """Byte by byte, also after a line that was cut in the middle, and of the search that the fields name."""
    assert call(*options, f"--output={tmp_path}/alone") == (0, "")
    alone = (tmp_path / "alone").read_bytes()
    if "--scores" in options:
        found = predictor.predict(LINES, beam=2, stop="full")
        assert [line.split("\t")[1] for line in alone.decode().splitlines()] == [each.text for each in found]
    stop_after(monkeypatch, 1)
    code, err = call(*options, f"--output={tmp_path}/out")
    partial = tmp_path / "out.partial"
    assert code == 130 and "the same command with --resume goes on" in err and not (tmp_path / "out").exists()
    done = partial.read_bytes()
    assert alone.startswith(done) and done.count(b"\n") >= 2
    partial.write_bytes(alone[:-5])  # as a kill leaves it
    code, err = call(*options, f"--output={tmp_path}/out")
    assert code == 2 and "is there from a command that was stopped: go on with --resume" in err
    code, err = call("--beam=3", *options, f"--output={tmp_path}/out", "--resume")
    assert code == 2 and "was begun with search=" in err and partial.read_bytes().startswith(done)
    read = []
    monkeypatch.setattr(translate, "translate_parts", lambda t, parts, prefixes, alignments, **s: seen(t, parts, read, **s))
    assert call(*options, f"--output={tmp_path}/out", "--resume") == (0, "")
    assert (tmp_path / "out").read_bytes() == alone and sorted(os.listdir(tmp_path)) == ["alone", "in", "out"]
    assert read == LINES[2:], "what was done is not done again"


def seen(translator, parts, read, **search):
    for part in parts:
        read += part
        yield from translator.translate(part, **search)


def test_shards_joined_are_the_file(call, tmp_path):
    assert call("--nbest=2", f"--output={tmp_path}/all") == (0, "")
    for i in (1, 2, 3):
        assert call("--nbest=2", f"--output={tmp_path}/{i}", f"--shard={i}/3") == (0, "")
    parts = [(tmp_path / str(i)).read_bytes() for i in (1, 2, 3)]
    assert b"".join(parts) == (tmp_path / "all").read_bytes() and all(parts)


def test_forced_beginnings_and_alignments(call, tmp_path, predictor):
    """The translations' own beginnings change nothing, others are written first; words go where the map's heads look."""
    lines = ["a b c", "", "c b"]
    free = predictor.predict(lines, beam=1)
    beginnings = [each.target_ids[:2] for each in free[:2]] + ["C D"]
    forced = predictor.predict(lines, beam=1, prefix=beginnings)
    assert [each.text for each in forced[:2]] == [each.text for each in free[:2]]
    np.testing.assert_allclose(forced[0].scores, free[0].scores, atol=1e-5)
    assert forced[2].text.startswith("C D") and not free[2].text.startswith("C D")
    (tmp_path / "in").write_text("".join(line + "\n" for line in lines))
    (tmp_path / "begin").write_text("\n\nC D\n")
    options = (f"--target-prefix-file={tmp_path}/begin", "--beam=1", "--alignments=1.2")
    assert call(f"--output={tmp_path}/out", *options) == (0, "")
    rows = [line.split("\t") for line in (tmp_path / "out").read_text().splitlines()]
    maps, words = compute_translation_maps(predictor, lines[2], forced[2])["cross/0"], len(forced[2].text.split())
    assert [row[0] for row in rows] == [each.text for each in forced] and rows[1] == ["", ""]
    assert rows[2][1] == " ".join(f"{source}-{word}" for word, source in enumerate(maps[1, :words, :-1].argmax(1)))
    (tmp_path / "begin").write_text("C\n")
    code, err = call(f"--output={tmp_path}/short", *options)
    assert code == 2 and "--target-prefix-file has fewer lines than the input" in err
    with pytest.raises(UserError, match="a prefix of 40 tokens leaves no room in the 6 that its translation may have"):
        predictor.predict("a", prefix="C " * 40)
    with pytest.raises(UserError, match="alignments: head 3 of cross-attention, and this network has 2"):
        predictor.align(["a"], ["A"], head=3)


def test_a_batch_plans_no_more_memory_than_it_may(predictor):
    """Fewer rows, the same translations; one sentence that does not fit is an error."""
    chosen = TranslationOptions.from_config(predictor.config)
    lines = ["a b c", "d", "c b", "f e d"]
    expected = [each.text for each in predictor.predict(lines)]
    length = predictor.config.data.bucket_lengths[0]
    two = plan_memory(predictor._compile(translate_tokens, chosen, ((2, length),)))
    small = dataclasses.replace(predictor, limits=BatchLimits(memory=two))
    vars(small)["_programs"] = {**predictor._programs}
    assert [each.text for each in small.predict(lines)] == expected
    rows = [rows for _, rows, _ in small._batches(translate_tokens, chosen, 1, [length] * 4)]
    assert rows == [2, 2] and [rows for _, rows, _ in predictor._batches(translate_tokens, chosen, 1, [length] * 4)] == [4]
    with pytest.raises(UserError, match=r"a sentence of \d+ tokens plans .* GiB on a device.*give a larger --memory"):
        dataclasses.replace(predictor, limits=BatchLimits(memory=1000)).predict("a b")
    assert 2**20 < find_free_memory() < 2**44
    limits = BatchLimits(tokens=100, sentences=12)
    assert [limits.count_rows(length, 4096, 1) for length in (4, 20, 200)] == [8, 4, 1] and limits.count_rows(4, 4096, 4) == 2


def test_a_cache_that_grows_takes_little_more_memory_than_one_that_does_not(monkeypatch):
    """The caches of all lengths at once would take twice as much."""
    model = aj.create_model("transformer_base", vocab_size=50, layers=1, features=32, hidden=32, heads=2)
    source = jax.ShapeDtypeStruct((64, 14), np.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), source, source)
    options = TranslationOptions(SearchOptions(beam=4), max_extra=50)

    def plan() -> int:
        program = jax.jit(functools.partial(translate_tokens, model.clone()), static_argnums=2)
        return program.lower(variables, source, options).compile().memory_analysis().temp_size_in_bytes

    growing = plan()
    for module in ("attention_jax.search", translators.__name__):
        monkeypatch.setattr(f"{module}.cache_lengths", lambda length: (length,))
    assert growing < 1.4 * plan()


def test_a_line_of_a_pipe_is_there_at_once(workdir, predictor):
    """A real process answers a line before its input has ended, and names a broken one."""
    command = [sys.executable, "-m", "attention_jax", "translate", f"--workdir={workdir}", "--beam=1"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        timer = threading.Timer(240, process.kill)  # an answer that waits for the end of the input never comes
        timer.start()
        answers = []
        for line in (b"a b c\n", b"c b\n"):
            process.stdin.write(line)
            process.stdin.flush()
            answers.append(process.stdout.readline().decode().removesuffix("\n"))
        _, said = process.communicate(b"ca\xff\n")
        timer.cancel()
    assert answers == [predictor.predict(line, beam=1)[0].text for line in ("a b c", "c b")]
    assert process.returncode == 2 and b"standard input:3 is not UTF-8" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resume"], "--resume goes on with a file: give --input and --output as before."),
        (["--output=new", "--resume"], "--resume: there is no new.partial to go on from"),
        (["--shard=3/2"], "'3/2' is not right: give I/N, such as 1/4, with I from 1 to N"),
    ],
)
def test_mistakes(call, monkeypatch, tmp_path, capfdbinary, options, said):
    monkeypatch.chdir(tmp_path)
    try:
        code, err = call(*options)
    except SystemExit as exit:
        code, err = exit.code, capfdbinary.readouterr().err.decode()
    assert code == 2 and said in err and err.count("\n") == 1
