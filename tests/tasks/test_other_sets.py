"""One run on several sets: layouts of folders, classes matched by name, real labels."""

import json

import numpy as np
import pytest
from PIL import Image

from attention_jax.cli import main as cli
from attention_jax.data.images.sources import open_digits
from attention_jax.errors import UserError
from attention_jax.tasks.other_sets import list_other_sets, match_class_names, score_real_labels
from tests.helpers.make_tiny_run import RUN

pytestmark = pytest.mark.usefixtures("quickly")


def test_classes_are_matched_by_name():
    assert match_class_names(["a_B", "c", "d"], ["d", "x", "a b"]) == [2, -1, 0]
    assert match_class_names(["crane", "tench"], ["crane", "Crane", "tench"]) == [-1, 2], (
        "one of the two cranes is not the other"
    )
    ids = ["n00000003", "n00000001", "n00000002"]
    assert match_class_names(["0", "1", "10", "2"], ids) == [1, 2, -1, 0], "ImageNet-V2: numbers of sorted ids, not of strings"
    assert match_class_names(["0", "2"], ["b", "c", "a"]) == [0, 2]
    assert match_class_names(["2", "10"], ["10", "2"]) == [1, 0], "numbers on both sides are names"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """40 test digits as folders of classes in folders of severities, as ImageNet-C has them, and a class of no digits."""
    root, data = tmp_path_factory.mktemp("sets"), open_digits("test")
    for i in range(40):
        path = root / "noise" / "12"[i % 2] / str(data.labels[i]) / f"{i + 1}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[i, :, :, 0]).save(path)
    (root / "noise" / "2" / "letter").mkdir()
    Image.fromarray(data.images[0, :, :, 0]).save(root / "noise" / "2" / "letter" / "a.png")
    return root


def test_sets_below_a_folder(digits, tmp_path):
    sets = [str(digits / "noise" / name) for name in "12"]
    assert list_other_sets(str(digits)) == list_other_sets(str(digits / "noise")) == sets
    assert list_other_sets(sets[0]) == sets[:1] and list_other_sets("tfds:imagenet_v2:test") == ["tfds:imagenet_v2:test"]
    for place, reason in ((tmp_path, "no folder below it"), (tmp_path / "none", "there is no such folder")):
        with pytest.raises(UserError, match=reason):
            list_other_sets(str(place))


def test_a_run_on_several_sets(digits, tmp_path, capsys, caplog):
    assert cli.main(["evaluate", f"--workdir={RUN}", f"--predictions={tmp_path / 'own.npz'}"]) == 0
    right = np.load(tmp_path / "own.npz")["correct"][:40]
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={RUN}", f"--on={digits}"]) == 0
    first, second, mean = map(json.loads, capsys.readouterr().out.splitlines())
    for found, correct in ((first, right[::2]), (second, right[1::2])):
        assert found["accuracy"] == correct.mean() and found["examples"] == 20
        assert found["accuracy_among_its_classes"] >= found["accuracy"]
    assert mean["mean_of_sets"] == 2 and mean["accuracy"] == pytest.approx(right.mean())
    assert (first["left_out_classes"], second["left_out_classes"], second["left_out_examples"]) == (0, 1, 1)
    assert "their 1 of 21 examples are left out: letter" in caplog.text
    assert cli.main(["evaluate", f"--workdir={RUN}", f"--on={digits}", f"--predictions={tmp_path / 'x.npz'}"]) == 2
    assert "takes one set" in capsys.readouterr().err


def test_real_labels(tmp_path):
    ids = json.dumps(["n00000002", "n00000001"]).encode()  # the network's order is not that of the numbers
    outputs = {
        "index": np.arange(3),
        "name": np.array([b"b/val_00000003.JPEG", b"a/val_00000001.JPEG", b"a/val_00000002.JPEG"]),
        "top_classes": np.array([[0], [0], [1]]),
    }
    (file := tmp_path / "real.json").write_text("[[0, 1], [], [0]]")
    found = score_real_labels(str(file), {"labels.json": ids}, outputs, 3)
    assert found == {"accuracy": 0.5, "examples": 2, "left_out_examples": 1}
    nameless = {**outputs, "name": np.array([b"x", b"y", b"z"])}
    for content, given, reason in (
        ("[[0]]", outputs, "has 1 lists of classes"),
        ('{"a": 1}', outputs, "no list of a list"),
        ("[[2], [], []]", outputs, "has the class 2"),
        ("[[0], [], []]", nameless, "must end in a number from 1 to 3"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=reason):
            score_real_labels(str(file), {"labels.json": ids}, given, 3)
