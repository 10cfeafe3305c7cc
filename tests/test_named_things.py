"""Phrases of answers to which the rules for English do not fit: the LMM lists them in a second turn."""

import pytest
from tiny_models import random_image, save_model, tiny_heads

from flmm_cli.shared.answer_lines import phrase_lines
from flmm_core.chat.batching import chat_batch
from flmm_core.chat.conversation import Conversation
from flmm_core.errors import CommandCancelledError
from flmm_core.keywords.english import rules_fit
from flmm_core.keywords.named_words import named_ranges
from flmm_core.keywords.noun_chunks import rule_noun_chunks
from flmm_core.loading.checkpoints import save_heads
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import Callbacks
from flmm_core.requests.chat_command import ChatCommand
from flmm_core.requests.named_things import ASK, NOTHING_PICKED
from flmm_core.serving.wire import answer_from_json, answer_to_json

GERMAN = "Auf dem Tisch steht eine rote Tasse neben einer Zitrone."


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("There is a red mug and a blue bowl on the table.", True),
        ("red mug", True),
        ("The café has jalapeño peppers on a table.", True),
        ("Yes, it is red.", True),  # names nothing
        ("There is no banana.", True),  # names what is not there
        ("42.", True),
        ("", True),
        (GERMAN, False),
        ("Sur la table, il y a une tasse rouge et un citron jaune.", False),
        ("En la mesa hay una taza roja y un limón amarillo.", False),
        ("テーブルの上に赤いマグカップがあります。", False),
        ("На столе стоит красная кружка.", False),
        ("It is yellowly.", False),  # no chunk, and a word of no list
    ],
)
def test_whether_the_rules_fit(text, fits):
    assert rules_fit(text, rule_noun_chunks(text)) is fits


@pytest.mark.parametrize(
    ("answer", "listed", "found"),
    [
        (GERMAN, "eine rote Tasse, zitrone", ["eine rote Tasse", "Zitrone"]),
        (GERMAN, "- Tisch\n- Tasse.\n", ["Tisch", "Tasse"]),
        (GERMAN, '1. "Tisch"; 2) der Hund', ["Tisch"]),
        (GERMAN, "Tass, is, rot", []),
        (GERMAN, GERMAN, []),
        ("Tasse, rote Tasse und Tasse", "Tasse, rote Tasse, tasse", ["Tasse", "rote Tasse", "Tasse"]),
        ("eine rote\nTasse", "rote  Tasse", ["rote\nTasse"]),
        ("桌子上有一个红色的杯子和柠檬。", "桌子、红色的杯子，柠檬", ["桌子", "红色的杯子", "柠檬"]),
        ("3 (drei)", "3, (drei)", ["drei"]),
    ],
)
def test_where_listed_things_are_said(answer, listed, found):
    assert [answer[start:end] for start, end in named_ranges(answer, listed)] == found


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    save_model(root, kv_heads=2)
    save_heads(tiny_heads(selector=False, presence=False), root / "plain")
    return root


@pytest.fixture(scope="module", params=["plain"])
def pipeline(parts, request):
    return GroundingPipeline.from_pretrained(parts / "lmm", parts / request.param, parts / "sam", device="cpu")


@pytest.fixture
def says(pipeline, monkeypatch):
    """``says(TEXT, ...)``: what the LMM generates, in turn; returns the questions that it gets."""

    def scripted(*texts):
        asked, left = [], list(texts)

        def generate(questions, *, layer_weights):
            asked.extend(questions)
            told = [left.pop(0) for _ in questions]
            return tuple(
                pipeline.lmm.teacher_force(one.image, "hi", text, layer_weights=layer_weights)
                for one, text in zip(questions, told, strict=True)
            )

        monkeypatch.setattr(pipeline.lmm, "generate_batch", generate)
        return asked

    return scripted


def prompt_of(pipeline, question):
    return pipeline.lmm.words.decode(question.prompt.ids)


def test_the_lmm_lists_what_it_named(pipeline, says):
    image, asked = pipeline.encode(random_image()), says(GERMAN, "eine rote Tasse, Hund", "The red mug.")
    talk = Conversation(pipeline, image, remember=3)
    answer = talk.ask("was steht da?").answer
    assert answer.text == GERMAN and answer.reason == ""
    assert [(one.text, one.start) for one in answer.phrases] == [("eine rote Tasse", GERMAN.index("eine"))]
    first, second = asked
    assert GERMAN in prompt_of(pipeline, second) and prompt_of(pipeline, second).rstrip().endswith(f"{ASK} ASSISTANT:")
    assert second.max_new_tokens == first.max_new_tokens
    answer = talk.ask("and now?").answer
    assert [one.text for one in answer.phrases] == ["The red mug"] and len(asked) == 3, "English needs no second turn"
    assert GERMAN in prompt_of(pipeline, asked[2]) and ASK not in prompt_of(pipeline, asked[2]), "nor does the history hold one"


def test_an_lmm_of_single_questions_reads_its_answer_in_the_question(pipeline, says, monkeypatch):
    monkeypatch.setattr(type(pipeline.lmm.family), "turn_end", None)
    asked = says(GERMAN, "Zitrone")
    assert [one.text for one in pipeline.chat(pipeline.encode(random_image()), "was?").phrases] == ["Zitrone"]
    assert f'"{GERMAN}" Which things' in prompt_of(pipeline, asked[1])


def test_an_answer_without_phrases_says_so(pipeline, says):
    image = pipeline.encode(random_image())
    says(GERMAN, "ein Hund", GERMAN * 5)
    answer = pipeline.chat(image, "was?")
    assert answer.text == GERMAN and answer.phrases == () and answer.reason == NOTHING_PICKED
    assert answer_from_json(answer_to_json(answer)).reason == NOTHING_PICKED
    assert phrase_lines(answer)[0] == f"  ({NOTHING_PICKED})"
    assert pipeline.chat(image, "was?", max_new_tokens=200).reason == NOTHING_PICKED, "the context has no room for the list"


def test_a_batch_and_commands_without_masks(pipeline, says):
    image = pipeline.encode(random_image())
    asked = says(GERMAN, "A mug on the table.", GERMAN, "Tasse")
    commands = [ChatCommand(image, "was?"), ChatCommand(image, "what?"), ChatCommand(image, "was?", masks=False)]
    first, english, bare = chat_batch(pipeline, commands)
    assert [one.text for one in first.phrases] == ["Tasse"] and first.seconds.keywords > 0
    assert [one.text for one in english.phrases] == ["A mug", "the table"]
    assert bare.text == GERMAN and bare.phrases == () and bare.reason == "" and len(asked) == 4


def test_it_can_be_cancelled_meanwhile(pipeline, says):
    class Follower(Callbacks):
        def cancelled(self):
            return len(asked) > 1

    asked = says(GERMAN, "Tasse")
    with pytest.raises(CommandCancelledError, match="cancelled while the LMM listed what it named"):
        pipeline.chat(pipeline.encode(random_image()), "was?", callbacks=Follower())
    assert asked[1].cancelled()


@pytest.mark.parametrize("pipeline", ["heads"], indirect=True)
def test_a_trained_selector_picks_by_itself(pipeline, says):
    asked = says(GERMAN)
    answer = pipeline.chat(pipeline.encode(random_image()), "was?")
    assert answer.reason == "" and len(asked) == 1
