"""The table of backbones compares what it says: equal multiply-adds and steps, nested images, other positions."""

from pathlib import Path

import numpy as np
import pytest

from attention_jax.models import create_model
from attention_jax.models.summary import summary
from attention_jax.tables.table import load_table
from attention_jax.tasks import get_task
from experiments.studies.backbones import FULL_SIZE, STAND_INS, plot_generalisation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table():
    return load_table(ROOT / "experiments/backbones.py")


def test_stand_ins_have_equal_multiply_adds():
    counts = {}
    for name, fields in STAND_INS.items():
        fields = {"num_classes": 10, **fields}
        counts[name] = summary(create_model(fields.pop("name"), **fields), (1, 16, 16, 3)).macs
    assert max(counts.values()) / min(counts.values()) < 1.03, counts


def test_rows_differ_in_images_and_networks_alone(table):
    rows = {row.label: table.config(row, "quick") for row in table.rows}
    sources = {label: get_task(config.task).source(config, "train") for label, config in rows.items()}
    assert {len(sources[f"ViT {share}"]) for share in ("1/16", "1/4", "1/1")} == {300, 1200, 4800}
    few, all_images = (sources[f"Swin {share}"] for share in ("1/16", "1/1"))
    assert all((few[i]["image"] == all_images[i]["image"]).all() for i in range(5))
    assert len({(config.total_steps, config.batch_size, config.optimizer.weight_decay) for config in rows.values()}) == 1
    for network in STAND_INS:
        assert len({rows[f"{network} {share}"].schedule.learning_rate for share in ("1/16", "1/4", "1/1")}) == 1
    config = rows["ViT at other positions"]
    tested = get_task(config.task).source(config, "test")
    assert {sources["ViT at other positions"].make(i)["box"][1] for i in range(9)} == {0}
    assert {tested.make(i)["box"][1] for i in range(9)} == {8}
    for row in table.rows:  # within a group, where the test images are the same
        assert row.against in (None, row.label.replace(row.label.split()[0], "ResNet"))


def test_the_papers_rows_have_equal_steps(table):
    lengths = set()
    for row in table.keep_rows("paper").rows:
        config = table.config(row, "paper")
        number = int(config.data.train_split.removeprefix("train[:").removesuffix("]"))
        assert number == config.data.num_examples and config.model.name in FULL_SIZE.values()
        lengths.add(round(config.total_epochs * number / 1e6))
    assert len(lengths) == 1 and len(table.keep_rows("paper").rows) == 12


def test_the_figure_has_a_line_for_each_network():
    def seed(number, accuracy, seen=None):
        arrays = {"examples": np.array([number]), "accuracy": np.array([accuracy])}
        return arrays | ({} if seen is None else {"accuracy % at positions of training": np.array(seen)})

    measured = {
        "A 1/4": [seed(100, 30.0), seed(100, 40.0)],
        "A 1/1": [seed(400, 60.0), seed(400, 80.0)],
        "A at other positions": [seed(400, 20.0, 70.0), seed(400, 40.0, 90.0)],
    }
    by_number, by_position = plot_generalisation(measured).axes
    assert by_number.lines[0].get_xydata().tolist() == [[100, 35], [400, 70]]
    assert by_position.lines[0].get_ydata().tolist() == [80, 30]
