"""An example of a consumer of answers: "pick up the lemon" becomes a pose for a gripper.

It subscribes to the answers of the grounding node and commands no robot.
"""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import Point, PoseStamped, Vector3
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from flmm_core.common.plain_text import one_line
from flmm_core.config import Tunable
from flmm_core.spatial.grasp import Grasp, NoGraspError, top_grasp
from flmm_ros import parameters, qos
from flmm_ros.conversions.geometry import location_from_message, pose_message
from flmm_ros.msg import GroundedAnswer, GroundedPhrase
from flmm_ros.spinning import RunnableNode

PICK_TUNABLES = (
    Tunable(
        "verbs",
        str,
        "pick, grab, take, lift, bring, give, hand, fetch, get",
        "Commands that begin with one of these words ask for an object to be picked up.",
    ),
    Tunable("max_opening", float, 0.11, "Maximum distance of the open fingers.", unit="m", minimum=0.01, maximum=1.0),
    Tunable("standoff", float, 0.12, "Distance of the pre-grasp pose from the grasp pose.", unit="m", minimum=0.0, maximum=1.0),
)


class PickNode(RunnableNode):
    """Publishes grasp and pre-grasp poses for the object that a command names.

    Both poses are in the frame of the location: x is the direction in which the fingers close, z that of the approach.
    """

    def __init__(self) -> None:
        super().__init__("pick")
        parameters.declare(self, PICK_TUNABLES, frozenset({"verbs", "max_opening", "standoff"}))
        self._targets = qos.create_publisher(self, PoseStamped, "~/target", qos.commands())
        self._starts = qos.create_publisher(self, PoseStamped, "~/pre_grasp", qos.commands())
        self._markers = qos.create_publisher(self, MarkerArray, "~/markers", qos.images())
        self.create_subscription(GroundedAnswer, "grounding/answer", self._on_answer, qos.commands())

    def _on_answer(self, answer: GroundedAnswer) -> None:
        try:
            if answer.status == GroundedAnswer.STATUS_ANSWERED and self._is_order(answer):
                self._take(answer, thing_of(answer))
        except NoGraspError as error:
            self.get_logger().warning(f"{answer.command!r:.80}: {one_line(error)}")
        except Exception as error:
            self.get_logger().error(f"answer dropped: {one_line(error)}")

    def _is_order(self, answer: GroundedAnswer) -> bool:
        verbs = {verb.strip().lower() for verb in parameters.value(self, "verbs").split(",")}
        words = [word for word in answer.command.lower().split() if word not in ("can", "you", "please", "could")]
        return answer.mode == GroundedAnswer.MODE_CHAT and bool(words) and words[0] in verbs

    def _take(self, answer: GroundedAnswer, phrase: GroundedPhrase) -> None:
        grasp = top_grasp(location_from_message(phrase.location), parameters.value(self, "max_opening", float))
        start = grasp.position - parameters.value(self, "standoff", float) * grasp.approach
        header = Header(stamp=answer.header.stamp, frame_id=phrase.location.frame_id)
        self._markers.publish(arrow(header, grasp, start))
        self._starts.publish(PoseStamped(header=header, pose=pose_message(start, grasp.rotation)))
        self._targets.publish(PoseStamped(header=header, pose=pose_message(grasp.position, grasp.rotation)))
        x, y, z = grasp.position
        self.get_logger().info(f"{phrase.text!r}: at x {x:.3f}, y {y:.3f}, z {z:.3f} m, {1000 * grasp.opening:.0f} mm open")


def thing_of(answer: GroundedAnswer) -> GroundedPhrase:
    """The object that an answer is about: the first phrase with a mask.

    Raises:
        NoGraspError: no phrase has a mask, or the location of the first one is unknown.
    """
    pointed = [phrase for phrase in answer.phrases if phrase.roi.width]
    if not pointed:
        raise NoGraspError("expected an answer that points at something, got one that does not")
    if not pointed[0].location.valid:
        raise NoGraspError(f"expected to know where {pointed[0].text!r} is: {pointed[0].location.reason}")
    return pointed[0]


def arrow(header: Header, grasp: Grasp, start: np.ndarray) -> MarkerArray:
    """The approach from ``start`` (``[3]`` metres) to the grasp, as an arrow for RViz."""
    return MarkerArray(
        markers=[
            Marker(
                header=header,
                ns="approach",
                type=Marker.ARROW,
                action=Marker.ADD,
                points=[Point(**dict(zip("xyz", map(float, end), strict=True))) for end in (start, grasp.position)],
                scale=Vector3(x=0.008, y=0.02, z=0.03),
                color=ColorRGBA(r=0.1, g=0.9, b=0.3, a=1.0),
            )
        ]
    )
