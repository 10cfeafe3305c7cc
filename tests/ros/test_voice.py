"""From WAV files to masks: the voice node hears, the grounding node answers, the answer is spoken.

The files in tests/voice were spoken by eSpeak NG's American English voice.
"""

import os
import stat
import sys
import time
import types
import wave
from pathlib import Path

import numpy as np
import pytest
from std_msgs.msg import String

pytest.importorskip(
    "pocketsphinx", reason="pocketsphinx is not installed: `make setup`, or `pip install -r requirements-voice.txt`"
)

from flmm_ros import qos
from flmm_ros.client import AskClient
from flmm_ros.msg import GroundedAnswer
from flmm_ros.node_processes import NodeProcesses
from flmm_ros.recognisers import (
    Microphone,
    PocketsphinxRecogniser,
    SpeechError,
    WhisperRecogniser,
    file_source,
    utterances,
)
from flmm_ros.voice import command_in
from flmm_sim.spoken import grammar

WAVS = Path(__file__).parent.parent / "voice"


def heard(recogniser, name):
    return [recogniser.text(speech) for speech in utterances(file_source(WAVS / f"{name}.wav"))]


@pytest.fixture(scope="module")
def recogniser():
    return PocketsphinxRecogniser()


@pytest.mark.parametrize("sentence", ["what is on the table", "where is the red bowl", "pick up the yellow lemon"])
def test_sentences_of_the_world_are_understood(recogniser, sentence):
    assert heard(recogniser, sentence.replace(" ", "_")) == [sentence]


def test_a_wake_word():
    recogniser = PocketsphinxRecogniser(wake_word="Computer")
    (text,) = heard(recogniser, "computer_bring_me_the_mug")
    assert command_in(text, "computer") == "bring me the mug"
    for other in ("where_is_the_red_bowl", "the_quick_brown_fox"):
        assert [command_in(text, "computer") for text in heard(recogniser, other)] == [""]


@pytest.mark.parametrize(
    ("text", "wake_word", "command"),
    [
        ("where is it", "", "where is it"),
        ("Computer, where is it?", "computer", "where is it?"),
        ("hey robot where", "Hey, Robot!", "where"),
        ("where is the computer", "computer", ""),
        ("computer", "computer", ""),
        ("", "", ""),
    ],
)
def test_what_follows_the_wake_word(text, wake_word, command):
    assert command_in(text, wake_word) == command


def test_the_grammar_holds_what_the_recogniser_knows():
    text = grammar(lambda word: word != "lemon")
    assert text.startswith("#JSGF V1.0;") and "lemon" not in text and "where is the <thing>" in text and "red" in text
    with pytest.raises(ValueError, match="wake_word: expected words that the recogniser knows, got 'qwx'"):
        grammar(lambda word: word != "qwx", "hey qwx")


def write_wav(path, rate, *, channels=1, width=2, seconds=0.3):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        tone = 8000 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
        file.writeframes(np.repeat(tone.astype(np.int16), channels).tobytes() if width == 2 else bytes(len(tone)))
    return path


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_of_any_rate_are_read(tmp_path, rate, channels):
    speech = np.frombuffer(file_source(write_wav(tmp_path / "a.wav", rate, channels=channels)).read(), np.int16)
    assert len(speech) == pytest.approx(16_000 * 1.3, abs=2)
    inside = speech[8100:12700].astype(float)
    assert inside.max() == pytest.approx(8000, rel=0.1)
    crossings = np.count_nonzero(np.diff(np.signbit(inside)))
    assert crossings == pytest.approx(2 * 440 * len(inside) / 16_000, abs=3)


def test_files_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(SpeechError, match=r"source: expected a WAV file, got .*text.wav"):
        file_source(tmp_path / "text.wav")
    with pytest.raises(SpeechError, match=r"source: expected a WAV file, got .*none.wav"):
        file_source(tmp_path / "none.wav")
    with pytest.raises(SpeechError, match="source: expected 16-bit samples, got 8-bit ones"):
        file_source(write_wav(tmp_path / "8.wav", 8000, width=1))
    assert list(utterances(file_source(write_wav(tmp_path / "short.wav", 8000, seconds=0.0)))) == []


