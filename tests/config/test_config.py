"""Configs: files, durations, overrides, versions, recipe pieces."""

import functools
import inspect
import shlex

import pytest
from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.cli import main as cli
from attention_jax.cli.parser import make_parser
from attention_jax.config import config as configs
from attention_jax.config import defaults
from attention_jax.config import fields as config_fields
from attention_jax.config.accepted import OPEN, REQUIRED, UNITS
from attention_jax.errors import UserError
from attention_jax.tasks.resolve import resolve_config
from tests.helpers.small import CONFIG, ROOT, small_config

FILES = sorted((ROOT / "configs").glob("*.py"))
PIECES = {name: piece for name, piece in vars(recipes).items() if inspect.isfunction(piece) and not name.startswith("_")}
each_file = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
each_piece = pytest.mark.parametrize("name", PIECES)


def changed(before: ConfigDict, after: ConfigDict) -> set[str]:
    a, b = configs.flatten_config(before), configs.flatten_config(after)
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def fields(task: str = "classification") -> list[tuple[str, ...]]:
    """The alternative dotted names of every field of a task, read off its table without the library's help."""

    def of(section: dict, prefix: str) -> list[tuple[str, ...]]:
        found = []
        for name, field in section.items():
            if isinstance(field, dict):
                found += of(field, f"{prefix}{name}.")
            else:
                ends = [f"_{unit}" for unit in ("steps", "epochs", "examples")] if field.spelled_in else [""]
                found.append(tuple(f"{prefix}{name}{end}" for end in ends))
        return found

    return of(config_fields.merge_fields(config_fields.OF_TASK.get(task, {})), "")


# Files


@each_file
def test_file_has_every_field_and_no_other(path):
    config = configs.load_config(str(path))
    # An empty section (`data.args`) has no leaf, so sections count as present too.
    present = set(configs.flatten_config(config)) | {name for name, value in _walk(config) if isinstance(value, ConfigDict)}
    for names in fields(config.task):
        assert len(present & set(names)) == 1, f"{path.name} gives {sorted(present & set(names))} of {names}"


def _walk(config: ConfigDict, prefix: str = ""):
    for key, value in config.items():
        yield prefix + key, value
        if isinstance(value, ConfigDict):
            yield from _walk(value, f"{prefix}{key}.")


@each_file
def test_header_says_how_to_launch_on_what_and_what_to_expect(path):
    head = inspect.cleandoc(configs.load_file(path).__doc__)
    assert all(f"\n{word}:" in head for word in ("Launch", "Hardware", "Expected"))
    launch = next(line for line in head.splitlines() if line.startswith("Launch:"))
    arguments, _ = cli._split_overrides(shlex.split(launch.removeprefix("Launch:"))[1:])
    options = make_parser().parse_args(arguments)
    assert options.command == "train" and options.config == f"configs/{path.name}"


@each_file
def test_field_that_is_missing_has_its_default_or_is_named(path):
    given = configs.load_config(str(path))
    known = configs.get_fields(given)
    for (table_name, field), names in zip(known.items(), fields(given.task)):
        plain = given.to_dict()
        *parents, last = names[0].split(".")
        section = functools.reduce(dict.__getitem__, parents, plain)
        for name in names:
            section.pop(name.split(".")[-1], None)
        if field.default is REQUIRED or table_name == "model":
            with pytest.raises(UserError, match=names[0].replace(".", r"\.")):
                configs.complete_config(ConfigDict(plain))
            continue
        completed = configs.flatten_config(configs.complete_config(ConfigDict(plain)))
        if field.default is not OPEN:
            name = f"{table_name}_{field.spelled_in}" if field.spelled_in else table_name
            assert completed[name] == field.default, name


