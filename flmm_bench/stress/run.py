"""Runs the stress test: nodes as processes, random traffic, and faults at set times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from flmm_bench.stress.findings import Findings, NodeRun
from flmm_bench.stress.traffic import Traffic
from flmm_core.common.output_files import mark
from flmm_core.common.process_memory import resident_bytes
from flmm_ros.client import AskClient, NoReplyError
from flmm_ros.node_processes import NodeProcesses

_START = 180.0
"""Seconds for a node to start."""
_REACHABLE = 90.0
"""Seconds in which a node that was restarted after a kill must be reachable."""
_END = 10.0
"""Seconds for a node to end."""
_MAX_UNREACHABLE = 2
"""Restarts in a row after which the node may be unreachable."""
_DRAIN = 30.0
"""Seconds to wait for the last replies."""
_CACHE = 64
"""Megabytes of the node's image cache. It fills at once, so that memory that grows is a leak."""
_CYCLE = 45.0
"""Seconds between two lifecycle cycles; every other one also frees the model."""
_CRASH = 40.0
"""Seconds between two clients that crash while their goal runs."""
_KILLS = (0.35, 0.7)
"""When the node is killed with SIGKILL, as fractions of the length of the test."""


def soak(minutes: float, log_dir: Path, *, seed: int, on_progress: Callable[[float], None]) -> Findings:
    """Run the stress test.

    Args:
        minutes: length of the traffic; the time in which the node starts or changes its state is added to it.
        log_dir: where the nodes write their logs.
        seed: of all random choices.
        on_progress: called with the fraction of the time that has passed.
    """
    with NodeProcesses(log_dir, heading=mark("soak")) as processes, AskClient() as client:
        processes.start("camera", "flmm_bench.stress.camera")
        test = StressTest(processes, client, seed, log_dir)
        test.run(60 * minutes, on_progress)
        return test.finish()


class StressTest:
    """One stress test of a node that it starts, kills and restarts.

    Args:
        processes: where the node runs.
        client: of the node.
        seed: of all random choices.
        log_dir: where ``processes`` writes its logs.

    Raises:
        NoReplyError: the node cannot be reached.
    """

    def __init__(self, processes: NodeProcesses, client: AskClient, seed: int, log_dir: Path) -> None:
        self._processes, self._log_dir = processes, log_dir
        self._traffic = Traffic(client, seed)
        self._changes: Any = client.node.create_client(ChangeState, "/grounding/change_state")
        self._runs: list[NodeRun] = []
        self._cycles = self._kills = self._lost_in_kills = self._unreachable = self._crashed_clients = 0
        self._paused = 0.0
        self._start(_START)

    @property
    def _name(self) -> str:
        """Name of the node's process and of its log: another one for each start."""
        return f"grounding{len(self._runs) + self._unreachable}"

    def _start(self, timeout: float) -> None:
        arguments = ["--ros-args", "-p", f"image_cache:={_CACHE}"]
        self._traffic.forget_node()
        self._node = self._processes.start(self._name, "flmm_bench.stress.node", arguments)
        self._traffic.connect(timeout)
        self._runs.append(NodeRun())
        self._started = time.monotonic()

    def _restart(self) -> None:
        """Start the node after a kill.

        The middleware may leave the new node unreachable, see docs/reliability.md: that is counted, and the node is
        restarted again. A node that has ended, is not ready, or does not shut down cleanly has failed by itself.

        Raises:
            NoReplyError: the node has failed, or is unreachable too often.
        """
        for unreachable in range(_MAX_UNREACHABLE + 1):
            try:
                self._start(_REACHABLE)
                return
            except NoReplyError:
                if unreachable == _MAX_UNREACHABLE or not self._is_healthy():
                    raise
            self._unreachable += 1

    def _is_healthy(self) -> bool:
        """Whether the node runs, is ready, and shuts down cleanly on SIGTERM, which is sent to it here."""
        log = (self._log_dir / f"{self._name}.log").read_text(errors="replace")
        if self._node.poll() is not None or "ready:" not in log:
            return False
        self._node.send_signal(signal.SIGTERM)
        return self._exit_status() == 0

    def _exit_status(self) -> int:
        """Exit status of the node, which was told to end; -1 if it does not end."""
        try:
            return self._node.wait(_END)
        except subprocess.TimeoutExpired:
            return -1

    def run(self, seconds: float, on_progress: Callable[[float], None]) -> None:
        """Generate traffic and faults.

        Args:
            seconds: length of the traffic.
            on_progress: called with the fraction of the time that has passed.
        """
        began = time.monotonic()
        cycle, crash, kills, sample = _CYCLE, _CRASH, list(_KILLS), 0.0
        while (now := time.monotonic() - began - self._paused) < seconds:
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
            if now >= crash:
                subprocess.Popen([sys.executable, "-m", "flmm_bench.stress.crashing_client"], stderr=subprocess.DEVNULL)
                self._crashed_clients += 1
                crash = now + _CRASH
        self._seconds = now
        self._traffic.drain(_DRAIN)
        on_progress(1.0)

    def finish(self) -> Findings:
        """End the node with SIGINT while commands wait, which must get their replies, too."""
        self._traffic.burst()
        self._traffic.client.spin(0.2)
        self._sample()
        self._node.send_signal(signal.SIGINT)
        self._traffic.drain(10.0)
        exit_status = self._exit_status()
        traffic = self._traffic
        return Findings(
            log=traffic.log,
            lateness=traffic.lateness,
            runs=self._runs,
            malformed=traffic.malformed,
            cycles=self._cycles,
            kills=self._kills,
            lost_in_kills=self._lost_in_kills,
            unreachable=self._unreachable,
            crashed_clients=self._crashed_clients,
            seconds=self._seconds,
            exit_status=exit_status,
            errors=_errors(self._log_dir),
        )

    def _kill(self) -> None:
        """Kill the node while commands wait, and start it again as launch does."""
        self._traffic.burst()
        self._traffic.client.spin(0.1)
        with self._pause():
            self._node.kill()
            self._node.wait()
            self._traffic.client.spin(1.0)
            self._lost_in_kills += self._traffic.log.record_kill()
            self._kills += 1
            self._restart()

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Do not count the time of the block as traffic."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began

    def _cycle(self, *, free: bool) -> None:
        """Deactivate the node while commands wait, and activate it again.

        Args:
            free: clean up and configure in between, which frees and reloads the model.
        """
        ids = [Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE]
        if free:
            ids[1:1] = [Transition.TRANSITION_CLEANUP, Transition.TRANSITION_CONFIGURE]
        self._traffic.burst()
        with self._pause():
            for transition in ids:
                future = self._changes.call_async(ChangeState.Request(transition=Transition(id=transition)))
                self._traffic.client.wait_until(future.done, _START, f"transition {transition}: no response")
                if not future.result().success:
                    raise RuntimeError(f"transition {transition} failed")
            self._traffic.connect(_START)
        self._cycles += 1

    def _sample(self) -> None:
        run = self._runs[-1]
        stat = Path(f"/proc/{self._node.pid}/stat")
        if not stat.exists():
            return
        run.memory.append(resident_bytes(self._node.pid))
        user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
        run.cpu_seconds = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        run.seconds = time.monotonic() - self._started


def _errors(log_dir: Path) -> list[str]:
    """Lines of the node's logs that only a defect writes: tracebacks, dropped events, failures to publish."""
    lines = [line for path in sorted(log_dir.glob("grounding*.log")) for line in path.read_text(errors="replace").splitlines()]
    return [line for line in lines if any(sign in line for sign in ("Traceback", "[FATAL]", "event dropped", "nothing on"))]
