"""Speech input and output for the grounding node: recognised sentences become commands, answers are spoken.

It converts between sound and ``std_msgs/String``; any other recogniser that publishes such messages can replace it.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path

from std_msgs.msg import String

from flmm_core.common.plain_text import one_line
from flmm_core.config import Tunable
from flmm_ros import parameters, qos
from flmm_ros.recognisers import (
    Microphone,
    PocketsphinxRecogniser,
    Recogniser,
    SpeechError,
    WhisperRecogniser,
    file_source,
    utterances,
)
from flmm_ros.spinning import RunnableNode

VOICE_TUNABLES = (
    Tunable("source", str, "microphone", "Source of speech: microphone, or a WAV file of 16-bit samples."),
    Tunable("recogniser", str, "pocketsphinx", "Speech recogniser.", choices=("pocketsphinx", "faster-whisper")),
    Tunable("model", str, "", "Folder of the model of faster-whisper; nothing is downloaded."),
    Tunable("grammar", str, "", "JSGF grammar for pocketsphinx; empty: commands about the simulated table."),
    Tunable("wake_word", str, "", "Words that each command begins with, for instance computer; empty: none are needed."),
    Tunable("speak", bool, True, "Speak answers, if espeak-ng, espeak or spd-say is installed."),
)

_POLL = 0.1
"""Seconds between two checks for a subscriber."""
_SYNTHESISERS = {"espeak-ng": ["--stdin"], "espeak": ["--stdin"], "spd-say": ["--wait", "--pipe-mode"]}
"""Speech synthesisers, with the options that make them read from standard input."""


class VoiceNode(RunnableNode):
    """Publishes recognised sentences on ``command``, and speaks the answers of the node ``grounding`` in its namespace.

    Raises:
        SpeechError: the source of speech or the recogniser is not available.
    """

    def __init__(self) -> None:
        super().__init__("voice")
        parameters.declare(self, VOICE_TUNABLES, frozenset())
        self._speaking = threading.Event()
        self._recogniser = self._make_recogniser()
        chosen = parameters.value(self, "source")
        self._source = Microphone(self._speaking.is_set) if chosen == "microphone" else file_source(Path(chosen))
        self._commands = qos.create_publisher(self, String, "command", qos.commands())
        installed = (name for name in _SYNTHESISERS if shutil.which(name))
        self._synthesiser = next(installed, "") if parameters.value(self, "speak") else ""
        if self._synthesiser:
            self.create_subscription(String, "grounding/answer_text", self._speak, qos.commands())
        else:
            self.get_logger().info("answers are not spoken: espeak-ng, espeak and spd-say are not installed, or speak is off")
        self._thread = threading.Thread(target=self._listen, name="voice", daemon=True)
        self._thread.start()

    def _make_recogniser(self) -> Recogniser:
        if parameters.value(self, "recogniser") == "faster-whisper":
            return WhisperRecogniser(Path(parameters.value(self, "model")))
        grammar = parameters.value(self, "grammar")
        try:
            return PocketsphinxRecogniser(Path(grammar) if grammar else None, parameters.value(self, "wake_word"))
        except ImportError as error:
            raise SpeechError("recogniser: pocketsphinx is not installed: expected flmm_ros with its extra [voice]") from error

    def _listen(self) -> None:
        try:
            source = parameters.value(self, "source")
            self.get_logger().info(f"listening: {source}")
            while source != "microphone" and self._commands.get_subscription_count() == 0:
                time.sleep(_POLL)  # a file would be published before anybody subscribes
            for speech in utterances(self._source):
                self._hear(self._recogniser.text(speech))
            self.get_logger().info("end of the source")
        except Exception as error:
            self.failure = f"speech input failed: {one_line(error)}"

    def _hear(self, text: str) -> None:
        command = command_in(text, parameters.value(self, "wake_word"))
        if not command:
            self.get_logger().info(f"heard {text!r:.80}: no command")
            return
        self.get_logger().info(f"heard {command!r:.200}")
        self._commands.publish(String(data=command))

    def _speak(self, answer: String) -> None:
        try:
            self._speaking.set()
            command = [self._synthesiser, *_SYNTHESISERS[self._synthesiser]]
            subprocess.run(command, input=answer.data, text=True, timeout=60.0, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            self.get_logger().error(f"an answer was not spoken: {one_line(error)}")
        finally:
            self._speaking.clear()


def command_in(text: str, wake_word: str) -> str:
    """The command in a recognised sentence; empty if it does not begin with the wake word, or nothing follows it.

    Case and punctuation are ignored.
    """
    words, wake = text.split(), wake_word.split()
    heard = [_bare(word) for word in words[: len(wake)]]
    return " ".join(words[len(wake) :]).strip() if heard == [_bare(word) for word in wake] else ""


def _bare(word: str) -> str:
    return "".join(sign for sign in word.lower() if sign.isalnum())
