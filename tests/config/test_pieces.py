"""Recipe pieces: pure functions of a config, by name, dotted path and file."""

import functools
import re

import pytest

from attention_jax import recipes
from attention_jax.config import config as configs
from attention_jax.errors import UserError
from tests.config.test_config import PIECES, changed, each_piece
from tests.helpers.small import CONFIG, small_config

# Recipe pieces


@each_piece
def test_piece_is_pure_and_changes_one_section(name):
    # A base in which no piece is taken already.
    untaken = {"optimizer.nesterov": False, "optimizer.decay_rules": ((".*", True),), "optimizer.weight_decay": 1e-4}
    config = configs.override(configs.load_config(str(CONFIG)), untaken)
    before = config.to_dict()
    after = PIECES[name](config)
    assert config.to_dict() == before, "the input stays as it was"
    assert after.is_locked == config.is_locked
    assert changed(config, after), "it does something"
    sections = {re.sub("_(steps|epochs|examples)$", "", field.split(".")[0]) for field in changed(config, after)}
    assert len(sections) == 1
    assert PIECES[name](config) == after, "the same input gives the same output"
    assert PIECES[name](after) == after, "a second time changes nothing more"
    configs.complete_config(after)


@each_piece
def test_changing_what_a_piece_returns_leaves_its_input_alone(name):
    config = small_config(model__gate_args={"reduction": 4})
    before = config.to_dict()
    after = PIECES[name](config)
    with after.unlocked():
        after.optimizer.momentum, after.data.args.new, after.model.gate_args.reduction = 0.1, 1, 99
    assert config.to_dict() == before


def test_pieces_compose_one_after_another():
    config = small_config()
    pieces = ("cosine_lr", recipes.ema, functools.partial(recipes.squeeze_excite, reduction=2), "label_smoothing")
    expected = recipes.label_smoothing(recipes.squeeze_excite(recipes.ema(recipes.cosine_lr(config)), reduction=2))
    assert configs.apply_pieces(config, pieces) == configs.complete_config(expected)
    assert configs.apply_pieces(config, ()) == config
    # Row i of an additive table is the base with the first i pieces.
    for i in range(len(pieces)):
        row = configs.apply_pieces(config, pieces[: i + 1])
        assert row == configs.apply_pieces(configs.apply_pieces(config, pieces[:i]), pieces[i:][:1])
    # Of two pieces that set the same fields the later one counts.
    assert configs.apply_pieces(config, ("squeeze_excite", "bam")) == configs.complete_config(recipes.bam(config))


def test_pieces_by_name_dotted_path_and_file(tmp_path):
    config, expected = small_config(), recipes.ema(small_config())
    for spec in ("ema", "attention_jax.recipes.ema", "attention_jax.recipes:ema", recipes.ema):
        assert configs.apply_pieces(config, (spec,)) == expected
    path = tmp_path / "mine.py"
    path.write_text(
        "def hot(config):\n"
        "    config = config.copy_and_resolve_references()\n"
        "    config.schedule.learning_rate = 2.0\n"
        "    return config\n\n\n"
        "def wrong(config):\n"
        "    config = config.copy_and_resolve_references()\n"
        "    config.schedule.learning_rate = -1.0\n"
        "    return config\n"
    )
    assert changed(config, configs.apply_pieces(config, (f"{path}:hot",))) == {"schedule.learning_rate"}
    with pytest.raises(UserError, match="schedule.learning_rate=-1.0 is not right"):
        configs.apply_pieces(config, (f"{path}:wrong",))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("label_smoothin", "unknown recipe piece 'label_smoothin' (did you mean 'label_smoothing'?)"),
        ("no.such.module:piece", "the module 'no.such.module' cannot be imported"),
        ("attention_jax.recipes:emma", "has no 'emma' (did you mean 'ema'?)"),
        ("nowhere.py:piece", "nowhere.py: there is no such file"),
    ],
)
def test_unknown_piece(spec, said):
    with pytest.raises(UserError) as raised:
        configs.apply_pieces(small_config(), (spec,))
    assert said in str(raised.value)


def test_arguments_of_what_a_piece_replaces_go_with_it(caplog):
    """As on the command line and in rows."""
    own = {"optimizer.name": "optax.lion", "optimizer.args": {"b1": 0.8}, "optimizer.weight_decay": 0.0}
    gated = {"model.gate": "se", "model.gate_args": {"reduction": 2}, "schedule.name": "optax.cosine_decay_schedule"}
    config = small_config(**own, **gated, **{"schedule.args": {"alpha": 0.1}})

    def sgd(config):
        config = config.copy_and_resolve_references()
        config.optimizer.name, config.schedule.name, config.model.gate = "sgd", "cosine", "bam"
        return config

    def keeps(config):
        args = config.optimizer.args.b1
        config = sgd(config)
        config.optimizer.name, config.optimizer.args = "optax.adam", {"b1": args}
        return config

    with caplog.at_level("INFO"):
        changed = configs.apply_pieces(config, (sgd,))
    assert not changed.optimizer.args and not changed.schedule.args and "gate_args" not in changed.model
    said = "optimizer.name='sgd' takes the place of 'optax.lion', whose fields go with it: optimizer.args.b1=0.8."
    assert said in caplog.text
    assert configs.apply_pieces(config, (keeps,)).optimizer.args.to_dict() == {"b1": 0.8}
