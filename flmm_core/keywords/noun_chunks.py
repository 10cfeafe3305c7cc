"""Noun chunks of English: spaCy's where it is installed with an English model, else by rule.

The published heads pick the words to ground with spaCy's noun chunks. It is not a requirement: without it the rule
``determiner? modifier* noun+`` needs no model and no download. Every word that is not in a closed list (prepositions, verbs
that are common in descriptions, pronouns, ...) counts as a modifier or a noun, so the lists decide where a chunk ends. The rule
errs towards too many chunks. Words about the image itself (image, left, middle, ...) and bare adjectives give no chunk.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import cache
from typing import Any

Range = tuple[int, int]

SPACY_MODEL = "en_core_web_sm"
"""The model of the published demo; another installed English one is taken where it is missing."""

_log = logging.getLogger(__name__)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    "a an the this that these those my your his her its our their some any each every another both several many few all"
    " no one two three four five six seven eight nine ten"
)

ADJECTIVES = _words(
    "red green blue yellow orange purple pink brown black white gray grey golden silver beige dark light bright big small"
    " large little tiny huge tall short long wide narrow round square flat empty full open closed old new young wooden"
    " metal plastic clean dirty hot cold colorful colourful other same different visible nearest closest farthest first"
    " second third last clear blurry busy sunny cloudy beautiful various multiple available present ready able"
)

_PREPOSITIONS = _words(
    "of in on at by with from to into onto near behind beside besides under over above below between among around against"
    " along across through inside outside within without toward towards upon off up down next close like than as for about"
    " during before after beneath underneath"
)
_OTHER = _words(
    "i you he she it we they me him them who whom which what where when why how there here and or but nor so yet if while"
    " because although though not n't never also very quite rather too just only then still even together likely possibly"
    " probably currently clearly directly slightly nearly almost perhaps maybe yes no okay ok sure please thanks thank"
    " sorry hello hi something anything nothing everything someone anyone none more most less least much such well away"
    " back forward apart alone either neither first-person"
)
_VERBS = _words(
    "is are was were be been being am 's 're 've do does did doing done has have had having can could will would shall should"
    " may might must see sees seen saw show shows shown showing feature features featured featuring depict depicts depicted"
    " depicting contain contains contained containing include includes included including appear appears appeared appearing"
    " seem seems sit sits sitting sat stand stands standing stood lie lies lying lay hold holds holding held wear wears"
    " wearing worn walk walks walking walked run runs running ride rides riding rode look looks looking looked make makes"
    " making made take takes taking took taken give gives giving gave given go goes going went gone come comes coming came"
    " use uses using used place places placed placing put puts putting surround surrounds surrounded surrounding locate"
    " located locates position positioned positioning add adds adding added create creates creating created pick picks"
    " picking picked bring brings bringing brought point points pointing pointed reach reaches reaching grab grabs grabbing"
    " found find finds finding hang hangs hanging hung park parks eat eats eating ate drink drinks drinking play plays"
    " playing played enjoy enjoys enjoying watch watches watching rest rests resting rested lean leans leaning get gets"
    " getting got keep keeps keeping kept let know think say says said tell tells carry carries carrying carried occupy"
    " occupies fill fills cover covers covered covering suggest suggests indicate indicates captured visible"
)
_ABSTRACT = _words(
    "image picture photo photograph scene view background foreground left right side sides front rear middle center centre"
    " top bottom corner edge part parts color colour colors colours position kind type sort variety number group total lot"
    " set pair addition fact moment time day way area areas distance direction one ones object objects item items thing"
    " things overall end close-up one back"
)
_ING_NOUNS = _words(
    "building buildings painting paintings ceiling ceilings clothing string ring king thing wing spring railing awning"
    " ping-pong dressing pudding icing earring earrings lighting parking dining living swimming washing cutting"
)
_LY_NOUNS = _words("family fly butterfly jelly lily belly trolley doily ally bully gully")
FUNCTION_WORDS = DETERMINERS | _PREPOSITIONS | _OTHER | _VERBS
"""Words of an English sentence that name nothing."""
CLOSED_WORDS = FUNCTION_WORDS | ADJECTIVES | _ABSTRACT
"""Those, and what gives no chunk by itself."""
_BOUNDARIES = (_PREPOSITIONS | _OTHER | _VERBS) - DETERMINERS

_AMBIGUOUS = _words("can cans drink drinks watch watches cover rest light point ring play park back")
"""Verbs and others above that are nouns or modifiers right behind an article, a number or an adjective: "the can"."""

_ADJECTIVES_AND_NOUNS = _words("orange light")
"""Adjectives that are things behind a determiner: "the orange", but "it is orange"."""

_SIDES = _words("left right")
"""Behind a noun they begin something else: "the mug [left of] the lemon"."""

_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[^\w\s]|_")


def noun_chunks(text: str) -> list[Range]:
    """Character ranges of the noun chunks of ``text``, half-open, in reading order; see :func:`noun_chunker`.

    Things that are said to be absent ("no banana"), pronouns and words about the image itself give no chunk.
    """
    return noun_chunker()(text)


@cache
def noun_chunker() -> Callable[[str], list[Range]]:
    """The way in which this process finds noun chunks, decided at the first call and said in a debug log line."""
    pipeline = _spacy_pipeline()
    if pipeline is None:
        _log.debug("noun chunks: by rule, spaCy or an English model of it is not installed")
        return rule_noun_chunks
    _log.debug("noun chunks: spaCy with %s_%s", pipeline.meta["lang"], pipeline.meta["name"])
    return lambda text: _spacy_noun_chunks(pipeline, text)


def _spacy_pipeline() -> Any | None:
    try:
        import spacy
    except ImportError:
        return None
    # The published demo's first, the others in the order of their names.
    installed = sorted(name for name in spacy.util.get_installed_models() if name.startswith("en_"))
    if not installed:
        return None
    return spacy.load(SPACY_MODEL if SPACY_MODEL in installed else installed[0])


def _spacy_noun_chunks(pipeline: Any, text: str) -> list[Range]:
    chunks = []
    for chunk in pipeline(text).noun_chunks:
        words = [token.lower_ for token in chunk]
        of_the_image = all(word in DETERMINERS or word in _ABSTRACT for word in words)
        if words[0] != "no" and chunk.root.pos_ != "PRON" and not of_the_image:
            chunks.append((chunk.start_char, chunk.end_char))
    return chunks


def rule_noun_chunks(text: str) -> list[Range]:
    """Noun chunks by the rule of this file.

    Neighbours joined by "and", "or" or a comma stay apart, except adjectives of one noun ("black and white ball").
    """
    chunks: list[Range] = []
    run: list[tuple[str, int, int]] = []
    tokens = [(match.group().lower(), match.start()) for match in _TOKEN.finditer(text)]
    for i, (word, start) in enumerate(tokens):
        # "'s" of a verb or a possessive belongs to no noun: cut "mug's" to "mug".
        stem = re.sub(r"['’]s$", "", word)
        following = tokens[i + 1][0] if i + 1 < len(tokens) else ""
        if _ends_chunk(stem, following, run):
            _close(run, chunks)
            run = []
        if run or _begins_chunk(stem):
            run.append((stem, start, start + len(stem)))
        if stem != word:
            _close(run, chunks)
            run = []
    _close(run, chunks)
    return chunks


def joins_adjectives(before: str, word: str, after: str) -> bool:
    """Whether "and" or "or" stands between two adjectives of one noun, as in "black and white ball"."""
    return word in ("and", "or") and before in ADJECTIVES and after in ADJECTIVES


def _ends_chunk(word: str, following: str, run: list[tuple[str, int, int]]) -> bool:
    if not run:
        return False
    before = run[-1][0]
    if joins_adjectives(before, word, following) or (word == "one" and before in ADJECTIVES):
        return False
    if word in _SIDES and before not in DETERMINERS | ADJECTIVES | _ABSTRACT:
        return True
    if word in _AMBIGUOUS and (before in ADJECTIVES or before in DETERMINERS - {"that", "this", "these", "those"}):
        return False
    return word in DETERMINERS or word in _BOUNDARIES or not word[0].isalnum() or _is_verb_form(word, before)


def _begins_chunk(word: str) -> bool:
    return word in DETERMINERS or (word[0].isalnum() and word not in _BOUNDARIES and not _loose_ing(word) and not _adverb(word))


def _is_verb_form(word: str, before: str) -> bool:
    """An -ing, -ed or -ly form after a noun: "man [sitting]", "car [parked]", but "a [parked] car"."""
    after_noun = before not in DETERMINERS and before not in ADJECTIVES
    return after_noun and (_participle(word) or _adverb(word))


def _loose_ing(word: str) -> bool:
    return word.endswith("ing") and len(word) > 4 and word not in _ING_NOUNS


def _adverb(word: str) -> bool:
    return word.endswith("ly") and word not in _LY_NOUNS


def _close(run: list[tuple[str, int, int]], chunks: list[Range]) -> None:
    """End a chunk, if it names something that is there."""
    words = [word for word, _, _ in run]
    if words and words[0] != "no" and _names_a_thing(words):
        chunks.append((run[0][1], run[-1][2]))


def _names_a_thing(words: list[str]) -> bool:
    """Judge a whole chunk: one noun is enough, whatever stands beside it ("traffic light", "TV set")."""
    *others, last = words
    if last in _ADJECTIVES_AND_NOUNS and others and (others[0] in DETERMINERS or others[0].isdigit()):
        return True
    if any(_is_noun(word) and not _participle(word) for word in others):
        return True
    return _is_noun(last) and not (_participle(last) and not others)


def _is_noun(word: str) -> bool:
    """Whether a word of a chunk can be a noun: in no closed list, and no number."""
    closed = word in DETERMINERS or word in ADJECTIVES or word in _ABSTRACT or word in _BOUNDARIES - _AMBIGUOUS
    return not closed and not word.isdigit() and not _adverb(word)


def _participle(word: str) -> bool:
    return _loose_ing(word) or (word.endswith("ed") and len(word) > 4)
