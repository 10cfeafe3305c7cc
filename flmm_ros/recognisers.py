"""Speech to text: where speech comes from, and what recognises it. Knows no topics.

Speech is 16-bit mono at 16 kHz everywhere here.
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
"""Samples a second."""

_QUIET = 0.5
"""Seconds of silence around a file: recognisers want some before and after a word."""


class SpeechError(ValueError):
    """What cannot be heard, and why, on one line."""


class Recogniser(Protocol):
    """Turns one utterance into words."""

    def text(self, speech: bytes) -> str:
        """The words; empty if nothing was understood."""


class PocketsphinxRecogniser:
    """Small, on the CPU, with the model of English that its wheel brings; it understands the sentences of a grammar alone.

    Args:
        grammar_file: JSGF; None for that of the shipped world.
        wake_word: words that each command begins with, with the shipped world's grammar.

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
            # Digital silence has no logarithm: dither, or words are lost.
            self._decoder = Decoder(Config(lm=None, dither=True, loglevel="FATAL"))
            self._decoder.add_jsgf_string("commands", text)
            self._decoder.activate_search("commands")
        except (RuntimeError, ValueError) as error:
            raise SpeechError(f"grammar: cannot be used ({error})") from error

    def text(self, speech: bytes) -> str:
        """The sentence of the grammar that was said."""
        silence = bytes(2 * int(RATE * _QUIET))
        self._decoder.start_utt()
        self._decoder.process_raw(silence + speech + silence, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found is not None else ""


class WhisperRecogniser:
    """Whisper by faster-whisper: any words, any accent; a GPU is of use.

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
        """What was said."""
        samples = np.frombuffer(speech, np.int16).astype(np.float32) / 32768
        segments, _ = self._model.transcribe(samples)
        return " ".join(segment.text.strip() for segment in segments)


def utterances(source: Any) -> Iterator[bytes]:
    """Cut a stream into utterances, by where people speak.

    Args:
        source: has ``read(bytes)``, which gives that much speech, or nothing at its end.
    """
    from pocketsphinx import Segmenter

    yield from (segment.pcm for segment in Segmenter(sample_rate=RATE).segment(source))


def file_source(path: Path) -> BytesIO:
    """A WAV file as a stream.

    Raises:
        SpeechError: it is no WAV file of 16-bit samples.
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
    # As an image of one row: area averages where samples get fewer, so that nothing is folded back.
    how = cv2.INTER_AREA if rate > RATE else cv2.INTER_LINEAR
    heard = cv2.resize(samples[None], (length, 1), interpolation=how)[0] if rate != RATE and len(samples) else samples
    quiet = np.zeros(int(RATE * _QUIET), np.int16)
    return BytesIO(np.concatenate([quiet, np.rint(heard).astype(np.int16), quiet]).tobytes())


class Microphone:
    """The default microphone as a stream; deaf on request, so that a robot does not hear itself.

    Args:
        deaf: whether to hear silence now.

    Raises:
        SpeechError: there is none, or sounddevice is not installed.
    """

    def __init__(self, deaf: Callable[[], bool]) -> None:
        self._deaf = deaf
        try:
            import sounddevice

            self._stream = sounddevice.RawInputStream(samplerate=RATE, channels=1, dtype="int16")
            self._stream.start()
        except Exception as error:  # PortAudio's absence is an OSError, a missing device an error of sounddevice's own
            raise SpeechError(f"source: no microphone ({error}); a WAV file may stand in for it") from error

    def read(self, count: int) -> bytes:
        """So many bytes of speech; waits for them."""
        data, _ = self._stream.read(count // 2)
        return bytes(len(data)) if self._deaf() else bytes(data)
