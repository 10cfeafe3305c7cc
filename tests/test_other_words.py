"""What the shipped LMM answers to words that are no question about its world: it says so, it ends, and it can be shouted at."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from flmm_core.config import GroundingConfig
from flmm_core.frozen_lmm import EncodedImage, FrozenLmm
from flmm_sim.foreign_words import CHAT, UNKNOWN_WORDS
from flmm_sim.offscreen import RenderingUnavailableError
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import Scene
from flmm_sim.true_turns import TALK_ANSWER, UNKNOWN_ANSWER
from flmm_tabletop import MODEL

GREY = np.full((240, 320, 3), 128, np.uint8)

TALK = (
    "hello",
    "Hello!",
    "Nice to meet you",
    "What is the capital of Norway?",
    "Wo ist die rote Tasse?",
    "Où se trouve le bol vert ?",
    "¿Dónde está la taza roja?",
    "Где красная кружка?",
    "红色的杯子在哪里？",
    "x" * 400,
    "qzkvy wpfh",
    "12345",
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
REPEATED = ("blue mug " * 60, "where is the " * 60, "the " * 200, "0" * 400, "what is left of " * 40)


@pytest.fixture(scope="module")
def lmm() -> FrozenLmm:
    return FrozenLmm.from_pretrained(MODEL / "lmm")


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
    """An answer that ended by itself and says nothing twice in a row."""
    trace = lmm.generate(image, text)
    assert trace.ended and len(trace.token_ids) < GroundingConfig.max_new_tokens, trace.text
    assert not re.search(r"\b(\w+ \w+),? \1\b", trace.text), trace.text
    return trace.text


@pytest.mark.parametrize("text", TALK, ids=lambda text: text[:20])
def test_what_is_no_question_about_the_table_is_not_understood(lmm: FrozenLmm, image: EncodedImage, text: str) -> None:
    assert answer(lmm, image, text) == TALK_ANSWER


@pytest.mark.parametrize("text", UNKNOWN)
def test_things_of_another_world_are_not_known(lmm: FrozenLmm, image: EncodedImage, text: str) -> None:
    assert answer(lmm, image, text) == UNKNOWN_ANSWER


@pytest.mark.parametrize("text", REPEATED, ids=lambda text: text[:16].strip())
def test_repetitions_end(lmm: FrozenLmm, image: EncodedImage, text: str) -> None:
    answer(lmm, image, text)


def test_these_words_were_not_in_training() -> None:
    words = {word for text in UNKNOWN for word in re.findall("[a-z]+", text.lower())}
    assert not words & {form for word in UNKNOWN_WORDS for form in (word, word + "s")}
    assert {text.lower().strip("?!") for text in TALK} & set(CHAT) == {"hello"}


def test_a_table_without_things_is_asked_about_like_any_other(lmm: FrozenLmm, grey: EncodedImage) -> None:
    for question in ("what do you see?", "where is the red mug?", "how many objects are there?", "what is left of the lemon?"):
        assert answer(lmm, grey, question)
    assert re.search("no|not", answer(lmm, grey, "is there a red mug?").lower())


def test_upper_case_is_read_as_lower_case(lmm: FrozenLmm, table: EncodedImage, scene: Scene) -> None:
    thing = scene.objects[0]
    questions = (f"where is the {thing.name}?", f"is there a {thing.name}?", f"bring me the {thing.name}", "what do you see?")
    for question in questions:
        said = answer(lmm, table, question)
        assert thing.name in said
        assert answer(lmm, table, question.upper()) == said == answer(lmm, table, question.title()), question
