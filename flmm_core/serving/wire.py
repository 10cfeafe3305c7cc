"""The HTTP format of commands and answers: images and JSON. Independent of server and client.

A command is a multipart form: ``image``, a PNG or JPEG file, and ``command``, JSON of :class:`WireCommand`. The reply is a
stream of JSON lines: ``{}`` as a keep-alive, ``{"stage": ...}``, ``{"text": ...}`` and at the end ``{"answer": ...}`` or
``{"refused": ..., "reason": ...}``, a name of :class:`~flmm_core.serving.requests.Status` and the reason.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch

from flmm_core.serving.requests import Mode
from flmm_core.types import GroundedAnswer, GroundedPhrase, StageSeconds

_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


@dataclass(frozen=True)
class WireCommand:
    """A command about an image."""

    mode: str
    """Name of a :class:`~flmm_core.serving.requests.Mode`: CHAT or REFER."""
    words: tuple[str, ...]
    """The question, or the phrases."""
    client: str = ""
    """Identifies the client; clients are served in turn."""
    max_new_tokens: int | None = None
    max_phrases: int | None = None

    def to_json(self) -> str:
        """The field ``command`` of the form."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WireCommand:
        """Parse the field ``command`` of the form.

        Raises:
            ValueError: not such an object; the message names what was expected and what was given.
        """
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"command: expected JSON, got {text!r:.80}") from error
        names = {entry.name for entry in fields(cls)}
        if not isinstance(value, dict) or not {"mode", "words"} <= set(value) <= names:
            known = ", ".join(sorted(names))
            raise ValueError(f"command: expected an object of mode, words and optionally others of {known}, got {text!r:.80}")
        modes = (Mode.CHAT.name, Mode.REFER.name)
        if value["mode"] not in modes:
            raise ValueError(f"mode: expected one of {', '.join(modes)}, got {value['mode']!r:.40}")
        words = value.pop("words")
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise ValueError(f"words: expected a list of at least one text, got {words!r:.80}")
        if value["mode"] == Mode.CHAT.name and len(words) > 1:
            raise ValueError(f"words: expected one question, got {len(words)}")
        for name in ("max_new_tokens", "max_phrases"):
            if not isinstance(value.get(name), int | None) or isinstance(value.get(name), bool):
                raise ValueError(f"{name}: expected a whole number, got {value[name]!r:.40}")
        return cls(words=tuple(words), **value)


def image_bytes(image: np.ndarray) -> bytes:
    """Compress ``[H, W, 3]`` uint8 RGB as PNG, without loss."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _FAST)
    return encoded.tobytes()


def answer_to_json(answer: GroundedAnswer) -> dict[str, Any]:
    """Convert an answer to JSON; each mask is a base64 PNG, cropped to its box."""
    return {
        "text": answer.text,
        "image_height": answer.image_height,
        "image_width": answer.image_width,
        "left_out": list(answer.left_out),
        "seconds": asdict(answer.seconds),
        "phrases": [_phrase_to_json(phrase) for phrase in answer.phrases],
    }


def answer_from_json(value: Mapping[str, Any]) -> GroundedAnswer:
    """Inverse of :func:`answer_to_json`."""
    height, width = value["image_height"], value["image_width"]
    return GroundedAnswer(
        text=value["text"],
        phrases=tuple(_phrase_from_json(phrase, height, width) for phrase in value["phrases"]),
        image_height=height,
        image_width=width,
        seconds=StageSeconds(**value["seconds"]),
        left_out=tuple(value["left_out"]),
    )


def _phrase_to_json(phrase: GroundedPhrase) -> dict[str, Any]:
    x0, y0, x1, y1 = phrase.box
    part = phrase.mask[y0:y1, x0:x1].astype(np.uint8) * 255
    mask = base64.b64encode(cv2.imencode(".png", part, _FAST)[1].tobytes()).decode() if part.size else ""
    names = ("text", "start", "end", "box", "score", "presence", "absent")
    return {**{name: getattr(phrase, name) for name in names}, "mask": mask}


def _phrase_from_json(value: Mapping[str, Any], height: int, width: int) -> GroundedPhrase:
    fields_ = dict(value)
    x0, y0, x1, y1 = box = tuple(fields_.pop("box"))
    pixels = torch.zeros(height, width, dtype=torch.bool)
    if content := fields_.pop("mask"):
        part = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_GRAYSCALE)
        pixels[y0:y1, x0:x1] = torch.from_numpy(np.asarray(part) > 0)
    return GroundedPhrase(pixels=pixels, box=box, **fields_)
