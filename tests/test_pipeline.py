"""The whole path on tiny random models: both modes, what is paid once, and refusals."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import random_image, save_model, tiny_heads

from flmm_core import pipeline as pipeline_module
from flmm_core.chat.batching import chat_batch
from flmm_core.config import GroundingConfig, tunables
from flmm_core.errors import CommandCancelledError, CommandError, LoadError, MemoryFullError
from flmm_core.images.files import rgb_array
from flmm_core.keywords.repetition import loop_start
from flmm_core.loading.checkpoints import save_heads
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import Callbacks
from flmm_core.requests.chat_command import ChatCommand
from flmm_core.types import GroundedAnswer, KeywordSpan


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    save_model(root, kv_heads=2)
    save_heads(tiny_heads(selector=False, presence=False), root / "plain_heads")
    return root


@pytest.fixture(scope="module")
def pipeline(parts):
    return GroundingPipeline.from_pretrained(parts / "lmm", parts / "heads", parts / "sam", device="cpu")


class Follower(Callbacks):
    """Writes everything down, and cancels once ``end`` says so."""

    def __init__(self, end=lambda follower: False):
        self.stages, self.texts, self.coarse, self.end = [], [], [], end

    def on_stage(self, stage):
        self.stages.append(stage)

    def on_text(self, text):
        self.texts.append(text)

    def on_coarse(self, coarse):
        self.coarse.append(coarse)

    def cancelled(self):
        return self.end(self)


@pytest.fixture
def every_word(pipeline):
    """Every word is a phrase or part of one."""
    pipeline.config = GroundingConfig(selector_threshold=0.0)
    yield
    pipeline.config = GroundingConfig()


def check_phrase(phrase, height, width):
    assert phrase.mask.shape == (height, width) and phrase.mask.dtype == bool
    ys, xs = np.nonzero(phrase.mask)
    if len(xs):
        assert phrase.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert 0.5 < phrase.score <= 1
    else:
        assert phrase.box == (0, 0, 0, 0) and phrase.score == 0


def test_refer(pipeline):
    image = pipeline.encode(random_image(50, 70))
    answer = pipeline.refer(image, ["red mug", "lemon"])
    assert [phrase.text for phrase in answer.phrases] == ["red mug", "lemon"]
    assert answer.text == "red mug. lemon"  # without the full stop that the LMM reads behind the last one
    assert [answer.text[p.start : p.end] for p in answer.phrases] == ["red mug", "lemon"]
    assert (answer.image_height, answer.image_width) == (50, 70)
    for phrase in answer.phrases:
        check_phrase(phrase, 50, 70)
    for phrase in ("red mug", "the lemon's été", "a mug."):
        alone = pipeline.refer(image, phrase)
        assert alone.text == phrase
        assert [(p.text, p.start, p.end) for p in alone.phrases] == [(phrase, 0, len(phrase))]


def test_chat(pipeline):
    image = pipeline.encode(np.asarray(random_image(50, 70)))
    pipeline.config = GroundingConfig(selector_threshold=0.0)  # every word is a phrase or part of one
    try:
        seen = Follower()
        answer = pipeline.chat(image, "where is the lemon?", max_new_tokens=12, callbacks=seen)
        assert seen.texts[-1] == answer.text
        assert seen.stages == ["image", "lmm", "keywords", "mask_head", "refiner"]
        assert len(seen.coarse) == 1 and len(seen.coarse[0].logits) == len(answer.phrases)
        assert answer.phrases
        for phrase in answer.phrases:
            assert answer.text[phrase.start : phrase.end] == phrase.text != ""
            check_phrase(phrase, 50, 70)
        pipeline.config = GroundingConfig(selector_threshold=1.0)
        again = pipeline.chat(image, "where is the lemon?", max_new_tokens=12)
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
    image = pipeline.encode(random_image(50, 70))
    text = "a red mug and two two two two"
    trace = replace(pipeline.teacher_force(image, "where is the lemon?", text), ended=ended)
    monkeypatch.setattr(pipeline.lmm, "generate_batch", lambda *_, **__: (trace,))
    monkeypatch.setattr(
        pipeline_module, "select_keywords", lambda *_, **__: (span_of(trace, "red mug"), span_of(trace, "two two two"))
    )
    answer = pipeline.chat(image, "where is the lemon?")
    assert answer.text == (text if ended else "a red mug and two ...")
    assert [phrase.text for phrase in answer.phrases] == ["red mug", "two two two"][: 1 + ended]


def span_of(trace, words):
    start = trace.text.index(words)
    return KeywordSpan(words, start, start + len(words), *trace.span_of(start, start + len(words)))


def test_heads_without_selector_use_noun_chunks(parts, monkeypatch):
    pipeline = GroundingPipeline.from_pretrained(parts / "lmm", parts / "plain_heads", parts / "sam", device="cpu")
    image = pipeline.encode(random_image())
    trace = pipeline.teacher_force(image, "where is the lemon?", "There is a red mug, no banana, and a blue bowl.")
    monkeypatch.setattr(pipeline.lmm, "generate_batch", lambda *_, **__: (trace,))
    answer = pipeline.chat(image, "where is the lemon?")
    assert [phrase.text for phrase in answer.phrases] == ["a red mug", "a blue bowl"]


def count_calls(pipeline, calls):
    """What the parts that see the image are asked for."""
    vision, decoder = pipeline.lmm.model.model.vision_tower, pipeline.lmm.model.model.language_model
    return [
        vision.register_forward_hook(lambda *_: calls.append("vision")),
        pipeline.heads.sam.model.image_encoder.register_forward_hook(lambda *_: calls.append("sam")),
        decoder.register_forward_hook(
            lambda module, args, kwargs, output: calls.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        ),
    ]


def test_the_image_is_paid_for_once(pipeline):
    calls = []
    hooks = count_calls(pipeline, calls)
    image = pipeline.encode(random_image(seed=3))
    assert not calls
    first = pipeline.refer(image, ["lemon"])
    assert sorted(call for call in calls if isinstance(call, str)) == ["sam", "vision"]
    (whole,) = [call for call in calls if isinstance(call, int)]
    calls.clear()
    again = pipeline.refer(image, ["lemon"])
    (words,) = calls
    assert words <= whole - 16  # the image's tokens are not read again
    calls.clear()
    same = pipeline.refer(pipeline.encode(random_image(seed=3)), ["lemon"])  # the same pixels, taken again
    pipeline.chat(image, "what is there?", max_new_tokens=3)
    assert "vision" not in calls and "sam" not in calls
    assert calls[0] == words
    for hook in hooks:
        hook.remove()
    assert first.seconds.image > 0 and first.seconds.lmm > 0 and first.seconds.mask_head > 0 and first.seconds.refiner > 0
    for other in (again, same):
        assert np.array_equal(first.phrases[0].mask, other.phrases[0].mask)


def test_images_are_kept_within_a_bound(pipeline):
    one = pipeline.encode(random_image(seed=1))
    pipeline.refer(one, "lemon")
    tight = GroundingPipeline(lmm=pipeline.lmm, heads=pipeline.heads, config=GroundingConfig(image_cache=0))
    kept = tight.encode(random_image(seed=1))
    pixels = kept.kept_bytes
    assert pixels == 48 * 64 * 3
    tight.refer(kept, "lemon")
    prefix = sum(layer.keys.nbytes + layer.values.nbytes for layer in next(iter(kept.lmm().prefixes.values())).cache.layers)
    assert kept.kept_bytes >= pixels + prefix + kept.start_sam().result().embedding.nbytes
    assert tight.encode(random_image(seed=1)) is kept  # the newest is kept
    tight.encode(random_image(seed=2))
    assert tight.encode(random_image(seed=1)) is not kept
    assert pipeline.encode(random_image(seed=1)) is one
    assert pipeline.encode(np.asarray(random_image(seed=1)).transpose(1, 0, 2)) is not one


def test_callers_may_go_on_writing_into_their_image(pipeline):
    pixels = np.array(random_image(seed=5))
    image = pipeline.encode(pixels)
    pixels[:] = 0
    assert image.pixels.any()


def test_a_command_is_cancelled_within_a_token(pipeline, every_word):
    image = pipeline.encode(random_image(50, 70))
    for end, stages in (
        (lambda seen: True, []),
        (lambda seen: "image" in seen.stages, ["image"]),
        (lambda seen: len(seen.texts) >= 3, ["image", "lmm"]),
        (lambda seen: "keywords" in seen.stages, ["image", "lmm", "keywords"]),
        (lambda seen: bool(seen.coarse), ["image", "lmm", "keywords", "mask_head"]),
    ):
        seen = Follower(end)
        with pytest.raises(CommandCancelledError, match="command: cancelled before the stage"):
            pipeline.chat(image, "where is the lemon?", max_new_tokens=12, callbacks=seen)
        assert seen.stages == stages
        assert len(seen.texts) in ((3, 4) if len(stages) == 2 else (0, 12))
    assert pipeline.chat(image, "where is the lemon?", max_new_tokens=12).phrases
    with pytest.raises(CommandCancelledError):
        pipeline.refer(image, "lemon", callbacks=Follower(lambda seen: "lmm" in seen.stages))


def test_masks_can_be_skipped(pipeline, every_word):
    calls = []
    hooks = count_calls(pipeline, calls)
    image = pipeline.encode(random_image(seed=9))
    seen = Follower()
    answer = pipeline.chat(image, "where is the lemon?", max_new_tokens=6, masks=False, callbacks=seen)
    assert answer.text == seen.texts[-1] and answer.phrases == answer.left_out == ()
    assert "sam" not in calls and seen.stages == ["image", "lmm", "keywords"]
    assert pipeline.chat(image, "where is the lemon?", max_new_tokens=6).text == answer.text
    for hook in hooks:
        hook.remove()


def test_the_surest_phrases_get_masks_and_the_others_are_named(pipeline, monkeypatch):
    image = pipeline.encode(random_image())
    trace = pipeline.teacher_force(image, "where is the lemon?", "red mug and lemon and can")
    monkeypatch.setattr(pipeline.lmm, "generate_batch", lambda *_, **__: (trace,))
    spans = [replace(span_of(trace, words), score=score) for words, score in (("red mug", 0.6), ("lemon", 0.5), ("can", 0.9))]
    monkeypatch.setattr(pipeline_module, "select_keywords", lambda *_, **__: tuple(spans))
    pipeline.config = GroundingConfig(max_phrases=2)
    try:
        answer = pipeline.chat(image, "where is the lemon?")
        assert [phrase.text for phrase in answer.phrases] == ["red mug", "can"] and answer.left_out == ("lemon",)
        answer = pipeline.refer(image, ["red mug", "lemon", "can"])
        assert [phrase.text for phrase in answer.phrases] == ["red mug", "lemon"] and answer.left_out == ("can",)
        assert answer.text == "red mug. lemon. can"
    finally:
        pipeline.config = GroundingConfig()


@pytest.mark.parametrize("part", ["vision", "decoder", "sam"])
def test_a_command_that_does_not_fit_into_memory_leaves_the_next_one_room(pipeline, monkeypatch, part):
    image, other = pipeline.encode(random_image(seed=7)), pipeline.encode(random_image(seed=8))
    pipeline.refer(other, "lemon")
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of 2 GiB")

    def fail(*_, **__):
        raise full

    owner, name = {
        "vision": (pipeline.lmm.family, "encode"),
        "decoder": (pipeline.lmm, "teacher_force_tokens"),
        "sam": (pipeline.heads.sam, "encode_image"),
    }[part]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        with pytest.raises(MemoryFullError) as error:
            pipeline.refer(image, "lemon")
    assert str(error.value) == (
        "command: expected enough free memory, got too little (CUDA out of memory. Tried to allocate 20.00 MiB.); kept images"
        " are freed, try again"
    )
    assert image.kept_bytes == image.pixels.nbytes and other.kept_bytes == other.pixels.nbytes
    check_phrase(pipeline.refer(image, "lemon").phrases[0], 48, 64)


def alike(answer, alone):
    assert (answer.text, answer.left_out) == (alone.text, alone.left_out)
    for one, two in zip(answer.phrases, alone.phrases, strict=True):
        assert (one.text, one.start, one.end, one.box) == (two.text, two.start, two.end, two.box)
        assert one.score == pytest.approx(two.score, abs=1e-4) and (one.mask == two.mask).all()


def test_commands_about_several_images_are_answered_together(pipeline, every_word):
    """Each gets the answer, or the error, that it gets alone."""
    seen = {"two": [], "three": []}

    class Follower(Callbacks):
        def __init__(self, name):
            self.name = name

        def on_text(self, text):
            seen[self.name].append(text)

    handles = [pipeline.encode(random_image(60 + 9 * i, 80, seed=i)) for i in range(3)]
    late = Callbacks()
    late.cancel()
    commands = [
        ChatCommand(handles[0], "where is the lemon?", max_new_tokens=4),
        ChatCommand(handles[1], "<image>"),
        ChatCommand(handles[1], "what is left of the can, and what is right of it?", callbacks=Follower("two")),
        ChatCommand(handles[1], "what is there?", callbacks=late),
        ChatCommand(handles[2], "what?", max_phrases=1, callbacks=Follower("three")),
        ChatCommand(handles[2], "why?", masks=False),
    ]
    outcomes = list(chat_batch(pipeline, commands))
    assert [type(outcome) for outcome in outcomes] == [
        GroundedAnswer, CommandError, GroundedAnswer, CommandCancelledError, GroundedAnswer, GroundedAnswer,
    ]  # fmt: skip
    for i in (0, 2, 4, 5):
        options = {name: getattr(commands[i], name) for name in ("max_new_tokens", "max_phrases", "masks")}
        alike(outcomes[i], pipeline.chat(commands[i].image, commands[i].text, **options))
    assert outcomes[0].phrases and len(outcomes[4].phrases) == 1 and not outcomes[5].phrases
    assert seen["two"][-1] == outcomes[2].text and seen["three"][-1] == outcomes[4].text
    first = outcomes[0].seconds
    assert first.lmm > 0 and first.image > 0


def test_a_callback_that_raises_ends_its_own_command_alone(pipeline, every_word):
    class Faulty(Callbacks):
        def on_text(self, text):
            raise OSError("the client is gone")

    class Faultier(Callbacks):
        def cancelled(self):
            if self.asked > 3:  # the first times while the command begins
                raise KeyError("client")
            self.asked += 1
            return False

        asked = 0

    image = pipeline.encode(random_image(60, 80, seed=31))
    texts = ("what is left of the can?", "what?", "what is there?")
    commands = [
        ChatCommand(image, text, callbacks=one()) for text, one in zip(texts, (Faulty, Callbacks, Faultier), strict=True)
    ]
    first, second, third = chat_batch(pipeline, commands)
    assert isinstance(first, OSError) and isinstance(third, KeyError)
    alike(second, pipeline.chat(image, texts[1]))


def test_thresholds_may_change_between_commands(pipeline, every_word):
    image = pipeline.encode(random_image(60, 80, seed=32))
    pipeline.set_thresholds(presence_threshold=0.0)
    assert not any(phrase.absent for phrase in pipeline.refer(image, ["lemon"]).phrases)
    pipeline.set_thresholds(presence_threshold=1.0, selector_threshold=1.0)
    assert all(phrase.absent for phrase in pipeline.refer(image, ["lemon"]).phrases)
    assert not pipeline.chat(image, "what is there?").phrases
    with pytest.raises(ValueError, match=r"mask_threshold: expected 0\.01 to 0\.99"):
        pipeline.set_thresholds(mask_threshold=1.0)


def test_a_batch_that_does_not_fit_into_memory_is_answered_one_by_one(pipeline, monkeypatch):
    handles = [pipeline.encode(random_image(60, 80, seed=20 + i)) for i in range(2)]
    alone = [pipeline.chat(handle, "what is there?") for handle in handles]
    generate, sizes = pipeline.lmm.generate_batch, []
    kept = [weakref.ref(handle.lmm()) for handle in handles]

    def full(questions, **options):
        sizes.append(len(questions))
        if len(questions) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert all(image() is None for image in kept), "what was kept of the images is free"
        return generate(questions, **options)

    monkeypatch.setattr(pipeline.lmm, "generate_batch", full)
    outcomes = list(chat_batch(pipeline, [ChatCommand(handle, "what is there?") for handle in handles]))
    assert sizes == [2, 1, 1]
    for outcome, one in zip(outcomes, alone, strict=True):
        alike(outcome, one)


def test_an_empty_mask_is_kept(pipeline, monkeypatch):
    image = pipeline.encode(random_image())
    monkeypatch.setattr(pipeline.heads.sam, "to_image", lambda low_res, image: torch.full((1, 48, 64), -3.0))
    (phrase,) = pipeline.refer(image, "lemon").phrases
    assert (phrase.box, phrase.score, phrase.mask.any()) == ((0, 0, 0, 0), 0.0, np.False_)
    monkeypatch.setattr(pipeline.heads.sam, "to_image", lambda low_res, image: torch.zeros(1, 48, 64))
    assert not pipeline.refer(image, "lemon").phrases[0].mask.any()  # logits > 0, not >= 0


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (7, 5), (900, 1300)])
def test_extreme_images(pipeline, size):
    image = pipeline.encode(random_image(max(size[0], 4), max(size[1], 4)).resize((size[1], size[0])))
    (phrase,) = pipeline.refer(image, "lemon").phrases
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
        pipeline.encode(value)
    with pytest.raises(ValueError, match=r"expected at least one pixel, got \[0, 4, 3\]"):
        pipeline.encode(np.zeros((0, 4, 3), np.uint8))


def test_a_failure_of_encoding_is_not_kept(pipeline, monkeypatch):
    def fail(_):
        raise RuntimeError("a part is broken")

    image = pipeline.encode(random_image(seed=4))
    with monkeypatch.context() as patched:
        patched.setattr(pipeline.heads.sam, "encode_image", fail)
        with pytest.raises(RuntimeError, match="a part is broken"):
            pipeline.refer(image, "lemon")
    check_phrase(pipeline.refer(image, "lemon").phrases[0], 48, 64)


def test_other_image_layouts_are_taken():
    flipped = np.asarray(random_image())[:, ::-1]
    assert rgb_array(flipped).flags.c_contiguous
    assert rgb_array(Image.new("RGBA", (5, 4))).shape == (4, 5, 3)
    assert rgb_array(Image.new("L", (5, 4))).shape == (4, 5, 3)


def test_bad_commands(parts, pipeline):
    image = pipeline.encode(random_image())
    for text in ("", "  \n", "???", "🍋😀", "...?!" * 99, "\u0301", None, 3):
        for ask, words in ((pipeline.chat, text), (pipeline.refer, [text]), (pipeline.refer, ["mug", text])):
            with pytest.raises(CommandError) as error:
                ask(image, words)
            assert str(error.value) == f"text: expected at least one letter or digit, got {repr(text)[:80]}"
    for ask in (pipeline.chat, pipeline.refer):
        for text in ("caf\udce9", "\ud83c mug"):
            with pytest.raises(
                CommandError, match=r"text: expected Unicode, got bytes of another encoding or half a character"
            ):
                ask(image, text)
    for text in ("[1]", "\uff10", "[2] [3]", "\u0663"):
        with pytest.raises(CommandError, match="phrase: expected words, or a number in the digits 0 to 9, got"):
            pipeline.refer(image, text)
    assert pipeline.refer(image, ["player 12", "7", "\u67e0\u6aac"]).phrases
    with pytest.raises(ValueError, match="phrases: expected at least one, got none"):
        pipeline.refer(image, [])
    for ask in (pipeline.chat, pipeline.refer):
        with pytest.raises(CommandError, match="expected no special tokens of the LMM, got '<image>'"):
            ask(image, "an <image>")
        with pytest.raises(CommandError, match=r"text: expected at most \d+ tokens"):
            ask(image, "word " * 3000)
    with pytest.raises(CommandError, match=r"max_new_tokens: expected fewer than 496 \(context of 512"):
        pipeline.chat(image, "lemon", max_new_tokens=600)
    with pytest.raises(CommandError, match="max_new_tokens: expected 1 to 1024 tokens, got 0"):
        pipeline.chat(image, "lemon", max_new_tokens=0)
    for ask in (pipeline.chat, pipeline.refer):
        with pytest.raises(CommandError, match="max_phrases: expected 1 to 1000 phrases, got -1"):
            ask(image, "lemon", max_phrases=-1)
    for odd in ("\x00\x07 lemon", "柠檬在哪里", "é" * 50, "4?", "🍋½"):
        pipeline.chat(image, odd, max_new_tokens=2)


def test_bad_options(parts):
    with pytest.raises(TypeError, match="max_new_token"):
        GroundingPipeline.from_pretrained(parts / "lmm", parts / "heads", parts / "sam", max_new_token=3)
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        GroundingPipeline.from_pretrained(parts / "lmm", parts / "heads", parts / "sam", device="gpu")
    with pytest.raises(LoadError, match=r"heads .*: expected an existing file or folder"):
        GroundingPipeline.from_pretrained(parts / "lmm", parts / "none", parts / "sam")


def test_half_precision_lmm(parts):
    pipeline = GroundingPipeline.from_pretrained(parts / "lmm", parts / "heads", parts / "sam", device="cpu", dtype="bfloat16")
    image = pipeline.encode(random_image())
    assert pipeline.lmm.model.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in pipeline.heads.parameters())
    check_phrase(pipeline.refer(image, "lemon").phrases[0], 48, 64)
    pipeline.chat(image, "lemon?", max_new_tokens=4)


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
