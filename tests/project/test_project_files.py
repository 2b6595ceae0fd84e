"""CITATION.cff, CHANGELOG.md, the workflow and the hooks parse, and agree with pyproject.toml and the code."""

import re
import tomllib

import pytest
import yaml

from attention_jax import __version__
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # Required by the schema of CFF 1.2.0, and its types as far as they are used here.
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    optional = {"abstract", "type", "version", "license", "keywords", "date-released", "url", "repository-code"}
    assert citation.keys() <= {"cff-version", "message", "title", "authors"} | optional
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert citation["title"] == PROJECT["name"] and citation["abstract"] == PROJECT["description"]
    assert set(citation["license"]) == set(PROJECT["license"].split(" AND "))
    assert citation["version"] == __version__


def test_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    assert versions[0] == __version__ and versions == sorted(versions, reverse=True)
    groups = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert groups <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_changelog_names_modules_that_exist():
    text = (ROOT / "CHANGELOG.md").read_text()
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("  | `")]
    assert len(rows) > 15
    for row in rows:
        first, *others = re.findall(r"`([\w.]+)`", row)
        for name in (first, *(f"{first.rpartition('.')[0]}.{other}" for other in others if "." not in other)):
            path = ROOT / name.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists() or path.with_suffix(".cc").exists(), name


def test_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key "on" as True
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python-version"] == ["3.11", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"] and (ROOT / ".ci" / "run").exists()
    oldest = re.search(r">=(\d+\.\d+)", PROJECT["requires-python"]).group(1)
    assert job["strategy"]["matrix"]["python-version"][0] == oldest


def test_hooks_use_the_environment():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert {"id", "name", "entry", "language"} <= hook.keys() and hook["language"] == "system"
    assert [hook["entry"].split("-m ")[1].split()[0] for hook in repository["hooks"]] == ["ruff", "ruff", "mypy"]
    dev = " ".join(PROJECT["optional-dependencies"]["dev"])
    assert "ruff" in dev and "mypy" in dev


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_exist(file):
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / file).read_text())
    assert not [target for target in targets if "://" not in target and not (ROOT / target).exists()]
