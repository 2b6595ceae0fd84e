"""How processes find each other where the machines know it: on a TPU slice, and under Slurm."""

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import child_environment

# A TPU host without a TPU: JAX believes that it runs on one, and asks the metadata server that GCE_METADATA_IP names.
ON_A_SLICE = """
import os
from jax._src import clusters
from jax._src.clusters import cloud_tpu_cluster, cluster
cloud_tpu_cluster.running_in_cloud_tpu_vm = cluster.running_in_cloud_tpu_vm = True
os.environ.pop("TPU_SKIP_MDS_QUERY", None)
from attention_jax import parallel
parallel.start()
print(*parallel.process())
"""


@pytest.fixture
def metadata() -> Iterator[list[str]]:
    """Addresses of two metadata servers, one a host, that answer as those of a slice with two hosts."""

    def server(number: int) -> http.server.ThreadingHTTPServer:
        answers = {"agent-worker-number": str(number), "worker-network-endpoints": "127.0.0.1,127.0.0.1", "tpu-env": ""}

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
    assert [stdout for stdout, _ in outputs] == ["0 2\n", "1 2\n"], outputs


def test_no_slice_is_said(run_python):
    """Outside a slice there is nobody to ask."""
    done = run_python("-c", "from attention_jax import parallel; parallel.start()", env={"AJ_COORDINATOR": "auto"})
    assert "UserError: this process could not join the others" in done.stderr


def test_slurm_leaves_all_cards_of_a_node_to_its_process(run_python):
    program = """
from attention_jax import parallel
from jax._src import xla_bridge
parallel.start()
print(xla_bridge.CUDA_VISIBLE_DEVICES.value)
"""
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    ours = {"AJ_COORDINATOR": f"127.0.0.1:{free_port()}", "AJ_PROCESSES": "1", "AJ_PROCESS": "0"}
    done = run_python("-c", program, env={**slurm, "SLURM_LOCALID": "0", **ours})
    assert done.stdout == "all\n", done.stderr
