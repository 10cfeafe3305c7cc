"""Answers as markers and as vision_msgs."""

import importlib
import sys
import types
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("flmm_ros.msg", reason="the messages of flmm_ros are not built: `make setup`")

from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from flmm_core.drawing.style import color_of
from flmm_ros import detections
from flmm_ros.markers import markers_message
from flmm_ros.msg import GroundedAnswer, GroundedPhrase, Location


def answer():
    """A mug that is located, a ball without depth, and a unicorn that is not there."""
    place = Location(
        valid=True,
        frame_id="base",
        centroid=Point(x=0.1, y=0.2, z=0.8),
        extent=Vector3(x=0.1, y=0.08, z=0.05),
        box=Pose(position=Point(x=0.11, y=0.2, z=0.82), orientation=Quaternion(w=1.0)),
        box_size=Vector3(x=0.1, y=0.08, z=0.0),
    )
    roi = RegionOfInterest(x_offset=10, y_offset=20, width=30, height=40)
    return GroundedAnswer(
        header=Header(frame_id="camera"),
        phrases=[
            GroundedPhrase(text="the mug", label=1, score=0.8, presence=0.5, roi=roi, location=place),
            GroundedPhrase(text="the ball", label=2, score=0.9, presence=1.0, roi=roi, location=Location(reason="no depth")),
            GroundedPhrase(text="the unicorn", label=3, absent=True),
        ],
    )


def test_markers():
    first, *markers = markers_message(answer()).markers
    assert first.action == Marker.DELETEALL, "what an earlier answer showed goes"
    assert [(marker.ns, marker.id, marker.type) for marker in markers] == [
        ("boxes", 1, Marker.CUBE),
        ("centroids", 1, Marker.SPHERE),
        ("labels", 1, Marker.TEXT_VIEW_FACING),
    ]
    box, dot, label = markers
    assert {marker.header.frame_id for marker in markers} == {"base"}
    assert box.pose.position.x == 0.11 and box.scale.z > 0.0, "RViz draws nothing of a flat box"
    assert dot.pose.position.z == 0.8 and label.text == "the mug"
    assert label.pose.position.y < 0.2 - 0.05, "the label is above its thing"
    standing = answer()
    standing.phrases[0].location.on_surface, standing.phrases[0].location.up = True, Vector3(z=1.0)
    assert markers_message(standing).markers[3].pose.position.z > 0.85
    assert (box.color.r, box.color.g, box.color.b) == pytest.approx([part / 255 for part in color_of(0)])


def test_no_locations_clear_the_markers():
    assert [marker.action for marker in markers_message(GroundedAnswer()).markers] == [Marker.DELETEALL]


class Anything(SimpleNamespace):
    """Stands in for a message of vision_msgs: fields as given, and those that are set later."""

    def __init__(self, **fields):
        super().__init__(detections=[], **fields)


def nested(name):
    """A message whose fields are messages."""
    if name == "BoundingBox2D":
        return lambda **fields: Anything(center=SimpleNamespace(position=SimpleNamespace()), **fields)
    if name == "ObjectHypothesisWithPose":
        return lambda: Anything(hypothesis=SimpleNamespace(), pose=SimpleNamespace(pose=SimpleNamespace()))
    return Anything


@pytest.fixture
def with_vision_msgs(monkeypatch):
    """The module as it is where vision_msgs is installed; the wheels have none."""
    module = types.ModuleType("vision_msgs.msg")
    module.__getattr__ = nested
    package = types.ModuleType("vision_msgs")
    package.__spec__ = importlib.machinery.ModuleSpec("vision_msgs", None)
    monkeypatch.setitem(sys.modules, "vision_msgs", package)
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", module)
    yield importlib.reload(detections)
    monkeypatch.undo()
    importlib.reload(detections)


def test_detections(with_vision_msgs):
    assert with_vision_msgs.available()
    flat = with_vision_msgs.detections_2d(answer()).detections
    assert len(flat) == 2, "what is not there is no detection"
    assert not [detection for detection in flat if hasattr(detection, "id")], "ids follow an object from message to message"
    box = flat[0].bbox
    assert (box.center.position.x, box.center.position.y, box.size_x, box.size_y) == (25.0, 40.0, 30.0, 40.0)
    assert flat[0].results[0].hypothesis.class_id == "the mug"
    assert flat[0].results[0].hypothesis.score == pytest.approx(0.4)
    (deep,) = with_vision_msgs.detections_3d(answer()).detections
    assert deep.header.frame_id == "base"
    assert (hasattr(deep, "id"), deep.bbox.center.position.x, deep.bbox.size.x) == (False, 0.11, 0.1)
    assert deep.results[0].hypothesis.class_id == "the mug"
    assert deep.results[0].pose.pose.position.z == 0.8
    labels = with_vision_msgs.label_info(answer()).class_map
    assert [(label.class_id, label.class_name) for label in labels] == [(1, "the mug"), (2, "the ball"), (3, "the unicorn")]
