"""The stress test's course: nodes as processes, traffic, faults at set times, and what was measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from flmm_bench.stress.delivery_log import Books
from flmm_bench.stress.traffic import Traffic
from flmm_core.common.process_memory import resident_bytes
from flmm_ros.client import AskClient, NoReplyError
from flmm_ros.node_processes import NodeProcesses

_START = 180.0
"""Seconds for a node to start."""
_DEAF = 90.0
"""Seconds after which a node that was started after a kill, and that nothing reaches, counts as deaf."""
_END = 10.0
"""Seconds for a node to end."""
_MOST_DEAF = 2
"""New starts in a row that may leave a node which nothing reaches."""
_DRAIN = 30.0
"""Seconds for the last replies."""
_CACHE = 64
"""Megabytes that the node may keep of images: full from the beginning, so that memory that grows is memory that leaks."""
_CYCLE = 45.0
"""Seconds between two lifecycle cycles; every other one frees the model, too."""
_LEAVER = 40.0
"""Seconds between two clients that die with a goal in work."""
_KILLS = (0.35, 0.7)
"""When the node is killed with SIGKILL, as shares of the length."""


@dataclass
class Life:
    """Memory and processor time of one life of the node, from its start to its end, once a second."""

    memory: list[float] = field(default_factory=list)
    """Bytes."""
    busy: float = 0.0
    """Seconds of processor time."""
    seconds: float = 0.0


@dataclass
class Findings:
    """What the stress test found."""

    books: Books
    late: list[float]
    lives: list[Life]
    fuzzed: int
    cycles: int
    kills: int
    killed: int
    """Commands that were lost with a killed node."""
    deaf: int
    """New starts after which the node said that it is ready, but nothing reached it: it was started once more."""
    leavers: int
    seconds: float
    """Of traffic: without those in which the node started or changed its state."""
    status: int
    """Exit status of the node in the end."""
    faults: list[str]
    """Lines of the node's log that no test should bring about."""


def soak(minutes: float, log_dir: Path, *, seed: int, on_progress: Callable[[float], None]) -> Findings:
    """Run the stress test.

    Args:
        minutes: its length; the time in which the node starts or changes its state comes on top, however slow the machine.
        log_dir: where the nodes write their logs.
        seed: of everything that is left to chance.
        on_progress: told the share of the time that has passed.
    """
    with NodeProcesses(log_dir) as processes, AskClient() as client:
        processes.start("camera", "flmm_bench.stress.camera")
        course = _Course(processes, client, seed, log_dir)
        course.run(60 * minutes, on_progress)
        return course.end()


