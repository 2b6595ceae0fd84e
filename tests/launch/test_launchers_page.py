"""docs/launchers.md and docs/skypilot.yaml: variables that the code reads, and a shell part that gives each process its own."""

import re
import subprocess

import jsonschema
import pytest
import yaml

from attention_jax.distributed import cluster
from tests.conftest import ROOT
from tests.helpers.jobset_schema import record

PAGE = (ROOT / "docs" / "launchers.md").read_text()
TASK = yaml.safe_load((ROOT / "docs" / "skypilot.yaml").read_text())
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 1}, {"type": "boolean"}
# The fields that are used, of https://docs.skypilot.co/en/latest/reference/yaml-spec.html.
RECOVERY = record(strategy=TEXT, max_restarts_on_errors={"type": "integer"})
TASKS = record(
    name=TEXT,
    resources=record(accelerators=TEXT, use_spot=FLAG, job_recovery=RECOVERY),
    num_nodes=COUNT,
    workdir=TEXT,
    envs={"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    setup=TEXT,
    run=TEXT,
)


def test_the_variables_are_those_that_the_code_reads():
    source = "".join(path.read_text() for path in (ROOT / "attention_jax").rglob("*.py"))
    named = set(re.findall(r"AJ_[A-Z_]+", PAGE + TASK["run"])) | {name for name in TASK["envs"] if name.startswith("AJ_")}
    assert named and all(f'"{name}"' in source for name in named)


def test_the_task_has_skypilot_s_fields():
    jsonschema.validate(TASK, TASKS)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**TASK, "nodes": 2}, TASKS)
    assert (ROOT / TASK["envs"]["CONFIG"]).exists()


def test_each_node_finds_its_place(tmp_path):
    (tmp_path / "launch.sh").write_text('#!/bin/sh\nenv; echo "$@"\n')
    (tmp_path / "launch.sh").chmod(0o755)
    for rank in (0, 1):
        nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank)}
        env = {**nodes, "PATH": "/usr/bin:/bin", "CONFIG": TASK["envs"]["CONFIG"], "WORKDIR": "gs://b/r"}
        done = subprocess.run(["bash", "-c", TASK["run"]], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        variables = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        wanted = cluster.ProcessInfo("10.0.0.1:8482", rank, 2, ("10.0.0.1", "10.0.0.2"))
        assert cluster.read_launcher_environment(variables) == wanted
        assert done.stdout.endswith(f"train --config={env['CONFIG']} --workdir=gs://b/r\n")
