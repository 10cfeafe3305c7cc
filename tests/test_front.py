"""The HTTP server of a fleet before scripted replicas: what it takes and refuses, who gets a place, who leaves."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import threading
import time
import zlib
from contextlib import closing, contextmanager, suppress

import httpx
import numpy as np
import pytest
from PIL import Image

from flmm_core.errors import CommandError
from flmm_core.serving.remote import FleetError, RemotePipeline
from flmm_core.serving.wire import WIRE_HEADER, WIRE_VERSION, WireCommand, answer_to_json, image_bytes
from flmm_core.types import GroundedAnswer

pytest.importorskip("uvicorn", reason="the fleet is not installed: `make setup`, or `pip install -r requirements-fleet.txt`")

PIXELS = np.zeros((24, 32, 3), np.uint8)
PNG = image_bytes(PIXELS)
GOOD = WireCommand("CHAT", ("what?",)).to_json()


class Replicas:
    """Answer by script: "wait" until released, "silent" never, "lost" by an error, "long" and "lines" without end."""

    def __init__(self):
        self.asked, self.cancelled, self.release = [], [], threading.Event()
        self.describing, self.described = 0.0, 0

    def ground(self, command, image):
        self.asked.append(command.client)
        return Lines(self, command)

    async def describe(self):
        self.described += 1
        await asyncio.sleep(self.describing)
        return {"model": {"lmm": "scripted"}}


class Lines:
    def __init__(self, replicas, command):
        self.replicas, self.command = replicas, command

    async def __anext__(self):
        words = self.command.words[0]
        if words == "lost":
            raise RuntimeError("the actor\ndied")
        if words in ("ended", "dropped"):
            raise StopAsyncIteration if words == "ended" else asyncio.CancelledError
        while words == "silent" or (words == "wait" and not self.replicas.release.is_set()):
            await asyncio.sleep(0.005)
        if words == "slow":
            await asyncio.sleep(0.02)
        if words == "long":
            return {"text": "a" * 1_000_000}
        if words == "lines":
            return {"text": "a" * 20_000}
        return {"answer": answer_to_json(GroundedAnswer(words, (), *PIXELS.shape[:2]))}

    def cancel(self):
        self.replicas.cancelled.append(self.command.words[0])


@contextmanager
def serving(replicas, **size):
    from flmm_fleet.front import Front, HttpServer
    from flmm_fleet.settings import FleetSettings

    settings = FleetSettings(**{"waiting": 2, "batch": 2, **size}, max_image_pixels=10_000)
    server = HttpServer(Front(replicas, settings).app, "127.0.0.1", 0)
    server.start()
    yield server.address
    server.stop()


@pytest.fixture
def replicas():
    return Replicas()


@pytest.fixture
def served(replicas):
    with serving(replicas) as address:
        yield address


@pytest.fixture(scope="module")
def refusing():
    """A server whose replicas must not be asked."""
    with serving(never := Replicas()) as address:
        yield address
    assert not never.asked


def post(address, command=GOOD, image=PNG, **options):
    return httpx.post(f"{address}/ground", files={"image": ("a.png", image)}, data={"command": command}, timeout=10, **options)


def connected(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def until(condition, seconds=5):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.005)


def header_of(width, height):
    """A PNG file that ends after its header."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\0IDAT"
        + b"\0" * 4
    )


def saved(kind):
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, kind)
    return content.getvalue()


