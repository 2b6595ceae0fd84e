"""A measure is kept with the code that took it, and taken again by other code."""

import contextlib
import functools

import numpy as np
import pytest

from attention_jax.config.code import hash_function
from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError
from attention_jax.tables import measures
from attention_jax.tables.measures import measure_errors, measure_run, read_measure
from attention_jax.tables.results import SeedRun

BODY = 'def own(program, run, factor=1):\n    """What it is."""\n    return {"x": factor * 1.0}\n'


@pytest.fixture
def load(tmp_path):
    """text -> the function `own` of a file with it."""

    def load(text: str):
        path = tmp_path / f"measures{len(list(tmp_path.glob('*.py')))}.py"
        path.write_text(text)
        return load_object(f"{path}:own", {}, "measure")

    return load


def test_comments_are_no_other_code(load):
    own = load(BODY)
    assert hash_function(load("# new\n" + BODY.replace("What it is.", "Something else."))) == hash_function(own)
    assert hash_function(load(BODY.replace("1.0", "2.0"))) != hash_function(own)
    bound = [hash_function(functools.partial(own, factor=factor)) for factor in (1, 2, 1)]
    assert bound[0] == bound[2] != bound[1] and bound[0] != hash_function(own)
    assert hash_function(measure_errors) == hash_function("attention_jax.tables.measures:measure_bleu") == ""


def test_a_measure_of_other_code_is_missing(load, tmp_path):
    own, other = load(BODY), load(BODY.replace("1.0", "2.0"))
    np.savez(tmp_path / "measure_own.npz", step=4, x=1.0, code=hash_function(own))
    kept = read_measure(tmp_path, 4, "own", own)
    assert kept is not None and kept.keys() == {"x"}
    assert read_measure(tmp_path, 4, "own", other) is None and read_measure(tmp_path, 3, "own", own) is None
    np.savez(tmp_path / "measure_own.npz", step=4, x=1.0)  # taken before the code was kept
    assert read_measure(tmp_path, 4, "own", other) == {"x": 1.0}


@pytest.mark.parametrize(("given", "is_right"), [({}, True), (None, False), ({"x": object()}, False), ({"step": 1}, False)])
def test_a_measure_may_have_nothing_to_say_of_a_run(given, is_right, tmp_path, monkeypatch):
    """An empty one is taken once, like any other; something else than a mapping is refused."""
    calls = []

    def own(program, run):
        calls.append(run)
        return given

    monkeypatch.setattr(measures, "load_run", lambda path, trust_code: "run")
    for _ in range(2):
        with contextlib.nullcontext() if is_right else pytest.raises(UserError, match="measure 'own' gave"):
            measure_run(tmp_path, 4, {"own": own}, None)
    assert len(calls) == (1 if is_right else 2)
    np.savez(tmp_path / "evaluation.npz", step=4, correct=np.ones(3))
    (tmp_path / "checkpoints/4").mkdir(parents=True)
    run = SeedRun(0, tmp_path, 4, {"own": own})
    assert run.done == is_right and run.measured == {}
