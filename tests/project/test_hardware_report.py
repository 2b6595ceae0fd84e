"""The hardware report: the committed sample is complete, and what is wrong with one is named."""

import copy
import json

import pytest

from attention_jax.config.plugins import load_file
from tests.conftest import ROOT

FILE = ROOT / "experiments" / "results" / "on_device_quick.json"
SAMPLE = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def reports():
    return load_file(ROOT / "experiments" / "benchmarks" / "hardware_report.py")


def test_the_sample_is_complete_and_its_page_says_the_same(reports, capsys):
    assert reports.find_mistakes(SAMPLE) == []
    page = FILE.with_suffix(".md").read_text()
    for question in SAMPLE["questions"]:
        assert f"| {question['question']} | {question['answer']} | {question['verdict']} |" in page
    assert reports.check_files([str(FILE)]) == 0 and capsys.readouterr().out == f"{FILE}: a complete report\n"


def test_a_broken_file_is_no_report(reports, tmp_path, capsys):
    (tmp_path / "cut.json").write_text(FILE.read_text()[:200])
    (tmp_path / "other.json").write_text("[]")
    assert reports.check_files([str(tmp_path / "cut.json"), str(tmp_path / "other.json"), str(tmp_path / "none.json")]) == 1
    said = capsys.readouterr().out
    assert "cut.json: not read: " in said and "other.json: format: expected " in said and "none.json: not read: " in said


def test_what_is_wrong_is_named(reports):
    def mistakes(change) -> list[str]:
        report = copy.deepcopy(SAMPLE)
        change(report)
        return reports.find_mistakes(report)

    def first(report):
        return report["questions"][0]["measurements"][0]

    assert mistakes(lambda r: r.update(extra=1)) == ["extra: unknown field"]
    assert mistakes(lambda r: r.pop("driver")) == ["driver: missing"]
    assert mistakes(lambda r: r.update(commit="main")) == ["commit: 'main' is no commit: run it from a git checkout"]
    assert mistakes(lambda r: r["device"].update(count="8")) == ["device.count: expected int, found '8'"]
    assert mistakes(lambda r: r["versions"].pop("jax")) == ["versions.jax: missing"]
    assert mistakes(lambda r: r.update(questions=[])) == ["questions: there are none"]
    assert mistakes(lambda r: r["questions"][0].update(state="maybe"))[0].startswith("questions[0].state: 'maybe' is none of")
    assert mistakes(lambda r: first(r).update(unit="furlongs"))[0].startswith("questions[0].measurements[0].unit: 'furlongs'")
    assert mistakes(lambda r: first(r).update(value=float("nan"))) == [
        "questions[0].measurements[0].value: nan is no number from 0"
    ]
    assert mistakes(lambda r: first(r).update(value=True))[0].startswith(
        "questions[0].measurements[0].value: expected int or float"
    )


def test_a_chip_is_not_faster_than_its_page_says(reports):
    report = copy.deepcopy(SAMPLE)
    report["device"]["kind"] = "TPU v5 lite"
    (question,) = [question for question in report["questions"] if question["question"] == "peaks of one device"]
    assert reports.find_mistakes(report) == []
    question["measurements"][0]["value"] = 250.0
    (mistake,) = reports.find_mistakes(report)
    assert "peak of products 250 is more than the published 197 of a v5e" in mistake
