"""One server of objects for all tests of a process: TensorStore reads its address once."""

import functools
import importlib.util
import os

import pytest

from tests.helpers.gcs_server import Server


@functools.cache
def get_server() -> Server:
    """Returns the server of this process's tests, which its children reach too."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed here: ./launch.sh setup dev does it")
    server = Server()
    os.environ.update(server.environment())
    return server


def empty_server() -> Server:
    """Returns it without objects and faults."""
    server = get_server()
    server.clear()
    return server
