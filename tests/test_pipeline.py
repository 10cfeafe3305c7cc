"""The whole path on tiny random models: both modes, what is paid once, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import random_image, save_model, tiny_heads

from flmm_core import pipeline as pipeline_module
from flmm_core.checkpoints import save_heads
from flmm_core.config import GroundingConfig, tunables
from flmm_core.errors import CommandError, LoadError
from flmm_core.pipeline import GroundingPipeline, rgb_array
from flmm_core.repetition import loop_start
from flmm_core.types import KeywordSpan


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    save_model(root, kv_heads=2)
    save_heads(tiny_heads(selector=False, presence=False), root / "plain_heads")
    return root


@pytest.fixture(scope="module")
def pipeline(parts):
    return GroundingPipeline.from_pretrained(parts / "lmm", parts / "heads", parts / "sam", device="cpu")


def check_phrase(phrase, height, width):
    assert phrase.mask.shape == (height, width) and phrase.mask.dtype == bool
    ys, xs = np.nonzero(phrase.mask)
    if len(xs):
        assert phrase.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert 0.5 < phrase.score <= 1
    else:
        assert phrase.box == (0, 0, 0, 0) and phrase.score == 0


def test_refer(pipeline):
    pipeline.set_image(random_image(50, 70))
    answer = pipeline.refer(["red mug", "lemon"])
    assert [phrase.text for phrase in answer.phrases] == ["red mug", "lemon"]
    assert answer.text == "red mug. lemon"  # without the full stop that the LMM reads behind the last one
    assert [answer.text[p.start : p.end] for p in answer.phrases] == ["red mug", "lemon"]
    assert (answer.image_height, answer.image_width) == (50, 70)
    for phrase in answer.phrases:
        check_phrase(phrase, 50, 70)
    for phrase in ("red mug", "the lemon's été", "a mug."):
        alone = pipeline.refer(phrase)
        assert alone.text == phrase
        assert [(p.text, p.start, p.end) for p in alone.phrases] == [(phrase, 0, len(phrase))]


def test_chat(pipeline):
    pipeline.set_image(np.asarray(random_image(50, 70)))
    pipeline.config = GroundingConfig(selector_threshold=0.0)  # every word is a phrase or part of one
    try:
        seen = []
        answer = pipeline.chat("where is the lemon?", max_new_tokens=12, on_text=seen.append)
        assert seen[-1] == answer.text
        assert answer.phrases
        for phrase in answer.phrases:
            assert answer.text[phrase.start : phrase.end] == phrase.text != ""
            check_phrase(phrase, 50, 70)
        pipeline.config = GroundingConfig(selector_threshold=1.0)
        again = pipeline.chat("where is the lemon?", max_new_tokens=12)
        assert again.text == answer.text and again.phrases == ()
    finally:
        pipeline.config = GroundingConfig()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("I do I do I do I do I", "I do"),
        ("I see a mug, a mug, A mug, a", "I see a mug"),
        ("There are two two two two seven seven seven", "There are two"),
        ("one two one two", None),
        ("two two and two", None),
        ("", None),
    ],
)
def test_loops_begin_where_a_thing_is_said_for_the_third_time(text, kept):
    assert text[: loop_start(text)] == (text if kept is None else kept)


@pytest.mark.parametrize("ended", [False, True])
def test_an_answer_that_runs_in_circles_is_cut(pipeline, monkeypatch, ended):
    pipeline.set_image(random_image(50, 70))
    text = "a red mug and two two two two"
    trace = replace(pipeline.read("where is the lemon?", text), ended=ended)
    monkeypatch.setattr(pipeline.lmm, "generate", lambda *_, **__: trace)
    monkeypatch.setattr(
        pipeline_module, "select_keywords", lambda *_, **__: (span_of(trace, "red mug"), span_of(trace, "two two two"))
    )
    answer = pipeline.chat("where is the lemon?")
    assert answer.text == (text if ended else "a red mug and two ...")
    assert [phrase.text for phrase in answer.phrases] == ["red mug", "two two two"][: 1 + ended]


def span_of(trace, words):
    start = trace.text.index(words)
    return KeywordSpan(words, start, start + len(words), *trace.span_of(start, start + len(words)))


def test_heads_without_selector_use_noun_chunks(parts):
    pipeline = GroundingPipeline.from_pretrained(parts / "lmm", parts / "plain_heads", parts / "sam", device="cpu")
    pipeline.set_image(random_image())
    assert isinstance(pipeline.chat("where is the lemon?", max_new_tokens=12).phrases, tuple)


def test_the_image_is_paid_for_once(pipeline, monkeypatch):
    calls = []
    for module in (pipeline.lmm.model.model.vision_tower, pipeline.heads.sam.model.image_encoder):
        module.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    pipeline.set_image(random_image())
    assert len(calls) == 2
    first = pipeline.refer(["lemon"])
    second = pipeline.refer(["lemon"])
    pipeline.chat("what is there?", max_new_tokens=3)
    assert len(calls) == 2
    assert first.seconds.image > 0 and second.seconds.image == 0
    assert first.seconds.lmm > 0 and first.seconds.mask_head > 0 and first.seconds.refiner > 0
    assert np.array_equal(first.phrases[0].mask, second.phrases[0].mask)


def test_an_empty_mask_is_kept(pipeline, monkeypatch):
    pipeline.set_image(random_image())
    monkeypatch.setattr(pipeline.heads.sam, "to_image", lambda low_res, image: torch.full((1, 48, 64), -3.0))
    (phrase,) = pipeline.refer("lemon").phrases
    assert (phrase.box, phrase.score, phrase.mask.any()) == ((0, 0, 0, 0), 0.0, np.False_)
    monkeypatch.setattr(pipeline.heads.sam, "to_image", lambda low_res, image: torch.zeros(1, 48, 64))
    assert not pipeline.refer("lemon").phrases[0].mask.any()  # logits > 0, not >= 0


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (7, 5), (900, 1300)])
def test_extreme_images(pipeline, size):
    pipeline.set_image(random_image(max(size[0], 4), max(size[1], 4)).resize((size[1], size[0])))
    (phrase,) = pipeline.refer("lemon").phrases
    check_phrase(phrase, *size)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        ("image.png", "str"),
        (None, "NoneType"),
    ],
)
def test_bad_images(pipeline, value, got):
    with pytest.raises(ValueError, match=f"image: expected uint8 RGB .* got {got}"):
        pipeline.set_image(value)
    with pytest.raises(ValueError, match=r"expected at least one pixel, got \[0, 4, 3\]"):
        pipeline.set_image(np.zeros((0, 4, 3), np.uint8))


def test_an_image_that_cannot_be_encoded_leaves_none(pipeline, monkeypatch):
    def fail(_):
        raise RuntimeError("out of memory")

    for bad in (None, random_image()):
        pipeline.set_image(random_image())
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.heads.sam, "encode_image", fail)
            with pytest.raises((ValueError, RuntimeError), match=r"image: expected uint8 RGB|out of memory"):
                pipeline.set_image(bad)
        with pytest.raises(ValueError, match=r"image: expected set_image\(\) before a command, got no image yet"):
            pipeline.refer("lemon")


def test_other_image_layouts_are_taken():
    flipped = np.asarray(random_image())[:, ::-1]
    assert rgb_array(flipped).flags.c_contiguous
    assert rgb_array(Image.new("RGBA", (5, 4))).shape == (4, 5, 3)
    assert rgb_array(Image.new("L", (5, 4))).shape == (4, 5, 3)


def test_bad_commands(parts, pipeline):
    fresh = GroundingPipeline(lmm=pipeline.lmm, heads=pipeline.heads)
    with pytest.raises(ValueError, match=r"image: expected set_image\(\) before a command, got no image yet"):
        fresh.chat("where is the lemon?")
    pipeline.set_image(random_image())
    for text in ("", "  \n", "???", "🍋😀", "...?!" * 99, "\u0301", None, 3):
        for ask, words in ((pipeline.chat, text), (pipeline.refer, [text]), (pipeline.refer, ["mug", text])):
            with pytest.raises(CommandError) as error:
                ask(words)
            assert str(error.value) == f"text: expected at least one letter or digit, got {repr(text)[:80]}"
    with pytest.raises(ValueError, match="phrases: expected at least one, got none"):
        pipeline.refer([])
    for ask in (pipeline.chat, pipeline.refer):
        with pytest.raises(CommandError, match="expected no special tokens of the LMM, got '<image>'"):
            ask("an <image>")
        with pytest.raises(CommandError, match=r"text: expected at most \d+ tokens"):
            ask("word " * 3000)
    with pytest.raises(ValueError, match=r"max_new_tokens: expected fewer than 496 \(context of 512") as error:
        pipeline.chat("lemon", max_new_tokens=600)
    assert not isinstance(error.value, CommandError)  # no words would fit
    with pytest.raises(ValueError, match="max_new_tokens: expected 1 to 1024 tokens, got 0"):
        pipeline.chat("lemon", max_new_tokens=0)
    for odd in ("\x00\x07 lemon", "柠檬在哪里", "é" * 50, "4?", "🍋½"):
        pipeline.chat(odd, max_new_tokens=2)


def test_bad_options(parts):
    with pytest.raises(TypeError, match="max_new_token"):
        GroundingPipeline.from_pretrained(parts / "lmm", parts / "heads", parts / "sam", max_new_token=3)
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        GroundingPipeline.from_pretrained(parts / "lmm", parts / "heads", parts / "sam", device="gpu")
    with pytest.raises(LoadError, match=r"heads .*: expected an existing file or folder"):
        GroundingPipeline.from_pretrained(parts / "lmm", parts / "none", parts / "sam")


def test_half_precision_lmm(parts):
    pipeline = GroundingPipeline.from_pretrained(parts / "lmm", parts / "heads", parts / "sam", device="cpu", dtype="bfloat16")
    pipeline.set_image(random_image())
    assert pipeline.lmm.model.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in pipeline.heads.parameters())
    check_phrase(pipeline.refer("lemon").phrases[0], 48, 64)
    pipeline.chat("lemon?", max_new_tokens=4)


def test_config():
    entries = {entry.name: entry for entry in tunables()}
    assert entries["max_new_tokens"].maximum == 1024 and entries["max_new_tokens"].default == 64
    for entry in entries.values():
        entry.check(entry.default)
        assert entry.description
    for name, value, message in (
        ("max_new_tokens", 0, "max_new_tokens: expected 1 to 1024 tokens, got 0"),
        ("max_new_tokens", True, "max_new_tokens: expected int, got bool True"),
        ("max_new_tokens", 2.5, "max_new_tokens: expected int, got float 2.5"),
        ("selector_threshold", float("nan"), "selector_threshold: expected 0.0 to 1.0 probability, got nan"),
        ("dtype", "int8", "dtype: expected one of auto, float32, bfloat16, float16, got 'int8'"),
        ("lmm", 3, "lmm: expected str, got int 3"),
    ):
        with pytest.raises(ValueError) as error:
            GroundingConfig(**{name: value})
        assert str(error.value) == message
    assert GroundingConfig(mask_threshold=0.3).mask_threshold == 0.3