def test_defaults_are_accepted_and_have_a_meaning():
    for task in config_fields.OF_TASK:
        for name, field in config_fields.list_fields(config_fields.merge_fields(config_fields.OF_TASK.get(task, {}))).items():
            if field.default not in (OPEN, REQUIRED):
                assert field.error(field.default) is None, name
            assert field.meaning and field.accepts and field.spelled_in in ("", *UNITS), name


def test_file_gives_the_fields_that_it_must_and_no_other():
    config = defaults.classification()
    with pytest.raises(UserError, match=r"config.batch_size is missing: give a whole number of examples from 1 \("):
        configs.complete_config(config)
    config.update(batch_size=8, total_epochs=1)
    config.model.name = "resnet20"
    config.data.update(source="digits", mean=[0.5], std=[0.5])
    config.schedule.update(learning_rate=1, warmup_epochs=0)
    complete = configs.complete_config(config)
    assert (complete.total_epochs, complete.schedule.learning_rate, complete.data.mean) == (1.0, 1.0, (0.5,))
    assert isinstance(complete.schedule.learning_rate, float) and "warmup_steps" not in complete.schedule
    config.batch_norm.granularity = 64  # of another type than the default
    assert configs.complete_config(config).batch_norm.granularity == 64


# Layers


def test_another_network_drops_the_fields_of_the_one_before_it(caplog):
    configs._report_dropped.cache_clear()
    caplog.set_level("INFO", "attention_jax")
    config = configs.override(configs.load_config(str(CONFIG)), {"model.num_classes": 10, "model.dtype": "bfloat16"})
    after = configs.override(config, {"model.name": "resnet110"})
    assert after.model.to_dict() == {"name": "resnet110", "num_classes": 10, "dtype": "bfloat16"}
    said = "model.name='resnet110' takes the place of 'resnet32', whose fields go with it: model.widths=(8, 16, 32)."
    assert said in caplog.text
    after = configs.override(config, {"model.widths": (4, 8, 16), "model.name": "resnet110"})
    assert after.model.widths == (4, 8, 16), "what the same layer sets stays"
    assert configs.override(after, {"model.name": "resnet110"}).model.widths == (4, 8, 16), "the same network"


def test_a_piece_that_names_another_network_is_a_layer_too():
    config = configs.load_config(str(CONFIG))

    def name_only(config):
        return configs.override(config, {"model.name": "resnet20"})

    def in_place(config):
        config = config.copy_and_resolve_references()
        config.model.name = "resnet20"
        return config

    def same_width(config):
        return configs.override(config, {"model.name": "resnet20", "model.widths": (8, 16, 32)})

    def carries_over(config):
        return configs.override(config, {"model.name": "resnet20", "model.widths": config.model.widths})

    found = [configs.apply_pieces(config, (piece,)).model for piece in (name_only, in_place, same_width, carries_over)]
    assert [model.get("widths") for model in found] == [None, None, (8, 16, 32), (8, 16, 32)]


def test_config_with_an_argument():
    assert configs.load_config(f"{ROOT}/configs/cifar10.py").model.name == "resnet20"
    assert configs.load_config(f"{ROOT}/configs/cifar10.py:bam_resnet56").model.name == "bam_resnet56"
    with pytest.raises(UserError, match=r"takes no argument: leave out 'x'"):
        configs.load_config(f"{CONFIG}:x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a config file defines get_config"),
        ("def get_config():\n    return {}\n", "get_config() returned dict"),
        ("def get_config():\n    return 1 / 0\nget_config()\n", "does not run: ZeroDivisionError"),
    ],
)
def test_file_that_is_no_config(tmp_path, text, said):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        configs.load_config(str(path))
    assert said in str(raised.value) and str(path) in str(raised.value)


def test_file_that_is_no_python(tmp_path):
    path = tmp_path / "config.txt"
    path.write_text("def get_config(): ...")
    with pytest.raises(UserError, match=r"config.txt is no Python file: give a file whose name ends in .py"):
        configs.load_config(str(path))


# Durations


