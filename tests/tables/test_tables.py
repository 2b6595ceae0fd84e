"""Tables as their users meet them: files, dry runs, real runs, resumption, crashes, and what is written."""

import csv
import itertools
import json
import types
from pathlib import Path

import numpy as np
import pytest

from attention_jax.data.embedded import read_digits
from attention_jax.errors import UserError
from attention_jax.tables import publish
from tests.helpers.small_table import call, table_text

pytestmark = pytest.mark.usefixtures("quickly")

# A source that cannot be read while a file called "unplugged" lies beside it.
SOURCE = """
from pathlib import Path
from attention_jax.data.images.sources import open_digits

class Disk:
    def __init__(self, split):
        self._digits = open_digits(split)
        self.num_classes, self.label_names = 10, self._digits.label_names
    def __len__(self):
        return len(self._digits)
    def __getitem__(self, i):
        if i and Path(__file__).with_name("unplugged").exists():
            raise RuntimeError("the disk was unplugged\\nwhile reading")
        return self._digits[i]

def make(split):
    return Disk(split)
"""


# A measure of two seeds that differ, an array for the picture, and a picture that cannot be made.
OWN = """
from pathlib import Path
from attention_jax.analysis import plots
from attention_jax.errors import UserError

def measure(program, run):
    if Path(__file__).with_name("unmeasurable").exists():
        raise UserError("today nothing can be measured")
    return {"seed + steps": run.config.seed + program.durations.total, "bias": run.variables["params"]["head"]["bias"]}

def draw(measured):
    figure = plots.make_figure(3, 3)
    for label, seeds in measured.items():
        for values in seeds:
            figure.add_subplot().plot(values["bias"], label=label)
    Path(__file__).with_name("drawn").write_text(" ".join(f"{label}:{len(seeds)}" for label, seeds in measured.items()))
    return figure

def fail(measured):
    return measured["plain"][0]["no such array"]
"""


