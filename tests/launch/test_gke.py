"""`./launch.sh gke` and docs/gke_jobset.yaml: what they say to Kubernetes, compared with its API, our code and the slices."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from attention_jax.cli import main as cli
from attention_jax.cli.parser import make_parser
from attention_jax.config import load_config
from attention_jax.distributed import cluster
from attention_jax.errors import UserError
from attention_jax.launch import gke
from attention_jax.launch.jobset import CACHE, TPUS
from attention_jax.preflight.chips import find_slice
from tests.conftest import ROOT
from tests.helpers.jobset_schema import JOBSET

FILE = ROOT / "docs" / "gke_jobset.yaml"
ACCELERATORS = {label: family for family, (label, _) in TPUS.items()}
PLACEHOLDERS = {"SERVICE_ACCOUNT", "IMAGE", "BUCKET", "RUN"}


@pytest.fixture(scope="module")
def jobset() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture(scope="module")
def job(jobset) -> dict[str, Any]:
    (workers,) = jobset["spec"]["replicatedJobs"]
    return workers["template"]["spec"]


@pytest.fixture(scope="module")
def pod(job) -> dict[str, Any]:
    return job["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


WORDS = [
    "train",
    "--config=configs/imagenet_resnet50.py",
    "--workdir=gs://BUCKET/RUN",
    "--config.data.args.data_dir=gs://BUCKET/data",
]


def write(capsys, *options: str, words=WORDS) -> dict[str, Any]:
    """The manifest that `gke --dry-run` prints, which the API accepts."""
    assert gke.main(["--dry-run", *options, "--", *words]) == 0
    manifest = json.loads(capsys.readouterr().out)
    jsonschema.validate(manifest, JOBSET)
    return manifest


def test_the_page_s_manifest_is_what_the_launcher_writes(jobset, capsys):
    jsonschema.validate(jobset, JOBSET)
    options = "--type=v5e:4x4", "--image=IMAGE", "--service-account=SERVICE_ACCOUNT", "--data-cache=memory:150Gi"
    assert write(capsys, *options) == jobset


def test_the_api_refuses_a_field_that_it_does_not_know(jobset):
    wrong = copy.deepcopy(jobset)
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["comand"] = []
    nameless = copy.deepcopy(jobset)
    del nameless["spec"]["failurePolicy"]["rules"][0]["name"]
    for manifest in (wrong, nameless):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(manifest, JOBSET)


@pytest.mark.parametrize(
    ("kind", "hosts", "chips"), [("v5e:2x4", 1, 8), ("v6e-16", 4, 4), ("v5p:2x2x2", 2, 4), ("tpu7x:2x2x4", 4, 4)]
)
def test_slices_have_the_hosts_that_preflight_knows(capsys, kind, hosts, chips):
    manifest = write(
        capsys, f"--type={kind}", "--image=i", "--slices=2", "--name=a1", "--namespace=n", "--spot", "--max-restarts=7"
    )
    (workers,), policy = manifest["spec"]["replicatedJobs"], manifest["spec"]["failurePolicy"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (limit,) = pod["containers"][0]["resources"]["limits"].values()
    wanted = find_slice(kind)
    assert (job["parallelism"], limit, workers["replicas"], policy["maxRestarts"]) == (hosts, chips, 2, 7)
    assert hosts == wanted.hosts and hosts * chips == wanted.chips and manifest["metadata"]["namespace"] == "n"
    selector = pod["nodeSelector"]
    family = ACCELERATORS[selector["cloud.google.com/gke-tpu-accelerator"]]
    assert find_slice(f"{family}:{selector['cloud.google.com/gke-tpu-topology']}") == wanted
    assert selector["cloud.google.com/gke-spot"] == "true"


def test_gpu_nodes_find_process_0_by_its_name(capsys):
    manifest = write(
        capsys, "--gpus=8", "--nodes=2", "--gpu-type=nvidia-h100-80gb", "--image=i", "--data-cache=200Gi", "--name=gpu"
    )
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry.get("value", "1") for entry in container["env"]}
    process = cluster.read_launcher_environment(variables)
    assert (process.coordinator, process.index, process.count) == ("gpu-workers-0-0.gpu:8482", 1, 2)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8} and variables["JAX_PLATFORMS"] == "cuda,cpu"
    assert container["command"][-1] == f"--config.data.cache_dir={CACHE}" and "annotations" not in manifest["metadata"]
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "shm": "/dev/shm",
        "data-cache": CACHE,
    }
    sizes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    assert sizes == {"shm": {"medium": "Memory"}, "data-cache": {"sizeLimit": "200Gi"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image=i"], "give --type for TPU slices"),
        (["--image=i", "--type=v5e:4x4", "--gpus=8"], "give --type for TPU slices"),
        (["--type=v5e:4x4"], "--image is missing"),
        (["--image=i", "--type=v9:4x4"], "--type=v9:4x4: give a family of v4, v5e, v5p, v6e, tpu7x with its topology"),
        (["--image=i", "--type=v5p-8"], "--type=v5p-8: give a family"),
        (["--image=i", "--type=v5e:2x2x1"], "--type=v5e:2x2x1: v5e has no such topology"),
        (["--image=i", "--type=v5e:4x4", "--nodes=2"], "--nodes is not for TPU slices"),
        (["--image=i", "--gpus=8", "--slices=2"], "--slices is not for GPU nodes"),
        (["--image=i", "--gpus=0"], "--gpus=0: must be at least 1"),
        (["--image=i", "--gpus=8", "--data-cache=200"], "--data-cache=200: give a size such as 200Gi"),
        (["--image=i", "--gpus=8", "--name=A"], "--name=A: give at most 40 small letters"),
        (["file.yaml"], "give either FILE.yaml or a command after ' -- '"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError) as caught:
        gke.main([*options, "--", *WORDS])
    assert str(caught.value).startswith(message)


def test_what_is_written_is_applied(monkeypatch, tmp_path, capsys):
    options = ["--type=v5e:4x4", "--image=i", "--no-check", "--", *WORDS]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="kubectl is not installed here: --dry-run prints the manifest"):
        gke.main(options)
    (tmp_path / "kubectl").write_text(f'#!/bin/sh\necho "$@"; while read -r line; do echo "$line" >> {tmp_path}/got; done\n')
    (tmp_path / "kubectl").chmod(0o755)
    assert gke.main(options) == 0
    assert capsys.readouterr().out == "apply -f -\n" and json.loads((tmp_path / "got").read_text())["kind"] == "JobSet"


def test_command_is_one_that_there_is(container):
    launch, *words = container["command"]
    assert launch == "./launch.sh" and (ROOT / launch).exists()
    words, overrides = cli._split_overrides(words)
    options = make_parser().parse_args(words)
    assert options.command == "train" and options.workdir == "gs://BUCKET/RUN"
    assert not Path(options.config).is_absolute()
    cli._apply_overrides(load_config(str(ROOT / options.config)), overrides)


def test_variables_are_what_the_code_reads(container, job):
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert all(isinstance(value, str) for value in variables.values()), "Kubernetes takes no numbers there"
    source = "".join(path.read_text() for path in (ROOT / "attention_jax").rglob("*.py"))
    read = set(re.findall(r'"(AJ_[A-Z_]+)"', source)) | {"JAX_PLATFORMS"}
    assert variables.keys() <= read
    assert variables["AJ_COORDINATOR"] == "auto" and variables["JAX_PLATFORMS"].split(",")[0] == "tpu"
    assert int(variables["AJ_START_SECONDS"]) >= 600
    # With what GKE adds, each pod finds its place.
    names = [f"attention-jax-workers-0-{number}.attention-jax" for number in range(job["parallelism"])]
    for number, name in enumerate(names):
        place = cluster.detect_tpu_slice({**variables, "TPU_WORKER_HOSTNAMES": ",".join(names), "TPU_WORKER_ID": str(number)})
        assert (place.index, place.count, place.names[number]) == (number, job["completions"], name)
        assert place.coordinator == f"{names[0]}:{cluster.PORT}"


def test_pods_are_the_hosts_of_the_slice(pod, container, job):
    selector = pod["nodeSelector"]
    family = ACCELERATORS[selector["cloud.google.com/gke-tpu-accelerator"]]
    wanted = find_slice(f"{family}:{selector['cloud.google.com/gke-tpu-topology']}")
    assert job["parallelism"] == job["completions"] == wanted.hosts and job["completionMode"] == "Indexed"
    assert container["resources"]["limits"]["google.com/tpu"] * wanted.hosts == wanted.chips


def test_lost_hosts_start_all_again_and_a_stopped_run_is_not_a_finished_one(jobset, job, pod, container):
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0, "one pod alone cannot join the others again"
    assert pod["terminationGracePeriodSeconds"] >= 60
    disrupted, stopped = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == stopped["action"] == "FailJob"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    code = next(int(entry["value"]) for entry in container["env"] if entry["name"] == "AJ_STOPPED_CODE")
    assert stopped["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [code]}
    assert code not in (0, 1, 2) and code < 126
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule == {"name": "taken", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert 1 <= jobset["spec"]["failurePolicy"]["maxRestarts"] < 10


def test_data_are_copied_to_memory_that_holds_them(pod, container):
    (folder,) = [word.partition("=")[2] for word in container["command"] if word.startswith("--config.data.cache_dir=")]
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": folder} and volume["emptyDir"]["medium"] == "Memory"
    imagenet, host = 154.6e9 / 2**30, 192e9 / 2**30  # GiB
    assert imagenet < int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) < host - 20  # the program needs some too


def test_names_nobody_and_has_no_secret(jobset):
    text = FILE.read_text()
    body = text[text.index("apiVersion") :]
    assert set(re.findall(r"\b[A-Z][A-Z_]+\b", re.sub(r"(AJ|JAX|TPU)_\w+|GKE|SIGTERM|JobSet", "", body))) == PLACEHOLDERS
    assert all(re.search(rf"\b{word}\b", text[: text.index("apiVersion")]) for word in PLACEHOLDERS), "the comment names them"
    assert not re.search(r"secret|token|password|key:|project", body, re.IGNORECASE)
    name = jobset["metadata"]["name"]
    first = f"jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0"
    for command in ("kubectl apply -f docs/gke_jobset.yaml", f"kubectl logs -f -l {first}", f"kubectl delete jobset {name}"):
        assert command in text and command in (ROOT / "docs" / "clusters.md").read_text()


def test_image_is_made_of_the_folder_that_it_runs_in(container):
    lines = (ROOT / "docs" / "gke.Dockerfile").read_text().splitlines()
    assert f"COPY . {container['workingDir']}" in lines and f"WORKDIR {container['workingDir']}" in lines
    assert 'ARG EXTRAS="tpu gcs"' in lines and "RUN ./launch.sh setup $EXTRAS" in lines
