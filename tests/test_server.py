"""Serving without ROS: whatever happens, each request gets one reply, and the server can be used again."""

import gc
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flmm_core.errors import CommandCancelledError, CommandError, MemoryFullError
from flmm_core.requests.callbacks import Callbacks
from flmm_core.serving.queue import FairQueue
from flmm_core.serving.requests import CameraImage, Limits, Mode, RefusedError, Request, Status, clean_text
from flmm_core.serving.server import GroundingServer
from flmm_core.serving.watch import WatchRequest
from flmm_core.types import GroundedAnswer, GroundedPhrase

PIXELS = np.zeros((48, 64, 3), np.uint8)


class Scripted:
    """Answers by script; ``gate`` holds it inside the words "wait", and "write" goes on until it is cancelled."""

    def __init__(self):
        self.gate, self.entered = threading.Event(), threading.Event()
        self.heard, self.limits, self.seen = [], [], []
        self.thresholds = {}

    def encode(self, image):
        return image

    def chat(self, image, text, *, max_new_tokens=None, max_phrases=None, callbacks=None):
        self.heard.append(text)
        self.limits.append((max_new_tokens, max_phrases))
        if text != "thing":
            self.entered.set()
        if text == "wait":
            assert self.gate.wait(10)
        if text == "write":
            while not callbacks.cancelled():
                time.sleep(0.01)
            self.heard.append("stopped")
            raise CommandCancelledError("command: cancelled")
        if isinstance(error := ERRORS.get(text), BaseException):
            raise error
        return GroundedAnswer(text, (), *image.shape[:2])

    def chat_batch(self, commands):
        self.heard.append([command.text for command in commands])
        for command in commands:
            try:
                options = {
                    "max_new_tokens": command.max_new_tokens,
                    "max_phrases": command.max_phrases,
                    "callbacks": command.callbacks,
                }
                yield self.chat(command.image, command.text, **options)
            except Exception as error:
                yield error

    def refer(self, image, phrases, *, callbacks=None):
        self.heard.append(tuple(phrases))
        self.seen.append(image)
        mask = torch.zeros(*image.shape[:2], dtype=torch.bool)
        mask[10:30, 20:40] = True
        found = [GroundedPhrase(phrase, 0, len(phrase), mask, (20, 10, 40, 30), 0.9) for phrase in phrases]
        return GroundedAnswer(". ".join(phrases), tuple(found), *image.shape[:2])

    def set_thresholds(self, **thresholds):
        self.thresholds |= thresholds

    def describe(self):
        return {"lmm": "scripted"}

    def device_memory(self):
        return 7


ERRORS = {
    "fail": RuntimeError("no\nluck"),
    "forbidden": CommandError("text: expected other words"),
    "memory": MemoryFullError("too little memory"),
    "end": SystemExit("the end"),
}
SAID = {
    "fail": (Status.MODEL_FAILURE, "the model failed: no luck"),
    "forbidden": (Status.BAD_COMMAND, "the command cannot be used: text: expected other words"),
    "memory": (Status.OUT_OF_MEMORY, "too little memory"),
}


class Bench:
    """A serving server and every reply that it gave."""

    def __init__(self, capacity=3, *, start=True, batch_size=1, deadline=0.0):
        self.pipeline = Scripted()
        self.losses, self.replies, self.hangs = [], [], []
        self.server = GroundingServer(
            lambda: self.pipeline,
            lost=self.losses.append,
            hangs=self.hangs.append,
            chat_batch=lambda pipeline, commands: pipeline.chat_batch(commands),
            batch_size=batch_size,
        )
        self.facts = self.server.load().result(10)
        self.capacity = capacity
        if start:
            self.server.start(capacity, command_deadline=deadline)

    def request(self, words, mode=Mode.CHAT, **options):
        options.setdefault("image", lambda: CameraImage(PIXELS, "source"))
        options.setdefault("reply", lambda reply: self.replies.append((words, reply)))
        return Request(mode, (words,), **options)

    def submit(self, *words, **options):
        requests = [self.request(word, **options) for word in words]
        for request in requests:
            self.server.submit(request)
        return requests

    def hold(self):
        """A request that stays in progress until the gate opens."""
        (held,) = self.submit("wait", client="holder")
        assert self.pipeline.entered.wait(10)
        return held

    def wait(self, requests):
        for request in requests:
            assert request.replied.wait(10), request.words
        return [(words, reply.status) for words, reply in self.replies]


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.pipeline.gate.set()
    made.server.stop(5, "over")
    assert made.server.unload(5)


