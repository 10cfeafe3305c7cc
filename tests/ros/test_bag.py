"""`flmm bag`: recorded images are grounded under their own stamps, whatever state the file is in."""

import functools
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mcap", reason="mcap is not installed: `make setup`, or `pip install -r requirements-bag.txt`")

from bench import image_of
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String

from flmm_cli.main import main
from flmm_ros.bag.files import BagWriter, definition_of, metadata, read
from flmm_ros.bag.formats import BagError
from flmm_ros.bag.job import finished_images
from flmm_ros.bag.recording import Nearest, Recording
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


def write_raw(path, messages, *, kind="std_msgs/msg/Header", encoding="cdr", compression=CompressionType.ZSTD, chunk=2**20):
    """A bag with ``(topic, data, log time)`` of one kind of messages, as other tools may write it."""
    with open(path, "wb") as file:
        writer = Writer(file, chunk_size=chunk, compression=compression)
        writer.start(profile="ros2", library="test")
        schema = writer.register_schema(kind, "ros2msg", b"")
        channels = {topic: writer.register_channel(topic, encoding, schema) for topic in sorted({m[0] for m in messages})}
        for topic, data, log_time in messages:
            writer.add_message(channels[topic], log_time, data, log_time)
        writer.finish()
    return path


@functools.cache
def small_images(count):
    """Serialized images of 8 x 8 pixels, one per second; the padding of their serialization differs from call to call."""
    noise = np.random.default_rng(0)
    return [
        (bytes(serialize_message(stamped(image_of(noise.integers(0, 255, (8, 8, 3), np.uint8)), (n, 0)))), n * SECOND)
        for n in range(count)
    ]


def image_bag(path, count=20, **how):
    """A bag with images of the topic /image, by default in chunks of one image each."""
    messages = [("/image", data, log_time) for data, log_time in small_images(count)]
    return write_raw(path, messages, **{"kind": "sensor_msgs/msg/Image", "chunk": 100, **how})


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
    out, command = tmp_path / "out.mcap", ["--phrase", "the can", "--out", tmp_path / "out.mcap"]
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
    for other in ({"command": "another"}, {"depth_tolerance": "1.0"}, {"bytes": "1"}, {"model": "another"}):
        with BagWriter(partial, name="flmm bag", made={**made, **other}) as writer:
            for recorded in whole[:6]:
                writer.copy(recorded)
        assert not list(finished_images(partial, made)), "another command, model or bag is another run"


def test_a_second_interruption_keeps_what_the_first_run_finished(bag, tmp_path, capsys, monkeypatch):
    out, command = tmp_path / "out.mcap", ["--phrase", "the mug", "--every", 3, "--out", tmp_path / "out.mcap"]
    assert flmm(capsys, bag, *command)[0] == 0
    partial, before = out.rename(tmp_path / "out.mcap.partial"), len(answers(tmp_path / "out.mcap.partial"))

    def interrupted(self, recorded):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(BagWriter, "copy", interrupted)
        assert flmm(capsys, bag, *command)[0] == 130
    assert len(answers(partial)) == before == 2


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
    assert "expected another path than what is read" in flmm(capsys, path, *out[:3], path)[2]
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


def test_depth_and_camera_info_are_found_wherever_they_were_recorded(scene, tmp_path, capsys):
    """All images are in the first file of a folder, their depth and the only camera info at the end of the tenth."""
    folder, stamps = tmp_path / "run", [(10 + n, 0) for n in range(33)]
    folder.mkdir()
    height, width = scene.image.shape[:2]
    with BagWriter(folder / "run_9.mcap", name="test", made={}) as writer:
        for n, stamp in enumerate(stamps):
            writer.write("/image", stamped(image_of(scene.image), stamp), n)
    with BagWriter(folder / "run_10.mcap", name="test", made={}) as writer:
        for n, stamp in enumerate(stamps):
            writer.write("/depth", stamped(image_of(scene.depth, "32FC1"), stamp), 100 + n)
        info = CameraInfo(height=height, width=width, k=scene.intrinsics.ravel().tolist())
        writer.write("/info", stamped(info, (99, 0)), 200)
    (folder / "metadata.yaml").write_text("rosbag2_bagfile_information:\n  storage_identifier: mcap\n")
    out = ["--phrase", "the can", "--out", tmp_path / "out.mcap", "--every", 16]
    status, said, _ = flmm(capsys, folder, *out, "--depth", "/depth", "--camera-info", "/info")
    assert status == 0 and "3 of 3 images answered" in said
    assert [p.location.reason for m in answers(tmp_path / "out.mcap") for p in m.phrases] == [""] * 3


