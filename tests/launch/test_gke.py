"""docs/gke_jobset.yaml: what it says to Kubernetes, held against what the code reads and a slice is."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_jax.cli import main as cli
from attention_jax.cli.parser import make_parser
from attention_jax.config import load_config
from attention_jax.distributed import cluster
from attention_jax.preflight.chips import find_slice
from tests.conftest import ROOT

FILE = ROOT / "docs" / "gke_jobset.yaml"
ACCELERATORS = {"tpu-v4-podslice": "v4", "tpu-v5-lite-podslice": "v5e", "tpu-v5p-slice": "v5p", "tpu-v6e-slice": "v6e"}
PLACEHOLDERS = {"SERVICE_ACCOUNT", "IMAGE", "BUCKET", "RUN"}

# Kubernetes drops a field that it does not know: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 and the API of
# Job and Pod, as far as they are used here.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "annotations", "labels"},
    "spec": {"network", "failurePolicy", "replicatedJobs"},
    "network": {"enableDNSHostnames", "subdomain"},
    "failurePolicy": {"maxRestarts", "rules"},
    "rules": {"name", "action", "onJobFailureReasons", "onPodConditions", "onExitCodes"},
    "onPodConditions": {"type", "status"},
    "onExitCodes": {"containerName", "operator", "values"},
    "replicatedJobs": {"name", "replicas", "template"},
    "job": {"parallelism", "completions", "completionMode", "backoffLimit", "podFailurePolicy", "template"},
    "podFailurePolicy": {"rules"},
    "pod": {"restartPolicy", "serviceAccountName", "terminationGracePeriodSeconds", "nodeSelector", "containers"},
    "containers": {"name", "image", "workingDir", "command", "env", "resources"},
    "env": {"name", "value"},
    "resources": {"limits"},
}


@pytest.fixture(scope="module")
def jobset() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture(scope="module")
def job(jobset) -> dict[str, Any]:
    (workers,) = jobset["spec"]["replicatedJobs"]
    assert workers["replicas"] == 1, "several slices are not supported"
    return workers["template"]["spec"]


@pytest.fixture(scope="module")
def pod(job) -> dict[str, Any]:
    return job["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


def test_fields_are_kubernetes_own(jobset, job, pod):
    def check(what: Any, kind: str) -> None:
        for part in what if isinstance(what, list) else [what]:
            assert part.keys() <= FIELDS[kind], kind
            for name, value in part.items():
                if name in FIELDS and name not in ("template", "spec"):
                    check(value, name)

    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    for what, kind in ((jobset, ""), (jobset["spec"], "spec"), (job, "job"), (pod, "pod")):
        check(what, kind)


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
    assert rule == {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert 1 <= jobset["spec"]["failurePolicy"]["maxRestarts"] < 10


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
    assert "RUN ./launch.sh setup tpu gcs" in lines