def test_load_tries_the_pipeline_out_in_both_modes(bench):
    assert bench.facts == {"lmm": "scripted"} and bench.server.device_memory() == 7
    assert bench.pipeline.heard == [("thing",), "thing"]


def test_in_order_and_no_more_than_the_queue_holds(bench):
    held = bench.hold()
    requests = bench.submit("a", "b", "c", "d", client="one")
    bench.pipeline.gate.set()
    statuses = bench.wait([held, *requests])
    assert statuses == [("d", Status.BUSY), *((words, Status.ANSWERED) for words in ("wait", "a", "b", "c"))]
    assert bench.replies[0][1].reason == "busy: 3 commands are waiting already (queue_size)"
    reply = bench.replies[-1][1]
    assert (reply.answer.text, reply.source, reply.image.pixels is PIXELS) == ("c", "source", True)
    assert reply.began > requests[2].arrived


def test_clients_take_turns():
    queue = FairQueue()
    queue.capacity = 10
    requests = [SimpleNamespace(client=client, words=words) for client, words in ("a1", "a2", "a3", "b1", "b2", "c1")]
    for request in requests:
        queue.put(request)
    queue.remove(requests[4])
    queue.remove(requests[4])
    order = []
    while (request := queue.get()) is not None:
        order.append(request.client + request.words)
    assert order == ["a1", "b1", "c1", "a2", "a3"] and len(queue) == 0
    queue.put(requests[0])
    assert len(queue) == 1 and queue.clear() == requests[:1] and len(queue) == 0


def test_a_full_queue_is_shared_among_the_clients_that_need_it():
    queue = FairQueue()
    queue.capacity = 6
    flood = [SimpleNamespace(client="flood", words=str(number)) for number in range(8)]
    assert [queue.put(request) for request in flood] == [None] * 6 + flood[6:], "one client alone may use all places"
    other = [SimpleNamespace(client="other", words=str(number)) for number in range(4)]
    assert [queue.put(request) for request in other] == [flood[5], flood[4], flood[3], other[3]], "the newest give way"
    third = SimpleNamespace(client="third", words="0")
    assert queue.put(third) in (flood[2], other[2]) and len(queue) == 6
    assert queue.put(SimpleNamespace(client="third", words="1")) is not None and len(queue) == 6


def test_a_client_that_floods_gets_no_other_one_refused(bench):
    """Thirty commands one by one beside a client that keeps the queue full."""
    polite, over = [], threading.Event()

    def slow():
        time.sleep(0.005)
        return CameraImage(PIXELS)

    def flood():
        while not over.is_set():
            bench.submit("flood", client="flood", reply=lambda reply: None, image=slow)
            time.sleep(0.0005)

    thread = threading.Thread(target=flood)
    thread.start()
    eventually(lambda: bench.server.waiting == bench.capacity)
    for number in range(30):
        (request,) = bench.submit(str(number), client="polite", reply=polite.append)
        assert request.replied.wait(10)
    over.set()
    thread.join()
    assert [reply.status for reply in polite] == [Status.ANSWERED] * 30


def test_who_has_to_give_way_is_told_why(bench):
    held = bench.hold()
    flood = bench.submit("1", "2", "3", client="flood")
    polite = bench.submit("please", client="polite")
    assert bench.wait(flood[2:]) == [("3", Status.BUSY)]
    assert bench.replies[0][1].reason == (
        "busy: 3 commands are waiting already (queue_size); this one gave way to a client with fewer"
    )
    bench.pipeline.gate.set()
    assert all(status == Status.ANSWERED for _, status in bench.wait([held, *flood[:2], *polite])[1:])


@pytest.fixture
def batch():
    made = Bench(capacity=8, batch_size=3)
    yield made
    made.pipeline.gate.set()
    made.server.stop(5, "over")
    assert made.server.unload(5)


