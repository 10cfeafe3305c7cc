"""Which words get a mask: trained selector and noun chunks."""

import re
from types import SimpleNamespace

import pytest
import torch

from flmm_core.keyword_spans import KeywordSelector, phrase_ranges, select_keywords, spans_from_ranges
from flmm_core.lmm_trace import LmmTrace
from flmm_core.noun_chunks import noun_chunks


def tokens(text):
    """Words with the space before them, and signs, as tokenizers make them."""
    return [match.span() for match in re.finditer(r"\s*\w+|\s*[^\w\s]", text)]


def trace_of(text, hidden=None):
    offsets = tuple(tokens(text))
    ids = tuple(range(len(offsets)))
    hidden = torch.zeros(2, len(ids), 4) if hidden is None else hidden
    return LmmTrace(text, ids, offsets, True, hidden, SimpleNamespace(), torch.tensor([]), SimpleNamespace(), SimpleNamespace())


def selected(text, words, threshold=0.5):
    offsets = tokens(text)
    probabilities = [0.9 if text[a:b].strip() in words else 0.1 for a, b in offsets]
    return [text[a:b] for a, b in phrase_ranges(text, offsets, probabilities, threshold)]


@pytest.mark.parametrize(
    ("text", "words", "phrases"),
    [
        ("There is a red mug on the table.", {"red", "mug"}, ["red mug"]),
        ("a red mug, a blue bowl and the lemon.", {"red", "mug", "blue", "bowl", "lemon"}, ["red mug", "blue bowl", "lemon"]),
        # The words between are marked too: objects stay apart all the same.
        ("red mug, bowl and lemon.", {"red", "mug", ",", "bowl", "and", "lemon", "."}, ["red mug", "bowl", "lemon"]),
        ("the mug the bowl", {"the", "mug", "bowl"}, ["the mug", "the bowl"]),
        ("a black and white ball", {"black", "and", "white", "ball"}, ["black and white ball"]),
        ("a mug and a", {"and", "a"}, []),
        ("nothing here", set(), []),
        ("...", {"."}, []),
        ("", set(), []),
        ("ünïcode mug’s 柠檬", {"ünïcode", "mug"}, ["ünïcode mug’s"]),
    ],
)  # fmt: skip
def test_adjacent_positive_tokens_form_a_phrase(text, words, phrases):
    assert selected(text, words) == phrases


def test_parts_of_words_become_words():
    text = "the lemons"
    assert phrase_ranges(text, [(0, 3), (3, 6), (6, 10)], [0.0, 0.0, 1.0], 0.5) == [(4, 10)]
    assert phrase_ranges(text, [(0, 3), (3, 6), (6, 10)], [0.0, 1.0, 0.0], 0.5) == [(4, 10)]


def test_threshold_is_inclusive():
    assert phrase_ranges("mug", [(0, 3)], [0.5], 0.5) == [(0, 3)]
    assert phrase_ranges("mug", [(0, 3)], [0.4999], 0.5) == []
    assert phrase_ranges("mug", [(0, 3)], [0.0], 0.0) == [(0, 3)]


def test_selector_reads_the_last_hidden_state():
    text = "There is a red mug here."
    hidden = torch.zeros(2, 7, 4)
    hidden[0] = 9.0  # layers before the last do not count
    hidden[1, :, 0] = torch.tensor([-5.0, -5, -5, 5, 3, -5, -5])
    selector = KeywordSelector(4)
    with torch.no_grad():
        selector.linear.weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
        selector.linear.bias.zero_()
    (span,) = select_keywords(trace_of(text, hidden), selector, threshold=0.5)
    assert (span.text, span.start, span.end, span.token_start, span.token_end) == ("red mug", 11, 18, 3, 5)
    assert span.score == pytest.approx(float(torch.tensor([5.0, 3.0]).sigmoid().mean()))
    assert select_keywords(trace_of("", hidden[:, :0]), selector, threshold=0.5) == ()


def test_without_selector_noun_chunks_are_used():
    spans = select_keywords(trace_of("There is a red mug, and the lemon."), None, threshold=0.5)
    assert [(span.text, span.token_start, span.token_end, span.score) for span in spans] == [
        ("a red mug", 2, 5, 1.0),
        ("the lemon", 7, 9, 1.0),
    ]


def test_characters_outside_the_answer():
    with pytest.raises(ValueError, match=r"characters: expected a range inside the answer's 3, got \(7, 9\)"):
        spans_from_ranges(trace_of("mug"), [(7, 9)])


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("The image features a busy street with a stop sign prominently displayed.", ["a busy street", "a stop sign"]),
        ("There is a red mug, a bowl and the lemon on the table.", ["a red mug", "a bowl", "the lemon", "the table"]),
        ("A man sitting by a parked car holds two black and white dogs", ["A man", "a parked car", "two black and white dogs"]),
        ("I see three lemons and one can.", ["three lemons", "one can"]),
        ("The mug's handle is blue.", ["The mug", "handle"]),
        ("It is on the left side of the wooden box.", ["the wooden box"]),
        ("A cat is lying on the couch, and its tail is hanging down.", ["A cat", "the couch", "its tail"]),
        ("Mugs, bowls and lemons.", ["Mugs", "bowls", "lemons"]),
        ("No, there is no banana.", []),
        ("Yes.", []),
        ("The mug is red.", ["The mug"]),
        ("lemon", ["lemon"]),
        ("3 cups", ["3 cups"]),
        ("", []),
        ("?!,;", []),
    ],
)  # fmt: skip
def test_noun_chunks(text, chunks):
    assert [text[a:b] for a, b in noun_chunks(text)] == chunks


def test_noun_chunks_of_odd_text_are_ranges():
    for text in ("\x00\x01 mug", "a" * 5000, "柠檬在哪里", "the the the", "a\n\nb_c-d 'e' f's", "’s ’s"):
        end = 0
        for a, b in noun_chunks(text):
            assert end <= a < b <= len(text)
            end = b
