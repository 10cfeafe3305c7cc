"""Speech input and output for the grounding node: recognised sentences become commands, answers are spoken.

It converts between sound and ``std_msgs/String``; any other recogniser that publishes such messages can replace it.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from std_msgs.msg import String

from flmm_core.common.plain_text import one_line
from flmm_core.config import Tunable
from flmm_ros import parameters, qos
from flmm_ros.recognisers import PocketsphinxRecogniser, Recogniser, WhisperRecogniser, utterances
from flmm_ros.sound import Microphone, SpeechError, file_source
from flmm_ros.speaker import Speaker, find_synthesiser
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


class VoiceNode(RunnableNode):
    """Publishes recognised sentences on ``command``, and speaks the answers of the node ``grounding`` in its namespace.

    It fails if the source of speech or the recogniser is not available.
    """

    def __init__(self) -> None:
        super().__init__("voice")
        parameters.declare(self, VOICE_TUNABLES, frozenset())
        synthesiser = find_synthesiser() if parameters.value(self, "speak") else []
        self._speaker = Speaker(synthesiser, self._not_spoken) if synthesiser else None
        self._commands = qos.create_publisher(self, String, "command", qos.commands())
        if self._speaker is not None:
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
        """In a thread of its own: a signal ends the node also while a recogniser loads its model."""
        try:
            source = parameters.value(self, "source")
            sound = Microphone(self._is_speaking) if source == "microphone" else file_source(Path(source))
            recogniser = self._make_recogniser()
            self.get_logger().info(f"listening: {source}")
            while source != "microphone" and self._commands.get_subscription_count() == 0:
                time.sleep(_POLL)  # a file would be published before anybody subscribes
            for speech in utterances(sound):
                self._hear(recogniser.text(speech))
            self.get_logger().info("end of the source")
        except SpeechError as error:
            self.failure = one_line(error)
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
        if self._speaker is not None:
            self._speaker.say(answer.data)

    def _is_speaking(self) -> bool:
        return self._speaker is not None and self._speaker.is_speaking()

    def _not_spoken(self, reason: str) -> None:
        self.get_logger().error(f"an answer was not spoken: {reason}")

    def close(self, timeout: float) -> None:
        """Stop speaking."""
        if self._speaker is not None:
            self._speaker.close()


def command_in(text: str, wake_word: str) -> str:
    """The command in a recognised sentence; empty if it does not begin with the wake word, or nothing follows it.

    Case and punctuation are ignored.
    """
    words, wake = text.split(), wake_word.split()
    heard = [_bare(word) for word in words[: len(wake)]]
    return " ".join(words[len(wake) :]).strip() if heard == [_bare(word) for word in wake] else ""


def _bare(word: str) -> str:
    return "".join(sign for sign in word.lower() if sign.isalnum())