def test_questions_that_wait_are_answered_together(batch):
    """As many as may be, clients in turn, up to the next command that is no question."""
    held = batch.hold()
    requests = [*batch.submit("a1", "a2", "a3", client="a"), *batch.submit("b1", "b2", client="b")]
    requests += batch.submit("cup", mode=Mode.REFER, client="c")
    heard = len(batch.pipeline.heard)
    batch.pipeline.gate.set()
    assert all(status == Status.ANSWERED for _, status in batch.wait([held, *requests]))
    groups = [one for one in batch.pipeline.heard[heard:] if not isinstance(one, str)]
    assert groups == [["a1", "b1"], ("cup",), ["a2", "b2", "a3"]]
    assert {words: reply.answer.text for words, reply in batch.replies}["b2"] == "b2"


def test_what_goes_wrong_with_one_leaves_the_others_of_its_batch(batch):
    def image():
        raise RefusedError(Status.NO_IMAGE, "no image")

    held = batch.hold()
    requests = [*batch.submit("fail", client="a"), *batch.submit("blind", client="b", image=image)]
    requests += batch.submit("good", client="c", limits=lambda: Limits(5, 2))
    batch.pipeline.gate.set()
    assert batch.wait([held, *requests])[1:] == [
        ("blind", Status.NO_IMAGE), ("fail", Status.MODEL_FAILURE), ("good", Status.ANSWERED),
    ]  # fmt: skip
    assert batch.pipeline.limits[-1] == (5, 2) and batch.pipeline.heard[-3] == ["fail", "good"]


def test_a_batch_that_is_in_work_when_the_server_stops_or_dies_gets_its_refusals(batch):
    held = batch.hold()
    requests = [*batch.submit("write", client="a"), *batch.submit("write", client="b")]
    batch.pipeline.gate.set()
    held.replied.wait(10)
    batch.server.cancel(requests[0])
    batch.server.stop(0.1, "over")
    assert [status for _, status in batch.wait(requests)[1:]] == [Status.CANCELLED, Status.SHUTTING_DOWN]
    batch.server.start(8)
    batch.pipeline.gate.clear()
    batch.pipeline.entered.clear()
    held = batch.hold()
    last = [*batch.submit("one", client="a"), *batch.submit("end", client="b"), *batch.submit("two", client="c")]
    batch.pipeline.gate.set()
    assert [status for _, status in batch.wait([held, *last])[-2:]] == [Status.MODEL_FAILURE] * 2
    assert batch.losses == ["cannot serve: the end"]


@pytest.mark.parametrize("words", SAID)
def test_what_goes_wrong_is_said_and_the_next_is_served(bench, words):
    bench.wait(bench.submit(words, "next"))
    (_, refusal), (_, answer) = bench.replies
    assert (refusal.status, refusal.reason) == SAID[words]
    assert refusal.answer is None and answer.status == Status.ANSWERED


def test_an_image_may_refuse_its_request(bench):
    def image():
        raise RefusedError(Status.NO_IMAGE, "no image", "header")

    bench.wait(bench.submit("hello", image=image))
    reply = bench.replies[0][1]
    assert (reply.status, reply.reason, reply.source) == (Status.NO_IMAGE, "no image", "header")


def test_limits_reach_the_pipeline(bench):
    bench.wait(bench.submit("hello", limits=lambda: Limits(5, 2)))
    bench.wait(bench.submit("hello"))
    assert bench.pipeline.limits[-2:] == [(5, 2), (None, None)]


def test_an_answer_that_cannot_be_sent_becomes_a_refusal(bench):
    sent = []

    def reply(reply):
        if reply.answer is not None:
            raise ValueError("too large")
        sent.append(reply)

    bench.wait(bench.submit("hello", reply=reply))
    assert [(one.status, one.reason) for one in sent] == [
        (Status.MODEL_FAILURE, "the answer cannot be sent: too large"),
    ]


def test_a_reply_is_claimed_once():
    for _ in range(50):
        replies = []
        request = Request(Mode.CHAT, ("words",), image=lambda: None, reply=replies.append)
        barrier, claims = threading.Barrier(8), []

        def claim(request=request, barrier=barrier, claims=claims):
            barrier.wait()
            claims.append(request.refuse(RefusedError(Status.BUSY, "busy")))

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(claims) == [False] * 7 + [True] and len(replies) == 1


# --- cancel ---------------------------------------------------------------------------------------------------------------


def test_cancel_a_request_in_work(bench):
    (request,) = bench.submit("write")
    assert bench.pipeline.entered.wait(10)
    bench.server.cancel(request)
    assert bench.wait([request]) == [("write", Status.CANCELLED)]
    bench.wait(bench.submit("next"))
    assert bench.pipeline.heard[-2:] == ["stopped", "next"] and len(bench.replies) == 2


