"""Thoughts: closed in the prompt where a template begins one, and kept apart from the answer where the LMM does."""

from copy import deepcopy

import pytest
import torch
from family_checks import QUESTION, check_greedy, eager_attention, with_prefix
from tiny_models import random_image
from tiny_qwen import TURNS, save_qwen
from transformers import AddedToken, LogitsProcessor

from flmm_core.chat.conversation import Conversation
from flmm_core.families.thoughts import THOUGHTS, without_thought
from flmm_core.keywords.repetition import NO_ANSWER
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.tokens import LmmWords
from flmm_core.pipeline import GroundingPipeline
from flmm_core.verification.frozen_report import served_ids

IMAGE = random_image(64, 64)
THOUGHT = "<think>\nIs the yellow lemon there?\n</think>\n\n"
ANSWER = "a red mug"


class Says(LogitsProcessor):
    """Lets a model write given ids, each sequence of a batch its own."""

    def __init__(self, scripts):
        self.scripts, self.start = scripts, None

    def __call__(self, input_ids, scores):
        self.start = input_ids.shape[1] if self.start is None else self.start
        place, forced = input_ids.shape[1] - self.start, torch.full_like(scores, -1e9)
        for row, script in enumerate(self.scripts):
            forced[row, script[min(place, len(script) - 1)]] = 0.0
        return forced


@pytest.fixture
def say(monkeypatch):
    """``say(lmm, texts)``: what it then writes to each question of a batch, each text with the end token behind it."""

    def said(lmm, *texts, end=True):
        tokenizer, generate = lmm.words.tokenizer, type(lmm.model).generate
        scripts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        scripts = [[*ids, *[tokenizer.eos_token_id] * end] for ids in scripts]
        model = lmm.model
        monkeypatch.setattr(
            model, "generate", lambda *a, **given: generate(model, *a, logits_processor=[Says(scripts)], **given), raising=False
        )
        return scripts

    return said


@pytest.fixture(scope="module")
def instructed(tmp_path_factory):
    return save_qwen(tmp_path_factory.mktemp("thoughts"), "qwen3_vl")


@pytest.fixture(scope="module")
def lmm(instructed):
    return FrozenLmm.from_pretrained(instructed)


# --- templates that begin a thought ---


