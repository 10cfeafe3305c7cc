"""A ROS graph of its own for the tests: its own domain, this machine only, nodes as separate processes."""

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("flmm_ros.msg", reason="the messages of flmm_ros are not built: `make setup`")

from bench import Bench
from domains import free_domain

from flmm_ros.client import AskClient
from flmm_ros.node_processes import NodeProcesses

RESERVED = ExitStack()
"""Holds this process's domain to its end."""
os.environ["ROS_DOMAIN_ID"] = RESERVED.enter_context(free_domain())
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

SCRIPTED = str(Path(__file__).parent / "scripted_node.py")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.ros)


class ExpectedEnds(NodeProcesses):
    """Some tests end their node: that is no reason for the others to stop waiting."""

    def check(self):
        pass


@pytest.fixture
def other_domain():
    """Another domain, where nodes of other tests are not heard."""
    with free_domain() as number:
        yield number


@pytest.fixture(scope="session")
def log_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@contextmanager
def started(log_dir):
    """Processes, and what starts a scripted node in a namespace of its own; all end with the block."""
    with ExpectedEnds(log_dir) as processes, ExitStack() as clients:

        def start(namespace, *parameters, meanwhile=processes.check, remap=(), **images):
            """Returns the node's bench."""
            arguments = ["--ros-args", "-r", f"__ns:=/{namespace}"]
            for rule in remap:
                arguments += ["-r", rule]
            for parameter in parameters:
                arguments += ["-p", parameter]
            child = processes.start(namespace, SCRIPTED, arguments)
            client = clients.enter_context(AskClient(f"/{namespace}/grounding"))
            bench = Bench(client, f"/{namespace}/grounding", **images)
            bench.process = child
            bench.connect(meanwhile)
            return bench

        yield processes, start


@pytest.fixture(scope="module")
def nodes(log_dir):
    """Of one file: a host discovers some thirty participants of a domain and no more."""
    with started(log_dir) as both:
        yield both


@pytest.fixture(scope="module")
def processes(nodes):
    return nodes[0]


@pytest.fixture(scope="module")
def start_scripted(nodes):
    """Start a scripted node in a namespace of its own; returns its bench."""
    return nodes[1]


@pytest.fixture(scope="session")
def shared_bench(log_dir):
    with started(log_dir) as (_, start):
        yield start("shared", "max_image_age:=3.0")


@pytest.fixture
def bench(shared_bench):
    """The shared scripted node; every test leaves it serving."""
    for collected in (shared_bench.replies, shared_bench.texts, shared_bench.label_maps):
        collected.clear()
    yield shared_bench
    assert shared_bench.process.poll() is None, "the node died"
    shared_bench.still_serves()