def test_cancel_a_waiting_request(bench):
    held = bench.hold()
    first, second = bench.submit("first", "second")
    bench.server.cancel(first)
    assert bench.wait([first]) == [("first", Status.CANCELLED)] and bench.server.waiting == 1
    bench.pipeline.gate.set()
    bench.wait([held, second])
    assert "first" not in bench.pipeline.heard


# --- stop -----------------------------------------------------------------------------------------------------------------


def test_stop_refuses_what_waits_and_lets_the_one_in_work_finish(bench):
    held = bench.hold()
    (waiting,) = bench.submit("a")
    threading.Timer(0.2, bench.pipeline.gate.set).start()
    bench.server.stop(10, "over")
    assert bench.wait([held, waiting]) == [("a", Status.SHUTTING_DOWN), ("wait", Status.ANSWERED)]
    bench.wait(bench.submit("b"))
    assert (bench.replies[-1][1].status, bench.replies[-1][1].reason) == (Status.SHUTTING_DOWN, "over")


def test_stop_refuses_the_one_in_work_when_it_takes_too_long_and_ends_it(bench):
    (request,) = bench.submit("write")
    assert bench.pipeline.entered.wait(10)
    bench.server.stop(0.05, "over")
    assert bench.wait([request]) == [("write", Status.SHUTTING_DOWN)]
    bench.server.start(3)
    bench.wait(bench.submit("again"))
    assert bench.pipeline.heard[-2:] == ["stopped", "again"]


def test_nothing_is_taken_before_the_start():
    bench = Bench(start=False)
    bench.wait(bench.submit("early"))
    assert bench.replies[0][1].status == Status.SHUTTING_DOWN and bench.server.unload(5)


def test_unload_frees_the_pipeline_and_load_makes_another():
    bench = Bench()
    pipeline = weakref.ref(bench.pipeline)
    bench.wait(bench.submit("hello"))
    bench.server.stop(5, "over")
    bench.pipeline = None
    assert bench.server.unload(5)
    gc.collect()
    assert pipeline() is None and bench.server.device_memory() == 0
    bench.pipeline = Scripted()
    bench.server.load().result(10)
    bench.server.start(1)
    bench.replies.clear()
    assert bench.wait(bench.submit("again")) == [("again", Status.ANSWERED)]
    bench.server.stop(5, "over")
    assert bench.server.unload(5)


def test_unload_says_when_something_is_still_in_work():
    bench = Bench()
    held = bench.hold()
    bench.server.stop(0.05, "over")
    assert not bench.server.unload(0.0)
    bench.pipeline.gate.set()
    assert bench.server.unload(5) and bench.wait([held]) == [("wait", Status.SHUTTING_DOWN)]


def test_an_unload_that_fails_leaves_a_server_that_serves():
    bench = Bench()
    held = bench.hold()
    bench.server.stop(0.05, "over")
    assert not bench.server.unload(0.0)
    bench.server.start(3)
    requests = bench.submit("one", "two")
    bench.pipeline.gate.set()
    assert bench.wait([held, *requests])[1:] == [("one", Status.ANSWERED), ("two", Status.ANSWERED)]
    bench.server.stop(5, "over")
    assert bench.server.unload(5)


# --- deadline -------------------------------------------------------------------------------------------------------------


def eventually(true):
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_command_that_takes_too_long_is_refused_and_the_next_is_served():
    bench = Bench(deadline=0.1)
    requests = bench.submit("write", "next")
    assert bench.wait(requests) == [("write", Status.MODEL_FAILURE), ("next", Status.ANSWERED)]
    assert bench.replies[0][1].reason == "the model did not answer within 0.1 s (command_deadline)"
    assert bench.pipeline.heard[-2:] == ["stopped", "next"] and not bench.hangs and bench.server.working == 0.0
    bench.server.stop(5, "over")
    assert bench.server.unload(5)


class Slow(Callbacks):
    """Whoever cancels goes on only after the worker has noticed it."""

    def cancel(self):
        super().cancel()
        time.sleep(0.1)