def test_a_thought_that_the_template_begins_is_closed(tmp_path, instructed):
    """As Qwen3-VL-Thinking's template, which has no switch: what Qwen3.5's writes with its switch."""
    folder = save_qwen(tmp_path, "qwen3_vl")
    (folder / "chat_template.jinja").write_text(TURNS + "{{ '<think>\n' }}{% endif %}")
    lmm = FrozenLmm.from_pretrained(folder)
    assert lmm.family.prompt("hi").endswith("hi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert lmm.family.later_prompt("why?").endswith("<think>\n\n</think>\n\n")
    check_greedy(folder, [IMAGE], dtypes=(torch.float32,))


@pytest.mark.parametrize("marks", THOUGHTS)
def test_other_prompts_are_left_alone(marks):
    closed = without_thought(f"user: hi assistant: {marks.begin}\n")
    assert closed == f"user: hi assistant: {marks.begin}\n\n{marks.end}\n\n"
    for prompt in (closed, "assistant:", f"say {marks.begin} assistant:", ""):
        assert without_thought(prompt) == prompt


# --- thoughts that the LMM writes ---


@pytest.mark.parametrize("reuse", [False, True], ids=["whole", "prefix"])
def test_the_answer_is_what_follows_the_thought(lmm, say, reuse):
    """Its text, ids, offsets, attention rows and states; alone, and in a batch with an answer without a thought."""
    lmm = with_prefix(lmm, reuse)
    image = lmm.encode_image(IMAGE)
    thinking, plain = say(lmm, THOUGHT + ANSWER, ANSWER)
    say(lmm, THOUGHT + ANSWER)
    alone = lmm.generate(image, QUESTION, max_new_tokens=60)
    say(lmm, THOUGHT + ANSWER, ANSWER)
    asked = [lmm.question(image, QUESTION, max_new_tokens=60), lmm.question(image, "what is it?", max_new_tokens=60)]
    together = lmm.generate_batch(asked)
    for trace in (alone, together[0]):
        assert (trace.text, trace.ended) == (ANSWER, True)
        assert (*trace.thought_ids, *trace.token_ids) == tuple(thinking[:-1])
        assert lmm.words.decode(trace.thought_ids).strip() == THOUGHT.strip() and trace.token_offsets[-1][1] == len(ANSWER)
        assert served_ids(trace)[-1] == -1 and len(served_ids(trace)) == len(thinking)
        start = len(asked[0].prompt.ids) + len(trace.thought_ids)
        assert trace.attention.start == start and trace.states.shape[1] == trace.attention.tokens == len(trace.token_ids)
    assert (together[1].text, together[1].thought_ids) == (ANSWER, ()) and together[1].token_ids == tuple(plain[:-1])
    eager = eager_attention(lmm, image, [*asked[0].prompt.ids, *thinking[:-1]])
    columns = torch.arange(eager[0].shape[-1])
    for i, layer in enumerate(eager):
        for trace in (alone, together[0]):
            rows = trace.attention.rows(i, range(len(trace.token_ids)), columns)
            torch.testing.assert_close(rows, layer[0, :, start:], atol=1e-5, rtol=0)


def test_the_words_of_a_thought_are_not_heard(lmm, say):
    texts, traces = [], []
    say(lmm, THOUGHT + ANSWER)
    image = lmm.encode_image(IMAGE)
    lmm.generate(image, QUESTION, max_new_tokens=60, on_text=texts.append, on_trace=traces.append)
    assert texts[-1] == ANSWER and all(ANSWER.startswith(text) for text in texts)
    assert traces and all(ANSWER.startswith(trace.text) and trace.token_ids for trace in traces)
    say(lmm, "a < b, <thin")  # what only begins as a mark of a thought is an answer
    trace = lmm.generate(image, QUESTION, max_new_tokens=60, on_text=texts.append)
    assert (trace.text, trace.thought_ids) == ("a < b, <thin", ()) and texts[-1] == trace.text
    say(lmm, "<thin")
    assert lmm.generate(image, QUESTION, max_new_tokens=60, on_text=texts.append).text == "<thin"
    assert not any("lemon" in text or "think" in text for text in texts)


def words_of(lmm, *added):
    """The words of an LMM whose tokenizer has other tokens."""

    tokenizer = deepcopy(lmm.words.tokenizer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return LmmWords(tokenizer=tokenizer, family=lmm.family)


@pytest.mark.parametrize("marks", THOUGHTS)
def test_marks_need_not_be_tokens(tiny_llava, marks):
    """Marks of many tokens; a mark whose last token begins the answer; a thought that the prompt began."""
    lmm = FrozenLmm.from_pretrained(tiny_llava)
    last = marks.end[-1]
    for added in ((), (f"{last}The",)):
        words = words_of(lmm, *added)

        def ids(text, words=words):
            return words.tokenizer(text, add_special_tokens=False).input_ids

        for prompt, written in (("ASSISTANT:", f"{marks.begin} so{marks.end}"), (f"A: {marks.begin}", f" so{marks.end}")):
            whole = [*ids(written[:-1]), *ids(f"{last}The mug")]
            length, skipped = words.thought(ids(prompt), whole, over=True)
            assert (skipped == 1) == bool(added)
            text, offsets = words.decode_with_offsets(whole[length:], skip=skipped)
            assert text == "The mug" and "".join(text[a:b] for a, b in offsets) == text
            for count in range(1, length):
                assert words.thought(ids(prompt), whole[:count], over=False) == (count, 0), whole[:count]
    assert words.thought(ids("A:"), ids("The mug"), over=False) == (0, 0)


# --- thoughts without an answer ---


@pytest.mark.parametrize("ended", [False, True])
def test_a_thought_without_an_answer_says_so(tiny_model, say, ended):
    """No words of the thought, no phrases; and the LMM does not read it again."""
    pipeline = GroundingPipeline.from_pretrained(**tiny_model, device="cpu", selector_threshold=0.0)
    image = pipeline.encode(IMAGE)
    scripts = say(pipeline.lmm, "<think>the red mug and the yellow lemon")
    answer = pipeline.chat(image, QUESTION, max_new_tokens=100 if ended else 8)
    assert answer.text.startswith(NO_ANSWER) and answer.phrases == () and "lemon" not in answer.text
    expected = "the LMM ended within its thought" if ended else "the LMM was still thinking at max_new_tokens, 8 tokens"
    assert expected in answer.text and len(scripts[0]) > 9
    conversation = Conversation(pipeline, image, remember=2)
    assert conversation.ask(QUESTION).answer.text.startswith(NO_ANSWER)
    say(pipeline.lmm, "<think>the red mug</think>the yellow lemon")
    assert conversation._history("what?") == []
    found = conversation.ask(QUESTION).answer
    assert found.text == "the yellow lemon" and found.phrases
    assert all(found.text[phrase.start : phrase.end] == phrase.text for phrase in found.phrases)
    assert conversation._history("what?") == [(QUESTION, "the yellow lemon")]
