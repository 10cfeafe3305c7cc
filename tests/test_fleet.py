"""A fleet of two replicas of a tiny random model on this machine, and robots that give it commands."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time

import httpx
import numpy as np
import pytest
from tiny_models import random_image

from flmm_bench.robots import Task, run_robots
from flmm_core.config import GroundingConfig
from flmm_core.errors import CommandCancelledError, CommandError
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import Callbacks
from flmm_core.serving.remote import FleetError, RemoteImage, RemotePipeline
from flmm_core.serving.wire import WireCommand, answer_from_json, answer_to_json, image_bytes
from flmm_core.types import GroundedAnswer

ray = pytest.importorskip("ray", reason="Ray is not installed: `make setup`, or `pip install -r requirements-fleet.txt`")
ROBOTS, COMMANDS = 50, 2
PATIENCE = 400
"""Seconds: on a loaded machine a replica alone needs three minutes to import and load what it runs."""


@pytest.fixture(scope="module")
def config(tiny_model):
    every_word = {"selector_threshold": 0.0, "presence_threshold": 0.0}
    return GroundingConfig(**tiny_model, **every_word, device="cpu", max_new_tokens=8, cpu_threads=1)


@pytest.fixture(scope="module")
def local(config):
    return GroundingPipeline.from_config(config)


@pytest.fixture(scope="module")
def address(config, free_port):
    from flmm_fleet.fleet import Fleet
    from flmm_fleet.settings import FleetSettings

    with Fleet(config, FleetSettings(replicas=2, waiting=8, port=free_port())) as fleet:
        yield fleet.address


@pytest.fixture
def remote(address):
    made = RemotePipeline(address, patience=PATIENCE)
    yield made
    made.close()


def pixels(seed=0):
    return np.asarray(random_image(60, 80, seed=seed))


def same(answer, other):
    assert (answer.text, answer.image_height, answer.image_width) == (other.text, other.image_height, other.image_width)
    assert answer.left_out == other.left_out and len(answer.phrases) == len(other.phrases)
    for one, two in zip(answer.phrases, other.phrases, strict=True):
        names = ("text", "start", "end", "box", "absent")
        assert [getattr(one, name) for name in names] == [getattr(two, name) for name in names]
        assert (one.score, one.presence) == pytest.approx((two.score, two.presence), abs=1e-4)
        assert (one.mask == two.mask).mean() > 0.999


# --- the wire ---


def test_answers_come_through_json_as_they_are(local):
    image = local.encode(pixels())
    for answer in (local.chat(image, "what?"), local.refer(image, ["mug", "é box"]), local.chat(image, "what?", masks=False)):
        again = answer_from_json(answer_to_json(answer))
        same(again, answer)
        assert all((one.mask == two.mask).all() for one, two in zip(again.phrases, answer.phrases, strict=True))
        assert again.seconds == answer.seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "command: expected JSON, got 'no'"),
        ("[]", "command: expected an object of mode, words"),
        ('{"mode": "CHAT", "words": ["a"], "colour": 1}', "command: expected an object of mode, words"),
        ('{"mode": "WATCH", "words": ["a"]}', "mode: expected one of CHAT, REFER, got 'WATCH'"),
        ('{"mode": "CHAT", "words": "a"}', "words: expected a list of at least one text"),
        ('{"mode": "CHAT", "words": []}', "words: expected a list of at least one text"),
        ('{"mode": "CHAT", "words": ["a", "b"]}', "words: expected one question, got 2"),
        ('{"mode": "CHAT", "words": ["a"], "max_phrases": "7"}', "max_phrases: expected int, got str '7'"),
        ('{"mode": "CHAT", "words": ["a"], "max_new_tokens": true}', "max_new_tokens: expected int, got bool True"),
    ],
)
def test_bad_commands_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        WireCommand.from_json(text)


def test_a_command_comes_through_json_as_it_is():
    command = WireCommand("REFER", ("the é mug", "box"), "me", None, 3)
    assert WireCommand.from_json(command.to_json()) == command


# --- a client without a fleet ---


def test_no_fleet_is_said_with_its_address():
    remote = RemotePipeline("http://127.0.0.1:9", patience=0.5)
    with pytest.raises(FleetError, match=r"server http://127.0.0.1:9: .* got no answer for 0.5 s \(.*refused\)"):
        remote.chat(remote.encode(pixels()), "what?")
    with pytest.raises(FleetError, match=r"server http://127.0.0.1:9: expected a fleet of `flmm fleet`, got .*refused"):
        remote.describe()
    with pytest.raises(ValueError, match=r"server: expected an address like http://fleet.local:8000, got 'fleet'"):
        RemotePipeline("fleet")


# --- a replica ---


class Hanging:
    """A pipeline that never returns from the word "hang"."""

    def __init__(self):
        self.release = threading.Event()

    def encode(self, image):
        return image

    def chat(self, image, text, **options):
        if text == "hang":
            self.release.wait(20)
        return GroundedAnswer(text, (), *image.shape[:2])

    def refer(self, image, phrases, **options):
        return self.chat(image, phrases[0])

    def describe(self):
        return {}

    def device_memory(self):
        return 0


def test_a_replica_whose_model_hangs_says_so_and_is_replaced(monkeypatch):
    from flmm_core.serving import in_progress
    from flmm_fleet.deployment import Replica
    from flmm_fleet.settings import FleetSettings

    monkeypatch.setattr(in_progress, "_GIVING_UP", 0.1)
    monkeypatch.setattr(GroundingPipeline, "from_config", lambda config: pipeline)
    pipeline = Hanging()
    replica = Replica.func_or_class(GroundingConfig(), FleetSettings(command_deadline=0.2, batch=1))

    def reply(words):
        async def last():
            return [line async for line in replica.ground(WireCommand("CHAT", (words,)), image_bytes(pixels()))][-1]

        return asyncio.run(last())

    assert reply("what?")["answer"]["text"] == "what?"
    replica.check_health()
    assert reply("hang") == {"refused": "MODEL_FAILURE", "reason": "the model did not answer within 0.2 s (command_deadline)"}
    limit = time.monotonic() + 5
    with pytest.raises(RuntimeError, match=r"the model hangs: it has not returned for more than 0\.2 s"):  # Ray replaces it
        while time.monotonic() < limit:
            replica.check_health()
    assert reply("what?")["refused"] == "SHUTTING_DOWN", "another replica may answer"
    pipeline.release.set()


# --- a fleet ---


class Follower(Callbacks):
    def __init__(self, end=None):
        self.stages, self.texts, self.end = [], [], end

    def on_stage(self, stage):
        self.stages.append(stage)

    def on_text(self, text):
        self.texts.append(text)
        if self.end:
            self.cancel()


def test_its_answers_are_those_of_a_pipeline_here(local, remote, address):
    here, there = local.encode(pixels()), remote.encode(pixels())
    follower = Follower()
    answer = remote.chat(there, "what is there?", callbacks=follower)
    same(answer, local.chat(here, "what is there?"))
    assert follower.stages == ["image", "lmm", "keywords", "mask_head", "refiner"]
    assert follower.texts and follower.texts[-1] == answer.text
    same(remote.refer(there, ["red mug", "lemon"]), local.refer(here, ["red mug", "lemon"]))
    limits = {"max_new_tokens": 3, "max_phrases": 1}
    same(remote.chat(there, "what is there?", **limits), local.chat(here, "what is there?", **limits))
    said = httpx.get(f"{address}/describe").json()["health"]
    assert (said["level"], said["message"], said["values"]["commands waiting"]) == ("OK", "ready", "0 of 12")
    assert "images received" not in said["values"]
    facts = remote.describe()
    assert facts["server"].startswith("http://127.0.0.1") and facts["device"] == "cpu"


def test_its_refusals_are_those_of_a_pipeline_here(remote):
    image = remote.encode(pixels())
    with pytest.raises(CommandError, match=r"^text: expected at least one letter or digit, got '!'$"):
        remote.chat(image, "!")
    with pytest.raises(CommandError, match="expected no special tokens of the LMM, got '<image>'"):
        remote.refer(image, ["an <image>"])
    remote.chat(image, "and it goes on")


def test_an_image_that_cannot_be_decoded_is_refused(remote):
    cut = RemoteImage(image_bytes(pixels())[:2000])
    with pytest.raises(CommandError, match="expected an image in 2000 bytes, got one that cannot be read"):
        remote.chat(cut, "what?")


def test_a_command_is_cancelled(remote):
    image, follower = remote.encode(pixels()), Follower(end=True)
    with pytest.raises(CommandCancelledError):
        remote.chat(image, "what is there?", callbacks=follower)
    assert remote.chat(image, "what is there?").text


def processes(address, wanted, without=None):
    """Process ids of the replicas, once there are as many as wanted beside one that was killed."""
    limit, seen, last = time.monotonic() + PATIENCE, set(), ""
    while time.monotonic() < limit:
        try:
            last = httpx.get(f"{address}/describe", timeout=15).text
            seen.add(json.loads(last)["process"])
        except httpx.HTTPError as error:
            last = repr(error)
        except (ValueError, KeyError):
            pass
        if len(seen - {without}) >= wanted:
            return seen
        time.sleep(0.5)
    raise AssertionError(f"expected {wanted} replicas within {PATIENCE} s, got processes {seen}, at last {last}")


def test_no_command_is_lost_or_doubled_when_a_replica_is_killed(address, local):
    """50 robots, each with images of its own; a replica is killed when a third of the commands are answered."""
    tasks = [[Task(pixels(100 * r + c), f"what is at {r} and {c}?") for c in range(COMMANDS)] for r in range(ROBOTS)]
    expected = {(r, c): local.chat(local.encode(t.image), t.words) for r, own in enumerate(tasks) for c, t in enumerate(own)}
    victim = min(processes(address, 2))
    killed = threading.Event()

    def kill(count):
        if count == ROBOTS * COMMANDS // 3:
            os.kill(victim, signal.SIGKILL)
            killed.set()

    run = run_robots(address, tasks, timeout=PATIENCE, on_outcome=kill)
    assert killed.is_set()
    assert (run.commands, run.lost, run.duplicates) == (ROBOTS * COMMANDS, 0, 0), [o.reason for o in run.outcomes if o.reason]
    for outcome in run.outcomes:
        same(outcome.answer, expected[outcome.robot, outcome.command])
    processes(address, 2, without=victim)  # another one took its place
