"""`flmm ask`, `flmm run` and `flmm demo` as a user calls them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import cv2
import numpy as np
import pytest
import rclpy
import torch
from bench import image_of
from documents import README, commands, document, section
from rclpy.action import ActionClient
from test_start import models  # noqa: F401

from flmm_cli.main import main
from flmm_core.data.samples import MISTAKE, REFER_ABSENT, Span, Turn
from flmm_core.images.files import write_image
from flmm_core.types import GroundedAnswer, GroundedPhrase
from flmm_demo.commands import KINDS, DemoCommand, plan
from flmm_demo.files import remove_earlier
from flmm_demo.report import lead_answers
from flmm_demo.run import Demo
from flmm_demo.truth import CheckedPhrase, Outcome, compare
from flmm_ros import camera_images
from flmm_ros.action import Ground
from flmm_ros.client import AskClient, NoReplyError
from flmm_ros.local_graph import local_graph
from flmm_ros.msg import GroundedAnswer as Reply
from flmm_ros.node_processes import NodeProcesses
from flmm_sim.language import TURNS

FLMM = [sys.executable, "-m", "flmm_cli"]


@pytest.fixture
def flmm(capfd):
    """Runs a command in this process, as a user's would run it; returns its exit status, stdout and stderr."""

    def run(*arguments, **environment):
        with mock.patch.dict(os.environ, environment):
            status = main(arguments)
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def opengl(open_renderer):
    open_renderer().close()


@pytest.fixture
def waiting(bench):
    """The shared node with an image that does not grow old while a command starts, however slowly."""
    assert bench.set_parameter("max_image_age", 0.0).successful
    bench.show()
    yield bench
    assert bench.set_parameter("max_image_age", 3.0).successful


def test_ask_prints_the_answer_and_where(waiting, tmp_path):
    command = [*FLMM, "ask", "where is it", "--node", "/shared/grounding", "--out", str(tmp_path / "overlay.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert lines[:2] == ["It said: where is it", "  It: x 0-16, y 0-24, score 0.75"]
    assert cv2.imread(str(tmp_path / "overlay.png")).shape[1] >= 480


def test_clients_that_ask_the_same_words_get_their_own_replies(waiting):
    """The first client's reply is the first to come, and must not be taken by the others."""
    answers = {}

    def ask(client, name):
        answers[name] = client.ask("count", timeout=60.0).answer

    with ExitStack() as stack:
        clients = [stack.enter_context(AskClient("/shared/grounding")) for _ in range(3)]
        for client in clients:
            client.wait_for_node(60.0)
        running = []
        first = ActionClient(waiting.client.node, Ground, "/shared/grounding/ground")
        stack.callback(first.destroy)
        waiting.until(first.server_is_ready)
        first.send_goal_async(Ground.Goal(text="sleep 8"), feedback_callback=running.append)
        waiting.until(lambda: running)  # the clients' commands wait for it
        threads = [threading.Thread(target=ask, args=(client, name)) for name, client in enumerate(clients)]
        for thread in threads:
            thread.start()
            time.sleep(0.3)
        assert not answers
        for thread in threads:
            thread.join()
    first = int(answers[0].removeprefix("call "))
    assert answers == {0: f"call {first}", 1: f"call {first + 1}", 2: f"call {first + 2}"}


def test_ask_refer(waiting, flmm):
    status, out, _ = flmm("ask", "the mug", "--refer", "--node", "/shared/grounding")
    assert status == 0 and out.startswith("the mug\n  the mug: x 0-16")


def test_ask_shows_a_refusal(waiting, flmm):
    assert flmm("ask", "fail", "--node", "/shared/grounding")[:2] == (1, "refused: the model failed: scripted failure\n")


def test_ask_without_a_node_is_one_line(flmm):
    status, out, said = flmm("ask", "hello", "--node", "/nobody/grounding", "--wait", "1")
    assert (status, out) == (1, "")
    assert said.startswith("flmm ask: no node /nobody/grounding within 1 s") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--node", "grounding", "node: expected a full name such as /grounding, got 'grounding'"),
        ("--node", "/gr ound", "node: expected a full name such as /grounding, got '/gr ound'"),
        ("--wait", "nan", "--wait: expected 0 seconds or more, got nan"),
        ("--timeout", "-1", "--timeout: expected 0 seconds or more, got -1"),
    ],
)
def test_ask_with_options_that_cannot_be_meant_is_one_line(option, value, said, flmm):
    assert flmm("ask", "hello", option, value) == (2, "", f"flmm ask: {said}\n")


