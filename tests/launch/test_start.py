"""How processes find each other where the machines know it: on a TPU slice, and under Slurm."""

import http.server
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from attention_jax.distributed import cluster, mesh
from attention_jax.distributed.mesh import join_processes
from attention_jax.errors import UserError
from tests.conftest import ROOT, child_environment, without_root

# A TPU host without a TPU: where there are no chips, JAX sets a variable against questions to a metadata server.
ON_A_SLICE = """
import os
import jax
from attention_jax.distributed.mesh import join_processes
os.environ.pop("TPU_SKIP_MDS_QUERY", None)
join_processes()
print(jax.process_index(), jax.process_count(), os.environ["AJ_PROCESS"])
"""


@pytest.fixture
def metadata() -> Iterator[list[str]]:
    """Addresses of two metadata servers, one a host, that answer as those of a slice with two hosts."""

    def server(number: int) -> http.server.ThreadingHTTPServer:
        answers = {"agent-worker-number": str(number), "worker-network-endpoints": "127.0.0.1,127.0.0.2", "tpu-env": ""}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers.get(self.path.rpartition("/")[2])
                self.send_response(404 if answer is None else 200)
                self.end_headers()
                self.wfile.write((answer or "").encode())

            def log_message(self, *arguments: object) -> None:
                pass

        return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    servers = [server(number) for number in range(2)]
    for one in servers:
        threading.Thread(target=one.serve_forever, daemon=True).start()
    yield [f"127.0.0.1:{one.server_port}" for one in servers]
    for one in servers:
        one.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_hosts_of_a_slice_find_each_other(metadata):
    port = str(free_port())  # JAX's own is fixed and may be taken here
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ON_A_SLICE],
            env=child_environment({"AJ_COORDINATOR": "auto", "GCE_METADATA_IP": address, "JAX_COORDINATOR_PORT": port}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for address in metadata
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [stdout for stdout, _ in outputs] == ["0 2 0\n", "1 2 1\n"], outputs


@pytest.mark.parametrize(
    ("number", "names", "message"),
    [
        (0, "", "1 of 2 processes did not start within 1 s: 1 on 127.0.0.2 (started: 0 on 127.0.0.1)"),
        (
            0,
            "pod worker 0,pod worker 1",
            "1 of 2 processes did not start within 1 s: 1 on pod worker 1 (started: 0 on pod worker 0)",
        ),
        (1, "", "process 1 on 127.0.0.2 did not reach process 0 at 127.0.0.1:"),
        (1, "pod worker 0,pod worker 1", "process 1 on pod worker 1 did not reach process 0 on pod worker 0 at 127.0.0.1:"),
    ],
)
def test_host_of_a_slice_that_does_not_start_is_named(metadata, monkeypatch, number, names, message):
    joined = {"AJ_COORDINATOR": "auto", "AJ_START_SECONDS": "1", "AJ_HOSTS": names}
    for name, value in {**joined, "GCE_METADATA_IP": metadata[number], "JAX_COORDINATOR_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    with pytest.raises(UserError) as caught:
        join_processes()
    assert message in str(caught.value)


def test_processes_of_launchers_and_slices():
    gke = {"TPU_WORKER_HOSTNAMES": "w-0.run,w-1.run", "TPU_WORKER_ID": "1"}
    assert cluster.detect_tpu_slice(gke) == cluster.ProcessInfo("w-0.run:8482", 1, 2, ("w-0.run", "w-1.run"))
    newer = {**gke, "TPU_PROCESS_ADDRESSES": "v-0.run:8476,v-1.run:8476", "AJ_HOSTS": "a,b", "JAX_COORDINATOR_PORT": "5"}
    assert cluster.detect_tpu_slice(newer) == cluster.ProcessInfo("v-0.run:5", 1, 2, ("a", "b"))
    older = {**gke, "TPU_WORKER_HOSTNAMES": "t1v-n-0:42:10.0.0.2,t1v-n-1:43:10.0.0.3"}  # as the metadata server had them
    assert cluster.detect_tpu_slice(older) == cluster.ProcessInfo("10.0.0.2:8482", 1, 2, ("10.0.0.2", "10.0.0.3"))
    assert cluster.detect_tpu_slice({"TPU_SKIP_MDS_QUERY": "1"}) is None
    assert (
        cluster.detect_tpu_slice({**gke, "MEGASCALE_COORDINATOR_ADDRESS": "w-0.run"}) is None
    )  # several slices: JAX counts them
    launcher = {"AJ_COORDINATOR": "n1:9", "AJ_PROCESSES": "3", "AJ_PROCESS": "2", "AJ_HOSTS": "n1,n1,n2"}
    assert cluster.read_launcher_environment(launcher) == cluster.ProcessInfo("n1:9", 2, 3, ("n1", "n1", "n2"))


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, 1800),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, 1800),  # several slices
        ({"TPU_SKIP_MDS_QUERY": "1", "SLURM_JOB_ID": "7"}, 120),
        ({"AJ_COORDINATOR": "a:1", "AJ_PROCESSES": "2", "AJ_PROCESS": "1"}, 120),
    ],
)
def test_hosts_of_slices_are_waited_for_half_an_hour(monkeypatch, variables, seconds):
    found = []
    monkeypatch.setattr(mesh, "_join", lambda process, seconds: found.append(seconds))
    for name in ("AJ_START_SECONDS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AJ_COORDINATOR": "auto", **variables}.items():
        monkeypatch.setenv(name, value)
    join_processes()
    assert found == [seconds]


def test_no_slice_is_said(run_python):
    """Outside a slice there is nobody to ask, and JAX finds nobody either."""
    program = "from attention_jax.distributed.mesh import join_processes; join_processes()"
    done = run_python("-c", program, env={"AJ_COORDINATOR": "auto"})
    assert "UserError: this process could not join the others" in done.stderr


def test_slurm_leaves_all_cards_of_a_node_to_its_process(run_python):
    program = """
from attention_jax.distributed.mesh import join_processes
from jax._src import xla_bridge
join_processes()
print(xla_bridge.CUDA_VISIBLE_DEVICES.value)
"""
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    ours = {"AJ_COORDINATOR": f"127.0.0.1:{free_port()}", "AJ_PROCESSES": "1", "AJ_PROCESS": "0"}
    done = run_python("-c", program, env={**slurm, "SLURM_LOCALID": "0", **ours})
    assert done.stdout == "all\n", done.stderr


def test_checkout_that_this_user_cannot_write_to(tmp_path):
    """One sentence, and nothing made, where the environment would have to be installed by somebody else."""
    before = without_root()
    for name in ("launch.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    tmp_path.chmod(0o555)
    env = child_environment({"ATTENTION_JAX_PYTHON": None})
    ended = subprocess.run([*before, tmp_path / "launch.sh", "summary", "x"], env=env, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert f"error: {tmp_path}/.venv lacks packages and you cannot write to it: ask the owner" in ended.stderr
    assert ended.stderr.count("\n") == 1 and sorted(path.name for path in tmp_path.iterdir()) == ["launch.sh", "pyproject.toml"]
