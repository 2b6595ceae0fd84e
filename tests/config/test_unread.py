"""A setting that nothing reads: refused in the layer that sets it, or resting from an earlier one."""

import pytest

from attention_jax.config import config as configs
from attention_jax.config import fields, unread
from attention_jax.config.accepted import OPEN
from attention_jax.errors import UserError
from attention_jax.tables.runner import _describe_equal_rows
from attention_jax.tables.table import load_table
from attention_jax.tasks.resolve import resolve_config
from attention_jax.train import report
from attention_jax.train.program import build_program
from tests.helpers import small_text
from tests.helpers.small import CONFIG, ROOT, small_config


def quickstart(**changes):
    return configs.override(
        configs.load_config(str(CONFIG)), {name.replace("__", "."): value for name, value in changes.items()}
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule.d_model": 512}, "config.schedule.d_model=512 is read by nothing: it is for schedule.name='noam'; leave it"),
        ({"optimizer.b1": 0.8}, "for optimizer.name='adamw'"),
        ({"optimizer.name": "adamw", "optimizer.momentum": 0.8}, "config.optimizer.momentum=0.8 is read by nothing"),
        (
            {"optimizer.args.b1": 0.8},
            "config.optimizer.args.b1=0.8 is read by nothing: it is for optimizer.name other than 'sgd'",
        ),
        ({"ema.warmup": False}, "for ema.decay above 0"),
        ({"data.crop_scale": (0.1, 1.0)}, "for data.crop='random_resized'"),
        ({"data.crop_shorter": (40, 50)}, "for data.crop='random_scaled'"),
        ({"data.randaugment_magnitude": 5}, "for data.randaugment_layers above 0"),
        ({"mix.probability": 0.5}, "for mix.mixup_alpha or mix.cutmix_alpha above 0"),
        ({"mix.mixup_alpha": 0.2, "mix.switch_probability": 0.4}, "for mix.mixup_alpha and mix.cutmix_alpha above 0"),
        ({"profile.first_step": 3}, "for profile.num_steps above 0"),
        ({"loss.smoothing_over": "others"}, "for loss.label_smoothing above 0"),
    ],
)
def test_refused_in_the_layer_that_sets_it(changes, said):
    with pytest.raises(UserError) as raised:
        configs.override(configs.load_config(str(CONFIG)), changes)
    assert said in str(raised.value)
    with pytest.raises(UserError, match="is read by nothing"):
        configs.apply_pieces(configs.load_config(str(CONFIG)), (lambda config: _updated(config, changes),))


def _updated(config, changes):
    config = config.copy_and_resolve_references()
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        section[last] = value
    return config


def test_refused_in_a_file(tmp_path):
    path = tmp_path / "config.py"
    body = CONFIG.read_text().replace("    return config", "    config.schedule.d_model = 64\n    return config")
    path.write_text(body)
    with pytest.raises(UserError, match=r"config.schedule.d_model=64 is read by nothing"):
        configs.load_config(str(path))


def test_what_an_earlier_layer_set_rests_and_is_said():
    config = quickstart(optimizer__name="adamw", total_steps=12, schedule__warmup_steps=0)
    flat = configs.flatten_config(config)
    assert flat["optimizer.nesterov"] is True, "of the file, which trains with sgd"
    assert unread.list_resting(flat, configs.get_fields(config)) == ["optimizer.nesterov=True (for optimizer.name='sgd')"]
    text = report.describe_run(build_program(config), {})
    assert "\nnot read" in text and "optimizer.nesterov=True (for optimizer.name='sgd')" in text
    assert "not read" not in report.describe_run(build_program(quickstart(total_steps=12, schedule__warmup_steps=0)), {})


def test_saved_configs_are_never_refused():
    saved = configs.config_to_json(quickstart()).replace('"d_model": null', '"d_model": 99')
    config = configs.config_from_json(saved)
    assert config.schedule.d_model == 99 and configs.complete_config(config) == config
    # Nor is a workdir that was made with another value of what neither reads.
    assert configs.list_differences(config, quickstart()) == []
    assert configs.list_differences(quickstart(schedule__name="noam", schedule__d_model=8), quickstart()) != []


def test_every_reader_is_of_fields_that_there_are():
    known = {
        name: field for own in fields.OF_TASK.values() for name, field in fields.list_fields(fields.merge_fields(own)).items()
    }
    for name, reader in unread.READERS.items():
        assert (name in known and known[name].default is not OPEN) or name.endswith(("args", "tokenizer_options")), name
        assert any(selector in reader.text for selector in known), name


def test_noam_takes_the_networks_features(tmp_path):
    folder = small_text.write_pairs(tmp_path)
    config = small_text.small_config(folder, schedule__name="noam", schedule__learning_rate=1.0)
    assert resolve_config(config).config.schedule.d_model == 32
    explicit = configs.override(config, {"schedule.d_model": 512})
    assert resolve_config(explicit).config.schedule.d_model == 512
    with pytest.raises(UserError, match=r"schedule.d_model=None takes the network's features, and 'resnet32' has none"):
        resolve_config(small_config(schedule__name="noam"))


def test_variations_of_the_transformer_have_their_own_rate():
    table = load_table(ROOT / "experiments" / "transformer_variations.py")
    assert {table.config(row, "paper").schedule.d_model for row in table.rows} == {None}


def test_search_limits_exclude_each_other():
    with pytest.raises(UserError, match=r"config.search.min_length=9 is above max_length=5: give a smaller one"):
        configs.override(
            configs.load_config(f"{ROOT}/configs/translate_quickstart.py"), {"search.min_length": 9, "search.max_length": 5}
        )


def test_two_rows_of_one_config_are_remarked(tmp_path):
    path = tmp_path / "twins.py"
    path.write_text(
        f"title = source = 'x'\nbase = {str(CONFIG)!r}\nscales = {{'tiny': {{'seeds': 1}}}}\n"
        "rows = [{'label': 'a', 'overrides': {'seed': 0}}, {'label': 'b'}, {'label': 'c', 'overrides': {'ema.decay': 0.9}}]\n"
    )
    table = load_table(path)
    plans = [type("Plan", (), {"row": row, "config": table.config(row, "tiny")}) for row in table.rows]
    assert list(_describe_equal_rows(plans)) == ["remark: rows 'a' and 'b' have one and the same config."]