def options_of(models):  # noqa: F811
    return [word for part in ("lmm", "heads", "sam") for word in (f"--{part}", str(models / part))]


def test_demo_asks_every_kind_over_all_its_scenes(opengl):
    asks = plan(13, 6, seed=1)
    kinds = [ask.turn.kind for ask in asks]
    assert set(kinds) == set(KINDS) == set(TURNS) - {MISTAKE} and kinds.count("list") == 2
    assert len(asks) == 13 and len({ask.seed for ask in asks}) == 6
    assert len({(ask.seed, ask.text) for ask in asks}) == 13
    for ask in asks:
        if ask.refer:  # one phrase: a message holds no more
            (span,) = ask.turn.spans
            assert ask.text == ask.turn.answer == ask.turn.answer[span.start : span.end]
            assert bool(span.objects) == (ask.turn.kind != REFER_ABSENT)
            assert not span.objects or ask.true_mask(span.objects).any()


def grounded(text, spans, masks, absent=()):
    phrases = tuple(
        GroundedPhrase(text[start:end], start, end, torch.from_numpy(mask), (0, 0, 1, 1), 0.9, absent=index in absent)
        for index, ((start, end), mask) in enumerate(zip(spans, masks, strict=True))
    )
    return GroundedAnswer(text, phrases, *masks[0].shape)


def test_demo_compares_masks_with_what_the_phrases_name(opengl):
    ask = next(ask for ask in plan(13, 6, seed=1) if ask.turn.kind == "list")
    things, turn = ask.scene.objects, ask.turn
    spans = [(span.start, span.end) for span in turn.spans]
    true = [np.any([things[i].mask for i in span.objects], axis=0) for span in turn.spans]

    def ious(answer):
        return [checked.iou for checked in compare(answer, ask)]

    assert ious(grounded(turn.answer, spans, true)) == [1.0] * len(spans)
    swapped = ious(grounded(turn.answer, spans, true[::-1]))
    assert swapped[0] == pytest.approx((true[0] & true[-1]).sum() / (true[0] | true[-1]).sum())
    name, mask = turn.answer[slice(*spans[0])], true[0]
    half = mask & (np.cumsum(mask).reshape(mask.shape) <= mask.sum() / 2)
    other = f"There is a {name} and a unicorn."
    spans = [(other.index(word), other.index(word) + len(word)) for word in (name, "unicorn")]
    assert ious(grounded(other, spans, [half, half])) == [pytest.approx(0.5, abs=0.02), None]


def stamped(number, value):
    message = image_of(np.full((4, 6, 3), value, np.uint8))
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(number, 5)
    return message


def test_images_are_kept_until_the_reply_comes_however_late(monkeypatch):
    kept = camera_images.CameraImages()
    kept.add(stamped(0, 1))
    kept.forget((0, 0))
    assert len(kept) == 0 and kept.get((0, 0)) is None
    for number in range(1, 501):  # a reply that takes 100 s
        kept.add(stamped(number, 7))
    kept.add(stamped(501, 8))
    assert len(kept) == 501
    first = kept.get((0, 1))
    assert first.shape == (4, 6, 3) and (first == 7).all() and (kept.get((100, 1)) == 8).all()
    assert kept.get((100, 0)) is first, "equal images do not share their memory"
    monkeypatch.setattr(camera_images, "MOST_IMAGES", 501)
    kept.add(stamped(502, 9))
    assert len(kept) == 501 and kept.get((0, 1)) is None and (kept.get((100, 2)) == 9).all()


def test_demo_asks_again_while_the_node_has_an_old_image(opengl):
    """On a loaded machine the camera's new image may reach the node later than the command."""
    (ask,) = plan(1, 1, seed=1)
    replies = [Reply(status=status) for status in (Reply.STATUS_ANSWERED, Reply.STATUS_ANSWERED, Reply.STATUS_NO_IMAGE)]
    for reply, seconds in zip(replies, (9, 10, 0), strict=True):
        reply.header.stamp.sec = seconds

    def answered(*waiting, timeout):
        demo = object.__new__(Demo)
        demo._processes, demo._timeout = SimpleNamespace(check=None), timeout
        demo._client = SimpleNamespace(ask=lambda *_, **options: waiting[0] if len(waiting) == 1 else waiting.pop(0))
        waiting = list(waiting)
        return demo._reply(ask, (10, 0))

    old, new, refused = replies
    assert answered(old, old, new, timeout=60) is new
    assert answered(refused, timeout=60) is refused
    with pytest.raises(NoReplyError, match="is about an old image"):
        answered(old, timeout=0.05)


