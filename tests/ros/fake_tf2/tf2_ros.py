"""Stands in for tf2_ros, which the wheels of ROS 2 lack: one transform, a turn about z and a shift, known from stamp 1 on."""

from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3


class Buffer:
    def lookup_transform(self, target, source, time, timeout):
        assert timeout.nanoseconds > 0
        if (target, source) != ("base", "camera"):
            raise LookupError(f'"{target}" passed to lookupTransform argument target_frame does not exist.')
        if time.nanoseconds < 10**9:
            raise LookupError("Lookup would require extrapolation into the past.")
        turn = Quaternion(z=0.5**0.5, w=0.5**0.5)
        return TransformStamped(transform=Transform(translation=Vector3(x=1.0, y=2.0, z=3.0), rotation=turn))


class TransformListener:
    def __init__(self, buffer, node):
        pass
