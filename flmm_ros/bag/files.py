"""Reads and writes bags: MCAP files of ROS 2 messages. Knows messages and files, but no models.

Files are read from front to back, without the index at their end, so that a file that was cut off is read up to the cut, and of
a damaged one all that is whole.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import breakup_chunk
from mcap.writer import Writer
from rclpy.serialization import serialize_message

from flmm_core.common.plain_text import one_line
from flmm_ros.bag.formats import MCAP, BagError, what_is

_RULE = "=" * 80
_CHUNK = 256 * 1024
"""Bytes that are written at once: at most these are lost in an interruption."""
_MAX_RECORD = 2**28
"""Bytes of a record, and of the uncompressed data of a chunk; a longer one is damaged."""
_START = struct.Struct("<BQ")
"""Of a record: its opcode and its length."""
_USED = frozenset({Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE, Opcode.CHUNK, Opcode.METADATA})


@dataclass(frozen=True)
class Place:
    """Where a message is, so that it can be read again."""

    path: Path
    offset: int
    """Of its record, or of the chunk that contains it; bytes."""
    number: int
    """Of the message within the chunk, from 0."""


@dataclass(frozen=True)
class Recorded:
    """One message of a bag."""

    topic: str
    kind: str
    """For instance sensor_msgs/msg/Image."""
    data: bytes
    """Serialized (CDR, unless :attr:`encoding` says otherwise)."""
    log_time: int
    """When it was recorded, nanoseconds; its header says when it was taken."""
    encoding: str = "cdr"
    """Of the data; messages of ROS 2 have cdr."""


def read(path: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[Recorded]:
    """The messages of a file, in the order in which they were written; as :func:`read_places`."""
    for _, recorded in read_places(path, warn):
        yield recorded


def read_places(path: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[tuple[Place, Recorded]]:
    """The messages of a file, in the order in which they were written, and where they are.

    Args:
        path: an MCAP file.
        warn: called with the reason if the file ends early, or a part of it is damaged and left out.

    Raises:
        BagError: it is no MCAP file.
    """
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    count = 0

    def warn_here(reason: str) -> None:
        warn(f"{path} is damaged or was cut off after {count} messages: {reason}")

    with _opened(path) as file:
        for offset, records in _records(file, path, warn_here):
            number = -1
            for record in records:
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel):
                    channels[record.id] = record
                elif isinstance(record, Message):
                    number += 1
                    channel = channels.get(record.channel_id)
                    if channel is not None and channel.schema_id in schemas:
                        count += 1
                        recorded = _recorded(channel, schemas[channel.schema_id].name, record)
                        yield Place(path, offset, number), recorded


def read_at(path: Path, offset: int) -> list[bytes]:
    """The data of the messages of one record or chunk.

    Raises:
        BagError: there is none; the file has changed since it was read.
    """
    with _opened(path) as file:
        file.seek(offset)
        _, records = next(_records(file, path, lambda reason: None), (0, []))
    if not any(isinstance(record, Message) for record in records):
        raise BagError(f"{path}: has changed while it was read")
    return [record.data for record in records if isinstance(record, Message)]


def metadata(path: Path, name: str) -> dict[str, str] | None:
    """Metadata that a :class:`BagWriter` wrote at the beginning of a bag; None if there are none of this name."""
    try:
        with _opened(path) as file:
            for _, records in _records(file, path, lambda reason: None):
                for record in records:
                    if isinstance(record, Metadata) and record.name == name:
                        return dict(record.metadata)
                    if isinstance(record, Schema):
                        return None
    except BagError:
        return None
    return None


def _opened(path: Path) -> BinaryIO:
    """The file, after the bytes with which each MCAP file begins."""
    if path.exists() and not path.is_file():
        raise BagError(f"{path}: expected an MCAP file, got {what_is(path)}")
    try:
        file = open(path, "rb")  # noqa: SIM115
        if file.read(len(MCAP)) == MCAP:
            return file
        file.close()
    except OSError as error:
        raise BagError(f"{path}: cannot be read ({error.strerror})") from error
    raise BagError(f"{path}: expected an MCAP file, got {what_is(path)}")


def _records(file: BinaryIO, path: Path, warn: Callable[[str], None]) -> Iterator[tuple[int, list[McapRecord]]]:
    """The records of a file, those of a chunk together, each with its offset.

    Args:
        file: at the beginning of a record.
        path: of the file, for messages.
        warn: called with the reason if the file ends early, or a chunk is damaged.

    Raises:
        BagError: the file cannot be read.
    """
    try:
        size = os.fstat(file.fileno()).st_size
        while True:
            offset = file.tell()
            start = file.read(_START.size)
            opcode, length = _START.unpack(start) if len(start) == _START.size else (0, 0)
            if opcode == Opcode.DATA_END:
                return
            if opcode == 0 or length > _MAX_RECORD or offset + _START.size + length > size:
                warn(f"these are used, and nothing after byte {offset} of {size}")
                return
            if opcode not in _USED:
                file.seek(length, os.SEEK_CUR)
                continue
            data = file.read(length)
            try:
                yield offset, _parsed(opcode, data)
            except Exception as error:  # damaged data fail in many ways
                warn(f"{length} bytes are left out ({one_line(error)[:200]})")
    except OSError as error:
        raise BagError(f"{path}: cannot be read ({error.strerror})") from error


def _parsed(opcode: int, data: bytes) -> list[McapRecord]:
    stream = ReadDataStream(BytesIO(data))
    if opcode == Opcode.CHUNK:
        return breakup_chunk(_unpacked(Chunk.read(stream)), validate_crc=True)
    if opcode == Opcode.MESSAGE:
        return [Message.read(stream, len(data))]
    if opcode == Opcode.SCHEMA:
        return [Schema.read(stream)]
    return [Channel.read(stream) if opcode == Opcode.CHANNEL else Metadata.read(stream)]


def _unpacked(chunk: Chunk) -> Chunk:
    """The chunk with its data uncompressed, which are no more than it declares."""
    size = chunk.uncompressed_size
    if size > _MAX_RECORD:
        raise ValueError(f"expected a chunk of at most {_MAX_RECORD} bytes, got {size}")
    data = chunk.data
    if chunk.compression == "zstd":
        data = zstandard.ZstdDecompressor().stream_reader(data).read(size + 1)
    elif chunk.compression == "lz4":
        data = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
    elif chunk.compression:
        raise ValueError(f"expected compression by zstd or lz4, got {chunk.compression[:40]!r}")
    if len(data) != size:
        raise ValueError(f"expected a chunk of {size} bytes, got {len(data)}")
    return replace(chunk, compression="", data=data)


def _recorded(channel: Channel, kind: str, message: Message) -> Recorded:
    parts = kind.split("/")
    if channel.message_encoding == "cdr" and len(parts) == 2:  # as tools of other languages write it
        kind = f"{parts[0]}/msg/{parts[1]}"
    return Recorded(channel.topic, kind, message.data, message.log_time, channel.message_encoding)


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
