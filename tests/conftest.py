"""Fixtures of several test files, and their order: what takes longest begins first."""

import contextlib
import fcntl
import gc
import os
import random
import socket
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
"""Of test processes and of the nodes that they start: several run side by side."""

LONGEST = (
    "test_engines.py", "ros/test_commands.py", "test_heads_training.py", "ros/test_start.py", "test_fleet.py",
    "test_chat_page.py", "families/test_train_heads.py", "test_server.py", "test_benchmarks.py", "test_documentation.py",
    "ros/test_goals.py", "ros/test_graph.py", "ros/test_node.py", "families/test_qwen.py", "families/test_mgm.py",
    "test_package.py", "ros/test_pick.py", "test_bench.py", "test_evaluation.py", "test_training.py",
    "test_tensorrt_engine.py", "ros/test_fleet_node.py", "test_golden.py", "ros/test_depth.py", "test_large_images.py",
    "ros/test_bad_input.py", "ros/test_lifecycle.py", "ros/test_qos.py", "ros/test_voice.py", "ros/test_bag.py",
    "test_quantization.py", "test_hub.py",
)  # fmt: skip
"""Files, to be distributed in this order over the workers; all others follow.

The two that start Ray are far apart: beside each other and many nodes, a replica's start takes minutes.
"""


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish():
    gc.freeze()  # of a server's tests, a collection that looks at all imported modules again took most of the time


def pytest_configure(config):
    for name in LONGEST:
        assert (Path(__file__).parent / name).is_file(), f"LONGEST: expected an existing file, got {name}"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """``made_once(name, write)``: a folder that ``write`` fills once in a run, in whichever worker wants it first."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"

    def folder_of(name, write):
        root.mkdir(exist_ok=True)
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / name).exists():
                write(unfinished := root / f"{name}.unfinished")
                unfinished.rename(root / name)
        return root / name

    return folder_of


@pytest.fixture(scope="session")
def tiny_model(made_once):
    """A whole tiny model: its parts' folders by name, which no test changes."""
    from tiny_models import save_model

    folder = made_once("model", save_model)
    return {part: str(folder / part) for part in ("lmm", "heads", "sam")}


@pytest.fixture(scope="session")
def tiny_llava(tiny_model):
    """Folder of the tiny model's LMM."""
    return Path(tiny_model["lmm"])


@pytest.fixture(scope="session")
def tiny_qwen(made_once, tiny_model):
    """As :func:`tiny_model`, with a Qwen2.5-VL, whose image processor refuses images of more than 200 times their width."""
    from families.tiny_qwen import save_qwen

    return {**tiny_model, "lmm": str(made_once("qwen", lambda folder: save_qwen(folder, "qwen2_5_vl")))}


@pytest.fixture(scope="session")
def strip_data(made_once):
    """Folder of four images, the second of them a strip that the image processor of :func:`tiny_qwen` refuses."""
    from tiny_dataset import make_strip, write_tiny_dataset

    def write(folder):
        write_tiny_dataset(folder, count=4)
        make_strip(folder, 1)

    return made_once("strip", write)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of a tiny data set; a file that wants another one has a fixture of this name."""
    from tiny_dataset import write_tiny_dataset

    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "set", count=8)


@pytest.fixture(scope="module")
def samples(data):
    """What is read from :func:`data`."""
    from flmm_core.data.tabletop import read_dataset

    return list(read_dataset(data))


@pytest.fixture(scope="session")
def free_port():
    """Finds a port for a server that binds it later: below those that the system gives to connections meanwhile."""

    def found():
        while True:
            port = random.SystemRandom().randint(15_000, 30_000)
            with contextlib.suppress(OSError), socket.socket() as free:
                free.bind(("127.0.0.1", port))
                return port

    return found


@pytest.fixture(scope="session")
def open_renderer():
    """Opens a renderer of some size; without OpenGL the test is skipped."""

    def opened(*size):
        from flmm_sim.offscreen import RenderingUnavailableError
        from flmm_sim.renderer import TabletopRenderer

        try:
            return TabletopRenderer(*size)
        except RenderingUnavailableError as error:
            pytest.skip(str(error))

    return opened


@pytest.fixture(scope="module")
def renderer(open_renderer):
    """A renderer of the camera's size."""
    with open_renderer() as opened:
        yield opened


@pytest.fixture(scope="module")
def heads():
    """Tiny random grounding heads."""
    from tiny_models import tiny_heads

    return tiny_heads().eval()


@pytest.fixture(scope="session")
def folder(made_once):
    """Exported networks of :func:`heads`, which no test changes; a file that wants others has a fixture of this name."""
    from tiny_models import tiny_heads

    from flmm_core.engines.export import export_networks

    return made_once("engines", lambda out: export_networks(tiny_heads().eval(), out))


@pytest.fixture(scope="session")
def untrained_folder(made_once):
    """Exported networks of ``engine_checks.UntrainedHeads``, which no test changes."""
    from engine_checks import UntrainedHeads

    from flmm_core.engines.export import export_networks

    return made_once("untrained_engines", lambda out: export_networks(UntrainedHeads(), out))


@pytest.fixture
def kept_models(folder, monkeypatch):
    """The exporter takes the ONNX models of :func:`folder` for networks of the same weights: each costs 5 to 10 s of CPU."""
    import onnx

    from flmm_core.engines import export
    from flmm_core.engines.networks import weights_hash

    manifest, made = export.read_manifest(folder), export._onnx_model
    kept, prompts = manifest["networks"], manifest["sizes"]["prompts"]

    def model_of(module, network, sizes):
        if weights_hash(module) == kept[network]["weights"] and list(sizes.prompts) == prompts:
            return onnx.load(folder / f"{network}.onnx")
        return made(module, network, sizes)

    monkeypatch.setattr(export, "_onnx_model", model_of)
