"""The frozen LMM: greedy ids of the plain model, one path for chat and reading, exact offsets."""

import warnings
from itertools import pairwise

import pytest
import torch
from tiny_models import random_image, save_llava
from transformers import AddedToken, LlavaForConditionalGeneration

from flmm_core.errors import CommandError
from flmm_core.families import LmmShape
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import lmm_shape
from flmm_core.lmm.tokens import AnswerTokens, LmmWords

QUESTIONS = ["where is the lemon?", "what is there", "pick up the banana, please", "Où est l'été? 柠檬", "a"]


@pytest.fixture(scope="module", params=["clip", "tabletop"])
def folder(request, tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"), tower=request.param)


def plain_generate(folder, lmm, question, **options):
    """Ids from ``model.generate`` on a model that this project has not touched, from pixels."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    prompt = f"USER: {'<image>' * 16}\n{question} ASSISTANT:"
    inputs = lmm.words.tokenizer(prompt, return_tensors="pt")
    pixels = lmm.family.prepare([random_image()]).inputs["pixel_values"]
    output = model.generate(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, pixel_values=pixels, do_sample=False, **options
    )
    return output[0, inputs.input_ids.shape[1] :].tolist()


@pytest.mark.parametrize("reuse", [False, True], ids=["whole", "prefix"])
def test_greedy_ids_are_those_of_the_plain_model(folder, reuse):
    lmm = FrozenLmm.from_pretrained(folder, reuse_prefix=reuse)
    image = lmm.encode_image(random_image())
    for question in QUESTIONS:
        for limit in (1, 12):
            trace = lmm.generate(image, question, max_new_tokens=limit)
            assert list(trace.token_ids) == plain_generate(folder, lmm, question, max_new_tokens=limit), question
            assert not trace.ended
            assert trace.states.shape == (3, limit, 32)
            assert trace.attention.tokens == limit


def test_the_end_token_is_left_out(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    image = lmm.encode_image(random_image())
    free = lmm.generate(image, QUESTIONS[0], max_new_tokens=12).token_ids
    stop = next(i for i in range(2, 12) if free[i] not in free[:i])
    lmm.model.generation_config.eos_token_id = [2, free[stop]]
    trace = lmm.generate(image, QUESTIONS[0], max_new_tokens=12)
    assert trace.ended
    assert trace.token_ids == free[:stop]
    assert trace.states.shape[1] == trace.attention.tokens == len(trace.token_offsets) == stop
    lmm.model.generation_config.eos_token_id = free[0]
    empty = lmm.generate(image, QUESTIONS[0], max_new_tokens=12)
    assert (empty.text, empty.token_ids, empty.states.shape[1]) == ("", (), 0)
    assert empty.merged_attention([]).shape == (0, 12, 4, 4)


def test_reading_an_answer_matches_having_written_it(folder, monkeypatch):
    """Rows and states of a generated answer equal those of the same tokens, teacher-forced; also for the last token."""
    lmm = FrozenLmm.from_pretrained(folder)
    image = lmm.encode_image(random_image())
    written = lmm.generate(image, QUESTIONS[0], max_new_tokens=8)
    tokens = AnswerTokens(lmm.words.prompt_tokens(QUESTIONS[0], image.layouts), written.token_ids, written.token_offsets)
    monkeypatch.setattr(lmm.words, "answer_tokens", lambda *_: tokens)  # what is written at random does not re-tokenise
    read = lmm.teacher_force(image, QUESTIONS[0], "x")
    spans = [(i, i + 1) for i in range(8)]
    torch.testing.assert_close(written.merged_attention(spans), read.merged_attention(spans), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(written.states, read.states, atol=1e-5, rtol=1e-4)


def test_commands_leave_the_encoded_image_alone(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    image = lmm.encode_image(random_image())
    layers = lmm.decoder.read_prefix(image, lmm.words.prompt_tokens("", image.layouts, chat=True)).cache.layers
    before = [(layer.keys.clone(), layer.values.clone()) for layer in layers]
    first = lmm.generate(image, QUESTIONS[0], max_new_tokens=6)
    lmm.teacher_force(image, QUESTIONS[1], "The lemon.")
    again = lmm.generate(image, QUESTIONS[0], max_new_tokens=6)
    assert first.token_ids == again.token_ids
    assert torch.equal(first.states, again.states)
    for layer, (keys, values) in zip(layers, before, strict=True):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)


def test_a_first_command_reads_its_prompt_in_one_pass_and_keeps_the_beginning(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    lengths = []
    lmm.model.register_forward_pre_hook(lambda _, args, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True)
    image, alone = lmm.encode_image(random_image()), lmm.encode_image(random_image())
    prompt = lmm.words.prompt_tokens(QUESTIONS[0], image.layouts, chat=True)
    first = lmm.generate(image, QUESTIONS[0], max_new_tokens=3)
    assert lengths[0] == len(prompt.ids) and lengths[1:] == [1, 1, 1]
    kept, read = lmm.decoder.read_prefix(image, prompt), lmm.decoder.read_prefix(alone, prompt)
    assert kept.ids == read.ids
    for layer, other in zip(kept.cache.layers, read.cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.values, other.values, atol=1e-5, rtol=1e-4)
    lengths.clear()
    again = lmm.generate(image, QUESTIONS[0], max_new_tokens=3)
    assert lengths[0] == len(prompt.ids) - len(kept.ids)
    assert again.token_ids == first.token_ids
    torch.testing.assert_close(again.states, first.states, atol=1e-5, rtol=1e-4)


def test_reuse_and_whole_agree(folder):
    traces = []
    for reuse in (False, True):
        lmm = FrozenLmm.from_pretrained(folder, reuse_prefix=reuse)
        traces.append(lmm.teacher_force_phrases(lmm.encode_image(random_image()), ["red mug", "lemon"]))
    (whole, spans), (prefix, spans_prefix) = traces
    assert spans == spans_prefix
    torch.testing.assert_close(whole.states, prefix.states, atol=1e-5, rtol=1e-4)


def test_nothing_deprecated_is_used(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lmm = FrozenLmm.from_pretrained(folder)
        image = lmm.encode_image(random_image())
        lmm.generate(image, QUESTIONS[0], max_new_tokens=2)
        lmm.teacher_force_phrases(image, ["lemon"])


def test_phrases_are_found_by_offsets(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    phrases = ["red mug", "lemon", "the lemon's été", "柠檬", "red mug"]
    trace, spans = lmm.teacher_force_phrases(lmm.encode_image(random_image()), phrases)
    assert trace.text == "red mug. lemon. the lemon's été. 柠檬. red mug."
    assert [trace.text[span.start : span.end] for span in spans] == phrases
    for span, phrase in zip(spans, phrases, strict=True):
        own = trace.token_ids[span.token_start : span.token_end]
        assert lmm.words.tokenizer.decode(list(own)).strip() == phrase
    assert all(a.token_end < b.token_start for a, b in pairwise(spans))  # the full stop is nobody's


def test_offsets_of_written_text(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    words = "  The été 柠檬 is left.\n"
    ids = lmm.words.tokenizer(words, add_special_tokens=False).input_ids
    text, offsets = lmm.words.decode_with_offsets(ids)
    assert text == words.strip()
    assert "".join(text[a:b] for a, b in offsets) == text
    assert all(a <= b for a, b in offsets) and offsets[0][0] == 0 and offsets[-1][1] == len(text)
    for word in ("été", "柠檬", "left"):
        start = text.index(word)
        touched = [i for i, (a, b) in enumerate(offsets) if a < start + len(word) and b > start]
        assert text[offsets[touched[0]][0] : offsets[touched[-1]][1]].strip() == word


def test_text_arrives_while_it_is_written(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    seen = []
    trace = lmm.generate(lmm.encode_image(random_image()), QUESTIONS[0], max_new_tokens=6, on_text=seen.append)
    assert len(seen) == 6
    assert seen[-1] == trace.text


def test_padding_says_nothing_that_a_prompt_does_not(folder, monkeypatch):
    """A penalty on repetition looks at all ids, padding too."""
    lmm = FrozenLmm.from_pretrained(folder)
    image, generate, given = lmm.encode_image(random_image()), lmm.model.generate, []
    monkeypatch.setattr(lmm.model, "generate", lambda ids, **options: given.append(ids.tolist()) or generate(ids, **options))
    questions = [lmm.question(image, text, max_new_tokens=2) for text in QUESTIONS]
    lmm.generate_batch(questions)
    assert [set(ids) for ids in given[0]] == [set(question.prompt.ids) for question in questions]
    assert len({len(question.prompt.ids) for question in questions}) > 1


def test_answers_that_are_written_together_end_each_by_itself(folder):
    """At its end token, at its limit, or because it was cancelled; who follows one sees that one alone."""
    lmm = FrozenLmm.from_pretrained(folder)
    images = [lmm.encode_image(random_image(seed=i)) for i in range(3)]
    free = [lmm.generate(image, QUESTIONS[i], max_new_tokens=12) for i, image in enumerate(images)]
    stop = next(i for i in range(2, 12) if free[0].token_ids[i] not in free[0].token_ids[:i])
    lmm.model.generation_config.eos_token_id = [2, free[0].token_ids[stop]]
    lmm.model.generation_config.repetition_penalty = 1.3
    alone = [lmm.generate(image, QUESTIONS[i], max_new_tokens=12) for i, image in enumerate(images)]
    assert any(one.ended for one in alone)
    words, traces = {i: [] for i in range(3)}, []
    questions = [
        lmm.question(image, QUESTIONS[i], max_new_tokens=12, on_text=words[i].append, on_trace=[None, traces.append, None][i])
        for i, image in enumerate(images)
    ]
    for one, heard, trace in zip(alone, words.values(), lmm.generate_batch(questions), strict=True):
        assert (trace.token_ids, trace.text, trace.ended) == (one.token_ids, one.text, one.ended)
        assert trace.states.shape == one.states.shape and trace.attention.tokens == one.attention.tokens
        assert len(heard) == len(one.token_ids) and (not heard or heard[-1] == one.text)
    assert [len(trace.token_ids) for trace in traces] == list(range(1, len(alone[1].token_ids)))
    halfway = traces[-1].merged_attention([(0, 1)])
    torch.testing.assert_close(halfway, alone[1].merged_attention([(0, 1)]), atol=1e-5, rtol=0)

    asked = []
    questions = [
        lmm.question(images[0], QUESTIONS[1], max_new_tokens=12),
        lmm.question(images[1], QUESTIONS[1], max_new_tokens=12, cancelled=lambda: asked.append(0) or len(asked) == 2),
    ]
    kept, ended = lmm.generate_batch(questions)
    assert kept.token_ids == lmm.generate(images[0], QUESTIONS[1], max_new_tokens=12).token_ids
    assert ended.token_ids[:2] == lmm.generate(images[1], QUESTIONS[1], max_new_tokens=2).token_ids


@pytest.mark.parametrize("text", ["show <image> please", "</s>", "<pad> lemon"])
def test_markers_in_the_users_words_are_refused(folder, text):
    lmm = FrozenLmm.from_pretrained(folder)
    image = lmm.encode_image(random_image())
    with pytest.raises(CommandError, match="expected no special tokens of the LMM, got '<"):
        lmm.generate(image, text)
    with pytest.raises(CommandError, match="expected no special tokens of the LMM, got '<"):
        lmm.teacher_force(image, "where?", text)


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_answer_without_words_is_refused(folder, answer):
    lmm = FrozenLmm.from_pretrained(folder)
    with pytest.raises(ValueError, match="answer: expected at least one word, got"):
        lmm.teacher_force(lmm.encode_image(random_image()), "where?", answer)


def test_shape_comes_from_the_config(folder):
    assert lmm_shape(folder) == LmmShape(layers=3, heads=4, hidden_size=32)
    assert LmmShape(3, 4, 32).channels == 12


def test_markers_that_the_tokenizer_was_given_later_are_refused_and_words_are_not(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    tokenizer = lmm.words.tokenizer
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<think>"), "lemonade", "\n\n"])
    words = LmmWords(tokenizer=tokenizer, family=lmm.family)
    for mark in ("<|im_start|>", "<think>", "<image>", "</s>"):
        with pytest.raises(CommandError, match="expected no special tokens of the LMM, got '<"):
            words.check(f"where is{mark}the lemon?")
    for text in ("where is the lemonade?", "where\n\nis it?", "is 1 < 2 > 0?", "<thing>"):
        words.check(text)
