"""Malformed messages: random values in every field, and serialized ones with bytes changed or missing."""

from __future__ import annotations

import random
import re
from typing import Any

from rclpy.serialization import serialize_message
from rosidl_parser.definition import AbstractNestedType, AbstractSequence, BasicType, NamespacedType

_TEXTS = ("", "\x00", "x" * 600, "\u200b", "💡 ⭢ é", "rgb8", "mono16", "../../etc/passwd", "$(reboot)", "<image>", "%s%n")
_FLOATS = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e308)
_LONGEST = 40
"""Most entries of a sequence."""


def fuzzed(kind: type, chance: random.Random) -> bytes:
    """A serialized message of a type with random values; one in three has bytes changed, or lacks its end."""
    data = bytearray(serialize_message(random_message(kind, chance)))
    damage = chance.random()
    if damage < 0.2 and len(data) > 12:
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(4, len(data))] = chance.randrange(256)
    elif damage < 0.33 and len(data) > 12:
        del data[chance.randrange(8, len(data)) :]
    return bytes(data)


def random_message(kind: type, chance: random.Random) -> Any:
    """A message of a type with a random, often invalid value in each field, nested fields included."""
    message = kind()
    for name, slot in zip(kind.get_fields_and_field_types(), kind.SLOT_TYPES, strict=True):  # type: ignore[attr-defined]
        setattr(message, name, _value(slot, getattr(message, name), chance))
    return message


def _value(slot: Any, default: Any, chance: random.Random) -> Any:
    if isinstance(slot, NamespacedType):
        return random_message(type(default), chance)
    if isinstance(slot, AbstractSequence):
        count = chance.choice((0, 1, chance.randint(0, _LONGEST)))
        if isinstance(slot.value_type, NamespacedType):
            return []
        return [_value(slot.value_type, None, chance) for _ in range(count)]
    if isinstance(slot, AbstractNestedType):  # an array of fixed length
        return [_value(slot.value_type, None, chance) for _ in default]
    if not isinstance(slot, BasicType):
        return chance.choice(_TEXTS)
    if slot.typename == "boolean":
        return chance.random() < 0.5
    if slot.typename in ("float", "double"):
        chosen = chance.choice((*_FLOATS, chance.gauss(0, 100)))
        return chosen if slot.typename == "double" or not 1e38 < abs(chosen) < float("inf") else 1e38
    return _integer(slot.typename, chance)


def _integer(name: str, chance: random.Random) -> int:
    bits = 8 if name == "octet" else int(re.sub(r"\D", "", name))
    low, high = (0, 2**bits - 1) if name.startswith(("uint", "octet")) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return chance.choice((low, high, 0, chance.randint(low, high), chance.randint(0, 64)))
