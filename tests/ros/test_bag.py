"""`flmm bag`: recorded images are grounded under their own stamps, whatever state the file is in."""

from pathlib import Path

import pytest

pytest.importorskip("mcap", reason="mcap is not installed: `make setup`, or `pip install -r requirements-bag.txt`")

from bench import image_of
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String

from flmm_cli.main import main
from flmm_ros.bag.files import BagError, BagWriter, definition_of, metadata, read
from flmm_ros.conversions import phrase_from_message
from flmm_ros.msg import GroundedAnswer

SECOND = 10**9
STAMPS = ((5, 0), (6, 500), (-3, 0), (4_000_000, 7), (7, 0))
"""Seconds and nanoseconds of the images: before 1970, and with a clock that jumps."""


def stamped(message, stamp, frame="camera"):
    message.header = Header(frame_id=frame)
    message.header.stamp.sec, message.header.stamp.nanosec = stamp
    return message


@pytest.fixture(scope="module")
def scene(open_renderer):
    with open_renderer() as renderer:
        return renderer.sample(1)


@pytest.fixture(scope="module")
def bag(tmp_path_factory, scene):
    """Five images with depth and camera info, recorded three seconds after they were taken."""
    path = tmp_path_factory.mktemp("bags") / "in.mcap"
    height, width = scene.image.shape[:2]
    with BagWriter(path, name="test", made={}) as writer:
        for number, stamp in enumerate(STAMPS):
            at = (number + 10) * SECOND
            info = CameraInfo(height=height, width=width, k=scene.intrinsics.ravel().tolist())
            writer.write("/camera/camera_info", stamped(info, stamp), at)
            writer.write("/camera/image", stamped(image_of(scene.image), stamp), at)
            writer.write("/camera/depth", stamped(image_of(scene.depth, "32FC1"), stamp), at + 1)
            writer.write("/chatter", String(data="hello"), at)
    return path


