"""Words to tokens and back, with the character range of every token. Runs no model.

Phrases are mapped to tokens by character offsets, never by comparing ids.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from string import digits
from typing import cast

from transformers import AddedToken, PreTrainedTokenizerBase

from flmm_core.common.plain_text import is_utf8
from flmm_core.errors import CommandError
from flmm_core.families import ImageLayout, LmmFamily
from flmm_core.families.thoughts import THOUGHTS, begun_thought

LABEL = re.compile(r"\[(\d+)\]")
"""A label of a conversation in a text; by itself it names nothing."""

_LONGEST_MARK = 24
"""Tokens that hold the mark of a thought, however it is tokenised."""

Offsets = tuple[tuple[int, int], ...]
Exchange = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class PromptTokens:
    """A prompt with its images' tokens in their places."""

    ids: tuple[int, ...]
    image_starts: tuple[int, ...]
    """First column of each image."""


@dataclass(frozen=True)
class AnswerTokens:
    """A given answer, behind its prompt."""

    prompt: PromptTokens
    ids: tuple[int, ...]
    """Ids of the answer's ``t`` tokens."""
    offsets: Offsets
    """Half-open character range of each of them in the answer."""


def is_mark(token: AddedToken) -> bool:
    """Whether an added token is more than words or white space, which users may write."""
    return token.special or not (token.content.isalnum() or not token.content.strip(" \t\n\r▁"))


