"""Invariants of the translation task, on sentences of letters: padding, batching, dividing, interrupting change nothing."""

import dataclasses
import html
import importlib.util
import json
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.cli import main as cli
from attention_jax.config import override
from attention_jax.data.text.tokenizer import EOS, PAD
from attention_jax.errors import UserError
from attention_jax.tables.measures import measure_bleu
from attention_jax.tasks import translation
from attention_jax.tasks.translator import TranslationOptions, translate_tokens
from attention_jax.train import restore
from attention_jax.train.evaluate import evaluate_model
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from experiments.studies import lengths
from tests.helpers.small_text import as_options, small_config, write_pairs
from tests.train.test_resume import wait_for

pytestmark = pytest.mark.usefixtures("quickly")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def config(folder):
    return small_config(folder, total_steps=200, evaluation__every_steps=100)


@pytest.fixture(scope="module")
def program(config):
    return build_program(config)


@pytest.fixture(scope="module")
def workdir(config, program, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    assert train_model(config, path, program).step == 200
    return path


@pytest.fixture(scope="module")
def run(workdir):
    return aj.load_run(workdir)


def log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def test_what_only_the_data_know_is_filled_in(config, program):
    data, plan = program.config.data, translation.loader(program.config, "train", (0, 1), training=True).plan
    assert program.config.model.vocab_size == 4 + 2 * 8
    assert data.num_examples == 300 and len(data.bucket_lengths) == 2
    assert data.num_batches == program.durations.steps_per_epoch == plan.steps_per_epoch
    assert build_program(program.config).config == program.config
    # A config that states everything needs no data.
    elsewhere = translation.resolve(program.config)
    elsewhere.data.args.source = "/nowhere/{split}.x"
    assert translation.resolve(elsewhere) == elsewhere


@pytest.mark.slow
def test_a_run_learns_and_says_how_well(workdir):
    last = log(workdir)[-1]
    assert last["eval_ema/exact_match"] == last["headline"] > 0.4
    assert last["eval_ema/token_accuracy"] > 0.6 and last["eval_ema/bleu_tokenised"] > 30 and last["eval_ema/chrf"] > 30
    assert last["eval_ema/perplexity"] == pytest.approx(np.exp(last["eval_ema/loss"]))
    assert "eval_ema/bleu" not in last  # texts that are tokens already have no BLEU to compare with others
    assert "tok:none" in last["eval_ema/bleu_tokenised_signature"] and "version:" in last["eval_ema/chrf_signature"]


@pytest.mark.slow
def test_the_outputs_are_in_the_order_of_the_data(workdir, run, folder):
    """What evaluation keeps of pair i belongs to line i, whatever bucket it was in."""
    with np.load(workdir / "evaluation.npz") as saved:
        correct, hypotheses = saved["correct"], saved["hypothesis"]
    words = (folder / "test.y").read_text().splitlines()
    decoded = [run.predictor.tokenizer.decode(row) for row in hypotheses.tolist()]
    assert correct.tolist() == [float(a == b) for a, b in zip(decoded, words, strict=True)]
    assert 0.4 < correct.mean() == log(workdir)[-1]["headline"]


@pytest.mark.slow
def test_predictions_are_those_of_the_evaluation(workdir, run, folder):
    """`load_run(...).predict` in a notebook, sentence by sentence or together, is what the evaluation found."""
    sentences = (folder / "test.x").read_text().splitlines()
    together = run.predict(sentences)
    assert [t.source for t in together] == sentences
    with np.load(workdir / "evaluation.npz") as saved:
        assert [t.text for t in together] == [run.predictor.tokenizer.decode(row) for row in saved["hypothesis"].tolist()]
    for sentence, expected in zip(sentences[:4], together):
        (alone,) = run.predict(sentence)
        assert alone.texts == expected.texts and alone.scores == pytest.approx(expected.scores, abs=1e-5)


@pytest.mark.slow
def test_n_best_long_unknown_and_empty_sentences(run):
    found = run.predict(["a b c", "", "a " * 60, "zebra"], beam=3, n_best=3)
    assert len(found[0].texts) == 3 and found[0].scores == sorted(found[0].scores, reverse=True)
    assert found[0].tokens[0] == [*found[0].text.split(), "</s>"]
    assert found[0].source_tokens == ["a", "b", "c", "</s>"]
    assert found[1].texts == [""]
    assert len(found[2].source_tokens) == 61 and found[2].text
    assert found[3].source_tokens == ["<unk>", "</s>"] and found[3].scores[0] < 0 == found[1].scores[0]
    with pytest.raises(UserError, match="n_best=3 is not from 1 to beam=2"):
        run.predict("a", beam=2, n_best=3)


@pytest.mark.slow
def test_each_sentence_has_its_own_limit(program, run):
    source = np.array([[4, 5, EOS, PAD, PAD], [4, 5, 4, 5, EOS]], np.int32)
    chosen = dataclasses.replace(
        TranslationOptions.from_config(program.config, beam=2, min_length=50), max_extra=2
    )  # none ends by itself
    tokens, _ = translate_tokens(run.model, run.variables, source, chosen)
    assert (np.asarray(tokens)[:, 0] != PAD).sum(-1).tolist() == [5, 7]


@pytest.mark.slow
def test_padding_changes_no_loss_and_no_translation(program, run):
    loader = translation.loader(program.config, "test", (0, 1), training=False)
    batch = loader._batch(0, loader.plan.every()[0][1])
    wider = {name: np.pad(x, ((0, 3), (0, 5)) if x.ndim == 2 else (0, 3)) for name, x in batch.items()}
    loss = jax.jit(lambda b: translation.loss(program.config, run.model, run.variables, b, jax.random.key(0), False)[0])
    search = jax.jit(
        lambda source: translate_tokens(run.model, run.variables, source, TranslationOptions.from_config(program.config))
    )
    for name, value in loss(batch).items():
        assert float(loss(wider)[name]) == pytest.approx(float(value), rel=1e-5), name
    tokens, scores = search(batch["source"])
    wide_tokens, wide_scores = search(wider["source"])
    rows = len(batch["source"])
    np.testing.assert_array_equal(tokens, wide_tokens[:rows, :, : tokens.shape[-1]])
    np.testing.assert_allclose(scores, wide_scores[:rows], rtol=1e-5)


@pytest.mark.slow
def test_the_loss_is_a_sum_over_real_tokens(program):
    changes = {"loss.label_smoothing": 0.1, "loss.smoothing_over": "others"}
    config, variables = override(program.config, changes), program.init(0).variables()
    loader = translation.loader(program.config, "test", (0, 1), training=False)
    batch = loader._batch(0, loader.plan.every()[0][1][:2])
    sums, _ = translation.loss(config, program.model, variables, batch, jax.random.key(0), False)
    assert sums["weight"] == (batch["target"] != PAD).sum()
    target = batch["target"]
    seen = np.concatenate([np.ones((len(target), 1), np.int32), target[:, :-1]], 1)  # <s> and all but the last
    logits = np.asarray(program.model.apply(variables, batch["source"], seen))
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    right = np.take_along_axis(log_probs, target[..., None], -1)[..., 0]
    e, v = 0.1, config.model.vocab_size
    others = (log_probs.sum(-1) - right) * e / (v - 1)
    assert float(sums["loss"]) == pytest.approx(-(((1 - e) * right + others) * (target != PAD)).sum(), rel=1e-5)


def test_long_pairs_are_left_out_of_training_and_cut_in_evaluation(folder):
    config = translation.resolve(small_config(folder, data__max_length=4, data__too_long="drop"))
    training, evaluation = (translation.loader(config, split, (0, 1), split == "train") for split in ("train", "test"))
    assert len(training.pairs) == config.data.num_examples < 300
    assert len(evaluation.pairs) == 40 and evaluation.pairs.lengths.max() == 4


@pytest.mark.slow
def test_accumulation_is_one_batch(folder):
    """Without dropout; token counts differ between the micro-batches, so a mean of means would be wrong."""
    states = {}
    for parts in (1, 4):
        config = small_config(folder, accumulation=parts, model__dropout=0.0, total_steps=9, optimizer__name="sgd")
        program = build_program(config)
        state = program.init(0)
        loader = translation.loader(program.config, "train", (0, 1), training=True)
        for step in range(2):
            state, sums = program.train_step(state, loader.training_batch(step), np.uint32(0))
        states[parts] = state, sums
    assert states[1][1]["weight"] == states[4][1]["weight"]
    for path, one in tree.flatten_by_path(states[1][0].params).items():
        np.testing.assert_allclose(one, tree.flatten_by_path(states[4][0].params)[path], rtol=2e-4, atol=2e-6, err_msg=path)


@pytest.mark.slow
def test_killed_runs_end_like_one_left_alone(start_cli, run_cli, folder, tmp_path):
    """Bitwise, with buckets, a sentencepiece model trained at each start, and an evaluation that translates."""
    changes = dict(
        data__tokenizer="sentencepiece",
        data__vocab_size=24,
        total_steps=60,
        evaluation__every_steps=30,
        model__dropout=0.1,
    )
    command = ["train", *as_options(folder, **changes), "--config.data.tokenizer_options.model_type=char"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    done = run_cli(*command, f"--workdir={alone}")
    assert done.returncode == 0, done.stderr
    for saves in (1, 4):
        process = start_cli(*command, f"--workdir={killed}")
        assert wait_for(
            lambda saves=saves: len(restore.list_steps(killed)[-1:]) and restore.list_steps(killed)[-1] >= 10 * saves,
            process,
        )
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert restore.list_steps(killed)[-1] < 60
    done = run_cli(*command, f"--workdir={killed}")
    assert done.returncode == 0, done.stderr
    one, other = restore.read_newest(alone), restore.read_newest(killed)
    for path, array in tree.flatten_by_path(one[0]).items():
        assert array.tobytes() == tree.flatten_by_path(other[0])[path].tobytes(), path
    assert one[1]["assets"] == other[1]["assets"] and "sentencepiece.model" in one[1]["assets"]
    assert (alone / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_other_data_of_the_same_name_are_refused(folder, tmp_path, workdir, config):
    """The tokenizer would be another one, and the numbers of the checkpoint would mean other words."""
    other = write_pairs(tmp_path)
    moved = small_config(other, total_steps=200, evaluation__every_steps=100)
    lines = (other / "train.y").read_text().split("\n")
    read = np.linspace(0, 299, 64).astype(int)  # for the fingerprint
    for places, said in (({*range(300)} - {*read}, r"the data now give other words\.json than"), (read, "has other contents")):
        swapped = [line.translate({65: 72, 72: 65}) if i in places else line for i, line in enumerate(lines)]
        (other / "train.y").write_text("\n".join(swapped))
        with pytest.raises(UserError, match=said):
            train_model(moved, workdir)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__rows_multiple": 3, "accumulation": 2}, "data.rows_multiple=3 cannot be divided"),
        ({"data__bucket_lengths": (2, 4)}, "a pair has 6 tokens"),
        ({"data__num_examples": 7, "data__num_batches": 3, "data__bucket_lengths": (12,)}, "has 300 pairs in"),
        ({"data__tokenizer": "letters"}, "data.tokenizer=letters"),
    ],
)
def test_mistakes_are_said(folder, changes, said):
    def begin() -> None:
        translation.loader(build_program(small_config(folder, **changes)).config, "train", (0, 1), training=True)

    with pytest.raises(UserError, match=said):
        begin()


@pytest.mark.slow
def test_the_mean_of_checkpoints(workdir):
    steps = restore.list_steps(workdir)[-2:]
    each = [aj.load_run(workdir / "checkpoints" / str(step), "params").variables["params"] for step in steps]
    mean = aj.load_run(workdir, "params", average=2).variables["params"]
    for path, array in tree.flatten_by_path(mean).items():
        expected = np.mean([tree.flatten_by_path(params)[path].astype(np.float64) for params in each], 0)
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-9)
        assert array.dtype == np.float32
    with pytest.raises(UserError, match=r"average=99 but there are \d+ checkpoints"):
        aj.load_run(workdir, average=99)


