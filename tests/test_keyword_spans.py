"""Which words get a mask: trained selector and noun chunks."""

import logging
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_heads

from flmm_core.heads.keyword_selector import KeywordSelector
from flmm_core.keywords.noun_chunks import noun_chunker, noun_chunks, rule_noun_chunks
from flmm_core.keywords.spans import phrase_ranges, select_keywords, spans_from_ranges
from flmm_core.lmm.trace import LmmTrace


@pytest.fixture
def fresh_choice():
    """The choice between spaCy and the rule is made anew in the test, and after it."""
    noun_chunker.cache_clear()
    yield
    noun_chunker.cache_clear()


def tokens(text):
    """Words with the space before them, and signs, as tokenizers make them."""
    return [match.span() for match in re.finditer(r"\s*\w+|\s*[^\w\s]", text)]


def trace_of(text, hidden=None):
    offsets = tuple(tokens(text))
    ids = tuple(range(len(offsets)))
    hidden = torch.zeros(2, len(ids), 4) if hidden is None else hidden
    return LmmTrace(text, ids, offsets, True, hidden, (), (), SimpleNamespace())


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


def test_the_selector_reads_a_mixture_of_layers():
    text = "There is a red mug here."
    hidden = torch.zeros(2, 7, 4)
    hidden[0, :, 0] = torch.tensor([-5.0, -5, -5, 5, 3, -5, -5])
    hidden[1, :, 0] = torch.tensor([5.0, -5, -5, -5, -5, -5, -5])
    selector = KeywordSelector(2, 4)
    with torch.no_grad():
        selector.hidden.weight.zero_()
        selector.hidden.weight[0, 0] = 1.0
        selector.hidden.bias.zero_()
        selector.out.weight.zero_()
        selector.out.weight[0, 0] = 4.0
        selector.out.bias.fill_(-1.0)

    heads = tiny_heads(layers=2, hidden=4)
    heads.keyword_selector = selector

    def logits(weights):
        selector.layer_weights.data = torch.tensor(weights)
        return heads.keyword_logits(heads.mix(hidden)).detach()

    def chosen(weights):
        return select_keywords(trace_of(text), logits(weights), threshold=0.5)

    (span,) = chosen([9.0, -9.0])
    assert (span.text, span.start, span.end, span.token_start, span.token_end) == ("red mug", 11, 18, 3, 5)
    probabilities = logits([9.0, -9.0]).sigmoid()
    assert span.score == pytest.approx(probabilities[3:5].mean().item())
    assert [span.text for span in chosen([-9.0, 9.0])] == ["There"]
    assert select_keywords(trace_of(""), None, threshold=0.5) == ()


def test_without_selector_noun_chunks_are_used(monkeypatch, fresh_choice):
    monkeypatch.setitem(sys.modules, "spacy", None)
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
        ("The mug is orange, the light is orange and red.", ["The mug", "the light"]),
        ("It is black and white.", []),
        ("The orange one and the light blue ones.", []),
        ("A TV set, a table top and a back wheel at the back.", ["A TV set", "a table top", "a back wheel"]),
        ("The mug left of the lemon is the first one on the left side.", ["The mug", "the lemon"]),
        ("The image shows the top left corner.", []),
        ("lemon", ["lemon"]),
        ("3 cups", ["3 cups"]),
        ("", []),
        ("?!,;", []),
    ],
)  # fmt: skip
def test_noun_chunks(text, chunks):
    assert [text[a:b] for a, b in rule_noun_chunks(text)] == chunks


def test_noun_chunks_of_odd_text_are_ranges():
    for text in ("\x00\x01 mug", "a" * 5000, "柠檬在哪里", "the the the", "a\n\nb_c-d 'e' f's", "’s ’s"):
        end = 0
        for a, b in rule_noun_chunks(text):
            assert end <= a < b <= len(text)
            end = b