class _Course:
    def __init__(self, processes: NodeProcesses, client: AskClient, seed: int, log_dir: Path) -> None:
        self._processes, self._log_dir = processes, log_dir
        self._traffic = Traffic(client, seed)
        self._changes: Any = client.node.create_client(ChangeState, "/grounding/change_state")
        self._lives: list[Life] = []
        self._cycles = self._kills = self._killed = self._deaf = self._leavers = 0
        self._halted = 0.0
        self._start(_START)

    @property
    def _name(self) -> str:
        """Of the node that starts, and of its log."""
        return f"grounding{len(self._lives) + self._deaf}"

    def _start(self, patience: float) -> None:
        arguments = ["--ros-args", "-p", f"image_cache:={_CACHE}"]
        self._node = self._processes.start(self._name, "flmm_bench.stress.node", arguments)
        self._traffic.connect(patience)
        self._lives.append(Life())
        self._born = time.monotonic()

    def _start_again(self) -> None:
        """After a kill.

        The middleware may leave a new node deaf, see docs/reliability.md: it is counted, and started once more. A node that
        ended, that is not ready, or that is stuck and does not end in order when it is told to, is to blame itself.
        """
        for deaf in range(_MOST_DEAF + 1):
            try:
                self._start(_DEAF)
                return
            except NoReplyError:
                if deaf == _MOST_DEAF or not self._is_well():
                    raise
            self._deaf += 1

    def _is_well(self) -> bool:
        """Whether the node runs, is ready, and ends in order now."""
        log = (self._log_dir / f"{self._name}.log").read_text(errors="replace")
        if self._node.poll() is not None or "ready:" not in log:
            return False
        self._node.send_signal(signal.SIGTERM)
        return self._status() == 0

    def _status(self) -> int:
        """Exit status of the node, which was told to end; -1 if it does not."""
        try:
            return self._node.wait(_END)
        except subprocess.TimeoutExpired:
            return -1

    def run(self, seconds: float, on_progress: Callable[[float], None]) -> None:
        began = time.monotonic()
        cycle, leaver, kills, sample = _CYCLE, _LEAVER, list(_KILLS), 0.0
        while (now := time.monotonic() - began - self._halted) < seconds:
            self._traffic.act()
            if now >= sample:
                self._sample()
                on_progress(now / seconds)
                sample = now + 1.0
            if kills and now >= kills[0] * seconds:
                kills.pop(0)
                self._kill()
            if now >= cycle:
                self._cycle(free=self._cycles % 2 == 1)
                cycle = now + _CYCLE
            if now >= leaver:
                subprocess.Popen([sys.executable, "-m", "flmm_bench.stress.crashing_client"], stderr=subprocess.DEVNULL)
                self._leavers += 1
                leaver = now + _LEAVER
        self._seconds = now
        self._traffic.drain(_DRAIN)
        on_progress(1.0)

    def end(self) -> Findings:
        """Ctrl-C in the end, with commands waiting: these too get their replies."""
        self._traffic.burst()
        self._traffic.client.spin(0.2)
        self._sample()
        self._node.send_signal(signal.SIGINT)
        self._traffic.drain(10.0)
        status = self._status()
        traffic = self._traffic
        return Findings(
            traffic.books,
            traffic.late,
            self._lives,
            traffic.fuzzed,
            self._cycles,
            self._kills,
            self._killed,
            self._deaf,
            self._leavers,
            self._seconds,
            status,
            _faults(self._log_dir),
        )

    def _kill(self) -> None:
        """The node dies with commands in work, and is started again as launch does."""
        self._traffic.burst()
        self._traffic.client.spin(0.1)
        with self._halt():
            self._node.kill()
            self._node.wait()
            self._traffic.client.spin(1.0)
            self._killed += self._traffic.books.excuse()
            self._kills += 1
            self._start_again()

    @contextmanager
    def _halt(self) -> Iterator[None]:
        """Time that does not count."""
        began = time.monotonic()
        yield
        self._halted += time.monotonic() - began

    def _cycle(self, *, free: bool) -> None:
        """Deactivate with commands waiting, and come back."""
        ids = [Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE]
        if free:
            ids[1:1] = [Transition.TRANSITION_CLEANUP, Transition.TRANSITION_CONFIGURE]
        self._traffic.burst()
        with self._halt():
            for transition in ids:
                future = self._changes.call_async(ChangeState.Request(transition=Transition(id=transition)))
                self._traffic.client.wait_until(future.done, _START, f"no transition {transition}")
                if not future.result().success:
                    raise RuntimeError(f"transition {transition} failed")
            self._traffic.connect(_START)
        self._cycles += 1

    def _sample(self) -> None:
        life = self._lives[-1]
        stat = Path(f"/proc/{self._node.pid}/stat")
        if not stat.exists():
            return
        life.memory.append(resident_bytes(self._node.pid))
        user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
        life.busy = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        life.seconds = time.monotonic() - self._born


def _faults(log_dir: Path) -> list[str]:
    """What only a mistake of ours writes: tracebacks, dropped events, the end of the node."""
    lines = [line for path in sorted(log_dir.glob("grounding*.log")) for line in path.read_text(errors="replace").splitlines()]
    return [line for line in lines if any(sign in line for sign in ("Traceback", "[FATAL]", "event dropped", "nothing on"))]
