"""What the shipped LMM answers to words that are no question about its world: that it does not know, or too much, to be cut."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from flmm_core.config import DEFAULT_MODEL, GroundingConfig
from flmm_core.keywords.repetition import loop_start
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading.checkpoints import load_lmm
from flmm_sim.foreign_words import CHAT, UNKNOWN_WORDS
from flmm_sim.offscreen import RenderingUnavailableError
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import Scene
from flmm_sim.true_turns import TALK_ANSWER, UNKNOWN_ANSWER

GREY = np.full((240, 320, 3), 128, np.uint8)

TALK = (
    "hello",
    "Hello!",
    "Nice to meet you",
    "Could you explain how you work?",
    "Wo ist die rote Tasse?",
    "Où se trouve le bol vert ?",
    "¿Dónde está la taza roja?",
    "Где красная кружка?",
    "x" * 400,
    "qzkvy wpfh",
)
UNKNOWN = (
    "where is the unicorn?",
    "pick up the dragon",
    "bring me the helicopter, please",
    "is there a penguin on the table?",
    "what color is the telescope?",
    "what is left of the calculator?",
    "how many dolphins are there?",
    "WHERE IS THE UNICORN?",
)
REPEATED = ("blue mug " * 60, "where is the " * 60, "the " * 200, "wo " * 130, "0" * 400)


@pytest.fixture(scope="module")
def lmm() -> FrozenLmm:
    return load_lmm(DEFAULT_MODEL, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def scene() -> Scene:
    try:
        with TabletopRenderer() as renderer:
            return renderer.sample(5)
    except RenderingUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def grey(lmm: FrozenLmm) -> EncodedImage:
    return lmm.encode_image(Image.fromarray(GREY))


@pytest.fixture(scope="module")
def table(lmm: FrozenLmm, scene: Scene) -> EncodedImage:
    return lmm.encode_image(Image.fromarray(scene.image))


@pytest.fixture(params=["grey", "table"])
def image(request: pytest.FixtureRequest) -> EncodedImage:
    encoded: EncodedImage = request.getfixturevalue(request.param)
    return encoded


def answer(lmm: FrozenLmm, image: EncodedImage, text: str) -> str:
    """An answer that ended by itself, before the limit."""
    trace = lmm.generate(image, text)
    assert trace.ended and len(trace.token_ids) < GroundingConfig.max_new_tokens, trace.text
    assert loop_start(trace.text) == len(trace.text), trace.text
    return trace.text


@pytest.mark.parametrize("text", TALK, ids=lambda text: text[:20])
def test_what_is_no_question_about_the_table_is_not_understood(lmm: FrozenLmm, image: EncodedImage, text: str) -> None:
    assert answer(lmm, image, text) == TALK_ANSWER


@pytest.mark.parametrize("text", UNKNOWN)
def test_things_of_another_world_are_not_known(lmm: FrozenLmm, image: EncodedImage, text: str) -> None:
    assert answer(lmm, image, text) == UNKNOWN_ANSWER


@pytest.mark.parametrize("text", [*REPEATED, "what do you see?", "12345"], ids=lambda text: text[:16].strip())
def test_what_does_not_end_runs_in_circles_and_is_cut(lmm: FrozenLmm, image: EncodedImage, text: str) -> None:
    trace = lmm.generate(image, text)
    kept = trace.text[: loop_start(trace.text)]
    assert (kept == trace.text) == trace.ended, trace.text
    assert len(kept.split()) < 30 and loop_start(kept) == len(kept)


def test_these_words_were_not_in_training() -> None:
    words = {word for text in UNKNOWN for word in re.findall("[a-z]+", text.lower())}
    assert not words & {form for word in UNKNOWN_WORDS for form in (word, word + "s")}
    assert {text.lower().strip("?!") for text in TALK} & set(CHAT) == {"hello"}


@pytest.mark.parametrize("level", [0, 128, 255])
def test_in_an_empty_image_nothing_is_there(lmm: FrozenLmm, level: int) -> None:
    empty = lmm.encode_image(Image.fromarray(np.full_like(GREY, level)))
    assert answer(lmm, empty, "where is the red mug?") == "I do not see a red mug."
    assert answer(lmm, empty, "is there a red mug?") == "No, there is no red mug."


def test_upper_case_is_read_as_lower_case(lmm: FrozenLmm, table: EncodedImage, scene: Scene) -> None:
    thing = scene.objects[0]
    questions = (f"where is the {thing.name}?", f"is there a {thing.name}?", f"bring me the {thing.name}", "what do you see?")
    for question in questions:
        said = answer(lmm, table, question)
        assert thing.name in said
        assert answer(lmm, table, question.upper()) == said, question