def flmm(capsys, *arguments):
    status = main(["bag", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def answers(path):
    return [deserialize_message(m.data, GroundedAnswer) for m in read(path) if m.topic == "/grounding/answer"]


def test_every_image_gets_what_the_node_would_publish(bag, tmp_path, capsys):
    out = tmp_path / "new" / "out.mcap"
    places = ["--depth", "/camera/depth", "--camera-info", "/camera/camera_info"]
    status, said, _ = flmm(capsys, bag, "--command", "what is on the table?", "--image", "/camera/image", "--out", out, *places)
    assert (status, said.splitlines()[-1]) == (0, f"{out}: 5 of 5 images answered")
    assert not list(out.parent.glob("*.partial"))
    found = answers(out)
    assert [(m.header.stamp.sec, m.header.stamp.nanosec) for m in found] == list(STAMPS)
    assert {m.command for m in found} == {"what is on the table?"} and [m.request_id for m in found] == [1, 2, 3, 4, 5]
    for message in found:
        assert message.phrases and message.answer == found[0].answer
        assert phrase_from_message(message.phrases[0], message.image_height, message.image_width).mask.any()
        assert message.phrases[0].location.valid, message.phrases[0].location.reason
    with open(out, "rb") as file:  # as others read it, by its index
        reader = make_reader(file)
        summary = reader.get_summary()
        topics = {summary.channels[i].topic: n for i, n in summary.statistics.channel_message_counts.items()}
        times = [message.log_time for _, channel, message in reader.iter_messages() if channel.topic == "/grounding/answer"]
    assert topics == {f"/grounding/{name}": 5 for name in ("answer", "overlay", "label_mask", "objects", "markers")}
    assert times == [(number + 10) * SECOND for number in range(5)]
    overlay = next(deserialize_message(m.data, Image) for m in read(out) if m.topic == "/grounding/overlay")
    assert (overlay.header.stamp.sec, overlay.encoding) == (5, "rgb8")


def test_every_other_image_and_a_phrase(bag, tmp_path, capsys):
    out = tmp_path / "out.mcap"
    status, said, _ = flmm(capsys, bag, "--phrase", "the mug", "--every", 2, "--out", out)
    assert status == 0 and "3 of 3 images answered" in said
    assert [m.header.stamp.sec for m in answers(out)] == [5, -3, 7]
    assert {m.mode for m in answers(out)} == {GroundedAnswer.MODE_REFER}


def test_an_interrupted_run_goes_on(bag, tmp_path, capsys):
    out, command = tmp_path / "out.mcap", ["--command", "where is the lemon?", "--out", tmp_path / "out.mcap"]
    assert flmm(capsys, bag, *command)[0] == 0
    whole, partial = list(read(out)), tmp_path / "out.mcap.partial"
    made = metadata(out, "flmm bag")
    with BagWriter(partial, name="flmm bag", made=made) as writer:
        for recorded in whole[:12]:  # two images, and two messages about a third
            writer.copy(recorded)
    partial.write_bytes(partial.read_bytes()[:-200])  # cut off
    out.unlink()
    status, said, _ = flmm(capsys, bag, *command)
    assert status == 0 and said.splitlines()[-1].endswith("5 of 5 images answered (2 of them earlier)")
    again = list(read(out))
    assert [(m.topic, m.log_time) for m in again] == [(m.topic, m.log_time) for m in whole]
    with BagWriter(partial, name="flmm bag", made={**made, "command": "another"}) as writer:
        writer.copy(whole[0])
    assert "earlier" not in flmm(capsys, bag, *command)[1], "another question is another run"


def test_a_bag_that_was_cut_off_is_used_up_to_there(bag, tmp_path, capsys):
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(bag.read_bytes()[: int(bag.stat().st_size * 0.7)])
    status, said, _ = flmm(capsys, cut, "--phrase", "the mug", "--out", tmp_path / "out.mcap")
    assert status == 0 and "is damaged or was cut off after" in said
    assert 1 <= len(answers(tmp_path / "out.mcap")) < 5


def test_images_that_cannot_be_used_are_named_and_the_others_answered(scene, tmp_path, capsys):
    path = tmp_path / "in.mcap"
    with BagWriter(path, name="test", made={}) as writer:
        writer.write("/image", stamped(image_of(scene.image, "rgb9"), (1, 0)), 1)
        writer.write("/image", stamped(image_of(scene.image), (2, 0)), 2)
    assert flmm(capsys, path, "--phrase", "the mug", "--out", tmp_path / "out.mcap")[0] == 0
    bad, good = answers(tmp_path / "out.mcap")
    assert bad.status == GroundedAnswer.STATUS_BAD_IMAGE and "'rgb9'" in bad.reason and bad.header.stamp.sec == 1
    assert good.status == GroundedAnswer.STATUS_ANSWERED


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda path: None, [], "cannot be read (No such file or directory)"),
        (lambda path: path.write_bytes(b""), [], "expected an MCAP file, got"),
        (lambda path: path.write_text("no bag" * 100), [], "expected an MCAP file, got"),
    ],
    ids=["missing", "empty", "text"],
)
def test_what_is_no_bag_is_one_line(tmp_path, capsys, make, arguments, message):
    path = tmp_path / "in.mcap"
    make(path)
    status, _, said = flmm(capsys, path, "--phrase", "the mug", "--out", tmp_path / "out.mcap", *arguments)
    assert status in (1, 2) and message in said and said.count("\n") == 1


def test_topics_are_chosen_or_named(scene, tmp_path, capsys):
    path, out = tmp_path / "in.mcap", ["--phrase", "the mug", "--out", tmp_path / "out.mcap"]
    with BagWriter(path, name="test", made={}) as writer:
        for topic in ("/left/image", "/right/image", "/left/depth"):
            writer.write(topic, stamped(image_of(scene.image), (1, 0)), 1)
    assert "expected one topic of images, got /left/image, /right/image; choose one with --image" in flmm(capsys, path, *out)[2]
    assert (
        "expected one of /left/depth, /left/image, /right/image, got /image" in flmm(capsys, path, *out, "--image", "/image")[2]
    )
    assert "expected both, or none of them" in flmm(capsys, path, *out, "--depth", "/left/depth")[2]
    assert "expected another file" in flmm(capsys, path, *out[:3], path)[2]
    assert flmm(capsys, path, *out, "--image", "/left/image")[0] == 0


def test_definitions_hold_everything():
    text = definition_of("flmm_ros/msg/GroundedAnswer")
    for name in (
        "flmm_ros/GroundedPhrase",
        "flmm_ros/Location",
        "sensor_msgs/Image",
        "std_msgs/Header",
        "builtin_interfaces/Time",
    ):
        assert text.count(f"MSG: {name}\n") == 1
    with pytest.raises(BagError):
        list(read(Path("/no/such.mcap")))