def test_recognisers_that_cannot_be_used_say_why(tmp_path, monkeypatch):
    with pytest.raises(SpeechError, match="grammar: expected an existing file"):
        PocketsphinxRecogniser(tmp_path / "none.jsgf")
    (tmp_path / "bad.jsgf").write_text("no grammar")
    with pytest.raises(SpeechError, match="grammar: cannot be used"):
        PocketsphinxRecogniser(tmp_path / "bad.jsgf")
    with pytest.raises(SpeechError, match="model: expected the folder of a faster-whisper model, got"):
        WhisperRecogniser(tmp_path / "none")
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(SpeechError, match="faster-whisper is not installed"):
        WhisperRecogniser(tmp_path)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SpeechError, match="source: no microphone"):
        Microphone(lambda: False)


def test_whisper_gets_samples(tmp_path, monkeypatch):
    class WhisperModel:
        def __init__(self, folder, local_files_only):
            assert folder == str(tmp_path) and local_files_only

        def transcribe(self, samples):
            assert samples.dtype == np.float32 and abs(samples).max() <= 1.0
            return iter([types.SimpleNamespace(text=" Where is"), types.SimpleNamespace(text=" the mug?")]), None

    monkeypatch.setitem(sys.modules, "faster_whisper", types.SimpleNamespace(WhisperModel=WhisperModel))
    assert WhisperRecogniser(tmp_path).text(b"\x00\x80\xff\x7f") == "Where is the mug?"


def test_a_muted_microphone_returns_silence(monkeypatch):
    class Stream:
        def __init__(self, **_):
            pass

        def start(self):
            pass

        def read(self, count):
            return b"\x01\x02" * count, False

    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(RawInputStream=Stream))
    muted = []
    microphone = Microphone(lambda: bool(muted))
    assert microphone.read(4) == b"\x01\x02\x01\x02"
    muted.append(True)
    assert microphone.read(4) == bytes(4)


def test_from_speech_to_masks_and_a_spoken_answer(processes, log_dir, tmp_path, open_renderer):
    open_renderer().close()
    spoken = tmp_path / "spoken.txt"
    mouth = tmp_path / "espeak-ng"  # a synthesiser that writes down what it says
    mouth.write_text(f"#!/bin/sh\ncat >> {spoken}\necho >> {spoken}\n")
    mouth.chmod(mouth.stat().st_mode | stat.S_IXUSR)
    space = ["-r", "__ns:=/spoken"]
    remap = [part for topic in ("image", "depth", "camera_info") for part in ("-r", f"{topic}:=camera/{topic}")]
    processes.start("spoken_camera", "flmm_ros.camera_node", ["--ros-args", *space, "-p", "seed:=1"])
    processes.start("spoken_node", "flmm_ros.grounding_node", ["--ros-args", *space, *remap])
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    with AskClient("/spoken/grounding") as client, NodeProcesses(log_dir, environment) as mouths:
        client.wait_for_node(120.0)
        client.wait_for_image(60.0)
        replies = []
        client.node.create_subscription(GroundedAnswer, "/spoken/grounding/answer", replies.append, qos.commands())
        source = ["-p", f"source:={WAVS / 'what_is_on_the_table.wav'}"]
        voice = mouths.start("voice", "flmm_ros.voice_node", ["--ros-args", *space, *source])
        reply = client.wait_until(lambda: replies[0] if replies else None, 60.0, (log_dir / "voice.log").read_text())
        assert (reply.status, reply.command) == (GroundedAnswer.STATUS_ANSWERED, "what is on the table"), reply.reason
        assert reply.phrases and all(phrase.mask.data for phrase in reply.phrases if not phrase.absent)
        assert any(phrase.location.valid for phrase in reply.phrases)
        client.wait_until(lambda: spoken.exists() and reply.answer in spoken.read_text(), 10.0, "nothing was said")
        voice.terminate()
        assert voice.wait(timeout=5) == 0
    assert "heard 'what is on the table'" in (log_dir / "voice.log").read_text()


def test_a_voice_that_cannot_hear_ends_with_its_reason(processes, log_dir):
    process = processes.start("sourceless", "flmm_ros.voice_node", ["--ros-args", "-p", "source:=/no/such.wav"])
    assert process.wait(timeout=30) == 1
    log = (log_dir / "sourceless.log").read_text()
    assert log.count("[FATAL]") == 1 and "source: expected a WAV file, got /no/such.wav" in log and "Traceback" not in log


def test_any_recogniser_will_do(bench):
    """Another one publishes what it heard, with capitals, full stops and line breaks."""
    bench.show()
    bench.commands.publish(String(data="Where Is It.\n"))
    deadline = time.monotonic() + 10
    while not any(reply.command == "Where Is It.\n" for reply in bench.replies):
        assert time.monotonic() < deadline
        bench.client.spin(0.1)