@pytest.mark.parametrize("refuse", ["deadline", "stop", "left"])
def test_what_is_refused_in_progress_keeps_the_reason_of_its_refusal(refuse):
    """The worker, which notices that the command was cancelled, knows no reason but that."""
    bench = Bench(deadline=0.1 if refuse == "deadline" else 0.0)
    (request,) = bench.submit("write", callbacks=Slow())
    assert bench.pipeline.entered.wait(10)
    if refuse == "stop":
        bench.server.stop(0.0, "over")
    if refuse == "left":
        bench.server.cancel(request, RefusedError(Status.CANCELLED, "its client has left"))
    bench.wait([request])
    overdue = "the model did not answer within 0.1 s (command_deadline)"
    expected = {"deadline": overdue, "stop": "over", "left": "its client has left"}
    assert [reply.reason for _, reply in bench.replies] == [expected[refuse]]
    bench.server.stop(5, "over")
    assert bench.server.unload(5)


def test_a_model_that_hangs_is_said_until_it_returns(monkeypatch):
    monkeypatch.setattr("flmm_core.serving.in_progress._GIVING_UP", 0.1)
    bench = Bench(deadline=0.1)
    held = bench.hold()
    waiting = bench.submit("waits")
    reason = "the model hangs: it has not returned for more than 0.1 s (command_deadline)"
    eventually(lambda: bench.hangs == [reason])
    late = bench.submit("late")
    assert bench.wait([held, *waiting, *late]) == [
        ("wait", Status.MODEL_FAILURE), ("waits", Status.MODEL_FAILURE), ("late", Status.MODEL_FAILURE),
    ]  # fmt: skip
    assert bench.replies[2][1].reason == reason and bench.server.working > 0.2
    bench.pipeline.gate.set()
    eventually(lambda: bench.hangs == [reason, ""])
    assert bench.wait(bench.submit("next"))[-1] == ("next", Status.ANSWERED)
    bench.server.stop(5, "over")
    assert bench.server.unload(5)


def test_a_watch_list_that_hangs_is_noticed(monkeypatch):
    monkeypatch.setattr("flmm_core.serving.in_progress._GIVING_UP", 0.1)
    bench = Bench(deadline=0.1)
    bench.pipeline.refer = lambda image, phrases, **options: bench.pipeline.gate.wait(10)
    bench.server.watch(Watching("mug").request)
    eventually(lambda: len(bench.hangs) == 1)
    assert bench.wait(bench.submit("hello")) == [("hello", Status.MODEL_FAILURE)]
    bench.server.watch(None)
    bench.pipeline.gate.set()
    eventually(lambda: len(bench.hangs) == 2)
    bench.server.stop(5, "over")
    assert bench.server.unload(5)


def test_a_pass_of_a_watch_list_that_takes_too_long_is_given_up_and_commands_are_served(monkeypatch):
    monkeypatch.setattr("flmm_core.serving.in_progress._GIVING_UP", 0.5)
    bench = Bench(deadline=0.1)

    def endless(image, phrases, *, callbacks):
        while not callbacks.cancelled():
            time.sleep(0.005)
        raise CommandCancelledError("command: cancelled")

    bench.pipeline.refer, watching = endless, Watching("mug")
    bench.server.watch(watching.request)
    (result,) = watching.wait(1)
    overdue = "the model did not answer within 0.1 s (command_deadline)"
    assert (result.status, result.reason) == (Status.MODEL_FAILURE, overdue)
    time.sleep(0.5)
    assert bench.wait(bench.submit("hello")) == [("hello", Status.ANSWERED)]
    assert not bench.hangs and len(watching.results) == 1
    bench.server.stop(5, "over")
    assert bench.server.unload(5)


def test_passes_of_a_watch_list_that_take_long_are_not_taken_for_one_that_hangs(monkeypatch):
    monkeypatch.setattr("flmm_core.serving.in_progress._GIVING_UP", 0.2)
    bench = Bench(deadline=0.05)
    refer, results = bench.pipeline.refer, []

    def slow(image, phrases, **options):
        time.sleep(0.1)
        return refer(image, phrases, **options)

    bench.pipeline.refer = slow
    bench.server.watch(
        WatchRequest(
            ("mug",), image=lambda: CameraImage(PIXELS.copy()), result=results.append, period=lambda: 0.0, refresh=lambda: 0.0
        )
    )
    eventually(lambda: len(results) >= 8)
    assert not bench.hangs
    bench.server.stop(5, "over")
    assert bench.server.unload(5)