def test_the_nearest_of_equal_stamps_was_recorded_beside_the_image(tmp_path):
    messages = [
        (topic, bytes(serialize_message(stamped(Image(), (0, 0)))), t) for t in range(6) for topic in ("/image", "/depth")
    ]
    recording = Recording(write_raw(tmp_path / "in.mcap", messages, kind="sensor_msgs/msg/Image"))
    depths = Nearest(recording.entries("/depth"))
    for image in recording.entries("/image"):
        assert image.log_time in [depth.log_time for depth in depths.around(image)]
    assert Nearest([]).nearest(image) is None and Nearest([]).around(image) == []


def test_files_of_a_folder_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (0, 2, 10, 9):
        image = bytes(serialize_message(stamped(Image(), (number, 0))))
        write_raw(tmp_path / f"run_{number}.mcap", [("/image", image, number)], kind="sensor_msgs/msg/Image")
    recording = Recording(tmp_path)
    assert [entry.log_time for entry in recording.entries("/image")] == [0, 2, 9, 10]
    assert recording.data(recording.entries("/image")[2]) == bytes(serialize_message(stamped(Image(), (9, 0))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "/dept", "/info"), "--depth: expected one of /depth, got /dept"),
        (("", "/image", "/info"), "--depth: expected one of /depth, got /image"),
        (("", "/depth", "/depth"), "--camera-info: expected one of no topic at all, got /depth"),
    ],
)
def test_topics_that_a_bag_does_not_have_are_refused(tmp_path, arguments, message):
    messages = [(topic, bytes(serialize_message(Image())), 0) for topic in ("/image", "/depth")]
    with pytest.raises(BagError, match=message):
        Recording(write_raw(tmp_path / "in.mcap", messages, kind="sensor_msgs/msg/Image")).choose(*arguments)


def test_short_type_names_are_read_and_other_encodings_named(tmp_path):
    def topics(**how):
        return Recording(image_bag(tmp_path / "in.mcap", 2, **how)).choose("", "", "")

    assert topics(kind="sensor_msgs/Image").image == "/image"
    with pytest.raises(BagError, match=r"got /image \(sensor_msgs/Image as ros1\); .*rosbags-convert --src OLD.bag"):
        topics(kind="sensor_msgs/Image", encoding="ros1")
    with pytest.raises(BagError, match=r"as cdr\), got /image \(foxglove.RawImage as protobuf\)$"):
        topics(kind="foxglove.RawImage", encoding="protobuf")
    with pytest.raises(BagError, match=r"got /image \(std_msgs/msg/String\)$"):
        topics(kind="std_msgs/msg/String")
    write_raw(tmp_path / "in.mcap", [("/image", b"\x28\xb5\x2f\xfd" + bytes(20), 0)], kind="sensor_msgs/msg/Image")
    with pytest.raises(BagError, match=r"compression mode message.*ros2 bag convert -i OLD"):
        Recording(tmp_path / "in.mcap")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.db3", b"SQLite format 3\0" + bytes(99), "a database of ros2 bag (db3), a.db3; convert it: "),
        ("a.bag", b"#ROSBAG V2.0\n", "a bag of ROS 1, a.bag; convert the ROS 1 bag: rosbags-convert"),
        ("a.mcap.zstd", b"\x28\xb5\x2f\xfd" + bytes(9), "decompress it: zstd -d a.mcap.zstd -o a.mcap"),
        ("metadata.yaml", b"rosbag2_bagfile_information:\n", "the description of a recording; give its folder"),
        ("a.mcap", b"", "expected an MCAP file, got an empty file"),
        ("a.mcap", b"\x89PNG\r\n\x1a\n", "expected an MCAP file, got a file that begins with"),
    ],
)
def test_other_formats_are_named_with_the_command_that_converts_them(tmp_path, name, content, message):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(BagError) as alone:
        Recording(path)
    assert message in str(alone.value) and "\n" not in str(alone.value)
    with pytest.raises(BagError) as folder:
        Recording(path.parent)
    assert message in str(folder.value) or "expected a folder with .mcap files, got none" in str(folder.value)