# --- what it takes ---


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ('{"mode": "CHAT", "words": ["a"], "client": {}}', "client: expected a name of at most 200 characters, got {}"),
        ('{"mode": "CHAT", "words": ["a \\ud83d b"]}', "words: expected whole characters, got half of one (a lone surrogate)"),
        ('{"mode": "CHAT", "words": ["a"], "client": "\\ud83d"}', "client: expected whole characters"),
        ("[" * 20_000, "command: expected JSON, got '[[["),
        ('{"mode": "CHAT", "words": ["a"], "max_phrases": ' + "9" * 5000 + "}", 'command: expected JSON, got \'{"mode"'),
        ('{"mode": "CHAT", "words": ["a"], "max_phrases": -1}', "max_phrases: expected 1 to 1000 phrases, got -1"),
        ('{"mode": "CHAT", "words": ["a"], "max_new_tokens": 1000000}', "max_new_tokens: expected 1 to 1024 tokens"),
        (json.dumps({"mode": "CHAT", "words": ["a" * 10_001]}), "words: expected at most 1000 phrases and 10000 characters"),
        (json.dumps({"mode": "REFER", "words": ["a"] * 1001}), "words: expected at most 1000 phrases and 10000 characters"),
        ("x" * 300_000, "expected a form of a file `image` and a text `command`, got one that cannot be read"),
    ],
)
def test_a_command_that_is_none_is_refused_with_its_reason(refusing, command, reason):
    response = post(refusing, command)
    assert response.status_code == 422 and response.json()["detail"].startswith(reason), response.text


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "got a file that is none of JPEG, PNG"),
        (saved("GIF"), "got a file that is none of JPEG, PNG"),
        (saved("TIFF"), "got a file that is none of JPEG, PNG"),
        (header_of(5_000, 5_000), "image of 5000x5000 is too large: expected at most 10000 pixels (--max-image-pixels)"),
        (PNG[:20], "expected an image in 20 bytes, got"),
        (b"", "expected an image in 0 bytes, got"),
    ],
)
def test_an_image_is_refused_by_its_header(refusing, image, reason):
    response = post(refusing, image=image)
    assert response.status_code == 422 and reason in response.json()["detail"], response.text


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n\r\n--x--"),
        ("multipart/form-data; boundary=x", b"garbage"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nno header at all"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="command"\r\n\r\n\xff\xfe\r\n--x--\r\n',
        ),
        (
            "multipart/form-data; boundary=x; charset=none",
            b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\na\r\n--x--\r\n',
        ),
        ("application/json", b"{}"),
        ("", b""),
    ],
)
def test_a_form_that_is_none_is_refused_in_one_line(refusing, kind, body, caplog):
    response = httpx.post(f"{refusing}/ground", content=body, headers={"Content-Type": kind})
    assert response.status_code == 422, response.text
    assert response.json()["detail"].startswith("expected a form of a file `image` and a text `command`")
    assert not caplog.records, "nobody can fill the log"


def test_what_is_too_large_is_not_read(refusing):
    response = httpx.post(
        f"{refusing}/ground", content=iter([b"x" * 300_000] * 5), headers={"Content-Type": "multipart/form-data"}
    )
    assert response.status_code == 413, response.text
    with connected(refusing) as one:
        one.sendall(b"POST /ground HTTP/1.1\r\nHost: a\r\nContent-Length: 300000000\r\n\r\n")
        assert b"413" in one.recv(100)


def test_other_paths_are_refused(refusing):
    for method, path in (("GET", "/ground"), ("POST", "/describe"), ("GET", "/-/routes"), ("GET", "/")):
        response = httpx.request(method, f"{refusing}{path}")
        assert response.status_code in (404, 405), path
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "A" * 24}
    for headers in ({}, upgrade):
        assert httpx.get(f"{refusing}/describe", headers=headers).json() == {"model": {"lmm": "scripted"}}


# --- what takes too long ---


