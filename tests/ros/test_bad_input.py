"""Whatever comes in, each command gets exactly one reply, and the node goes on serving (the fixture checks that)."""

import time
from threading import Timer

import numpy as np
import pytest
from bench import IMAGE, image_of
from encodings_of_images import as_encoding
from rclpy.serialization import serialize_message
from std_msgs.msg import String

from flmm_ros.client import NoReplyError
from flmm_ros.msg import GroundedAnswer


@pytest.mark.parametrize("encoding", ["bgr8", "bayer_grbg8", "nv12"])
def test_supported_encodings_give_the_right_colours(bench, encoding):
    """Three over a graph; all of them in test_conversions.py."""
    pixels, colour = as_encoding(IMAGE, encoding)
    reply = bench.ask_about(image_of(pixels, encoding, height=24), "mean")
    assert reply.status == GroundedAnswer.STATUS_ANSWERED, reply.reason
    got = np.array([int(word) for word in reply.answer.split()])
    assert np.abs(got - colour).max() <= 3


def test_unsupported_encodings_are_refused_by_name(bench):
    reply = bench.ask_about(image_of(IMAGE, "日本語"))
    assert reply.status == GroundedAnswer.STATUS_BAD_IMAGE
    assert repr("日本語") in reply.reason and "rgb8" in reply.reason
    assert reply.answer == "" and not reply.phrases


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"data": []}, "wrong data size: expected 2304 bytes (24 rows of step 96), got 0"),
        ({"width": 2**32 - 1, "height": 2**32 - 1}, "too large"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_are_refused(bench, changed, reason):
    reply = bench.ask_about(image_of(IMAGE, **changed))
    assert reply.status == GroundedAnswer.STATUS_BAD_IMAGE
    assert reason in reply.reason


def test_padded_rows_are_read(bench):
    padded = np.zeros((24, 128), np.uint8)
    padded[:, :96] = IMAGE.reshape(24, 96)
    assert bench.ask_about(image_of(padded, "rgb8", width=32), "mean").answer == "200 100 50"


def test_big_endian_16_bit_is_read(bench):
    message = image_of(IMAGE.astype(">u2") * 257, "rgb16", is_bigendian=1)
    assert bench.ask_about(message, "mean").answer == "200 100 50"


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_cameras_of_any_depth_show_what_a_person_sees(bench, bits):
    """Black, half and full brightness in thirds; 10 and 12 bits fill the low ones of mono16."""
    white = 2**bits - 1
    pixels = np.repeat(np.array([[0, white // 2, white]], "<u2"), 8, axis=0)
    assert bench.ask_about(image_of(pixels, "mono16"), "mean").answer == "127 127 127"
    dark = image_of(pixels // 8, "mono16")
    assert bench.set_parameter("significant_bits", bits).successful
    answer = bench.ask_about(dark, "mean").answer
    assert bench.set_parameter("significant_bits", 0).successful
    assert answer == "16 16 16", "the camera's depth is given, and a dark image stays dark"


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (2, 2)])
def test_tiny_and_thin_images(bench, size):
    reply = bench.ask_about(image_of(np.full((*size, 3), 7, np.uint8)))
    assert reply.status == GroundedAnswer.STATUS_ANSWERED, reply.reason
    assert (reply.image_height, reply.image_width) == size


def test_8k_image(start_scripted):
    # Best effort loses most images of more than half a megabyte: users of such cameras ask for reliable delivery.
    large = start_scripted("large", "max_image_age:=0.0", "qos_overrides./large/image.subscription.reliability:=reliable")
    reply = large.ask_about(image_of(np.zeros((4320, 7680, 3), np.uint8)))
    assert reply.status == GroundedAnswer.STATUS_BAD_IMAGE
    assert "7680x4320 is too large: expected at most 16777216 pixels (max_image_pixels)" in reply.reason
    large.still_serves()
    assert large.set_parameter("max_image_pixels", 7680 * 4320).successful
    reply = large.ask_about(image_of(np.zeros((4320, 7680), np.uint8), "mono8"))
    assert reply.status == GroundedAnswer.STATUS_ANSWERED, reply.reason
    assert (reply.image_height, reply.image_width) == (4320, 7680)
    large.still_serves()


@pytest.mark.parametrize("length", [4, 12, 30, 60, 2000])
def test_malformed_image_message(bench, length):
    bench.images.publish(serialize_message(image_of(IMAGE))[:length])
    bench.client.spin(0.2)
    reply = bench.ask()
    assert (reply.status, reply.reason) == (GroundedAnswer.STATUS_BAD_IMAGE, "the newest image message is malformed")


def test_image_with_a_broken_text_field(bench):
    bench.images.publish(serialize_message(image_of(IMAGE, "rgb8")).replace(b"rgb8", b"\xff\xfe\xff8"))
    bench.client.spin(0.2)
    reply = bench.ask()
    assert reply.status == GroundedAnswer.STATUS_BAD_IMAGE and "unsupported encoding" in reply.reason


def test_image_with_a_negative_stamp(bench):
    message = image_of(IMAGE)
    message.header.stamp.sec = -5
    bench.images.publish(message)
    bench.client.spin(0.2)
    reply = bench.ask()
    assert reply.status == GroundedAnswer.STATUS_BAD_IMAGE
    assert reply.reason == "the newest image has a negative stamp: expected seconds >= 0, got -5"
    assert reply.header == message.header


def test_an_image_of_another_clock_gets_a_hint(bench):
    """A bag or a simulator whose time is not used."""
    message = image_of(IMAGE)
    message.header.stamp.sec = 1000
    bench.images.publish(message)
    bench.client.spin(0.2)
    reply = bench.ask()
    assert reply.status == GroundedAnswer.STATUS_IMAGE_TOO_OLD and reply.header == message.header
    assert reply.reason.endswith("is it from a bag or a simulator? Then set use_sim_time, and let it publish /clock")


# --- commands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "\n\t  \r", "\x01\x02\x1b", "\u200b\u200d\ufeff"], ids=ascii)
@pytest.mark.parametrize("refer", [False, True], ids=["chat", "refer"])
def test_empty_commands_are_refused(bench, text, refer):
    bench.show()
    reply = bench.ask(text, refer=refer)
    assert (reply.status, reply.reason) == (GroundedAnswer.STATUS_EMPTY_COMMAND, "the command is empty")
    assert (reply.mode, reply.command) == (int(refer), text)


@pytest.mark.parametrize("length", [501, 10_000, 1_000_000])
def test_very_long_commands_are_refused(bench, length):
    bench.show()
    reply = bench.ask("where " * (length // 6) + "w" * (length % 6))
    assert reply.status == GroundedAnswer.STATUS_COMMAND_TOO_LONG
    assert f"expected at most 500 characters (max_command_length), got {length}" in reply.reason
    assert len(reply.command) == 500


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("wo ist die Zitrone, bitte?", "wo ist die Zitrone, bitte?"),
        ("柠檬在哪里？", "柠檬在哪里？"),
        ("أين الليمونة؟", "أين الليمونة؟"),
        ("где 🍋 лимон?", "где 🍋 лимон?"),
        ("where\x00is", "where"),
        ("where\x1b[31m is\x07 the\r\nlemon\t?", "where [31m is the lemon ?"),
        ("  where   is it  ", "where is it"),
        ("x" * 500, "x" * 500),
        ("{}%s\\n'\"; rm -rf", "{}%s\\n'\"; rm -rf"),
    ],
    ids=ascii,
)
def test_unusual_commands_are_answered(bench, text, heard):
    bench.show()
    bench.replies.clear()
    bench.commands.publish(String(data=text))
    reply = bench.until(lambda: bench.replies[0] if bench.replies else None)
    assert reply.status == GroundedAnswer.STATUS_ANSWERED, reply.reason
    assert reply.answer == f"It said: {heard}"
    assert reply.command == text.split("\x00")[0]


def test_command_that_is_not_utf8(bench):
    bench.show()
    bench.replies.clear()
    bench.commands.publish(serialize_message(String(data="abcdef")).replace(b"abc", b"\xff\xfe\xfd"))
    reply = bench.until(lambda: bench.replies[0] if bench.replies else None)
    assert (reply.status, reply.command) == (GroundedAnswer.STATUS_ANSWERED, "\ufffd\ufffd\ufffddef")


@pytest.mark.parametrize("length", [4, 6, 10])
def test_malformed_command_message(bench, length):
    bench.show()
    bench.replies.clear()
    bench.commands.publish(serialize_message(String(data="abcdef"))[:length])
    reply = bench.until(lambda: bench.replies[0] if bench.replies else None)
    assert (reply.status, reply.reason) == (GroundedAnswer.STATUS_BAD_COMMAND, "the command message is malformed")


def test_commands_before_any_image(start_scripted):
    early = start_scripted("early")
    for refer in (False, True):
        reply = early.ask(refer=refer)
        assert reply.status == GroundedAnswer.STATUS_NO_IMAGE
        assert reply.reason.startswith("no image has arrived yet: publishers of /early/image exist: 1 ")
        assert reply.header.stamp.sec == 0 and reply.image_width == 0
    with pytest.raises(
        NoReplyError, match=r"^/early/grounding has no image after 4 s: no image has arrived yet: publishers of "
    ):
        early.client.wait_for_image(4.0)
    timely = Timer(2.5, lambda: early.images.publish(image_of(IMAGE)))
    timely.start()
    assert early.client.wait_for_image(30.0).status == GroundedAnswer.STATUS_ANSWERED
    assert not timely.is_alive(), "it did not wait"
    early.still_serves()


def test_200_commands_in_a_burst_get_200_replies(bench):
    bench.show()
    texts = ["sleep 0.3", *(f"number {number}" for number in range(1, 200))]
    bench.replies.clear()
    for text in texts:
        bench.commands.publish(String(data=text))
    bench.until(lambda: len(bench.replies) >= 200, timeout=30.0)
    bench.client.spin(0.5)
    assert sorted(reply.command for reply in bench.replies) == sorted(texts)
    ids = [reply.request_id for reply in bench.replies]
    assert sorted(ids) == list(range(min(ids), min(ids) + 200))
    refused = [reply for reply in bench.replies if reply.status != GroundedAnswer.STATUS_ANSWERED]
    assert refused and {reply.status for reply in refused} == {GroundedAnswer.STATUS_BUSY}
    assert {reply.reason for reply in refused} == {"busy: 8 commands are waiting already (queue_size)"}
    assert len(bench.replies) - len(refused) >= 9  # the one in progress and those that waited


@pytest.mark.timing
def test_camera_that_stops(bench):
    bench.show()
    assert bench.ask().status == GroundedAnswer.STATUS_ANSWERED
    time.sleep(3.2)
    reply = bench.ask()
    assert reply.status == GroundedAnswer.STATUS_IMAGE_TOO_OLD
    assert "too old: expected at most 3 s (max_image_age), got 3." in reply.reason


def test_stale_stamp(bench):
    bench.show(age=3600.0)
    reply = bench.ask()
    assert reply.status == GroundedAnswer.STATUS_IMAGE_TOO_OLD
    assert "got 3600" in reply.reason


def test_stamp_from_the_future_and_no_stamp(bench):
    bench.show(age=-3600.0)
    assert bench.ask().status == GroundedAnswer.STATUS_ANSWERED
    bench.images.publish(image_of(IMAGE))
    bench.client.spin(0.2)
    assert bench.ask().status == GroundedAnswer.STATUS_ANSWERED


def test_any_age_is_fine_when_asked_for(bench):
    assert bench.set_parameter("max_image_age", 0.0).successful
    bench.show(age=3600.0)
    assert bench.ask().status == GroundedAnswer.STATUS_ANSWERED
    assert bench.set_parameter("max_image_age", 3.0).successful


def test_model_failure_is_one_line(bench):
    bench.show()
    reply = bench.ask("fail")
    assert (reply.status, reply.reason) == (GroundedAnswer.STATUS_MODEL_FAILURE, "the model failed: scripted failure")


def test_words_that_the_model_cannot_take_are_the_commands_fault(bench):
    bench.show()
    reply = bench.ask("forbidden")
    expected = "the command cannot be used: text: expected other words"
    assert (reply.status, reply.reason) == (GroundedAnswer.STATUS_BAD_COMMAND, expected)


def test_an_answer_that_cannot_be_sent_is_refused_once(bench):
    bench.show()
    reply = bench.ask("unsendable")
    assert reply.status == GroundedAnswer.STATUS_MODEL_FAILURE
    assert reply.reason.startswith("the answer cannot be sent: ")
    bench.ask()
    assert [other.command for other in bench.replies] == ["hello"]  # none came after it
