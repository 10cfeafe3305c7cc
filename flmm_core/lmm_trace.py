"""What the frozen LMM leaves behind for an answer: its words, hidden states, and attention on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flmm_core.attention_tap import KeptQueries, Merge
from flmm_core.families.base import LmmFamily
from flmm_core.types import ImageGeometry


@dataclass(frozen=True)
class LmmTrace:
    """An answer that the LMM wrote (chat) or read (refer). Tokens are counted from the answer's first token."""

    text: str
    """The answer, without special tokens and outer white space."""
    token_ids: tuple[int, ...]
    """Ids of the ``t`` tokens of the answer, without the end-of-sequence token."""
    token_offsets: tuple[tuple[int, int], ...]
    """Half-open character range of each token in ``text``; may be empty, for special tokens and white space."""
    ended: bool
    """Whether the LMM ended the answer itself, rather than at the length limit. True for an answer that was read."""
    hidden_states: Tensor
    """``[l, t, d]`` outputs of the decoder layers, the last one normed, in the LMM's dtype."""
    geometry: ImageGeometry
    image_columns: Tensor
    """``[image tokens]`` int64, their positions in the sequence."""
    kept: KeptQueries
    family: LmmFamily

    def merged_attention(self, spans: Sequence[tuple[int, int]], *, merge: Merge = "mean") -> Tensor:
        """Word-to-image attention, merged over the tokens of each span.

        Args:
            spans: ``n`` half-open token ranges.
            merge: how to merge over tokens; the published heads expect ``mean``.

        Returns:
            ``[n, c, h, w]`` float32, channels layer-major.
        """
        if not spans:
            channels = sum(layer.queries.shape[0] for layer in self.kept.layers)
            shape = (0, channels, self.geometry.grid_height, self.geometry.grid_width)
            return self.hidden_states.new_zeros(shape).float()
        rows = self.kept.merged_rows(spans, self.image_columns, merge=merge)
        return self.family.arrange_maps(rows, self.geometry)

    def span_of(self, start: int, end: int) -> tuple[int, int]:
        """Tokens that touch the characters ``[start, end)`` of the answer, as a half-open token range.

        Raises:
            ValueError: if no token does.
        """
        touched = [i for i, (a, b) in enumerate(self.token_offsets) if a < end and b > start]
        if not touched:
            raise ValueError(f"characters: expected a range inside the answer's {len(self.text)}, got ({start}, {end})")
        return touched[0], touched[-1] + 1