@pytest.mark.slow
def test_evaluate_takes_the_tokenizer_of_the_checkpoint(run_cli, workdir, folder, tmp_path):
    """The training data need not be there."""
    for name in ("test.x", "test.y"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    moved = [f"--config.data.args.{side}={tmp_path}/{{split}}.{end}" for side, end in (("source", "x"), ("target", "y"))]
    done = run_cli("evaluate", f"--workdir={workdir}", *moved)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exact_match"] == pytest.approx(log(workdir)[-1]["headline"])


def test_a_report_has_sentences_translations_and_scores(workdir, run):
    text = cli.main(["report", f"--workdir={workdir}", "--examples=2"]) or (workdir / "report.html").read_text()
    lines = run.evaluation.lines
    loss = [line["loss"] / line["tokens"] for line in lines]
    for place in (int(np.argmax(loss)), int(np.argmin(loss))):  # the first row of each table
        cells = [lines[place][name] for name in ("source", "reference", "hypothesis")]
        row = [*(html.escape(cell) for cell in cells), f"{lines[place]['score']:.2f}", f"{loss[place]:.2f}"]
        found = re.search(r"<tr>\s*" + r"\s*".join(rf"<td>(?:<code>)?{re.escape(cell)}(?:</code>)?</td>" for cell in row), text)
        assert found, row
    assert "The least probable references" in text and "A sentence that is " in text and "left out" not in text
    assert text.count("data:image/png") >= 2, "curves, and attention"


@pytest.mark.slow
def test_evaluate_translates_though_training_did_not(folder, tmp_path, capsys):
    options = as_options(folder, total_steps=10, evaluation__translate=False, evaluation__bleu="char")
    assert cli.main(["train", *options, f"--workdir={tmp_path}"]) == 2
    assert "config.evaluation.headline='exact_match' needs translations" in capsys.readouterr().err
    assert cli.main(["train", *options, f"--workdir={tmp_path}", "--config.evaluation.headline=token_accuracy"]) == 0
    assert not any("bleu" in name or "chrf" in name for line in log(tmp_path) for name in line)
    capsys.readouterr()
    scores = {}
    for said in ([], ["--config.evaluation.translate=False"]):
        assert cli.main(["evaluate", f"--workdir={tmp_path}", *said]) == 0
        scores[len(said)] = json.loads(capsys.readouterr().out)
    assert {"bleu_char", "bleu_char_signature", "chrf", "chrf_signature", "exact_match"} == scores[0].keys() - scores[1].keys()
    assert "tok:char" in scores[0]["bleu_char_signature"]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-6)


