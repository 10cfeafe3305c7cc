"""Ears and a mouth for the grounding node: what people say becomes commands, answers are spoken.

It translates between sound and ``std_msgs/String``; any other speech recogniser that publishes such messages does as well.
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
    Tunable("source", str, "microphone", "What to listen to: microphone, or a WAV file of 16-bit samples."),
    Tunable("recogniser", str, "pocketsphinx", "What recognises speech.", choices=("pocketsphinx", "faster-whisper")),
    Tunable("model", str, "", "Folder of the model of faster-whisper; nothing is downloaded."),
    Tunable("grammar", str, "", "JSGF file of what pocketsphinx understands; empty: the sentences of the shipped world."),
    Tunable("wake_word", str, "", "Words that a command begins with, for instance computer; empty: every sentence is one."),
    Tunable("speak", bool, True, "Speak answers, where espeak-ng, espeak or spd-say is installed."),
)

_POLL = 0.1
"""Seconds between two looks for a listener."""
_MOUTHS = {"espeak-ng": ["--stdin"], "espeak": ["--stdin"], "spd-say": ["--wait", "--pipe-mode"]}
"""Speech synthesisers that read from their standard input, and the options that make them do so."""


class VoiceNode(RunnableNode):
    """Publishes what it hears on ``command``, and speaks the answers of the node ``grounding`` beside it.

    Raises:
        SpeechError: there is nothing to listen to, or to recognise with.
    """

    def __init__(self) -> None:
        super().__init__("voice")
        parameters.declare(self, VOICE_TUNABLES, frozenset())
        self._speaking = threading.Event()
        self._recogniser = self._make_recogniser()
        chosen = parameters.value(self, "source")
        self._source = Microphone(self._speaking.is_set) if chosen == "microphone" else file_source(Path(chosen))
        self._commands = qos.create_publisher(self, String, "command", qos.commands())
        self._mouth = next((name for name in _MOUTHS if shutil.which(name)), "") if parameters.value(self, "speak") else ""
        if self._mouth:
            self.create_subscription(String, "grounding/answer_text", self._speak, qos.commands())
        else:
            self.get_logger().info("answers are not spoken: no espeak-ng, espeak or spd-say is installed, or speak is off")
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
                time.sleep(_POLL)  # what a file says would be lost
            for speech in utterances(self._source):
                self._hear(self._recogniser.text(speech))
            self.get_logger().info("everything was heard")
        except Exception as error:
            self.failure = f"cannot listen: {one_line(error)}"

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
            subprocess.run([self._mouth, *_MOUTHS[self._mouth]], input=answer.data, text=True, timeout=60.0, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            self.get_logger().error(f"an answer was not spoken: {one_line(error)}")
        finally:
            self._speaking.clear()


def command_in(text: str, wake_word: str) -> str:
    """The command in what was heard; empty if it does not begin with the wake word, or nothing follows.

    Case and punctuation do not count.
    """
    words, wake = text.split(), wake_word.split()
    heard = [_bare(word) for word in words[: len(wake)]]
    return " ".join(words[len(wake) :]).strip() if heard == [_bare(word) for word in wake] else ""


def _bare(word: str) -> str:
    return "".join(sign for sign in word.lower() if sign.isalnum())
