"""Mistakes of the command line are named in the user's words, and what is text stays text."""

import numpy as np
import pytest

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.cli.parser import make_parser, refuse_misspelled
from attention_jax.config import config as configs
from attention_jax.data.images.randaugment import SETS
from attention_jax.errors import UserError
from attention_jax.tables.table import Row
from attention_jax.tasks import classification
from tests.helpers.small import CONFIG, ROOT, small_config

TRAIN = ["train", f"--config={CONFIG}", "--workdir=w"]
TRANSLATE = ["translate", "--workdir=w"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", f"--confg={CONFIG}", "--workdir=w"], "--confg={} (did you mean '--config'?)"),
        (["train", f"--config={CONFIG}", "--wrkdir", "w"], "--wrkdir (did you mean '--workdir'?)"),
        (["summary", "swin99*"], "summary: no model matches 'swin99*'"),
        ([*TRANSLATE, "--beam=0"], "--beam: '0' is not right: give a whole number from 1"),
        ([*TRANSLATE, "--beam=2.5"], "--beam: '2.5' is not right: give a whole number from 1"),
        ([*TRANSLATE, "--alpha=-1"], "--alpha: '-1' is not right: give a number, 0 or more"),
        ([*TRANSLATE, "--alpha=nan"], "--alpha: 'nan' is not right: give a number, 0 or more"),
        ([*TRANSLATE, "--nbest=0"], "--nbest: '0' is not right: give a whole number from 1"),
        ([*TRANSLATE, "--average=0"], "--average: '0' is not right: give a whole number from 1"),
        (["evaluate", "--workdir=w", "--average=-2"], "--average: '-2' is not right: give a whole number from 1"),
        (["summary", "resnet18", "--channels=0"], "--channels: '0' is not right: give a whole number from 1"),
        (["summary", "resnet18", "--image-size=x"], "--image-size: 'x' is not right: give a whole number from 1"),
        (["table", "t.py", "--seeds=0"], "--seeds: '0' is not right: give a whole number from 1"),
        (["train", f"--config={CONFIG}", "--workdir="], "--workdir: it is empty: give a path"),
        (["train", "--config=", "--workdir=w"], "--config: it is empty: give a path"),
        (
            ["train", f"--config={CONFIG}", "--config.data.flip", "--workdir=w"],
            "--config.data.flip has no value: give --config.",
        ),
        ([*TRAIN, "--config.seed"], "--config.seed has no value: give --config.seed=VALUE"),
    ],
)
def test_mistakes(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments)
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and said.format(CONFIG) in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_values_after_a_blank_and_beginnings_of_options():
    assert cli._split_overrides(["train", "--config.parallel.data", "-1", "--x"]) == (["train", "--x"], {"parallel.data": "-1"})
    make_parser()
    refuse_misspelled(["train", "--conf=x", "--work", "w"])
    refuse_misspelled(["local", "--anything"])


def test_paths_with_equals_signs_and_colons(tmp_path, capsys):
    folder = tmp_path / "lr=0.1:b"
    folder.mkdir()
    path = folder / "config.py"
    path.write_text(CONFIG.read_text().replace("get_config()", "get_config(depth='32')"))
    assert configs.load_config(str(path)).model.name == "resnet32"
    assert configs.load_config(f"{path}:20").model.name == "resnet32"
    _, overrides = cli._split_overrides([f"--config.data.args.path={folder}"])
    assert overrides == {"data.args.path": str(folder)}
    with pytest.raises(UserError, match=r"missing.py: there is no such file"):
        configs.load_config(f"{folder}/missing.py")


def test_text_stays_text():
    config = configs.override(small_config(), {"data.args": {"path": "x", "number": 3}})
    assert configs.parse_value(config, "data.args.path", "2024") == "2024"
    assert configs.parse_value(config, "data.args.path", "None") is None
    assert configs.parse_value(config, "data.args.number", "2024") == 2024
    assert configs.parse_value(config, "model.name", "18") == "18"


def test_another_source_takes_its_own_arguments():
    config = configs.load_config(f"{ROOT}/configs/korean_english.py")
    files = {"data.source": "files", "data.args.source": "{split}.en", "data.args.target": "{split}.ko"}
    assert configs.override(config, files).data.args.to_dict() == {"source": "{split}.en", "target": "{split}.ko"}
    again = configs.override(configs.override(config, files), {"data.source": "tsv", "data.args.path": "{split}.tsv"})
    assert again.data.args.to_dict() == {"path": "{split}.tsv"}


def test_another_gate_has_its_own_arguments_and_none_has_no_place():
    config = small_config(model__gate="bam", model__gate_args={"reduction": 2}, model__gate_stages=(1,))
    assert configs.override(config, {"model.gate": "se"}).model.to_dict().keys() & {"gate_args", "gate_stages"} == {
        "gate_stages"
    }
    without = configs.override(config, {"model.gate": None}).model.to_dict()
    assert not [name for name in without if name.startswith("gate_")]


@pytest.mark.parametrize("field", ["gate_args.reduction=4", "gate_stages=(1,)", "gate_at=block"])
def test_places_without_a_gate(field, capsys):
    assert cli.main(["config", str(CONFIG), "--check", f"--config.model.{field}"]) == 2
    assert "is read by nothing: model 'resnet32' has no gate" in capsys.readouterr().err
    assert cli.main(["config", str(CONFIG), "--check", "--config.model.name=bam_resnet20", f"--config.model.{field}"]) == 0


def test_labels_of_any_script_have_folders():
    labels = ("잔차 + 주의", "остаток", "残差 2", "residual + BAM", "a_b")
    assert [Row(label).slug for label in labels] == ["잔차-주의", "остаток", "残差-2", "residual-bam", "a-b"]


@pytest.mark.parametrize("ops", SETS)
def test_randaugment_of_grey_images_leaves_colour_out_and_says_so(ops, caplog):
    caplog.set_level("INFO", "attention_jax")
    config = classification.resolve(small_config(data__randaugment_layers=14, data__randaugment_ops=ops))
    transform = classification.make_training_transform(config)
    assert "have no colour, so RandAugment leaves out its operation 'color'" in caplog.text
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    for seed in range(20):
        assert transform(image, np.random.default_rng(seed)).shape == (8, 8, 1)


def test_images_that_predict_cannot_take():
    run = aj.load_run(ROOT / "tests" / "fixtures" / "tiny_run")
    for images in (np.zeros((2, 8, 8, 1), np.float32), np.zeros((2, 1, 8, 8), np.uint8)):
        with pytest.raises(UserError, match=r"this network takes uint8 of shape \(N, \*\(8, 8, 1\)\)"):
            run.predict(images)


def test_folder_whose_name_is_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def make(split, path: str, number: int = 0): ...\n")
    for source in ("folder", "npz", "mine.py:make"):
        overrides = {"data.source": source, "data.args.path": "2012", "data.args.number": "2012"}
        config = cli._apply_overrides(small_config(), overrides)
        assert (config.data.args.path, config.data.args.number) == ("2012", 2012), source