def posted(address, words):
    """A connection with a command, whose reply is not read."""
    sent = httpx.Request(
        "POST", f"{address}/ground", files={"image": PNG}, data={"command": WireCommand("CHAT", (words,), "one").to_json()}
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
    one = connected(address)
    one.sendall(f"POST /ground HTTP/1.1\r\n{head}\r\n".encode() + sent.read())
    return one


def unfinished(address):
    """A connection whose request never ends."""
    one = connected(address)
    head = b"POST /ground HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    one.sendall(head + b"Content-Length: 900\r\n\r\n--x\r\n")
    return one


def test_unfinished_uploads_block_nobody_and_end(served, monkeypatch):
    from flmm_fleet import uploads

    monkeypatch.setattr(uploads, "_SECONDS", 1.0)
    idle = [unfinished(served) for _ in range(40)]
    began = time.monotonic()
    assert "answer" in post(served).text
    assert time.monotonic() - began < 1.0, "none of them takes a place"
    for one in idle:
        with closing(one):
            assert b"408" in one.recv(100)


def test_a_connection_without_a_request_is_closed(served, monkeypatch):
    from flmm_fleet import front

    monkeypatch.setattr(front, "_HEADER_SECONDS", 0.2)
    for begun in (b"", b"POST /ground HT"):
        with connected(served) as one:
            one.sendall(begun)
            assert one.recv(100) == b"", "closed"


def test_a_replica_that_falls_silent_or_dies_is_left(served, replicas, monkeypatch):
    from flmm_fleet import front

    monkeypatch.setattr(front, "_SILENCE", 0.3)
    monkeypatch.setattr(front, "KEEP_ALIVE", 0.1)
    reasons = {"silent": "no line of its reply for 0.3 s", "lost": "the actor died"}
    for words, reason in {**reasons, **dict.fromkeys(("ended", "dropped"), "its reply ended too early")}.items():
        lines = post(served, WireCommand("CHAT", (words,)).to_json()).text.splitlines()
        assert json.loads(lines[-1]) == {"refused": "SHUTTING_DOWN", "reason": f"the replica was lost ({reason})"}
    assert replicas.cancelled == ["silent", "lost", "ended", "dropped"]


def test_a_client_that_does_not_read_its_reply_is_left(served, replicas, monkeypatch):
    from flmm_fleet import front

    monkeypatch.setattr(front, "_READ_SECONDS", 0.3)
    with posted(served, "long"):
        until(lambda: replicas.cancelled == ["long"], 3)


def test_a_client_that_reads_its_reply_slowly_is_left(served, replicas, monkeypatch):
    from flmm_fleet import front

    monkeypatch.setattr(front, "_READ_SECONDS", 0.3)

    def read_a_little():
        one.recv(50_000)  # every few lines are taken in time, but there is no end of them
        return replicas.cancelled == ["lines"]

    with posted(served, "lines") as one:
        until(read_a_little, 3)


def test_too_many_connections_are_closed(served, monkeypatch):
    from flmm_fleet import front

    monkeypatch.setattr(front, "_CONNECTIONS", 3)
    kept = [connected(served) for _ in range(3)]
    with connected(served) as one:
        one.settimeout(2)
        with suppress(ConnectionResetError):
            assert one.recv(100) == b"", "closed"
    for one in kept:
        with closing(one):
            one.sendall(b"GET /describe HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200" in one.recv(100)


def test_descriptions_are_asked_of_one_replica_at_a_time(served, replicas):
    replicas.describing = 0.3
    asking = [connected(served) for _ in range(40)]
    for one in asking:
        one.sendall(b"GET /describe HTTP/1.1\r\nHost: a\r\n\r\n")
    for one in asking:
        with closing(one):
            assert b"200" in one.recv(100)
    assert replicas.described < 20, "of 40"


def test_a_server_that_stops_ends_the_replies_in_progress(replicas, monkeypatch, capfd):
    from flmm_fleet import front

    monkeypatch.setattr(front, "_GRACE", 0.5, raising=False)
    with serving(replicas) as address:
        one = posted(address, "wait")
        until(lambda: replicas.asked)
    one.close()
    assert replicas.cancelled == ["wait"]
    assert capfd.readouterr().err == ""


# --- places ---


def test_a_client_that_leaves_frees_its_place(served, replicas):
    command = WireCommand("CHAT", ("wait",), "one").to_json()
    for _ in range(2):
        with httpx.Client() as client:
            with client.stream("POST", f"{served}/ground", files={"image": PNG}, data={"command": command}) as stream:
                assert next(stream.iter_lines()) == "{}", "in work"
            client.close()
    until(lambda: replicas.cancelled == ["wait"] * 2)
    for name in ("a", "b", "c", "d"):  # all places of the fleet
        assert "answer" in post(served, WireCommand("CHAT", ("what?",), name).to_json()).text


def test_turns_are_kept(monkeypatch):
    from flmm_fleet import places

    now = [0.0]
    monkeypatch.setattr(places.time, "monotonic", lambda: now[0])
    fleet = places.Places(2)
    assert [fleet.take(name) for name in ("a", "b")] == ["", ""]
    assert fleet.take("first").startswith("busy: 2 commands are here already, of 2 (--waiting), and others wait")
    assert fleet.take("second")
    fleet.give_back("a")
    assert fleet.take("newcomer"), "the free place is that of the first"
    assert fleet.take("second"), "nor is it that of the second"
    assert fleet.take("first") == ""
    fleet.give_back("b")
    assert fleet.take("newcomer")
    now[0] = 4.0
    assert fleet.take("newcomer")
    now[0] = 6.0
    assert fleet.take("newcomer") == "", "the second has given up"


def test_one_client_cannot_take_all_places():
    from flmm_fleet.places import Places

    fleet = Places(12)
    taken = [fleet.take("flood") for _ in range(30)]
    assert taken.count("") == 6
    assert taken[-1] == "busy: this client has 6 commands here already, and others need the rest"
    assert [fleet.take(f"robot {number}") for number in range(6)] == [""] * 6
    assert fleet.take("late")
    fleet.give_back("flood")
    assert fleet.take("flood") and fleet.take("late") == ""


def test_every_robot_of_many_is_served_in_turn(replicas, monkeypatch):
    """Robots that send command after command: who waits is served before who comes again."""
    from flmm_core.serving import remote

    monkeypatch.setattr(remote, "_PAUSE", 0.03)
    end, lock, counts = threading.Event(), threading.Lock(), {}

    def robot(address, number):
        pipeline = RemotePipeline(address, patience=20)
        while not end.is_set():
            pipeline.chat(pipeline.encode(PIXELS), "slow")
            with lock:
                counts[number] = counts.get(number, 0) + 1
        pipeline.close()

    with serving(replicas, waiting=1, batch=1) as address:
        threads = [threading.Thread(target=robot, args=(address, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: sum(counts.values()) >= 64, 15)
        end.set()
        for thread in threads:
            thread.join()
    assert min(counts.values()) >= 4 and len(counts) == 8, counts


# --- both sides' versions ---


def test_versions_are_compared(served, monkeypatch):
    response = post(served, headers={WIRE_HEADER: "99"})
    assert response.status_code == 422
    assert response.json()["detail"] == "expected version 1 of the commands, got 99: update the older of robot and fleet"
    robot = RemotePipeline(served)
    assert robot.describe()["lmm"] == "scripted"
    monkeypatch.setattr("flmm_core.serving.remote.WIRE_VERSION", "2")
    for ask in (robot.describe, lambda: robot.chat(robot.encode(PIXELS), "what?")):
        with pytest.raises(FleetError, match="expected a fleet with version 2 of the commands, got 1: update the older of"):
            ask()
    monkeypatch.setattr("flmm_core.serving.remote.WIRE_HEADER", "X-Older")
    with pytest.raises(FleetError, match="expected a fleet with version 2 of the commands, got one without: update the fleet"):
        robot.describe()
    robot.close()


def test_what_the_fleet_refuses_is_the_robots_command(served):
    robot = RemotePipeline(served, patience=1)
    with pytest.raises(CommandError, match="command: image of 200x100 is too large: expected at most 10000 pixels"):
        robot.chat(robot.encode(np.zeros((100, 200, 3), np.uint8)), "what?")
    with pytest.raises(FleetError, match=r"expected an answer, got no answer for 1 s \(the replica was lost \(the actor died"):
        robot.chat(robot.encode(PIXELS), "lost")
    robot.close()


# --- the size of a fleet ---


def test_replicas_that_do_not_fit_are_refused_with_what_lacks():
    pytest.importorskip("ray")
    from flmm_fleet.fleet import _check_room
    from flmm_fleet.settings import FleetSettings

    def check(*nodes, **size):
        alive = [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in nodes]
        _check_room([*alive, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}], FleetSettings(**size))

    check((2, 0), replicas=2)
    check((8, 2), replicas=2, gpus=1)
    check((8, 2), replicas=4, gpus=0.5)
    check((2, 1), (2, 1), replicas=2, gpus=1)
    for nodes, size, fit, got in (
        ([(2, 0)], {"gpus": 1}, 0, "one CPU core and 1 GPUs and there are 2 cores and 0 GPUs, got 1"),
        ([(2, 0)], {"replicas": 3}, 2, "one CPU core and there are 2 cores and 0 GPUs, got 3"),
        ([(8, 1)], {"gpus": 0.7, "replicas": 2}, 1, "one CPU core and 0.7 GPUs and there are 8 cores and 1 GPUs, got 2"),
        ([(8, 1), (8, 1)], {"gpus": 2}, 0, "one CPU core and 2 GPUs and there are 16 cores and 2 GPUs, got 1"),
    ):
        with pytest.raises(ValueError, match=f"^replicas: expected at most {fit}, each needs {got}$"):
            check(*nodes, **size)


def test_sizes_that_cannot_be_are_refused(refusing):
    from flmm_fleet.front import HttpServer
    from flmm_fleet.settings import FleetSettings

    for wrong, reason in (
        ({"gpus": 1.5}, "gpus: expected a part of one GPU or a whole number of them, got 1.5"),
        ({"gpus": float("nan")}, "gpus: expected a part"),
        ({"command_deadline": -1.0}, "command_deadline: expected 0 or more seconds, got -1"),
        ({"port": 70_000}, "port: expected 0 to 65535, got 70000"),
    ):
        with pytest.raises(ValueError, match=reason):
            FleetSettings(**wrong)
    taken = int(refusing.rsplit(":", 1)[1])
    for host in ("127.0.0.1", "no.such.host.invalid"):
        with pytest.raises(ValueError, match=f"host and port: expected an address to listen on, got {host}:{taken} "):
            HttpServer(None, host, taken)


# --- a client, and what is no fleet of this version ---

VERSION = {WIRE_HEADER: WIRE_VERSION}


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "null",
        '["answer"]',
        '{"answer": 5}',
        '{"answer": {"text": "a"}}',
        '{"refused": "NO_SUCH", "reason": "r"}',
        '{"refused": "BUSY"}',
    ],
)
def test_a_reply_that_cannot_be_read_is_named(line):
    remote = RemotePipeline("http://fleet", patience=1.0)
    remote._client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, text=line, headers=VERSION)))
    with pytest.raises(FleetError, match=rf"^server http://fleet: expected a reply of version {WIRE_VERSION}, got one that"):
        remote.chat(remote.encode(np.zeros((2, 2, 3), np.uint8)), "what?")


@pytest.mark.parametrize("content", [b'{"model": 5}', b"\xff", b"[]", b'{"model": ["a"]}'])
def test_a_description_that_cannot_be_read_is_named(content):
    remote = RemotePipeline("http://fleet")
    remote._client = httpx.Client(
        transport=httpx.MockTransport(lambda _: httpx.Response(200, content=content, headers=VERSION))
    )
    with pytest.raises(FleetError, match=r"^server http://fleet: expected a fleet of `flmm fleet`, got [^\n]+$"):
        remote.describe()


@pytest.mark.parametrize("address", ["http://[::1", "fleet", "ftp://fleet"])
def test_an_address_that_is_none_is_named(address):
    with pytest.raises(ValueError, match=r"^server: expected an address like http://fleet\.local:8000, got "):
        RemotePipeline(address)