COCO = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter bench bird"
    " cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard"
    " sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork knife spoon"
    " bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed dining_table"
    " toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator book clock vase scissors"
    " teddy_bear hair_drier toothbrush"
)
PLURALS = {"person": "people", "mouse": "mice", "knife": "knives"}
SAME = ("skis", "scissors", "sheep", "broccoli")


def plural(name):
    if name in SAME:
        return name
    return PLURALS.get(name, name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s"))


@pytest.mark.parametrize("name", [name.replace("_", " ") for name in COCO.split()])
def test_names_of_coco_are_found_whole(name):
    article = "an" if name[0] in "aeiou" else "a"
    many = plural(name)
    for text, chunks in (
        (f"There is {article} {name} on the left.", [f"{article} {name}"]),
        (f"I see two {many} and a red {name}.", [f"two {many}", f"a red {name}"]),
        (f"The {name} is next to the man.", [f"The {name}", "the man"]),
        (f"{many.capitalize()} are near the {name}.", [many.capitalize(), f"the {name}"]),
        (f"The man holds {article} {name}, and there are no {many}.", ["The man", f"{article} {name}"]),
    ):
        assert [text[a:b] for a, b in rule_noun_chunks(text)] == chunks


def test_there_are_80_names_of_coco():
    assert len(set(COCO.split())) == 80


class FakeSpacy:
    """What is used of spaCy: installed models, and a pipeline whose chunks are pairs of words and part of speech."""

    def __init__(self, models, chunks=()):
        self.loaded = []
        self.models, self.chunks = models, chunks
        self.util = SimpleNamespace(get_installed_models=lambda: self.models)

    def load(self, name):
        self.loaded.append(name)
        language, _, rest = name.partition("_")
        return Pipeline(meta={"lang": language, "name": rest}, chunks=self.chunks)


class Pipeline:
    def __init__(self, meta, chunks):
        self.meta, self.chunks = meta, chunks

    def __call__(self, text):
        return SimpleNamespace(noun_chunks=[Chunk(text, *chunk) for chunk in self.chunks])


class Chunk(list):
    def __init__(self, text, words, pos):
        super().__init__(SimpleNamespace(lower_=word.lower()) for word in words.split())
        self.start_char = text.index(words)
        self.end_char = self.start_char + len(words)
        self.root = SimpleNamespace(pos_=pos)


def test_spacy_is_used_where_it_is_installed(monkeypatch, fresh_choice, caplog):
    chunks = [("It", "PRON"), ("a dark mug", "NOUN"), ("the left side", "NOUN"), ("no lemon", "NOUN")]
    spacy = FakeSpacy(["de_core_news_sm", "en_core_web_lg", "en_core_web_sm"], chunks)
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    text = "It is a dark mug on the left side with no lemon."
    with caplog.at_level(logging.DEBUG, logger="flmm_core.keywords.noun_chunks"):
        assert [text[a:b] for a, b in noun_chunks(text)] == ["a dark mug"]
        # Decided once: what is installed later changes nothing in this process.
        monkeypatch.setitem(sys.modules, "spacy", None)
        noun_chunks(text)
        spans = select_keywords(trace_of(text), None, threshold=0.5)
    assert [span.text for span in spans] == ["a dark mug"]
    assert spacy.loaded == ["en_core_web_sm"]
    assert [record.getMessage() for record in caplog.records] == ["noun chunks: spaCy with en_core_web_sm"]


@pytest.mark.parametrize(
    ("models", "loaded"), [(["en_core_web_trf", "en_core_web_lg"], ["en_core_web_lg"]), (["de_core_news_sm"], []), ([], [])]
)
def test_which_model_of_spacy(monkeypatch, fresh_choice, caplog, models, loaded):
    spacy = FakeSpacy(models)
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    with caplog.at_level(logging.DEBUG, logger="flmm_core.keywords.noun_chunks"):
        assert (noun_chunker() is rule_noun_chunks) == (not loaded)
    assert spacy.loaded == loaded
    assert len(caplog.records) == 1