@pytest.mark.slow
def test_lengths_that_are_no_multiple_of_a_buckets(folder):
    """A bucket may be longer than `data.max_length`; all batches' translations have one width all the same."""
    config = small_config(folder, data__max_length=5, data__too_long="truncate", data__bucket_lengths=2, total_steps=9)
    program = build_program(config)
    assert program.config.data.bucket_lengths[-1] > 5 > program.config.data.bucket_lengths[0]
    scores, outputs = evaluate_model(program, program.init(0).variables(), program.config)
    assert outputs["hypothesis"].shape == (40, 5 + config.search.max_extra) and "exact_match" in scores


def test_a_split_is_encoded_once_and_four_are_kept(folder):
    """Those that were used last."""
    limited = [small_config(folder, data__max_length=length) for length in range(4, 9)]
    tokens = [translation._tokens(config, "test", "truncate") for config in limited]
    for index, is_kept in ((1, True), (0, False), (1, True), (2, False)):
        assert (translation._tokens(limited[index], "test", "truncate") is tokens[index]) == is_kept, index


def test_no_pair_is_left(folder, tmp_path):
    for name in ("train.x", "train.y"):
        (tmp_path / name).write_text("a b c d\n")
    with pytest.raises(UserError, match="no sentence pair is left"):
        build_program(small_config(tmp_path, data__max_length=3))


