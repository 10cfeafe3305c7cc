"""Speech to text: sources of speech, and recognisers. Independent of topics.

Speech is always 16-bit mono at 16 kHz.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from flmm_sim.spoken import grammar

RATE = 16_000
"""Samples per second."""

_QUIET = 0.5
"""Seconds of silence around a file: recognisers need some before and after a word."""


class SpeechError(ValueError):
    """A source or a recogniser cannot be used; the message is one line."""


class Recogniser(Protocol):
    """Turns one utterance into words."""

    def text(self, speech: bytes) -> str:
        """Recognise 16-bit mono samples at 16 kHz; returns the words, or an empty text if nothing was understood."""


class PocketsphinxRecogniser:
    """A small recogniser for the CPU with the English model of its wheel; it understands only the sentences of a grammar.

    Args:
        grammar_file: JSGF; None for the commands about the simulated table.
        wake_word: words that each command begins with; only used without ``grammar_file``.

    Raises:
        SpeechError: the grammar cannot be used.
    """

    def __init__(self, grammar_file: Path | None = None, wake_word: str = "") -> None:
        from pocketsphinx import Config, Decoder, get_model_path

        if grammar_file is not None and not grammar_file.is_file():
            raise SpeechError(f"grammar: expected an existing file, got {grammar_file}")
        dictionary = Path(get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8")
        words = {line.split(" ", 1)[0] for line in dictionary.splitlines()}
        try:
            text = grammar(words.__contains__, wake_word) if grammar_file is None else grammar_file.read_text(encoding="utf-8")
            # Dither, because the logarithm of digital silence is undefined and words would be lost.
            self._decoder = Decoder(Config(lm=None, dither=True, loglevel="FATAL"))
            self._decoder.add_jsgf_string("commands", text)
            self._decoder.activate_search("commands")
        except (RuntimeError, ValueError) as error:
            raise SpeechError(f"grammar: cannot be used ({error})") from error

    def text(self, speech: bytes) -> str:
        """The sentence of the grammar that was recognised; empty if none was."""
        silence = bytes(2 * int(RATE * _QUIET))
        self._decoder.start_utt()
        self._decoder.process_raw(silence + speech + silence, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found is not None else ""


class WhisperRecogniser:
    """Whisper, run by faster-whisper: it needs no grammar; a GPU makes it faster.

    Args:
        model: folder of a model in CTranslate2's format; nothing is downloaded.

    Raises:
        SpeechError: there is no such model, or faster-whisper is not installed.
    """

    def __init__(self, model: Path) -> None:
        if not model.is_dir():
            raise SpeechError(f"model: expected the folder of a faster-whisper model, got {str(model)!r}")
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise SpeechError("recogniser: faster-whisper is not installed") from error
        self._model = WhisperModel(str(model), local_files_only=True)

    def text(self, speech: bytes) -> str:
        """The words that were recognised."""
        samples = np.frombuffer(speech, np.int16).astype(np.float32) / 32768
        segments, _ = self._model.transcribe(samples)
        return " ".join(segment.text.strip() for segment in segments)


def utterances(source: Any) -> Iterator[bytes]:
    """Split a stream into utterances by voice activity.

    Args:
        source: has ``read(count)``, which returns ``count`` bytes of speech, or none at the end.
    """
    from pocketsphinx import Segmenter

    yield from (segment.pcm for segment in Segmenter(sample_rate=RATE).segment(source))


def file_source(path: Path) -> BytesIO:
    """Read a WAV file of any rate as a stream of 16-bit mono samples at 16 kHz.

    Raises:
        SpeechError: not a WAV file of 16-bit samples.
    """
    try:
        with wave.open(str(path)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise SpeechError(f"source: expected a WAV file, got {path} ({error})") from error
    if width != 2:
        raise SpeechError(f"source: expected 16-bit samples, got {8 * width}-bit ones in {path}")
    samples = np.frombuffer(data, "<i2").reshape(-1, channels).mean(axis=1, dtype=np.float32)
    length = max(1, round(len(samples) * RATE / rate))
    # Resampled as an image of one row: averaging when the rate falls prevents aliasing.
    how = cv2.INTER_AREA if rate > RATE else cv2.INTER_LINEAR
    speech = cv2.resize(samples[None], (length, 1), interpolation=how)[0] if rate != RATE and len(samples) else samples
    quiet = np.zeros(int(RATE * _QUIET), np.int16)
    return BytesIO(np.concatenate([quiet, np.rint(speech).astype(np.int16), quiet]).tobytes())


class Microphone:
    """The default microphone as a stream; it is muted while the robot speaks.

    Args:
        muted: whether the microphone is muted now: it then returns silence.

    Raises:
        SpeechError: there is no microphone, or sounddevice is not installed.
    """

    def __init__(self, muted: Callable[[], bool]) -> None:
        self._muted = muted
        try:
            import sounddevice

            self._stream = sounddevice.RawInputStream(samplerate=RATE, channels=1, dtype="int16")
            self._stream.start()
        except Exception as error:  # OSError without PortAudio, sounddevice's own error without a device
            raise SpeechError(f"source: no microphone ({error}); a WAV file can be used instead") from error

    def read(self, count: int) -> bytes:
        """Wait for ``count`` bytes of speech."""
        data, _ = self._stream.read(count // 2)
        return bytes(len(data)) if self._muted() else bytes(data)