MASK = np.ones((4, 4), bool)


def outcome(kind, text, phrases=(), *, missed=(), said=None, status=Reply.STATUS_ANSWERED):
    """An answer to a question whose true one is ``text``; phrases are (words, iou, mask, absent)."""
    named = [(words, iou is not None) for words, iou, *_ in phrases] + [(words, True) for words in missed]
    spans = tuple(Span(text.index(words), text.index(words) + len(words), (0,) if there else ()) for words, there in named)
    checked = tuple(
        CheckedPhrase(
            GroundedPhrase(words, span.start, span.end, torch.from_numpy(mask), (0, 0, 0, 0), 0.5, absent=absent), iou
        )
        for (words, iou, mask, absent), span in zip(phrases, spans, strict=False)
    )
    answer = GroundedAnswer(text if said is None else said, tuple(one.phrase for one in checked), 4, 4)
    command = DemoCommand(0, None, Turn(kind, f"{kind}?", text, spans))
    return Outcome(command, Reply(status=status, reason="no image"), np.zeros((4, 4, 3), np.uint8), answer, checked)


def test_demo_marks_what_is_wrong():
    mug = ("mug", 0.8, MASK, False)
    assert outcome("list", "a mug", [mug]).fault == ""
    assert outcome("list", "A mug.", [mug], said="a mug").fault == ""
    assert outcome("list", "a mug", [mug], said="a can").fault == "expected: a mug"
    assert outcome("list", "a mug and a can", [mug], missed=["can"]).fault == "“can”: no mask"
    assert outcome("list", "a mug", [("mug", 0.4, MASK, False)]).fault == "“mug”: IoU 0.40"
    assert outcome("refer", "mug", [("mug", 0.0, ~MASK, True)]).fault == "“mug”: marked as absent"
    assert outcome(REFER_ABSENT, "unicorn", [("unicorn", None, MASK, False)]).fault == "“unicorn”: expected no mask"
    assert outcome(REFER_ABSENT, "unicorn", [("unicorn", None, ~MASK, True)]).fault == ""
    assert outcome("list", "a mug", said="", status=Reply.STATUS_NO_IMAGE).fault == "refused: no image"


def test_demo_leads_with_its_best_answers():
    two = [("mug", 0.9, MASK, False), ("can", 0.7, MASK, False)]
    outcomes = [
        outcome("list", "a mug and a can", [(w, 0.95, m, a) for w, _, m, a in two], said="a mug, a can and a pan"),
        outcome("relation", "the mug is left of the can", [two[0]]),
        outcome("list", "a mug and a can", two),
        outcome("where", "the mug is here", [two[0]]),
        outcome("absence", "No pan.", [("pan", None, MASK, False)]),
        outcome(REFER_ABSENT, "pan", [("pan", None, ~MASK, True)]),
        outcome("relation", "the mug is left of the can", [(w, 0.5, m, a) for w, _, m, a in two]),
    ]
    assert lead_answers(outcomes) == [2, 1, 5]
    assert lead_answers(outcomes[:1]) == [0] and lead_answers(outcomes[3:4]) == []


def test_the_commands_of_readme(opengl, other_domain, log_dir, tmp_path, monkeypatch, capsys):
    """Those of "Your own camera", with the simulated camera as that camera, and the shipped model.

    The node's log holds its own lines only.
    """
    monkeypatch.setenv("ROS_DOMAIN_ID", other_domain)
    monkeypatch.chdir(tmp_path)
    node, *questions = [words for words in commands(section(document(README), "Your own camera")) if words[0] != "source"]
    topics = dict(word.split(":=") for word in node if word.startswith(("image", "depth", "camera_info")))
    shown = [part for name, topic in topics.items() for part in ("-r", f"~/{name}:={topic}")]
    with NodeProcesses(log_dir) as processes:
        processes.start("readme_camera", "flmm_ros.camera_node", ["--ros-args", *shown])
        shipped = processes.start("readme_node", node[2], node[3:])
        with AskClient() as client:
            client.wait_for_node(120.0, processes.check)
            client.wait_for_image(60.0, processes.check)
            client.spin(1.0)  # its depth comes on another way
        said = []
        for words in questions:
            assert main(words[1:]) == 0, capsys.readouterr()
            said.append(capsys.readouterr().out)
        shipped.send_signal(signal.SIGINT)
        assert shipped.wait(timeout=10) == 0
    assert ", at x " in said[0] and said[0].endswith("overlay: overlay.png\n") and (tmp_path / "overlay.png").is_file()
    assert "the purple mug: " in said[1]
    lines = [line for line in (log_dir / "readme_node.log").read_text().splitlines() if "vision_msgs" not in line]
    assert len(lines) >= 5  # loading, ready, and one for each command
    assert not [line for line in lines if not re.fullmatch(r"\[INFO\] \[[\d.]+\] \[grounding\]: .+", line)]


