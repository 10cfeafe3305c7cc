"""Prompts of a conversation as the checkpoint's own chat template writes them."""

from __future__ import annotations

from functools import lru_cache
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

WORDS, ANSWER = "{text}", "{answer}"
"""Stand for the words of the user and of the assistant."""


class ChatPrompts:
    """Renders a template with thinking switched off.

    Args:
        tokenizer: its special tokens are the template's.
        template: Jinja text.
        mark: image token that stands for an image in :meth:`first`.

    Raises:
        ValueError: the template does not write the user's words or an image.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, mark: str) -> None:
        self._tokenizer: Any = tokenizer
        self.template = template
        self._mark = mark
        self._start = str(tokenizer.bos_token or "")
        self._adds_start = bool(tokenizer("").input_ids)
        seen, bare = self.rendered(1), self._render([_user(0)])
        if WORDS not in seen or seen == bare:
            missing = "the user's words" if WORDS not in seen else "an image"
            raise ValueError(f"chat template: expected one that writes {missing}, got {seen!r:.120}")
        head = _common(seen, bare)
        tail = _common(seen[len(head) :][::-1], bare[len(head) :][::-1])[::-1]
        self._around = (head, tail)
        said = self._render([_user(1), _assistant()], answered=True)
        before, _, self.turn_end = said.partition(ANSWER)
        self.answer_separator = before[len(seen) :] if before.startswith(seen) else ""
        rest = self._render([_user(1), _assistant(), _user(0)]).partition(ANSWER)[2]
        self.later = rest.removeprefix(self.turn_end)
        """A later turn with :data:`WORDS`, up to its answer."""
        self.turn_end = self.turn_end if rest.startswith(self.turn_end) else ""

    @lru_cache(maxsize=8)  # noqa: B019 - one instance for each loaded model
    def rendered(self, images: int) -> str:
        """A first turn with :data:`WORDS` behind images, as the template writes it for the processor."""
        return self._render([_user(images)])

    @property
    def whole(self) -> bool:
        """Whether the template writes the token that begins a sequence, so that no tokenizer must add another one."""
        return bool(self._start) and self.rendered(1).startswith(self._start)

    def first(self, images: int) -> str:
        """The same with the mark for each image, and without the first token of a sequence if the tokenizer writes that."""
        text = self.rendered(images)
        if text.count(self._mark) != images:
            text = f"{self._around[0]}{self._mark * images}{self._around[1]}"
        return text.removeprefix(self._start) if self._adds_start else text

    def _render(self, turns: list[dict[str, Any]], *, answered: bool = False) -> str:
        text: str = self._tokenizer.apply_chat_template(
            turns,
            chat_template=self.template,
            add_generation_prompt=not answered,
            enable_thinking=False,
            tokenize=False,
        )
        return text


def _common(one: str, other: str) -> str:
    """The beginning that two texts share."""
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _user(images: int) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": WORDS}]}


def _assistant() -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
