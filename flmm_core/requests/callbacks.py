"""What a caller may see and say while a command runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from flmm_core.types import CoarseMasks, KeywordSpan

Stage = Literal["image", "lmm", "keywords", "mask_head", "refiner"]
"""Names as in :class:`~flmm_core.types.StageSeconds`."""


class Callbacks:
    """Follows one command; all but :meth:`cancel` is called in the thread that runs it. Override what is of interest."""

    def on_stage(self, stage: Stage) -> None:
        """A stage begins."""

    def on_text(self, text: str) -> None:
        """The whole answer so far, after each token."""

    def on_phrases(self, spans: Sequence[KeywordSpan], coarse: CoarseMasks) -> None:
        """Phrases that are complete while the answer is still being written, and their masks before they are refined.

        Each comes once. Looking costs time; the answer and its masks are the same with it.
        """

    def on_coarse(self, coarse: CoarseMasks) -> None:
        """The phrases' masks before they are refined."""

    _cancelled = False

    def cancel(self) -> None:
        """The answer is not wanted any more; from any thread."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Whether to stop; asked before every token and every stage."""
        return self._cancelled


class CoarseMaskCallbacks(Callbacks):
    """Keeps the coarse masks of a command."""

    coarse: CoarseMasks | None = None
    """None if nothing was grounded."""

    def on_coarse(self, coarse: CoarseMasks) -> None:
        """Keep them."""
        self.coarse = coarse
