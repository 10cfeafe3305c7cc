"""Sources of speech: WAV files and microphones of any rate, as 16-bit mono samples at 16 kHz. Independent of topics."""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flmm_core.common.plain_text import one_line

RATE = 16_000
"""Samples per second of speech."""
QUIET = 0.5
"""Seconds of silence around an utterance: recognisers need some before and after a word."""
_RATES = (4_000, 384_000)
"""Lowest and highest rate of a file, Hz."""
_LARGEST = 2**28
"""Bytes of a file: 23 minutes at 48 kHz in stereo."""
_EXTENSIBLE = 0xFFFE
"""Format of a WAV file that names its format further behind, which Python's wave reads from 3.12 on."""


class SpeechError(ValueError):
    """A source or a recogniser cannot be used; the message is one line."""


def file_source(path: Path) -> BytesIO:
    """Read a WAV file of any rate as a stream of 16-bit mono samples at 16 kHz.

    Raises:
        SpeechError: not a WAV file of 16-bit samples.
    """
    try:
        if not path.is_file():
            raise OSError("no such file")
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"expected at most {_LARGEST} bytes, got {size}")
        with wave.open(BytesIO(_plain(path.read_bytes()))) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except Exception as error:  # damaged headers fail in many ways
        raise SpeechError(f"source: expected a WAV file, got {path} ({one_line(error)})") from error
    if width != 2:
        raise SpeechError(f"source: expected 16-bit samples, got {8 * width}-bit ones in {path}")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise SpeechError(f"source: expected {_RATES[0]} to {_RATES[1]} samples per second, got {rate} in {path}")
    frames = len(data) // (2 * channels)  # the last one of a recording that was cut off may lack bytes
    speech = _resampled(_mono(data[: 2 * channels * frames], channels), round(frames * RATE / rate))
    quiet = bytes(2 * int(RATE * QUIET))
    return BytesIO(quiet + speech + quiet)


def _plain(data: bytes) -> bytes:
    """The content of a WAV file with its format where it was before WAVE_FORMAT_EXTENSIBLE."""
    place = 12
    while (start := data[place : place + 8]) and len(start) == 8:
        name, length = struct.unpack("<4sI", start)
        if name == b"fmt ":
            form = data[place + 8 : place + 8 + length]
            extensible = len(form) >= 26 and struct.unpack_from("<H", form)[0] == _EXTENSIBLE
            return data[: place + 8] + form[24:26] + data[place + 10 :] if extensible else data
        place += 8 + length + length % 2
    return data


def _mono(data: bytes, channels: int) -> np.ndarray:
    """``[samples]`` float32: the mean of the channels."""
    return np.frombuffer(data, "<i2").reshape(-1, channels).mean(axis=1, dtype=np.float32)


def _resampled(samples: np.ndarray, length: int) -> bytes:
    """Samples at another rate, as ``length`` 16-bit samples."""
    if len(samples) and len(samples) != length:
        # As an image of one row: averaging when the rate falls prevents aliasing.
        how = cv2.INTER_AREA if len(samples) > length else cv2.INTER_LINEAR
        samples = cv2.resize(samples[None], (max(1, length), 1), interpolation=how)[0]
    return np.rint(samples).astype("<i2").tobytes()


class Microphone:
    """The default microphone as a stream; it is muted while the robot speaks.

    Args:
        muted: whether the microphone is muted now: it then returns silence.

    Raises:
        SpeechError: there is no microphone, it cannot be opened, or sounddevice is not installed.
    """

    def __init__(self, muted: Callable[[], bool]) -> None:
        self._muted = muted
        try:
            import sounddevice

            device = sounddevice.query_devices(kind="input")
        except Exception as error:  # OSError without PortAudio, sounddevice's own error without a device
            raise SpeechError(f"source: no microphone ({one_line(error)}); a WAV file can be used instead") from error
        own_rate, most = round(device["default_samplerate"]), int(device["max_input_channels"])
        refused = ""
        for self._rate, self._channels in dict.fromkeys([(RATE, 1), (own_rate, 1), (own_rate, min(2, most))]):
            try:
                self._stream = self._opened(sounddevice)
                break
            except Exception as error:
                refused = f"at {self._rate} Hz with {self._channels} channels: {one_line(error)}"
        else:
            raise SpeechError(f"source: the microphone {str(device['name'])!r:.80} cannot be opened {refused}")
        self._frames = 0
        """Frames that were asked for, at 16 kHz."""

    def _opened(self, sounddevice: Any) -> Any:
        stream = sounddevice.RawInputStream(samplerate=self._rate, channels=self._channels, dtype="int16")
        stream.start()
        return stream

    def read(self, count: int) -> bytes:
        """Wait for ``count`` bytes of speech."""
        before, self._frames = self._frames, self._frames + count // 2
        # Counted from the beginning: parts of a frame that a rate of 44.1 kHz leaves over do not add up.
        wanted = self._frames * self._rate // RATE - before * self._rate // RATE
        data, _ = self._stream.read(wanted)
        if self._muted():
            return bytes(2 * (count // 2))
        return _resampled(_mono(bytes(data), self._channels), count // 2)
