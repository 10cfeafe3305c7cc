"""Reads and writes bags: MCAP files of ROS 2 messages. Knows messages and files, but no models.

Files are read from front to back, without the index at their end, so that a file that was cut off is read up to the cut.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mcap.records import Channel, Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from mcap.writer import Writer
from rclpy.serialization import serialize_message

from flmm_core.common.plain_text import one_line

_RULE = "=" * 80
_CHUNK = 256 * 1024
"""Bytes that are written at once: at most these are lost in an interruption."""
_MAX_RECORD = 2**30
"""Bytes of a record; a longer one is damaged."""


class BagError(ValueError):
    """A bag that cannot be used; the message says why, on one line."""


@dataclass(frozen=True)
class Recorded:
    """One message of a bag."""

    topic: str
    kind: str
    """For instance sensor_msgs/msg/Image."""
    data: bytes
    """Serialized (CDR)."""
    log_time: int
    """When it was recorded, nanoseconds; its header says when it was taken."""


def read(path: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[Recorded]:
    """The messages of a bag, in the order in which they were written.

    Args:
        path: an MCAP file.
        warn: called with the reason if the file ends early.

    Raises:
        BagError: it is no MCAP file of ROS 2 messages.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise BagError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        count = 0
        records = StreamReader(file, record_size_limit=_MAX_RECORD).records
        while True:
            try:
                record = next(records, None)
            except Exception as error:  # cut or damaged chunks fail in many ways
                if not channels:
                    raise BagError(f"{path}: expected an MCAP file, got {_reason(error)}") from error
                warn(f"{path} is damaged or was cut off after {count} messages ({_reason(error)}): these are used")
                return
            if record is None:
                return
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel):
                channels[record.id] = record
            elif isinstance(record, Message):
                channel = channels[record.channel_id]
                if channel.message_encoding == "cdr" and channel.schema_id in schemas:
                    count += 1
                    kind = schemas[channel.schema_id].name
                    yield Recorded(channel.topic, kind, record.data, record.log_time)


def metadata(path: Path, name: str) -> dict[str, str] | None:
    """Metadata that a :class:`BagWriter` wrote at the beginning of a bag; None if there are none of this name."""
    try:
        with open(path, "rb") as file:
            for record in StreamReader(file, record_size_limit=_MAX_RECORD).records:
                if isinstance(record, Metadata) and record.name == name:
                    return dict(record.metadata)
                if isinstance(record, Schema):
                    break
    except Exception:  # cut off, or damaged
        return None
    return None


def _reason(error: Exception) -> str:
    return one_line(error)[:200]


class BagWriter:
    """Writes messages of the installed ROS, with their definitions, into a new bag. Use it in a ``with`` statement.

    Args:
        path: the file; an existing one is overwritten.
        name: of the metadata that describe how the bag was made.
        made: these metadata.
    """

    def __init__(self, path: Path, *, name: str, made: Mapping[str, str]) -> None:
        self._file = open(path, "wb")  # noqa: SIM115
        self._writer = Writer(self._file, chunk_size=_CHUNK)
        self._writer.start(profile="ros2", library="flmm_ros")
        self._writer.add_metadata(name, dict(made))
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.finish()
        self._file.close()

    def write(self, topic: str, message: Any, log_time: int) -> None:
        """Append a message; ``log_time`` is in nanoseconds.

        Raises:
            BagError: the definition of its type is not installed.
        """
        package, _, name = type(message).__module__.split(".")[0], "", type(message).__name__
        self.copy(Recorded(topic, f"{package}/msg/{name}", bytes(serialize_message(message)), log_time))

    def copy(self, recorded: Recorded) -> None:
        """Append a serialized message.

        Raises:
            BagError: the definition of its type is not installed.
        """
        if recorded.topic not in self._channels:
            if recorded.kind not in self._schemas:
                definition = definition_of(recorded.kind).encode()
                self._schemas[recorded.kind] = self._writer.register_schema(recorded.kind, "ros2msg", definition)
            schema = self._schemas[recorded.kind]
            self._channels[recorded.topic] = self._writer.register_channel(recorded.topic, "cdr", schema)
        channel = self._channels[recorded.topic]
        self._writer.add_message(channel, recorded.log_time, recorded.data, recorded.log_time)


def definition_of(kind: str) -> str:
    """The definition of a message type and of all types that it contains, in MCAP's encoding ros2msg.

    Raises:
        BagError: one of them is not installed.
    """
    package, _, name = kind.split("/")
    parts, waiting, known = [_file_of(package, name)], [(package, name)], {(package, name)}
    while waiting:
        here, message = waiting.pop(0)
        for line in _file_of(here, message).splitlines():
            words = line.split("#")[0].split()
            if len(words) < 2 or "=" in words[1]:
                continue
            kind_of_field = words[0].split("[")[0].split("<")[0]
            owner, _, bare = kind_of_field.rpartition("/")
            entry = (owner.split("/")[0] or here, bare)
            if not bare[:1].isupper() or entry in known:
                continue
            known.add(entry)
            waiting.append(entry)
            parts.append(f"{_RULE}\nMSG: {entry[0]}/{entry[1]}\n{_file_of(*entry)}")
    return "\n".join(parts)


def _file_of(package: str, name: str) -> str:
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    for prefix in prefixes:  # a distribution, or ROS 2 from wheels
        path = Path(prefix, "share", package, "msg", f"{name}.msg")
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise BagError(f"no definition of {package}/msg/{name} in {', '.join(prefixes)}")
