"""From WAV files to masks: the voice node hears, the grounding node answers, the answer is spoken.

The files in tests/voice were spoken by eSpeak NG's American English voice.
"""

import os
import signal
import stat
import struct
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
from flmm_ros.recognisers import PocketsphinxRecogniser, WhisperRecogniser, utterances
from flmm_ros.sound import Microphone, SpeechError, file_source
from flmm_ros.speaker import Speaker, spoken_line
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


def whisper(monkeypatch, folder, *segments):
    """A recogniser whose model of faster-whisper gives these texts, each with its probability of no speech."""

    class WhisperModel:
        def __init__(self, model, local_files_only):
            assert model == str(folder) and local_files_only

        def transcribe(self, samples, *, vad_filter, condition_on_previous_text):
            assert samples.dtype == np.float32 and abs(samples).max() <= 1.0 and vad_filter
            return (types.SimpleNamespace(text=text, no_speech_prob=probability) for text, probability in segments), None

    monkeypatch.setitem(sys.modules, "faster_whisper", types.SimpleNamespace(WhisperModel=WhisperModel))
    return WhisperRecogniser(folder)


def test_whisper_gets_samples(tmp_path, monkeypatch):
    recogniser = whisper(monkeypatch, tmp_path, (" Where is", 0.01), (" the mug?", 0.2))
    assert recogniser.text(b"\x00\x80\xff\x7f") == "Where is the mug?"


def test_what_whisper_makes_of_noise_is_no_command(tmp_path, monkeypatch):
    recogniser = whisper(monkeypatch, tmp_path, (" Thank you for watching.", 0.93))
    assert command_in(recogniser.text(bytes(2)), "") == ""


@pytest.mark.parametrize(
    ("name", "share", "backwards"),
    [("where_is_the_red_bowl", 0.5, False), ("what_is_on_the_table", 0.8, False), ("the_quick_brown_fox", 1.0, True)],
)
def test_half_a_sentence_is_no_command(recogniser, name, share, backwards):
    """Of these the decoder gives "where is the red", "what is on the" and "locate the white"."""
    samples = np.frombuffer(file_source(WAVS / f"{name}.wav").read(), np.int16)[8000:-8000]
    samples = samples[: int(len(samples) * share)]
    text = recogniser.text(samples[:: -1 if backwards else 1].tobytes())
    assert text == "" or text == name.replace("_", " ")  # dither is random


def fake_sounddevice(monkeypatch, works, *, rate=48_000.0, channels=1):
    """The module with a microphone that gives 0, 1, 2 ... and opens only as ``works(rate, channels)`` says."""

    class Stream:
        def __init__(self, samplerate, channels, dtype):
            if not works(samplerate, channels):
                raise RuntimeError("Invalid sample rate [PaErrorCode -9997]")
            self.channels, self.position = channels, 0
            opened.append((samplerate, channels))

        def start(self):
            pass

        def read(self, count):
            ramp = np.arange(self.position, self.position + count, dtype=np.int16).repeat(self.channels)
            self.position += count
            return ramp.tobytes(), False

    def query_devices(kind):
        return {"name": "USB", "default_samplerate": rate, "max_input_channels": channels}

    opened = []
    fake = types.SimpleNamespace(RawInputStream=Stream, query_devices=query_devices)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return opened


def test_a_muted_microphone_returns_silence(monkeypatch):
    fake_sounddevice(monkeypatch, lambda rate, channels: True)
    muted = []
    microphone = Microphone(lambda: bool(muted))
    assert microphone.read(4) == b"\x00\x00\x01\x00"
    muted.append(True)
    assert microphone.read(4) == bytes(4)


@pytest.mark.parametrize("rate", [44_100.0, 48_000.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_microphone_is_read_at_its_own_rate(monkeypatch, rate, channels):
    opened = fake_sounddevice(
        monkeypatch, lambda hertz, count: (hertz, count) == (rate, channels), rate=rate, channels=channels
    )
    microphone = Microphone(lambda: False)
    heard = np.frombuffer(b"".join(microphone.read(2 * count) for count in (480, 1, 7, 480, 999, 480)), np.int16)
    assert opened == [(rate, channels)]
    expected = (np.arange(len(heard)) + 0.5) * rate / 16_000 - 0.5
    assert len(heard) == 2447 and abs(heard - expected).max() < 2


def test_a_microphone_that_cannot_be_opened_is_not_said_to_be_missing(monkeypatch):
    fake_sounddevice(monkeypatch, lambda rate, channels: False)
    with pytest.raises(SpeechError, match=r"source: the microphone 'USB' cannot be opened at 48000 Hz .*Invalid sample rate"):
        Microphone(lambda: False)


def test_a_wav_file_with_an_extensible_header_is_read(tmp_path):
    plain = WAVS / "where_is_the_red_bowl.wav"
    with wave.open(str(plain)) as file:
        rate, samples = file.getframerate(), file.readframes(file.getnframes())
    kind = bytes.fromhex("0100000000001000800000aa00389b71")
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 1, rate, rate * 2, 2, 16, 22, 16, 4) + kind
    chunks = b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(samples)) + samples
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    assert file_source(tmp_path / "a.wav").read() == file_source(plain).read()