@pytest.mark.parametrize("prefix", ["total", "evaluation.every", "checkpoint.every", "logging.every"])
def test_a_duration_is_the_same_in_any_unit(prefix):
    spe, batch = 37, 32
    found = []
    for unit, value in (("epochs", 2), ("steps", 2 * spe), ("examples", 2 * spe * batch)):
        fields = {f"{prefix}_{unit}".replace(".", "__"): value, "data__num_examples": spe * batch + 5}
        found.append(resolve_config(small_config(**fields)).durations)
    assert found[0] == found[1] == found[2]
    assert 74 in vars(found[0]).values()


def test_durations_round_and_are_a_step_at_least_unless_0():
    def steps(**section):
        return configs.convert_duration(section, "warmup", steps_per_epoch=37, batch_size=32)

    assert steps(warmup_epochs=0.5) == round(18.5) and steps(warmup_examples=33) == 1
    assert steps(warmup_epochs=0.001) == 1 and steps(warmup_examples=1) == 1
    assert steps(warmup_steps=0) == steps(warmup_epochs=0.0) == steps(warmup_examples=0) == 0


# Overrides


def test_a_duration_in_another_unit_replaces_the_old_one():
    config = configs.override(small_config(total_steps=36), {"total_epochs": 2})
    assert config.total_epochs == 2 and "total_steps" not in config
    config = configs.override(config, {"evaluation.every_examples": 640})
    assert set(config.evaluation) == {"every_examples", "batch_size", "patience"}


def test_overriding_leaves_the_input_as_it_was():
    config = small_config()
    before = config.to_dict()
    changes = {"optimizer.momentum": 0.5, "model.gate": "se", "data.args.size": 8, "total_epochs": 1}
    after = configs.override(config, changes)
    assert config.to_dict() == before
    assert changed(config, after) == {*changes, "total_steps"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("batch_size", 0, "batch_size=0 is not right: give a whole number of examples from 1"),
        ("batch_size", 2.0, "batch_size=2.0 is not right"),
        ("batch_size", True, "batch_size=True is not right"),
        ("seed", -1, "from 0 to 2**31 - 1"),
        ("seed", 2**31, "from 0 to 2**31 - 1"),
        ("total_epochs", 0, "give a positive number"),
        ("total_epochs", float("nan"), "give a positive number"),
        ("ema.decay", 1.0, "up to, but not including, 1"),
        ("optimizer.name", "sdg", "one of 'sgd', 'rmsprop', 'adamw'"),
        ("optimizer.nesterov", 1, "True or False"),
        ("optimizer.decay", "L2", "one of 'l2', 'decoupled'"),
        ("optimizer.rmsprop", "tf", "one of 'tensorflow', 'keras', 'torch'"),
        ("optimizer.eps", 0, "give a positive number"),
        ("optimizer.clip_norm", -1, "give a norm, 0 or more"),
        ("schedule.final_share", 1.5, "a number from 0 to 1"),
        ("mix.probability", -0.1, "a number from 0 to 1"),
        ("mix.mixup_alpha", -1.0, "alpha, 0 or more"),
        ("loss.smoothing_over", "all", "one of 'uniform', 'others'"),
        ("precision", "float16", "one of 'float32', 'bfloat16'"),
        ("optimizer.decay_rules", ("bias",), "a tuple of (path regex, True or False)"),
        ("batch_norm.granularity", "some", "'all', 'per_replica', or a whole number"),
        ("batch_norm.granularity", 0, "'all', 'per_replica', or a whole number"),
        ("data.mean", 0.5, "a tuple of numbers, one a channel"),
        ("data.std", (0.5, 0), "a tuple of positive numbers"),
        ("data.image_shape", (8, 8), "(height, width, channels), or None"),
        ("schedule.boundaries", (0.5, 1.5), "shares of the run"),
        ("parallel.data", 0, "-1 for all of them"),
        ("accumulation", 5, "accumulation=5 does not divide batch_size=32"),
        ("shedule.name", "cosine", "unknown config field 'shedule.name' (did you mean 'schedule.name'?)"),
        ("model", "resnet20", "config.model is a section of fields"),
        ("model", {1: 2}, "config.model is a section of fields"),
        ("seed", {1: 2}, "unknown config field 'seed.1'"),
        ("version", 99, "version=99"),
    ],
)
def test_wrong_value_says_what_would_be_right(name, value, said):
    with pytest.raises(UserError) as raised:
        configs.override(small_config(), {name: value})
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.widths", "(4, 8)", (4, 8)),
        ("total_epochs", "2", 2),
        ("schedule.learning_rate", "1e-3", 1e-3),
        ("data.flip", "True", True),
        ("data.image_shape", "None", None),
        ("model.gate", "bam", "bam"),
        ("data.source", "1", "1"),  # a text field takes any text
        ("data.args.name", "file.py:make", "file.py:make"),
        ("batch_norm.granularity", "per_replica", "per_replica"),
    ],
)
def test_values_of_the_command_line(name, text, value):
    parsed = configs.parse_value(small_config(), name, text)
    assert parsed == value and type(parsed) is type(value)
    assert configs.flatten_config(configs.override(small_config(), {name: parsed}))[name] == value


