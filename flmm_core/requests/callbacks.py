"""Callbacks of a command while it runs: progress, text, masks, and its cancellation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from flmm_core.types import CoarseMasks, KeywordSpan

Stage = Literal["image", "lmm", "keywords", "mask_head", "refiner"]
"""Names as in :class:`~flmm_core.types.StageSeconds`."""


class Callbacks:
    """Follows one command; override what is of interest. All but :meth:`cancel` are called in the thread that runs it."""

    def on_stage(self, stage: Stage) -> None:
        """A stage begins."""

    def on_text(self, text: str) -> None:
        """The whole answer so far, after each token."""

    def on_phrases(self, spans: Sequence[KeywordSpan], coarse: CoarseMasks) -> None:
        """Phrases that are complete while the answer is still being generated, with their masks before refinement.

        Each comes once. Overriding this costs time; the answer and its masks are the same with it.
        """

    def on_coarse(self, coarse: CoarseMasks) -> None:
        """The masks of all phrases before refinement."""

    _cancelled = False

    def cancel(self) -> None:
        """Cancel the command; from any thread."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Whether the command is cancelled; asked before every token and every stage."""
        return self._cancelled

    @property
    def text_callback(self) -> Callable[[str], None] | None:
        """:meth:`on_text` if it is overridden: decoding the text of every token costs time."""
        return None if type(self).on_text is Callbacks.on_text else self.on_text

    @property
    def phrases_callback(self) -> Callable[[Sequence[KeywordSpan], CoarseMasks], None] | None:
        """:meth:`on_phrases` if it is overridden: masks while the answer is generated cost time."""
        return None if type(self).on_phrases is Callbacks.on_phrases else self.on_phrases


class CoarseMaskCallbacks(Callbacks):
    """Keeps the coarse masks of a command."""

    coarse: CoarseMasks | None = None
    """None if nothing was grounded."""

    def on_coarse(self, coarse: CoarseMasks) -> None:
        """Keep them."""
        self.coarse = coarse
