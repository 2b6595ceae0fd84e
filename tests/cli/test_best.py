"""--best: the kept checkpoint with the best headline metric, and where it was chosen."""

import json

import pytest

from attention_jax.cli import main as cli
from attention_jax.config.config import config_to_json
from attention_jax.errors import UserError
from attention_jax.load import find_best_checkpoint
from attention_jax.tasks.text_scores import make_text_metrics, score_split_compounds
from attention_jax.train import restore
from tests.helpers.small_text import small_config, write_pairs


def test_the_best_of_those_that_are_kept(tmp_path, monkeypatch, capsys):
    folder = write_pairs(tmp_path)
    config = small_config(folder, data__eval_split="test")
    (tmp_path / "config.json").write_text(config_to_json(config))
    scores = {10: 0.9, 20: 0.5, 30: 0.7, 40: 0.7, 50: 0.1}
    lines = [json.dumps({"step": step, "headline": score}) for step, score in scores.items()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    kept = [20, 30, 40, 50, 60]
    monkeypatch.setattr(restore, "list_steps", lambda workdir: kept)
    found, text = find_best_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoints" / "40", "10 is not kept, and 40 is later than 30"
    assert text == (
        "best: step 40 with exact_match=0.7 on split 'test', where it was chosen and must not be judged: choose with "
        "data.eval_split='validation'."
    )
    kept[:] = [60]
    with pytest.raises(UserError, match="none of the checkpoints 60 was evaluated"):
        find_best_checkpoint(tmp_path)
    assert cli.main(["evaluate", f"--workdir={tmp_path}", "--best", "--average=3"]) == 2
    assert "--best with --average=3" in capsys.readouterr().err
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'none'}", "--best"]) == 2


def test_compounds_are_split_as_the_script_does():
    """`perl -ple 's{(\\S)-(\\S)}{$1 ##AT##-##AT## $2}g'` on both sides, and BLEU of the tokens."""
    hypotheses, references = ["Der Text-zu-Text-Test lief gut , ja ."], ["Der Text zu-Text-Test lief gut, ja."]
    split = ["Der Text ##AT##-##AT## zu ##AT##-##AT## Text ##AT##-##AT## Test lief gut , ja ."]
    other = ["Der Text zu ##AT##-##AT## Text ##AT##-##AT## Test lief gut , ja ."]
    expected = make_text_metrics("none", ("BLEU",))["BLEU"].corpus_score(split, [other]).score
    assert score_split_compounds(hypotheses, references) == pytest.approx(expected)
    plain = make_text_metrics("13a", ("BLEU",))["BLEU"].corpus_score(hypotheses, [references]).score
    assert expected > plain
