"""The HTTP format of commands and answers: images and JSON. Independent of server and client.

A command is a multipart form: ``image``, a PNG or JPEG file, and ``command``, JSON of :class:`WireCommand`. The reply is a
stream of JSON lines: ``{}`` as a keep-alive, ``{"stage": ...}``, ``{"text": ...}`` and at the end ``{"answer": ...}`` or
``{"refused": ..., "reason": ...}``, a name of :class:`~flmm_core.serving.requests.Status` and the reason. Both sides name the
version of this format in the header :data:`WIRE_HEADER`; a command without it is taken as of this version.
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

from flmm_core.config import check
from flmm_core.serving.requests import Mode, Status
from flmm_core.types import GroundedAnswer, GroundedPhrase, StageSeconds

WIRE_HEADER = "X-Flmm-Wire"
WIRE_VERSION = "1"
"""Changes with every change of the format that a side of the version before would misunderstand."""
_LONGEST_NAME = 200
_MOST_PHRASES, _MOST_CHARACTERS = 1000, 10_000
"""Of all words of a command together; the node's own limit (`max_command_length`) is at most as large."""

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
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
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
        if len(words) > _MOST_PHRASES or sum(map(len, words)) > _MOST_CHARACTERS:
            most = f"{_MOST_PHRASES} phrases and {_MOST_CHARACTERS} characters"
            raise ValueError(f"words: expected at most {most}, got {len(words)} and {sum(map(len, words))}")
        client = value.get("client", "")
        if not isinstance(client, str) or len(client) > _LONGEST_NAME:
            raise ValueError(f"client: expected a name of at most {_LONGEST_NAME} characters, got {client!r:.80}")
        for name, one in [("client", client), *(("words", word) for word in words)]:
            if any("\ud800" <= sign <= "\udfff" for sign in one):
                raise ValueError(f"{name}: expected whole characters, got half of one (a lone surrogate) in {one!r:.80}")
        for name in ("max_new_tokens", "max_phrases"):
            if value.get(name) is not None:
                check(name, value[name])
        return cls(words=tuple(words), **value)


def refusal_line(status: Status, reason: str) -> dict[str, Any]:
    """The last line of the reply to a command that is refused."""
    return {"refused": status.name, "reason": reason}


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
        "reason": answer.reason,
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
        reason=value["reason"],
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
