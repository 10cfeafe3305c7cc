"""Locations, poses and point clouds as messages, and back."""

from __future__ import annotations

import array
from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from flmm_core.spatial.location import Location
from flmm_ros.msg import Location as LocationMsg


def location_message(location: Location, frame_id: str) -> LocationMsg:
    """Convert a location in the frame ``frame_id`` to a message."""
    return LocationMsg(
        valid=True,
        frame_id=frame_id,
        on_surface=location.up is not None,
        up=Vector3(**_xyz(location.up)) if location.up is not None else Vector3(),
        centroid=Point(**_xyz(location.centroid)),
        extent=Vector3(**_xyz(location.extent)),
        box=pose_message(location.box_center, location.box_axes),
        box_size=Vector3(**_xyz(location.box_size)),
        depth_fraction=float(location.depth_fraction),
    )


def location_from_message(message: LocationMsg) -> Location:
    """Convert a valid location message back; the points are not part of it, so ``points`` is ``[0, 3]``."""
    return Location(
        points=np.empty((0, 3), np.float32),
        centroid=_vector(message.centroid),
        extent=_vector(message.extent),
        box_center=_vector(message.box.position),
        box_axes=rotation_from_message(message.box.orientation),
        box_size=_vector(message.box_size),
        depth_fraction=message.depth_fraction,
        up=_vector(message.up) if message.on_surface else None,
    )


def pose_message(position: np.ndarray, rotation: np.ndarray) -> Pose:
    """Convert position and orientation to a message.

    Args:
        position: ``[3]`` metres.
        rotation: ``[3, 3]`` rotation matrix, axes as columns.
    """
    x, y, z, w = _quaternion(rotation)
    return Pose(position=Point(**_xyz(position)), orientation=Quaternion(x=x, y=y, z=z, w=w))


def _vector(message: Point | Vector3) -> np.ndarray:
    return np.array([message.x, message.y, message.z])


def rotation_from_message(message: Quaternion) -> np.ndarray:
    """``[3, 3]`` rotation matrix of a unit quaternion."""
    x, y, z, w = message.x, message.y, message.z, message.w
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _xyz(vector: np.ndarray) -> dict[str, float]:
    return dict(zip("xyz", map(float, vector), strict=True))


def _quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """x, y, z, w of a rotation matrix: the eigenvector of Bar-Itzhack's symmetric matrix for its largest eigenvalue."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    matrix = [
        [xx - yy - zz, yx + xy, zx + xz, zy - yz],
        [yx + xy, yy - xx - zz, zy + yz, xz - zx],
        [zx + xz, zy + yz, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    x, y, z, w = np.linalg.eigh(np.array(matrix) / 3)[1][:, -1].tolist()
    return x, y, z, w


def points_message(labelled: Sequence[tuple[int, np.ndarray]], header: Header) -> PointCloud2:
    """Pack the points of several objects into one cloud, each point with the label of its phrase.

    Packed here, because the ROS 2 wheels do not include ``sensor_msgs_py``.

    Args:
        labelled: label and ``[k, 3]`` float32 metres of each object.
        header: of the message.

    Returns:
        A dense, unordered cloud with the fields x, y, z (float32 metres) and label (uint32).
    """
    count = sum(len(points) for _, points in labelled)
    rows = np.zeros(count, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("label", "<u4")])
    begin = 0
    for label, points in labelled:
        part = rows[begin : begin + len(points)]
        part["x"], part["y"], part["z"] = points.T
        part["label"] = label
        begin += len(points)
    fields = [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, name in enumerate("xyz")]
    fields.append(PointField(name="label", offset=12, datatype=PointField.UINT32, count=1))
    data = array.array("B", rows.tobytes())
    return PointCloud2(
        header=header, height=1, width=count, fields=fields, point_step=16, row_step=16 * count, data=data, is_dense=True
    )
