"""Speech output: answers are spoken one after another by a synthesiser that is installed, in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable

from flmm_core.common.plain_text import one_line

_SYNTHESISERS = {"espeak-ng": ["--stdin"], "espeak": ["--stdin"], "spd-say": ["--wait", "--pipe-mode"]}
"""Speech synthesisers, with the options that make them read from standard input."""
_LONGEST = 60.0
"""Seconds for which one answer is spoken at most."""
_WAITING = 5
"""Answers that wait at most; a robot must not speak minutes after it was asked."""
_ENDING = 0.5
"""Seconds for a synthesiser to end."""


def find_synthesiser() -> list[str]:
    """The command of the first synthesiser that is installed; empty if none is."""
    for name, options in _SYNTHESISERS.items():
        if shutil.which(name):
            return [name, *options]
    return []


def spoken_line(text: str) -> str:
    """A text as the one line that is given to a synthesiser.

    Without control characters, which espeak takes as commands, and without "!-!", with which lines begin that are commands to
    speech-dispatcher.
    """
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(printable.split()).replace("!-", "! -")


class Speaker:
    """Speaks texts in a thread of its own. Thread-safe.

    Args:
        command: of a synthesiser that reads from standard input.
        on_error: called with one line for each text that is not spoken.
    """

    def __init__(self, command: list[str], on_error: Callable[[str], None]) -> None:
        self._command, self._on_error = command, on_error
        self._texts: queue.Queue[str] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="speaker", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Speak a text after those that wait."""
        try:
            self._texts.put_nowait(text)
        except queue.Full:
            self._on_error(f"{_WAITING} others wait")

    def is_speaking(self) -> bool:
        """Whether a text is spoken or waits."""
        return self._texts.unfinished_tasks > 0

    def close(self) -> None:
        """Stop speaking now; what waits is not spoken."""
        with self._lock:
            self._ended = True
            process = self._process
        if process is not None:
            _end(process, signal.SIGTERM)
            self._thread.join(_ENDING)
            _end(process, signal.SIGKILL)

    def _work(self) -> None:
        while True:
            text = self._texts.get()
            try:
                self._speak(spoken_line(text))
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                if not self._ended:
                    self._on_error(one_line(error))
            finally:
                self._texts.task_done()

    def _speak(self, line: str) -> None:
        with self._lock:
            if self._ended:
                return
            # A session of its own, so that what a script starts ends with it, and Ctrl-C in a terminal reaches the node alone.
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            self._process.communicate(f"{line}\n".encode(), timeout=_LONGEST)
        finally:
            _end(self._process, signal.SIGKILL)
            self._process.wait()
        if self._process.returncode:
            raise subprocess.CalledProcessError(self._process.returncode, self._command)


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a synthesiser that still runs and to what it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.killpg(process.pid, number)
