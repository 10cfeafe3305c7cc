"""From words over ROS to a pose that lifts the thing: camera, grounding node and picking example as processes."""

import numpy as np
import pytest
from bench import IMAGE, Bench
from geometry_msgs.msg import PoseStamped
from scipy.spatial.transform import Rotation
from visualization_msgs.msg import Marker, MarkerArray

from flmm_core.spatial.grasp import NoGraspError
from flmm_ros import qos
from flmm_ros.client import AskClient
from flmm_ros.conversions import location_from_message, location_message
from flmm_ros.msg import GroundedAnswer, GroundedPhrase, Location
from flmm_ros.pick import thing_of


def test_locations_there_and_back():
    from flmm_core.spatial.location import locate

    depth = np.full(IMAGE.shape[:2], 0.5, np.float32)
    place = locate(np.ones(IMAGE.shape[:2], bool), depth, np.array([[20.0, 0, 16], [0, 20, 12], [0, 0, 1]]))
    again = location_from_message(location_message(place, "camera"))
    assert again.up is None and again.box_axes == pytest.approx(place.box_axes, abs=1e-6)
    for name in ("centroid", "extent", "box_center", "box_size"):
        assert getattr(again, name) == pytest.approx(getattr(place, name), abs=1e-6)


def test_answers_without_a_place_say_why():
    nothing = GroundedAnswer(phrases=[GroundedPhrase(text="a unicorn", absent=True)])
    with pytest.raises(NoGraspError, match="expected an answer that points at something"):
        thing_of(nothing)
    lost = GroundedPhrase(text="the mug", location=Location(reason="no depth image has arrived yet"))
    lost.roi.width = 5
    with pytest.raises(NoGraspError, match="expected to know where 'the mug' is: no depth image has arrived yet"):
        thing_of(GroundedAnswer(phrases=[nothing.phrases[0], lost]))


def test_an_order_becomes_a_pose_that_lifts_the_thing(processes, log_dir, open_renderer):
    from flmm_sim.gripper import try_pick

    with open_renderer() as renderer:
        scene = renderer.sample(1)
    space = ["-r", "__ns:=/picking"]
    remap = [part for topic in ("image", "depth", "camera_info") for part in ("-r", f"{topic}:=camera/{topic}")]
    processes.start("picking_camera", "flmm_ros.camera_node", ["--ros-args", *space, "-p", "seed:=1"])
    processes.start("picking_node", "flmm_ros.grounding_node", ["--ros-args", *space, *remap])
    pick = processes.start("pick", "flmm_ros.pick_node", ["--ros-args", *space])
    with AskClient("/picking/grounding") as client:
        bench = Bench(client, "/picking/grounding", image_topic="camera/image")
        targets, starts, markers = [], [], []
        for kind, topic, into in (
            (PoseStamped, "target", targets),
            (PoseStamped, "pre_grasp", starts),
            (MarkerArray, "markers", markers),
        ):
            client.node.create_subscription(kind, f"/picking/pick/{topic}", into.append, qos.commands())
        client.wait_for_node(120.0)
        bench.wait_for_readers()
        client.wait_until(lambda: client.node.count_subscribers("/picking/grounding/answer") > 1, 30.0, "no pick node")
        client.wait_for_image(60.0)
        client.spin(0.5)  # its depth comes on another way
        lifted = 0
        for index, thing in enumerate(scene.objects):
            targets.clear()
            starts.clear()
            reply = bench.ask(f"pick up the {thing.name}")
            client.wait_until(lambda: bool(targets and starts), 10.0, f"no pose for {reply}")
            pose = targets[0].pose
            assert targets[0].header == reply.header == starts[0].header
            turn = Rotation.from_quat([pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w])
            at = np.array([pose.position.x, pose.position.y, pose.position.z])
            before = starts[0].pose.position
            approach = at - np.array([before.x, before.y, before.z])
            assert approach == pytest.approx(0.12 * turn.as_matrix()[:, 2], abs=1e-3)
            rotation, translation = scene.camera_pose[:3, :3], scene.camera_pose[:3, 3]
            lifted += try_pick(scene, index, rotation @ at + translation, rotation @ turn.as_matrix(), 0.1).lifted
        log = (log_dir / "pick.log").read_text()
        assert lifted >= 1, log
        targets.clear()
        bench.ask("what is on the table?")
        client.spin(0.3)
        assert not targets, "a question is no order"
        assert markers[-1].markers[0].type == Marker.ARROW and len(markers[-1].markers[0].points) == 2
        pick.terminate()
        assert pick.wait(timeout=5) == 0
    assert "Traceback" not in log