def test_byte_pairs_are_compared_as_words(tmp_path):
    """Whatever the tokenization of BLEU: the references of such files are joined like the translations."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.x").write_text("a@@ b c\n" * 8)
        (tmp_path / f"{split}.y").write_text("A@@ B C@@\n" * 8)
    for tokenize in ("none", "13a"):
        changes = dict(data__joiner="@@", evaluation__bleu=tokenize, data__bucket_lengths=1)
        config = translation.resolve(small_config(tmp_path, **changes))
        words = translation.get_tokenizers(config).target
        hypothesis = np.array([words.encode("A@@ B C@@")] * 8)
        ones = np.ones(8, np.float32)
        scores, kept = translation.metrics(config, {"hypothesis": hypothesis, "loss": ones, "right": ones, "tokens": ones})
        assert scores["exact_match"] == 1 and kept["correct"].tolist() == [1] * 8
        assert words.decode(hypothesis[0]) == "AB C"


def test_an_adopted_tokenizer_reads_the_data_anew(folder, config):
    config = translation.resolve(config)
    before = translation.loader(config, "test", (0, 1), training=False).pairs
    own = translation.get_tokenizers(config).target
    turned = type(own)((*own.words[:4], *own.words[:3:-1]), own.joiner)
    try:
        translation.adopt(config, turned.assets())
        after = translation.loader(config, "test", (0, 1), training=False).pairs
    finally:
        translation.adopt(config, own.assets())
    assert turned.decode(after.side(0, 0)) == own.decode(before.side(0, 0))
    assert after.side(0, 0).tolist() != before.side(0, 0).tolist()


@pytest.mark.slow
def test_measures_of_tokenised_text(program, run):
    assert measure_bleu(program, run)["tokenised BLEU"] == log(run.path.parent.parent)[-1]["eval_ema/bleu_tokenised"]
    found = lengths.measure_by_length(program, run, number=2)
    assert len(found["BLEU of a range"]) == len(found["ranges"]) == 2 and found["pairs"].sum() == 40


def test_start_and_the_last_token(program):
    assert translation.shift_right(jnp.array([[7, 8, 2, 0]])).tolist() == [[1, 7, 8, 2]]


@pytest.mark.parametrize(("tokenize", "extra"), [("ko-mecab", "ko"), ("ja-mecab", "ja")])
def test_package_of_a_tokenization_is_named_before_training(tokenize, extra, tmp_path):
    module = {"ko": "mecab_ko", "ja": "MeCab"}[extra]
    if importlib.util.find_spec(module):
        pytest.skip(f"the package of {tokenize} is here")
    config = small_config(write_pairs(tmp_path), evaluation__bleu=tokenize)
    with pytest.raises(UserError, match=rf"config.evaluation.bleu='{tokenize}' needs a package.*sacrebleu\[{extra}\]"):
        train_model(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beam": 2.5}, "search: beam=2.5 is not right: give a whole number of hypotheses from 1."),
        ({"beam": 0}, "search: beam=0 is not right: give a whole number of hypotheses from 1."),
        ({"alpha": -1}, "search: alpha=-1 is not right: give an exponent, 0 or more."),
        ({"penalty": "none"}, "search: penalty='none' is not right: give one of 'gnmt', 'length'."),
    ],
)
def test_options_of_predict_are_checked(changes, said, tmp_path):
    with pytest.raises(UserError) as raised:
        TranslationOptions.from_config(small_config(write_pairs(tmp_path)), **changes)
    assert str(raised.value) == said
