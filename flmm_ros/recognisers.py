"""Speech to text: recognisers. Independent of topics.

Speech is always 16-bit mono at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flmm_ros.sound import QUIET, RATE, SpeechError
from flmm_sim.spoken import grammar

_MAX_NO_SPEECH = 0.5
"""Largest probability by Whisper that a segment is no speech: of noise, Whisper makes the sentences that end films."""


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
            self._sentences = self._decoder.get_fsg("commands")
        except (RuntimeError, ValueError) as error:
            raise SpeechError(f"grammar: cannot be used ({error})") from error

    def text(self, speech: bytes) -> str:
        """The sentence of the grammar that was recognised, which is a whole one; empty if none was."""
        silence = bytes(2 * int(RATE * QUIET))
        self._decoder.start_utt()
        self._decoder.process_raw(silence + speech + silence, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        # Of speech that breaks off, the decoder gives the beginning of a sentence.
        return found.hypstr if found is not None and self._sentences.accept(found.hypstr) else ""


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
        """The words that were recognised; empty if there is no speech."""
        samples = np.frombuffer(speech, np.int16).astype(np.float32) / 32768
        segments, _ = self._model.transcribe(samples, vad_filter=True, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments if segment.no_speech_prob <= _MAX_NO_SPEECH)


def utterances(source: Any) -> Iterator[bytes]:
    """Split a stream into utterances by voice activity.

    Args:
        source: has ``read(count)``, which returns ``count`` bytes of speech, or none at the end.
    """
    from pocketsphinx import Segmenter

    yield from (segment.pcm for segment in Segmenter(sample_rate=RATE).segment(source))
