"""Conversations about one image, early masks, and visual chain of thought, on a tiny random model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import random_image, save_model

from flmm_core.chat.closer_look import FIRST_QUESTION, enlarged_part, look_closer
from flmm_core.chat.conversation import Conversation
from flmm_core.config import GroundingConfig
from flmm_core.errors import CommandError
from flmm_core.lmm.loading import load_plain
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import Callbacks
from flmm_core.types import GroundedAnswer, GroundedPhrase, KeywordSpan

EVERY_WORD = GroundingConfig(selector_threshold=0.0, presence_threshold=0.0, max_new_tokens=8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    save_model(root, kv_heads=2)
    return root


@pytest.fixture(scope="module")
def pipeline(parts):
    made = GroundingPipeline.from_pretrained(parts / "lmm", parts / "heads", parts / "sam", device="cpu")
    made.config = EVERY_WORD
    return made


@pytest.fixture
def image(pipeline):
    return pipeline.encode(np.asarray(random_image(60, 80)))


def sent(pipeline, monkeypatch):
    """The histories that the LMM is given, as they come."""
    histories = []
    chat = pipeline.chat

    def spy(image, text, *, history=(), **options):
        histories.append([*history])
        return chat(image, text, history=history, **options)

    monkeypatch.setattr(pipeline, "chat", spy)
    return histories


# --- history ---


@torch.no_grad()
def test_an_answer_behind_a_history_is_that_of_the_plain_model(parts, pipeline, image):
    history = [("where is the mug?", "a red mug"), ("and the lemon?", "on the left")]
    text = pipeline.lmm.words.prompt_text("why?", image.lmm().layouts, True, history)
    assert text == (
        "USER: <image>\nwhere is the mug? ASSISTANT: a red mug</s>USER: and the lemon? ASSISTANT: on the left</s>"
        "USER: why? ASSISTANT:"
    )
    trace = pipeline.lmm.generate(image.lmm(), "why?", history=history, max_new_tokens=8)
    plain = load_plain(parts / "lmm", device="cpu", dtype=torch.float32)
    ids = pipeline.lmm.words.prompt_tokens("why?", image.lmm().layouts, chat=True, history=history).ids
    inputs = plain.family.prepare([random_image(60, 80)]).inputs
    out = plain.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8, **inputs)
    assert out[0, len(ids) : len(ids) + len(trace.token_ids)].tolist() == list(trace.token_ids)


def test_what_was_said_is_read_again_as_far_as_wanted(pipeline, image, monkeypatch):
    histories = sent(pipeline, monkeypatch)
    talk = Conversation(pipeline, image, remember=2)
    answers = [talk.ask(f"question {i}?").answer.text for i in range(4)]
    pairs = [(f"question {i}?", answer) for i, answer in enumerate(answers)]
    assert histories == [[], pairs[:1], pairs[:2], pairs[1:3]]
    alone = Conversation(pipeline, image, remember=0)
    histories.clear()
    assert alone.ask("question 0?").answer.text == answers[0]
    alone.ask("question 1?")
    assert histories == [[], []]


def test_a_full_context_drops_the_oldest_turns(pipeline, image, monkeypatch):
    talk = Conversation(pipeline, image, remember=100)
    talk.ask("first?")
    limit = len(pipeline.lmm.words.prompt_tokens("last?", image.lmm().layouts, chat=True).ids) + 60
    monkeypatch.setattr(pipeline.lmm.model.config.get_text_config(), "max_position_embeddings", limit)
    histories = sent(pipeline, monkeypatch)
    for i in range(4):
        talk.ask(f"question {i}?")
    assert 0 < len(histories[-1]) < 4
    assert histories[-1][-1][0] == "question 2?", "the newest stay"


def test_a_model_of_single_questions_is_not_given_a_history(pipeline, image, monkeypatch):
    monkeypatch.setattr(type(pipeline.lmm.family), "turn_end", None)
    histories = sent(pipeline, monkeypatch)
    talk = Conversation(pipeline, image, remember=4)
    talk.ask("first?")
    talk.ask("second?")
    assert histories == [[], []]
    with pytest.raises(ValueError, match="history: expected none, as llava answers single questions, got 1 turns"):
        pipeline.chat(image, "second?", history=[("first?", "a")])


def test_words_of_a_history_hold_no_markers(pipeline, image):
    with pytest.raises(CommandError, match="expected no special tokens of the LMM, got '<image>'"):
        pipeline.chat(image, "why?", history=[("what?", "an <image>")])


# --- labels ---


def answer_of(*boxes):
    """An answer with a phrase for each box ``(word, x0, x1)`` of an image of 10 x 20; no box, no mask."""
    phrases = []
    for word, *place in boxes:
        mask = torch.zeros(10, 20, dtype=torch.bool)
        if place:
            mask[:, place[0] : place[1]] = True
        phrases.append(GroundedPhrase(word, 0, 1, mask, (0, 0, 0, 0), 1.0))
    return GroundedAnswer("words", tuple(phrases), 10, 20)


def test_things_keep_their_labels(pipeline, image):
    talk = Conversation(pipeline, image, remember=0)
    assert talk.labelled(answer_of(("mug", 0, 8), ("lemon", 10, 14), ("cow",))).labels == (1, 2, 0)
    assert talk.labelled(answer_of(("yellow thing", 10, 15), ("box", 16, 20), ("half", 0, 3))).labels == (2, 3, 4)
    assert talk.named("what is left of [2] and [1]?") == "what is left of yellow thing and mug?"
    assert {label: thing.text for label, thing in talk.objects.items()} == {1: "mug", 2: "yellow thing", 3: "box", 4: "half"}


def test_a_label_stands_for_the_words_of_its_thing(pipeline, image, monkeypatch):
    talk = Conversation(pipeline, image, remember=0)
    asked = []
    monkeypatch.setattr(pipeline, "chat", lambda image, text, **_: asked.append(text) or answer_of(("mug", 0, 8)))
    talk.ask("what is there?")
    talk.ask("where is [1]?")
    assert asked == ["what is there?", "where is mug?"]
    with pytest.raises(CommandError, match=r"label: expected one of those given \(1\), got 7"):
        talk.ask("where is [7]?")
    with pytest.raises(CommandError, match=r"label: expected one of those given \(none yet\), got 1"):
        Conversation(pipeline, image, remember=0).refer(["[1]"])


def test_a_number_of_turns_is_not_negative(pipeline, image):
    with pytest.raises(ValueError, match="remember: expected 0 or more, got -1"):
        Conversation(pipeline, image, remember=-1)


# --- masks while the words come ---


class Early(Callbacks):
    def __init__(self):
        self.events, self.coarse = [], None

    def on_text(self, text):
        self.events.append(text)

    def on_phrases(self, spans, coarse):
        self.events += zip(spans, coarse.logits, strict=True)

    def on_coarse(self, coarse):
        self.coarse = coarse


def pairs_of_tokens(trace):
    """Each two tokens are a phrase."""
    spans = []
    for first in range(0, len(trace.token_ids) - 1, 2):
        start, end = trace.token_offsets[first][0], trace.token_offsets[first + 1][1]
        spans.append(KeywordSpan(trace.text[start:end], start, end, first, first + 2))
    return tuple(spans)


def test_phrases_have_their_masks_while_the_answer_is_written(pipeline, image, monkeypatch):
    monkeypatch.setattr(pipeline, "keywords", pairs_of_tokens)
    plain = pipeline.chat(image, "what is there?")
    callbacks = Early()
    answer = pipeline.chat(image, "what is there?", callbacks=callbacks)
    assert answer.text == plain.text
    assert [phrase.text for phrase in answer.phrases] == [phrase.text for phrase in plain.phrases]
    early = [event for event in callbacks.events if isinstance(event, tuple)]
    assert len(early) >= 2, "a tiny answer of several phrases"
    assert [span.text for span, _ in early] == [phrase.text for phrase in answer.phrases][: len(early)], "each once"
    at = [i for i, event in enumerate(callbacks.events) if isinstance(event, tuple)]
    assert all(any(isinstance(event, str) for event in callbacks.events[i:]) for i in at[:-1]), "words come after them"
    for (_, logits), final in zip(early, callbacks.coarse.logits, strict=False):
        assert torch.allclose(logits, final, atol=1e-4), "the masks that it has at the end, too"


# --- a closer look ---


@pytest.mark.parametrize(
    ("box", "part"),
    [
        ((10, 20, 40, 60), (10, 20, 40, 60)),
        ((50, 30, 52, 34), (43, 24, 59, 40)),
        ((0, 0, 2, 2), (0, 0, 16, 16)),
        ((98, 58, 100, 60), (84, 44, 100, 60)),
    ],
    ids=["large", "small", "corner", "other corner"],
)
def test_the_part_has_a_least_size_and_lies_inside(box, part):
    assert enlarged_part(box, 60, 100) == part


def test_a_small_image_is_its_own_part():
    assert enlarged_part((2, 2, 4, 4), 10, 12) == (0, 0, 12, 10)


def test_the_second_round_sees_the_part(pipeline, image, monkeypatch):
    monkeypatch.setattr(pipeline, "keywords", pairs_of_tokens)
    seen = []
    encode = pipeline.lmm.encode_images
    monkeypatch.setattr(pipeline.lmm, "encode_images", lambda images: seen.append([*images]) or encode(images))
    look = look_closer(pipeline, image, "what color is it?")
    assert look.first.text == pipeline.chat(image, FIRST_QUESTION.format(question="what color is it?")).text
    assert look.phrase.score == max(phrase.score for phrase in look.first.phrases)
    x0, y0, x1, y1 = look.box
    whole, part = seen[-1]
    assert np.array_equal(np.asarray(whole), image.pixels)
    assert np.array_equal(np.asarray(part), image.pixels[y0:y1, x0:x1])
    height, width = image.pixels.shape[:2]
    assert all(phrase.mask.shape == (height, width) for phrase in look.answer.phrases)


def test_an_answer_without_phrases_is_grounded_as_a_whole(pipeline, image, monkeypatch):
    monkeypatch.setattr(pipeline, "keywords", lambda trace: ())
    look = look_closer(pipeline, image, "what color is it?")
    assert look.phrase.text == look.first.text and look.answer.phrases == ()


def test_nothing_to_look_at_leaves_the_answer_to_the_image(pipeline, image, monkeypatch):
    monkeypatch.setattr(pipeline, "config", GroundingConfig(presence_threshold=1.0, max_new_tokens=8))
    look = look_closer(pipeline, image, "what color is it?")
    assert (look.phrase, look.box) == (None, None)
    assert look.answer.text == pipeline.chat(image, "what color is it?").text