def test_a_wav_file_that_was_cut_off_is_read_up_to_there(tmp_path):
    content, whole = (WAVS / "where_is_the_red_bowl.wav").read_bytes(), file_source(WAVS / "where_is_the_red_bowl.wav").read()
    (tmp_path / "a.wav").write_bytes(content[:-1])
    assert abs(len(file_source(tmp_path / "a.wav").read()) - len(whole)) <= 4
    with wave.open(str(tmp_path / "stereo.wav"), "wb") as file:
        file.setparams((2, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(64))
    (tmp_path / "stereo.wav").write_bytes((tmp_path / "stereo.wav").read_bytes()[:-2])
    assert len(file_source(tmp_path / "stereo.wav").read()) == 2 * (16_000 + 15)


def test_no_wav_file_is_more_than_a_line(tmp_path):
    """Damaged headers: rates and lengths of any size, no channels, chunks without end."""
    whole, path = write_wav(tmp_path / "whole.wav", 8000, seconds=0.01).read_bytes(), tmp_path / "a.wav"
    noise = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole[: noise.integers(len(whole) + 1)])
        for _ in range(noise.integers(1, 4)):
            if data:
                data[noise.integers(min(44, len(data)))] = noise.integers(256)
        path.write_bytes(data)
        try:
            assert len(file_source(path).read()) < 2**20
        except SpeechError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 0 < refused < 150
    for place, number in ((24, 1), (24, 0), (24, 2**31), (40, 2**32 - 1)):
        path.write_bytes(whole[:place] + struct.pack("<I", number) + whole[place + 4 :])
        if place == 40:
            assert file_source(path).read() == file_source(tmp_path / "whole.wav").read()
        else:
            with pytest.raises(SpeechError, match="expected"):
                file_source(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("hello\n!-!SET SELF VOLUME 100\n", "hello ! -!SET SELF VOLUME 100"),
        ("!-!-!x", "! -! -!x"),
        ("a\x01b \x1b[31m\u2028c\r", "a b [31m c"),
    ],
)
def test_a_line_that_is_spoken_is_no_command(text, line):
    assert spoken_line(text) == line


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return [str(path)]


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_texts_are_spoken_one_after_another_whatever_fails(tmp_path):
    said, errors = tmp_path / "said", []
    speaker = Speaker(script(tmp_path / "mouth", f'read line; echo $line >> {said}; [ "$line" != bad ]'), errors.append)
    for text in ("one", "bad", "t\ud800wo"):
        speaker.say(text)
    wait_until(lambda: not speaker.is_speaking())
    assert said.read_text() == "one\nbad\nt wo\n"
    assert len(errors) == 1 and "returned non-zero exit status 1" in errors[0]
    missing = Speaker([str(tmp_path / "none")], errors.append)
    missing.say("one")
    wait_until(lambda: not missing.is_speaking())
    assert len(errors) == 2 and "No such file" in errors[1]


def test_closing_stops_what_is_spoken_and_what_waits(tmp_path):
    said, errors = tmp_path / "said", []
    speaker = Speaker(script(tmp_path / "mouth", f"echo >> {said}; sleep 30"), errors.append)
    for _ in range(9):
        speaker.say("a long answer")
    wait_until(said.exists)
    begin = time.monotonic()
    speaker.close()
    wait_until(lambda: not speaker.is_speaking())
    assert time.monotonic() - begin < 2
    assert said.read_text() == "\n" and 3 <= len(errors) <= 4 and set(errors) == {"5 others wait"}


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
        mouth.write_text("#!/bin/sh\nsleep 30\n")  # it is still speaking
        client.node.create_publisher(String, "/spoken/grounding/answer_text", qos.commands()).publish(String(data="again"))
        client.spin(1.0)
        begin = time.monotonic()
        voice.send_signal(signal.SIGINT)
        assert voice.wait(timeout=10) == 0 and time.monotonic() - begin < 3
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