class LmmWords:
    """A tokenizer with the prompt format of its family."""

    def __init__(self, *, tokenizer: PreTrainedTokenizerBase, family: LmmFamily) -> None:
        if not tokenizer.is_fast:
            raise ValueError(f"tokenizer: expected one with character offsets, got {type(tokenizer).__name__}")
        self.tokenizer = tokenizer
        self.family = family
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if is_mark(token))
        self.marks = tuple(sorted({*tokenizer.all_special_tokens, *added, family.image_token}))
        """Special tokens, which must not occur in users' words."""

    def check(self, text: str) -> None:
        """Refuse words that hold special tokens, such as ``<image>``.

        Raises:
            CommandError: names the special token.
        """
        for mark in self.marks:
            if mark in text:
                raise CommandError(f"text: expected no special tokens of the LMM, got {mark!r}")

    def check_command(self, text: str) -> None:
        """Refuse a user's words that cannot be a command.

        Raises:
            CommandError: no letter or digit, not Unicode, or a special token of the LMM.
        """
        if isinstance(text, str) and not is_utf8(text):
            raise CommandError(f"text: expected Unicode, got bytes of another encoding or half a character in {text!r:.80}")
        if not isinstance(text, str) or not any(sign.isalnum() for sign in text):
            raise CommandError(f"text: expected at least one letter or digit, got {text!r:.80}")
        self.check(text)

    def check_phrases(self, phrases: Sequence[str]) -> None:
        """Refuse phrases as :meth:`check_command` does, and those that name nothing; ValueError if there are none."""
        if not phrases:
            raise ValueError("phrases: expected at least one, got none")
        for phrase in phrases:
            self.check_command(phrase)
            if not any(sign.isalpha() or sign in digits for sign in LABEL.sub("", phrase)):
                raise CommandError(f"phrase: expected words, or a number in the digits 0 to 9, got {phrase!r:.80}")

    def prompt_tokens(
        self, text: str, layouts: Sequence[ImageLayout], *, chat: bool = False, history: Sequence[Exchange] = ()
    ) -> PromptTokens:
        """The user's words in the family's chat format.

        Args:
            text: the user's words.
            layouts: of the images, which belong to the first turn.
            chat: whether the system text of the family comes first.
            history: questions and answers before it, the oldest first.

        Raises:
            ValueError: there is a history, and the family answers single questions only.
            CommandError: words hold special tokens.
        """
        for words in (text, *chain.from_iterable(history)):
            self.check(words)
        return self.expand(self.tokenizer(self.prompt_text(text, layouts, chat, history)).input_ids, layouts)

    def prompt_text(self, text: str, layouts: Sequence[ImageLayout], chat: bool, history: Sequence[Exchange] = ()) -> str:
        """The prompt as text, with a mark for each image; see :meth:`prompt_tokens`."""
        family = self.family
        if history and family.turn_end is None:
            raise ValueError(
                f"history: expected none, as {family.model_type} answers single questions, got {len(history)} turns"
            )
        separator = "" if family.reads_apart else family.answer_separator
        questions = [*(asked for asked, _ in history), text]
        prompt = family.prompt(questions[0], len(layouts))
        for (_, said), asked in zip(history, questions[1:], strict=True):
            prompt += f"{separator}{said}{family.turn_end}{family.later_prompt(asked)}"
        return (family.system if chat else "") + prompt

    def answer_tokens(
        self, prompt: str, answer: str, layouts: Sequence[ImageLayout], starts: Sequence[int] = (0,)
    ) -> AnswerTokens:
        """Tokenise prompt and answer in one string, as the LMM would have continued; split by character offsets.

        A family that ``reads_apart`` has each part of the answer tokenised separately instead.

        Args:
            prompt: the user's words.
            answer: the assistant's words.
            layouts: of the images.
            starts: first characters of the answer's parts.
        """
        self.check(prompt)
        self.check(answer)
        if self.family.reads_apart:
            return self._tokens_apart(prompt, answer, layouts, starts)
        head = self.prompt_text(prompt, layouts, chat=False)
        begin = len(head) + len(self.family.answer_separator)
        encoded = self.tokenizer(head + self.family.answer_separator + answer, return_offsets_mapping=True)
        ids, offsets = encoded.input_ids, encoded.offset_mapping
        first = next((i for i, (_, end) in enumerate(offsets) if end > len(head)), None)
        if not answer.strip() or first is None:
            raise ValueError(f"answer: expected at least one word, got {answer!r}")
        within = tuple((max(start - begin, 0), max(end - begin, 0)) for start, end in offsets[first:])
        return AnswerTokens(self.expand(ids[:first], layouts), tuple(ids[first:]), within)

    def _tokens_apart(self, prompt: str, answer: str, layouts: Sequence[ImageLayout], starts: Sequence[int]) -> AnswerTokens:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in pairwise([*starts, len(answer)]):
            part = self.tokenizer(answer[start:end], add_special_tokens=False, return_offsets_mapping=True)
            ids += part.input_ids
            offsets += [(start + first, start + last) for first, last in part.offset_mapping]
        if not answer.strip() or not ids:
            raise ValueError(f"answer: expected at least one word, got {answer!r}")
        return AnswerTokens(self.prompt_tokens(prompt, layouts), tuple(ids), tuple(offsets))

    def expand(self, ids: Sequence[int], layouts: Sequence[ImageLayout]) -> PromptTokens:
        """Replace the mark of each image by the tokens of its layout."""
        marks = [i for i, token in enumerate(ids) if token == self.family.image_token_id]
        if len(marks) != len(layouts):
            raise ValueError(
                f"prompt: expected one {self.family.image_token} for each of {len(layouts)} images, got {len(marks)}"
            )
        expanded: list[int] = []
        starts, done = [], 0
        for mark, layout in zip(marks, layouts, strict=True):
            expanded += ids[done:mark]
            starts.append(len(expanded))
            expanded += layout.ids
            done = mark + 1
        return PromptTokens((*expanded, *ids[done:]), tuple(starts))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def thought(self, prompt: Sequence[int], written: Sequence[int], *, over: bool) -> tuple[int, int]:
        """How much of what was written behind a prompt is thought, not answer.

        Args:
            prompt: its ids; a thought may have begun at its end.
            written: ids, without an end token.
            over: whether nothing follows; until then, what may become the mark of a thought counts as thought.

        Returns:
            Count of the thought's tokens, all of them while it goes on; and how many characters of the token behind them still
            belong to its mark.
        """
        marks, head = begun_thought(self._raw(prompt[-_LONGEST_MARK:])), self._raw(written[:_LONGEST_MARK]).lstrip()
        if marks is None:
            marks = next((one for one in THOUGHTS if head.startswith(one.begin)), None)
        if marks is None:
            perhaps = head and not over and any(one.begin.startswith(head) for one in THOUGHTS)
            return len(written) if perhaps else 0, 0
        if marks.end not in self._raw(written):
            return len(written), 0
        lengths = range(1, len(written) + 1)
        length = 1 + bisect_left(lengths, True, key=lambda count: marks.end in self._raw(written[:count]))
        behind = self._raw(written[:length]).partition(marks.end)[2]
        if not behind.strip():
            return length, 0
        return length - 1, len(self._raw(written[length - 1 : length])) - len(behind)

    def _raw(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def decode_with_offsets(self, ids: Sequence[int], *, skip: int = 0) -> tuple[str, Offsets]:
        """Text of generated tokens without outer white space, and the character range that each one added to it.

        Args:
            ids: of the tokens.
            skip: characters at the beginning that are left out.
        """
        raw = self.decode(ids)
        ends: list[int] = []
        for i in range(len(ids)):
            # An incomplete multi-byte character decodes to U+FFFD: the character counts to its last token.
            end = len(self.decode(ids[: i + 1]).rstrip("\ufffd")) if i + 1 < len(ids) else len(raw)
            ends.append(max(end, ends[-1] if ends else 0))
        lead, text = len(raw) - len(raw[skip:].lstrip()), raw[skip:].strip()
        cut = [min(max(end - lead, 0), len(text)) for end in ends]
        return text, tuple(zip([0, *cut[:-1]], cut, strict=True)) if cut else ()
