"""Stamps of messages: of headers, and of messages that stay serialized."""

from __future__ import annotations

import struct

from rclpy.clock import ClockType
from rclpy.time import Time
from std_msgs.msg import Header


def stamp_time(header: Header, clock_type: ClockType) -> Time | None:
    """The time of a stamp; None for stamp 0, which means "no stamp", and for negative ones, which no clock gives."""
    if header.stamp.sec > 0 or (header.stamp.sec == 0 and header.stamp.nanosec):
        return Time.from_msg(header.stamp, clock_type=clock_type)
    return None


def stamp_of(serialized: bytes) -> int:
    """The stamp of a serialized message that begins with a header, nanoseconds.

    Raises:
        struct.error: the message is too short to hold a stamp.
    """
    if len(serialized) < 12:
        raise struct.error(f"expected a message of at least 12 bytes, got {len(serialized)}")
    order = "<" if serialized[1] & 1 else ">"  # byte order, from the CDR encapsulation before the header
    sec, nanosec = struct.unpack_from(f"{order}iI", serialized, 4)
    return int(sec) * 10**9 + int(nanosec)