def test_thresholds_change_for_later_commands(bench):
    bench.wait(bench.submit("before"))
    assert bench.pipeline.thresholds == {}
    bench.server.set_thresholds(mask_threshold=0.7)
    bench.server.set_thresholds(mask_threshold=0.8, presence_threshold=0.1)
    bench.wait(bench.submit("after"))
    assert bench.pipeline.thresholds == {"mask_threshold": 0.8, "presence_threshold": 0.1}


@pytest.mark.parametrize("limits", [{"max_phrases": -1}, {"max_new_tokens": 5000}])
def test_limits_out_of_range_refuse_a_command(bench, limits):
    bench.wait(bench.submit("hello", limits=lambda: Limits(**limits)))
    reply = bench.replies[0][1]
    assert reply.status == Status.BAD_COMMAND and f"{next(iter(limits))}: expected 1 to" in reply.reason


def test_a_load_that_fails_leaves_a_server_that_can_load():
    ways = iter([lambda: 1 / 0, Scripted])
    server = GroundingServer(lambda: next(ways)(), lost=pytest.fail)
    with pytest.raises(RuntimeError, match="division by zero"):
        server.load().result(10)
    assert server.unload(5)
    assert server.load().result(10) == {"lmm": "scripted"} and server.unload(5)


def test_a_dead_thread_leaves_no_request_without_a_reply():
    bench = Bench()
    held = bench.hold()
    requests = bench.submit("end", "a")
    bench.pipeline.gate.set()
    bench.wait([held, *requests])
    bench.wait(bench.submit("later"))
    assert bench.losses == ["cannot serve: the end"]
    assert [(words, reply.reason) for words, reply in bench.replies[1:]] == [
        (words, "cannot serve: the end") for words in ("end", "a", "later")
    ]
    assert bench.server.unload(5)


def test_many_threads_submit_and_cancel_while_the_server_stops_and_starts():
    bench = Bench(capacity=20)
    counts = {}
    lock = threading.Lock()

    def count(key, reply):
        with lock:
            counts[key] = counts.get(key, 0) + 1

    def work(name):
        for number in range(200):
            key = (name, number)
            request = bench.request("x", reply=lambda reply, key=key: count(key, reply), client=name)
            bench.server.submit(request)
            if number % 7 == 0:
                bench.server.cancel(request)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        bench.server.stop(1, "over")
        bench.server.start(20)
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    bench.server.stop(5, "over")
    assert bench.server.unload(5)
    assert len(counts) == 800 and set(counts.values()) == {1}


# --- watch lists ----------------------------------------------------------------------------------------------------------


def textured(shift):
    """An image with something to follow, moved to the right by ``shift`` pixels."""
    noise = np.random.default_rng(0).integers(0, 255, (6, 8), np.uint8)
    return np.roll(np.repeat(np.kron(noise, np.ones((8, 8), np.uint8))[..., None], 3, axis=2), shift, axis=1)


class Watching:
    """A watch list and its results."""

    def __init__(self, *phrases, refresh=3600.0, period=0.01):
        self.results, self.image = [], CameraImage(textured(0), "first")
        self.request = WatchRequest(
            phrases, image=lambda: self.show(), result=self.results.append, period=lambda: period, refresh=lambda: refresh
        )

    def show(self):
        if isinstance(self.image, Exception):
            raise self.image
        return self.image

    def wait(self, count):
        deadline = time.monotonic() + 10
        while len(self.results) < count:
            assert time.monotonic() < deadline, self.results
            time.sleep(0.005)
        return self.results


def test_a_watch_list_is_read_once_and_then_followed(bench):
    watching = Watching("mug", "ball")
    bench.server.watch(watching.request)
    (first,) = watching.wait(1)
    assert (first.answer.text, first.tracked, first.source) == ("mug. ball", False, "first")
    time.sleep(0.05)
    assert len(watching.results) == 1, "an image is looked at once"
    watching.image = CameraImage(textured(2), "second")
    second = watching.wait(2)[1]
    assert (second.tracked, second.source) == (True, "second")
    assert [phrase.box[0] for phrase in second.answer.phrases] == pytest.approx([22, 22], abs=1)
    assert bench.pipeline.heard.count(("mug", "ball")) == 1
    bench.server.watch(None)
    watching.image = CameraImage(textured(4), "third")
    time.sleep(0.05)
    assert len(watching.results) == 2


