"""The objects of an answer as markers for RViz."""

from __future__ import annotations

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, Vector3
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from flmm_core.drawing.style import color_of
from flmm_ros.msg import GroundedAnswer, GroundedPhrase

_TEXT = 0.03
"""Height of letters, metres."""
_DOT = 0.015
"""Diameter of centroids, metres."""
_THIN = 0.002
"""Minimum edge of a box, metres: RViz does not draw flat ones."""


def markers_message(answer: GroundedAnswer) -> MarkerArray:
    """Box, centroid and label of each phrase with a location, after a marker that deletes all earlier ones.

    Colours are those of the overlay.
    """
    found = [Marker(header=answer.header, action=Marker.DELETEALL)]
    for phrase in answer.phrases:
        if phrase.location.valid:
            found += _of(phrase, answer)
    return MarkerArray(markers=found)


def _of(phrase: GroundedPhrase, answer: GroundedAnswer) -> list[Marker]:
    red, green, blue = (part / 255 for part in color_of(phrase.label - 1))
    where, centroid = phrase.location, phrase.location.centroid
    edges = {axis: max(_THIN, getattr(where.box_size, axis)) for axis in "xyz"}
    # Without a support surface, up is the image's: -y of the optical frame.
    up = where.up if where.on_surface else Vector3(y=-1.0)
    rise = max(edges.values()) / 2 + _TEXT
    above = Point(**{axis: getattr(centroid, axis) + rise * getattr(up, axis) for axis in "xyz"})

    def marker(namespace: str, kind: int, opacity: float, **fields: object) -> Marker:
        return Marker(
            header=Header(stamp=answer.header.stamp, frame_id=where.frame_id),
            ns=namespace,
            id=phrase.label,
            type=kind,
            action=Marker.ADD,
            color=ColorRGBA(r=red, g=green, b=blue, a=opacity),
            lifetime=Duration(),
            **fields,
        )

    return [
        marker("boxes", Marker.CUBE, 0.35, pose=where.box, scale=Vector3(**edges)),
        marker("centroids", Marker.SPHERE, 1.0, pose=Pose(position=centroid), scale=Vector3(x=_DOT, y=_DOT, z=_DOT)),
        marker("labels", Marker.TEXT_VIEW_FACING, 1.0, pose=Pose(position=above), scale=Vector3(z=_TEXT), text=phrase.text),
    ]