def records(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {record["row"]: record for record in csv.DictReader(file)}


# --- a real table, once -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A table that is run in four calls: one row, all rows of which one crashes, the rest, and nothing that is left."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "disk.py").write_text(SOURCE)
    file = folder / "small.py"
    file.write_text(
        table_text(
            '{"label": "plain", "pieces": ("no_shortcuts",), "published": {"top-1 %": 91.25}, "network": {"name": "resnet18"}},'
            '{"label": "disk", "pieces": ("no_shortcuts",), "overrides": {"data.source": "DISK:make"}},'
            '{"label": "+ BAM", "pieces": (functools.partial(recipes.bam, reduction=4), "ema"), "against": "plain"},'.replace(
                "DISK", str(folder / "disk.py")
            ),
            attention_of="+ BAM",
            notes="Only for a test.",
            next_commands=[("look", "ls {workdir}/plain/0")],
            measures={"errors": "attention_jax.tables.measures:measure_errors", "own": f"{folder / 'own.py'}:measure"},
            pictures={"own": f"{folder / 'own.py'}:draw", "bad": f"{folder / 'own.py'}:fail"},
        )
    )
    (folder / "own.py").write_text(OWN)
    told = types.SimpleNamespace(folder=folder, file=file, work=folder / "work", texts=[], codes=[], timing=[], pages=[])

    def step(**options):
        code, text = call(file, workdir=told.work, **options)
        told.codes.append(code)
        told.texts.append(text)
        told.pages.append((told.work / "small.md").read_text())
        told.timing.append({str(path): path.read_text() for path in sorted(told.work.glob("*/*/timing.jsonl"))})

    step(rows=["pl*"])
    (folder / "unplugged").touch()
    step()
    (folder / "unplugged").unlink()
    told.failure = (told.work / "disk/0/failure.txt").read_text()
    step()
    step()
    return told


def read_tables(page: str) -> list[dict[str, list[str]]]:
    """The tables of a page of Markdown, {first cell: cells}."""
    tables: list[dict[str, list[str]]] = []
    for before, line in itertools.pairwise(page.splitlines()):
        if line.startswith("|"):
            tables += [] if before.startswith("|") else [{}]
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            tables[-1][cells[0]] = cells
    return tables


@pytest.mark.slow
def test_rows_that_are_not_chosen_say_not_run(story):
    assert story.codes[0] == 0
    assert "1 of 3 rows x 2 seeds = 2 runs, 0 of them done; 8 steps to go" in story.texts[0]
    scores, costs = read_tables(story.pages[0])
    assert "not run" in scores["disk"] and "not run" in scores["+ BAM"] and "not run" not in scores["plain"]
    # Counts are facts of the network, run or not.
    _, last = read_tables(story.pages[-1])
    for label in ("disk", "+ BAM"):
        assert costs[label][1:5] == last[label][1:5]
        assert int(last[label][3].replace(",", "")) > 1000


@pytest.mark.slow
def test_a_crash_is_recorded_and_the_others_go_on(story):
    assert story.codes[1] == 1
    assert "failed: RuntimeError: the disk was unplugged" in story.pages[1]
    assert "2 runs failed" in story.texts[1] and "the same command tries them again" in story.texts[1]
    reason, _, trace = story.failure.partition("\n")
    assert reason == "RuntimeError: the disk was unplugged"
    assert "Traceback" in trace and "__getitem__" in trace
    assert any("BAM" in line and " ± " in line for line in story.pages[1].splitlines())


@pytest.mark.slow
def test_the_rerun_tries_again_what_failed_and_nothing_else(story):
    assert story.codes[2] == 0
    assert "failed" not in story.pages[2] and not (story.work / "disk/0/failure.txt").exists()
    before, after = story.timing[1], story.timing[2]
    changed = {path for path in after if after[path] != before.get(path)}
    assert {Path(path).parent.parent.name for path in changed} == {"disk"}


@pytest.mark.slow
def test_a_finished_table_trains_nothing(story):
    assert story.codes[3] == 0
    assert "6 of them done; 0 steps to go" in story.texts[3]
    assert story.timing[3] == story.timing[2]
    assert story.pages[3] == story.pages[2]


@pytest.mark.slow
def test_runs_are_ordinary_runs(story):
    seeds = [json.loads((story.work / f"plain/{seed}/config.json").read_text())["seed"] for seed in (0, 1)]
    assert seeds == [0, 1]
    logs = [(story.work / f"plain/{seed}/metrics.jsonl").read_text() for seed in (0, 1)]
    assert logs[0] != logs[1]
    from attention_jax.load import load_run

    run = load_run(story.work / "bam/1")
    assert run.step == 4 and run.weights == "ema"


@pytest.mark.slow
def test_csv_holds_the_numbers_in_full(story):
    rows = records(story.work / "small.csv")
    assert list(rows) == ["plain", "disk", "+ BAM"]
    for slug, record in zip(("plain", "disk", "bam"), rows.values(), strict=True):
        correct = [np.load(story.work / slug / str(seed) / "evaluation.npz")["correct"] for seed in (0, 1)]
        assert float(record["accuracy"]) == pytest.approx(np.mean(correct), abs=1e-12)
        assert float(record["accuracy_std"]) == pytest.approx(np.std(np.mean(correct, 1), ddof=1), abs=1e-12)
        assert (record["status"], record["seeds"], record["examples"]) == ("done", "2", "599")
        calls = [json.loads(line) for path in (story.work / slug).glob("*/timing.jsonl") for line in path.open()]
        seconds = [line["seconds"] for line in calls if line["event"] == "call"]
        assert float(record["seconds"]) == pytest.approx(sum(seconds) / 2)
    bam = rows["+ BAM"]
    assert (bam["against"], bam["before"]) == ("plain", "disk")
    difference = float(bam["accuracy"]) - float(rows["plain"]["accuracy"])
    assert float(bam["against_difference"]) == pytest.approx(difference, abs=1e-12)
    assert float(bam["against_low"]) <= difference <= float(bam["against_high"])
    assert bam["before_difference"] == ""  # another source: its examples cannot be paired
    assert rows["plain"]["published top-1 %"] == "91.25"


@pytest.mark.slow
def test_markdown_says_how_it_was_made(story):
    page = story.pages[-1]
    assert page.startswith("# A small table\n\nNot judged: 1 of 1 planned comparison (two seeds).\n\n| row | accuracy % | ")
    assert "\n\n**How it was measured.** After nobody.\nData: digits, trained on 1,198 examples of " in page
    assert "two seeds a row. The networks are substitutes for the papers' networks" in page
    assert "top-1 % (published)" in page and "91.25" in page
    assert "Only for a test." in page
    assert f"./launch.sh table {story.file}" in page and "scale tiny, seeds 0 to 1" in page
    assert "599 examples of test" in page and "jax 0." in page and "CPU threads" in page
    assert "Δ to plain" in page
    for table in read_tables(page):
        assert len({len(cells) for cells in table.values()}) == 1
    assert len(read_tables(page)[0]["row"]) <= 7


@pytest.mark.slow
def test_measures_become_columns(story):
    from attention_jax.load import load_run
    from attention_jax.tables.measures import measure_errors, read_measure

    rows, own = records(story.work / "small.csv"), f"{story.folder / 'own.py'}:measure"
    for slug, record in zip(("plain", "disk", "bam"), rows.values(), strict=True):
        assert (float(record["seed + steps"]), float(record["seed + steps std"])) == pytest.approx((4.5, 0.5**0.5))
        assert float(record["test error %"]) == pytest.approx(100 - 100 * float(record["accuracy"]))
        for seed in (0, 1):
            run = load_run(story.work / slug / str(seed))
            kept = read_measure(story.work / slug / str(seed), 4, "own", own)
            np.testing.assert_array_equal(kept["bias"], run.variables["params"]["head"]["bias"])
    assert read_measure(story.work / "plain/0", 3, "own", own) is None  # of another step
    images, labels = read_digits("train")
    run = load_run(story.work / "plain/0")
    wrong = 100 * np.mean(run.predict(images).classes != labels)
    assert float(read_measure(story.work / "plain/0", 4, "errors", measure_errors)["training error %"]) == pytest.approx(wrong)
    assert "; seed + steps 4.5 ± 0.71" in story.pages[-1] and "bias" not in story.pages[-1]


@pytest.mark.slow
def test_the_papers_network_is_counted_beside_the_trained_one(story):
    page, rows = story.pages[0], records(story.work / "small.csv")
    assert "| params, paper's | MACs, paper's | params | MACs |" in page
    assert "| plain | 11,689,512 | 1,814,073,344 |" in page  # as torchvision counts ResNet-18
    assert (rows["plain"]["paper_params"], rows["disk"]["paper_params"]) == ("11689512", "")


@pytest.mark.slow
def test_a_measure_is_taken_again_when_its_file_is_missing_or_it_failed(story):
    files = sorted(story.work.glob("*/*/measure_*.npz"))
    assert len(files) == 3 * 2 * 2
    written = {path: path.stat().st_mtime_ns for path in files}
    gone = story.work / "plain/1/measure_own.npz"
    gone.unlink()
    assert f"seed 1: would be measured: {gone.parent}" in call(story.file, workdir=story.work, dry_run=True)[1]
    (story.folder / "unmeasurable").touch()
    code, text = call(story.file, workdir=story.work)
    assert code == 1 and "plain, seed 1: today nothing can be measured" in text
    assert records(story.work / "small.csv")["plain"]["seed + steps"] == "4.0"  # of the seed that is left
    (story.folder / "unmeasurable").unlink()
    assert call(story.file, workdir=story.work)[0] == 0
    assert {path for path in files if path.stat().st_mtime_ns != written[path]} == {gone}
    assert (story.work / "small.md").read_text() == story.pages[-1]
    timing = {str(path): path.read_text() for path in sorted(story.work.glob("*/*/timing.jsonl"))}
    assert timing == story.timing[-1]  # nothing was trained for it


@pytest.mark.slow
def test_files_and_next_commands(story):
    names = {path.name for path in story.work.iterdir() if path.is_file()}
    pictures = {"small.png", "small_curves.png", "small_attention.png", "small_own.png"}
    assert names == {"small.md", "small.csv", "small.json", "small.tex", ".lock", *pictures}
    assert (story.folder / "drawn").read_text() == "plain:2 disk:2 + BAM:2"
    assert "no small_bad.png: KeyError" in story.texts[-1]
    for name in pictures:
        assert (story.work / name).read_bytes().startswith(b"\x89PNG")
        assert str(story.work / name) in story.texts[-1]
    assert f"# look\n  ls {story.work}/plain/0" in story.texts[-1]
    assert "next:" not in story.texts[1]  # not while something is missing


def test_a_row_without_images_has_no_attention_picture(monkeypatch):
    seed = types.SimpleNamespace(path="w/a/0", correct=np.ones(2))
    row = types.SimpleNamespace(accuracy=0.5, result=types.SimpleNamespace(label="a", plan=types.SimpleNamespace(runs=[seed])))
    run = types.SimpleNamespace(config=types.SimpleNamespace(task="words"))
    task = types.SimpleNamespace(batch_shapes=lambda config: [{"source": None}])
    monkeypatch.setattr(publish, "load_run", lambda path, trust_code: run)
    monkeypatch.setattr(publish, "get_task", {"words": task}.get)
    with pytest.raises(UserError, match="attention_of='a': its task 'words' has no images"):
        publish._attention("a", [row], trust_code=False)
