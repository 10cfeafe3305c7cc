"""Stands in for tf2_ros, which the wheels of ROS 2 lack: a turn about z and a shift from ``camera`` to ``base``.

As tf2's, a buffer knows nothing until its listener was discovered. The frame ``late`` is ``base``,
known only some time after it was first asked for, as if its publisher were slower than the camera.
"""

import time

from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3

DISCOVERY = 0.4
LATE = 0.3


class Buffer:
    def __init__(self):
        self.listening = float("inf")
        self.asked = {}

    def clear(self):
        self.asked.clear()

    def lookup_transform(self, target, source, stamp, timeout):
        deadline = time.monotonic() + timeout.nanoseconds * 1e-9
        known_at = self.listening + DISCOVERY
        if target == "late":
            known_at = max(known_at, self.asked.setdefault(stamp.nanoseconds, time.monotonic()) + LATE)
        while time.monotonic() < known_at:
            if time.monotonic() >= deadline:
                raise LookupError(f'"{target}" passed to lookupTransform argument target_frame does not exist yet.')
            time.sleep(0.01)
        if target not in ("base", "late") or source != "camera":
            raise LookupError(f'"{target}" passed to lookupTransform argument target_frame does not exist.')
        if stamp.nanoseconds < 10**9:
            raise LookupError("Lookup would require extrapolation into the past.")
        turn = Quaternion(z=0.5**0.5, w=0.5**0.5)
        return TransformStamped(transform=Transform(translation=Vector3(x=1.0, y=2.0, z=3.0), rotation=turn))


class TransformListener:
    def __init__(self, buffer, node):
        buffer.listening = time.monotonic()
