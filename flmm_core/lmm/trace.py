"""The trace of an answer in the frozen LMM: its words, hidden states, and attention on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flmm_core.families import ImageLayout
from flmm_core.lmm.attention_rows import RecordedAttention
from flmm_core.types import ImageGeometry, KeywordSpan


@dataclass(frozen=True)
class LmmTrace:
    """An answer that the LMM generated (chat) or read (refer). Tokens are counted from the answer's first token."""

    text: str
    """The answer, without special tokens and outer white space."""
    token_ids: tuple[int, ...]
    """Ids of the ``t`` tokens of the answer, without the end-of-sequence token."""
    token_offsets: tuple[tuple[int, int], ...]
    """Half-open character range of each token in ``text``; may be empty, for special tokens and white space."""
    ended: bool
    """Whether the LMM ended the answer itself, not the length limit. True for an answer that was read."""
    states: Tensor
    """``[k, t, d]`` float32 mixtures of the hidden states of the decoder's layers, the last one normed; by default each layer
    by itself, ``k = l``."""
    layouts: tuple[ImageLayout, ...]
    """Of the images of the prompt."""
    image_starts: tuple[int, ...]
    """First column of each image in the sequence."""
    attention: RecordedAttention
    """Saved queries and keys, from which attention is recomputed."""
    thought_ids: tuple[int, ...] = ()
    """Ids of the thought that the LMM wrote before its answer, with its marks; they are no part of the answer."""

    @property
    def geometry(self) -> ImageGeometry:
        """Of the first image, which commands are about."""
        return self.layouts[0].geometry

    def image_columns(self, image: int = 0) -> Tensor:
        """``[m]`` int64 positions of an image in the sequence."""
        start = self.image_starts[image]
        return torch.arange(start, start + len(self.layouts[image].ids), device=self.states.device)

    def merged_attention(self, spans: Sequence[tuple[int, int]], *, image: int = 0) -> Tensor:
        """Word-to-image attention, averaged over the tokens of each span (F-LMM, mask head).

        Args:
            spans: ``n`` half-open token ranges.
            image: to which of the prompt's images.

        Returns:
            ``[n, c, h, w]`` float32, channels in the order that the heads expect.
        """
        rows = self.attention.mean_rows(spans, self.image_columns(image))
        if not spans:  # only the layout knows channels and size: it arranges one empty phrase
            layers, heads, _, columns = rows.shape
            rows = rows.new_zeros(layers, heads, 1, columns)
        return self.layouts[image].maps(rows)[: len(spans)]

    def phrase_attention(self, spans: Sequence[KeywordSpan]) -> Tensor:
        """Word-to-image attention ``[n, c, h, w]`` float32 of phrases; see :meth:`merged_attention`."""
        return self.merged_attention([(span.token_start, span.token_end) for span in spans])

    def phrase_states(self, spans: Sequence[KeywordSpan]) -> list[Tensor]:
        """Mixed hidden states ``[k, t, d]`` of each phrase's tokens."""
        return [self.states[:, span.token_start : span.token_end] for span in spans]

    def channel_heads(self) -> tuple[tuple[int, int], ...]:
        """Decoder layer and query head of each of the ``c`` channels of the maps, both from 0."""
        layers = [kept.layer for kept in self.attention.layers]
        heads = self.attention.layers[0].queries.shape[0]
        # Each channel is made of one head's rows, so rows that hold the head's number give it back, whatever the layout.
        numbers = torch.arange(len(layers) * heads, dtype=torch.float32).reshape(len(layers), heads, 1, 1)
        rows = numbers.new_ones(*numbers.shape[:3], len(self.layouts[0].ids))
        sums, ones = (self.layouts[0].maps(one).sum(dim=(0, 2, 3)) for one in (rows * numbers, rows))
        return tuple((layers[i // heads], i % heads) for i in (sums / ones).round().int().tolist())

    def span_of(self, start: int, end: int) -> tuple[int, int]:
        """Tokens that touch the characters ``[start, end)`` of the answer, as a half-open token range.

        Raises:
            ValueError: if no token does.
        """
        touched = [i for i, (a, b) in enumerate(self.token_offsets) if a < end and b > start]
        if not touched:
            raise ValueError(f"characters: expected a range inside the answer's {len(self.text)}, got ({start}, {end})")
        return touched[0], touched[-1] + 1