def test_no_file_is_written_into_what_is_read(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    bag = image_bag(tmp_path / "run" / "out.mcap.partial", 1)
    before = bag.read_bytes()
    for read_path, out in ((bag, "out.mcap"), (bag, bag.name), (bag.parent, "out.mcap")):
        status, _, said = flmm(capsys, read_path, "--phrase", "the mug", "--out", bag.parent / out)
        assert (status, said.count("\n")) == (2, 1) and "--out: expected a" in said
    assert bag.read_bytes() == before and [*bag.parent.iterdir()] == [bag]


@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_a_tolerance_is_a_time(tmp_path, capsys, value):
    status, _, said = flmm(capsys, tmp_path, "--phrase", "a", "--out", tmp_path / "o", f"--depth-tolerance={value}")
    assert status == 2 and "--depth-tolerance: expected at least 0 s, got" in said


def chunks_of(path):
    """Offset and length of the chunks of a bag, with the nine bytes before their content."""
    data, offset, found = path.read_bytes(), 8, []
    while offset < len(data) - 8:
        opcode, length = struct.unpack_from("<BQ", data, offset)
        found += [(offset, 9 + length)] if opcode == 6 else []
        offset += 9 + length
    return found


@pytest.mark.parametrize("compression", [CompressionType.NONE, CompressionType.LZ4, CompressionType.ZSTD])
def test_all_that_is_whole_in_a_damaged_bag_is_used(tmp_path, compression):
    path, said = image_bag(tmp_path / "in.mcap", compression=compression), []
    data = bytearray(path.read_bytes())
    for offset, length in chunks_of(path)[2:4]:
        data[offset + length - 30] ^= 0xFF
    path.write_bytes(data)
    recording = Recording(path, said.append)
    kept = [0, 1, *range(4, 20)]
    assert [entry.log_time // SECOND for entry in recording.entries("/image")] == kept
    expected = small_images(20)
    assert [recording.data(entry) for entry in recording.entries("/image")] == [expected[n][0] for n in kept]
    assert len(said) == 2 and all("is damaged or was cut off after 2 messages" in line for line in said)


def test_lengths_that_are_not_there_are_refused_before_they_are_read(tmp_path):
    whole = image_bag(tmp_path / "whole.mcap")
    start = chunks_of(whole)[5][0]
    content = whole.read_bytes()
    declared = {
        "record": (start + 1, struct.pack("<Q", 2**62)),
        "uncompressed size": (start + 9 + 16, struct.pack("<Q", 2**62)),
        "another uncompressed size": (start + 9 + 16, struct.pack("<Q", 1)),
        "name of the compression": (start + 9 + 28, struct.pack("<I", 2**31)),
        "opcode": (start, b"\0"),
    }
    for what, (offset, damage) in declared.items():
        path, said = tmp_path / "in.mcap", []
        path.write_bytes(content[:offset] + damage + content[offset + len(damage) :])
        assert 5 <= len(Recording(path, said.append).entries("/image")) <= 19, what
        assert len(said) == 1, what


def test_no_damage_is_more_than_a_line(tmp_path):
    whole, path = image_bag(tmp_path / "whole.mcap", 6).read_bytes(), tmp_path / "in.mcap"
    noise = np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(whole[: noise.integers(1, len(whole) + 1)])
        for _ in range(noise.integers(0, 4)):
            data[noise.integers(len(data))] = noise.integers(256)
        path.write_bytes(data)
        said = []
        try:
            recording = Recording(path, said.append)
            for entry in recording.entries("/image"):
                assert recording.data(entry)
        except BagError as error:
            said.append(str(error))
        assert all("\n" not in line for line in said)


def test_a_bag_that_changes_while_it_is_read_is_one_line(tmp_path):
    path = image_bag(tmp_path / "in.mcap")
    recording = Recording(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BagError, match=r"in.mcap: has changed while it was read"):
        recording.data(recording.entries("/image")[-1])
    path.unlink()
    with pytest.raises(BagError, match=r"cannot be read \(No such file or directory\)"):
        recording.data(recording.entries("/image")[-2])