def test_a_watch_list_is_read_again_when_it_is_due_or_lost(bench):
    watching = Watching("mug", refresh=0.0)
    bench.server.watch(watching.request)
    watching.wait(1)
    watching.image = CameraImage(textured(2))
    assert not watching.wait(2)[1].tracked
    other = Watching("ball")
    bench.server.watch(other.request)
    other.wait(1)
    other.image = CameraImage(255 - textured(0))
    assert not other.wait(2)[1].tracked, "nothing of it is there"
    other.image = CameraImage(np.zeros((20, 20, 3), np.uint8))
    assert not other.wait(3)[2].tracked, "another size"


def test_what_is_wrong_with_an_image_is_said_once(bench):
    watching = Watching("mug")
    watching.image = RefusedError(Status.NO_IMAGE, "no image")
    bench.server.watch(watching.request)
    watching.wait(1)
    time.sleep(0.05)
    watching.image = RefusedError(Status.IMAGE_TOO_OLD, "too old")
    watching.wait(2)
    watching.image = CameraImage(textured(0))
    watching.wait(3)
    assert [result.status for result in watching.results] == [Status.NO_IMAGE, Status.IMAGE_TOO_OLD, Status.ANSWERED]


def test_commands_go_before_a_watch_list():
    class Slow(Scripted):
        def refer(self, image, phrases, *, callbacks=None):
            self.entered.set()
            for _ in range(1000 if phrases == ("slow",) else 0):
                time.sleep(0.005)
                if callbacks.cancelled():
                    self.heard.append("given up")
                    raise CommandCancelledError("command: cancelled")
            return super().refer(image, phrases, callbacks=callbacks)

    bench = Bench(start=False)
    bench.server.stop(0, "")
    assert bench.server.unload(5)
    bench.pipeline = Slow()
    bench.server.load().result(10)
    bench.pipeline.entered.clear()
    bench.server.start(3)
    watching = Watching("slow")
    bench.server.watch(watching.request)
    assert bench.pipeline.entered.wait(10)
    assert bench.wait(bench.submit("hello")) == [("hello", Status.ANSWERED)]
    assert bench.pipeline.heard[-2:] == ["given up", "hello"] and not watching.results
    bench.server.stop(5, "over")
    assert bench.server.unload(5) and not watching.results


def test_a_watch_list_has_results_however_often_commands_interrupt_it():
    """Each pass takes longer than the time between two commands."""

    class Slow(Scripted):
        def refer(self, image, phrases, *, callbacks=None):
            for _ in range(20 if phrases == ("slow",) else 0):
                time.sleep(0.005)
                if callbacks.cancelled():
                    raise CommandCancelledError("command: cancelled")
            return super().refer(image, phrases, callbacks=callbacks)

    bench = Bench(start=False)
    assert bench.server.unload(5)
    bench.pipeline = Slow()
    bench.server.load().result(10)
    bench.server.start(3)
    watching = Watching("slow", refresh=0.0)
    bench.server.watch(watching.request)
    for number in range(20):
        watching.image = CameraImage(textured(number))
        time.sleep(0.05)
        bench.wait(bench.submit(str(number)))
    assert len(watching.results) >= 4
    bench.server.stop(5, "over")
    assert bench.server.unload(5)


def test_a_server_that_is_stopped_takes_no_watch_list(bench):
    watching, watch = Watching("mug"), bench.server.watch

    def watch_and_again(request):
        watch(request)
        with pytest.raises(RefusedError, match="over"):  # another thread sets a list at this moment
            watch(watching.request)

    bench.server.watch = watch_and_again
    bench.server.stop(5, "over")
    time.sleep(0.05)
    assert not watching.results and bench.server.watched == ()


# --- text -----------------------------------------------------------------------------------------------------------------


def test_text_is_cleaned():
    assert clean_text("  where\x00is\n it ", 20) == "where is it"
    for text, status in (("\u200b\n", Status.EMPTY_COMMAND), ("x" * 21, Status.COMMAND_TOO_LONG)):
        with pytest.raises(RefusedError) as refusal:
            clean_text(text, 20)
        assert refusal.value.status == status


def test_a_watcher_may_be_cancelled_by_anybody():
    callbacks = Callbacks()
    assert not callbacks.cancelled()
    callbacks.cancel()
    assert callbacks.cancelled() and not Callbacks().cancelled()