# JSON, versions, differences


def test_json_there_and_back_changes_nothing():
    config = configs.apply_pieces(small_config(data__args={"a": {"b": (1, (2.5, None))}}), tuple(PIECES))
    back = configs.config_from_json(configs.config_to_json(config))
    assert back == config and configs.config_to_json(back) == configs.config_to_json(config)
    assert back.optimizer.decay_rules == config.optimizer.decay_rules
    assert isinstance(back.optimizer.decay_rules[0], tuple)
    configs.complete_config(back)


@each_file
def test_json_of_every_file(path):
    config = configs.load_config(str(path))
    assert configs.config_from_json(configs.config_to_json(config)) == config


def test_difference_shows_what_changes_the_numbers_and_nothing_else():
    config = small_config(data__args={"data_dir": "a", "path": "a", "name": "x"})
    harmless = {
        "parallel.data": 1,
        "logging.every_steps": 5,
        "logging.tensorboard": True,
        "profile.num_steps": 3,
        "data.threads": 7,
        "data.cache_dir": "c",
        "data.args.data_dir": "b",
        "data.args.path": "b",
        "data.on_broken": "stop",
        "checkpoint.keep_last": 9,
        "checkpoint.keep_best": 9,
    }
    assert {name for field in configs.MAY_DIFFER for name in harmless if name == field or name.startswith(f"{field}.")} == set(
        harmless
    ), "this test knows every field that may differ"
    assert configs.list_differences(config, configs.override(config, harmless)) == []

    changes = {"seed": 1, "checkpoint.every_steps": 7, "data.args.name": "y", "model.gate": "se"}
    assert configs.list_differences(config, configs.override(config, changes)) == [
        "checkpoint.every_steps: saved 6, given 7",
        "data.args.name: saved 'x', given 'y'",
        "model.gate: saved 'nothing', given 'se'",
        "seed: saved 0, given 1",
    ]
    # A duration in another unit is another statement, even where it comes to the same number of steps.
    assert len(configs.list_differences(config, configs.override(config, {"total_epochs": 1}))) == 2
    # What JSON makes of a tuple is no difference.
    assert configs.list_differences(configs.config_from_json(configs.config_to_json(config)), config) == []


def test_an_override_leaves_what_it_was_given():
    """Scales of a table share dictionaries: the change of one must not reach the others."""
    args = {"number": (2000, 2000)}
    changes = {"data.source": "cluttered_digits", "data.args": args, "data.args.number": (40, 20)}
    configs.override(small_config(), changes)
    assert args == {"number": (2000, 2000)}
