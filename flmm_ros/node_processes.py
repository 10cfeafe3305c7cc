"""Starts nodes as child processes, each with a log file, and stops them in every case. Imports no ROS."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_PR_SET_PDEATHSIG = 1
_PATIENCE = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""Signals in the order in which a child gets them, and the seconds to wait after each.

SIGTERM ends a node cleanly, as SIGINT does, and without output while it is still importing.
"""


NODES = ("/camera", "/grounding", "/pick")
"""Full names of the nodes that :func:`start_camera_and_node` starts."""


class ChildEndedError(RuntimeError):
    """A node ended unexpectedly; the message contains the last line of its log."""


class NodeProcesses:
    """Child processes that are stopped at the end of the ``with`` block.

    Args:
        log_dir: folder of the log files ``<name>.log``; None: output goes to the terminal.
        environment: variables that are added to those of this process.
        heading: first line of each log file; empty for none.
    """

    def __init__(self, log_dir: Path | None = None, environment: Mapping[str, str] | None = None, *, heading: str = "") -> None:
        self._log_dir = log_dir
        self._heading = f"{heading}\n".encode() if heading else b""
        self._environment = {**os.environ, **(environment or {})}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self, name: str, module: str, arguments: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Run ``python -m module arguments``; ``module`` may also be the path of a Python file.

        The child gets its own session, so that Ctrl-C reaches only this process, and is terminated when this process dies.
        """
        target = [module] if module.endswith(".py") else ["-m", module]
        log = None
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            log = open(self._log_dir / f"{name}.log", "wb")  # noqa: SIM115
            log.write(self._heading)
            log.flush()
        try:
            child = subprocess.Popen(
                [sys.executable, *target, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        finally:
            if log is not None:
                log.close()
        self._children[name] = child
        return child

    def check(self) -> None:
        """Check that every child is running.

        Raises:
            ChildEndedError: one has ended.
        """
        for name, child in self._children.items():
            if child.poll() is not None:
                raise ChildEndedError(f"{name} ended with status {child.returncode}{self._last_words(name)}")

    def stop(self) -> None:
        """End every child: with SIGTERM, and with SIGKILL if that has no effect within 5 s."""
        for number, patience in _PATIENCE:
            alive = [child for child in self._children.values() if child.poll() is None]
            for child in alive:
                child.send_signal(number)
            deadline = time.monotonic() + patience
            while any(child.poll() is None for child in alive) and time.monotonic() < deadline:
                time.sleep(0.05)

    def _last_words(self, name: str) -> str:
        if self._log_dir is None:
            return ""
        lines = (self._log_dir / f"{name}.log").read_text(errors="replace").strip().splitlines()
        fatal = [line for line in lines if "[FATAL]" in line] or lines[-1:]
        return f": {fatal[-1]}" if fatal else ""


def start_camera_and_node(processes: NodeProcesses, node_arguments: Sequence[str], seed: int) -> None:
    """Start the simulated camera, the grounding node on its images, and the picking example.

    Args:
        processes: starts them.
        node_arguments: ROS arguments of the grounding node, as after ``--ros-args``.
        seed: of the scene that the camera shows.
    """
    processes.start("camera", "flmm_ros.camera_node", ["--ros-args", "-p", f"seed:={seed}"])
    remap = [part for topic in ("image", "depth", "camera_info") for part in ("-r", f"{topic}:=/camera/{topic}")]
    processes.start("grounding", "flmm_ros.grounding_node", ["--ros-args", *remap, *node_arguments])
    processes.start("pick", "flmm_ros.pick_node")


def _die_with_parent() -> None:
    """In the child, before the program starts: request SIGTERM from the kernel for when the parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