def test_demo_answers_everything_and_draws_it(models, opengl, other_domain, tmp_path, flmm):  # noqa: F811
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("stays")
    write_image(out / "99_list.png", MASK.astype("uint8"), "demo")  # of an earlier demo
    counts = ["--count", "4", "--scenes", "2"]
    status, printed, said = flmm("demo", *counts, "--out", str(out), *options_of(models), ROS_DOMAIN_ID=other_domain)
    assert status == 0, printed + said
    assert f"starting the camera and the grounding node in ROS domain {other_domain} " in printed
    assert "4 of 4 commands answered" in printed and "total ms" in printed
    records = json.loads((out / "answers.json").read_text())["answers"]
    assert len({record["kind"] for record in records}) >= 3 and not any(record["reason"] for record in records)
    assert all(cv2.imread(str(path)).shape[1] == 960 for path in out.glob("0*.png"))
    assert len(list(out.glob("[0-9]*.png"))) == 4 and (out / "contact_sheet.png").exists()
    assert ("WRONG, " in printed) == any(record["fault"] for record in records)
    remove_earlier(out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"], "the demo writes files that the next one would not remove"


@pytest.mark.parametrize("command", ["demo", "run", "soak"])
def test_commands_that_start_nodes_need_a_domain_without_such_nodes(other_domain, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROS_DOMAIN_ID", other_domain)
    for name, value in local_graph().items():  # the command sets them; they are set back after the test
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(NodeProcesses, "start", lambda *_: pytest.fail("it starts its nodes"))
    monkeypatch.setattr("flmm_ros.local_graph._DISCOVERY", 30.0)  # of a busy machine; it ends as soon as the node is found
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node("grounding", context=context)
    try:
        assert main([command]) == 2
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "expected a domain without /" in said.err
    assert f"got {other_domain}, where /grounding runs already" in said.err
    assert not list(tmp_path.iterdir())


def test_demo_with_a_broken_model_fails_and_leaves_nothing_running(models, opengl, other_domain, tmp_path, flmm):  # noqa: F811
    broken = ["--lmm", str(models / "truncated_lmm"), "--heads", str(models / "heads"), "--sam", str(models / "sam")]
    before, counts = set(children_of(os.getpid())), ["--count", "1", "--scenes", "1"]
    # In a domain of its own: the node that other tests ask would answer here too.
    status, _, said = flmm("demo", *counts, "--out", str(tmp_path / "out"), *broken, ROS_DOMAIN_ID=other_domain)
    assert status == 1
    assert "grounding ended with status 1" in said and "truncated_lmm: cannot be loaded, the file may be damaged" in said
    assert said.count("\n") == 1
    log = (tmp_path / "out" / "grounding.log").read_text()
    assert log.count("[FATAL]") == 1 and "Traceback" not in log
    assert set(children_of(os.getpid())) <= before


def children_of(pid):
    """Of them, a process that has ended and that ``ps`` itself is, are none."""
    output = subprocess.run(["ps", "-o", "pid=,stat=,comm=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    found = [line.split(maxsplit=2) for line in output.splitlines()]
    return [int(number) for number, state, name in found if state[0] != "Z" and name != "ps"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_run_takes_its_nodes_with_it(models, opengl, other_domain, number):  # noqa: F811
    environment = {**os.environ, "ROS_DOMAIN_ID": other_domain}
    command = [*FLMM, "run", *options_of(models)]
    # As from a terminal: programs that a shell starts in the background ignore SIGINT, and hand that on.
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(nodes := children_of(running.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(nodes) == 3, "camera, node and the example that takes things"
    time.sleep(1.0)
    running.send_signal(number)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == (0 if number == signal.SIGINT else -number)
    assert "Traceback" not in output
    while any(os.path.exists(f"/proc/{node}") for node in nodes) and time.monotonic() < deadline + 30:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{node}") for node in nodes)
