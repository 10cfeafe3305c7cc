"""Tokenises turns in the prompt format of the LLaVA family, and packs random ones behind their images for each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from flmm_core.data.samples import MISTAKE, REFER, REFER_ABSENT, Turn
from flmm_core.families.llava import LlavaFamily
from flmm_tabletop.training.lmm_start import EOS, IMAGE
from flmm_tabletop.training.looking import LookingTargets, Name, find_names, looking_share
from flmm_tabletop.training.packed_turns import Packing

IGNORED = -100
"""Label of tokens without a loss."""


@dataclass(frozen=True, slots=True)
class NamedTokens:
    """A name in a tokenised turn."""

    name: Name
    last: int
    """Index of the token that ends it."""
    before: int | None
    """Index of the token before it, if that one predicts it in the answer."""


@dataclass(frozen=True, slots=True)
class EncodedTurn:
    """A turn as tokens after the image; indices count from the first of them."""

    ids: np.ndarray
    """``[tokens]`` int64."""
    answer: int
    """Index of the answer's first token."""
    kind: str
    names: tuple[NamedTokens, ...]


@dataclass(frozen=True, slots=True)
class PlacedTurn:
    """A turn in a batch."""

    image: int
    start: int
    """Index of its first token among its image's tokens."""
    turn: EncodedTurn

    @property
    def predicting(self) -> slice:
        """Tokens that predict the answer's."""
        return slice(self.start + self.turn.answer - 1, self.start + len(self.turn.ids) - 1)


@dataclass(frozen=True)
class PackedBatch:
    """Turns of several images."""

    packing: Packing
    ids: torch.Tensor
    """``[images, packing.length - packing.prefix]`` int64."""
    labels: torch.Tensor
    """As ``ids``: the next token where it belongs to an answer, else ``IGNORED``."""
    turns: tuple[PlacedTurn, ...]


class TurnPacker:
    """Packs turns for one tokenizer, image size and layout."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, image_tokens: int, groups: tuple[tuple[int, int], ...]) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer(_prompt("")).input_ids
        self.before_image = tuple(ids[: ids.index(tokenizer.vocab[IMAGE])])
        """Tokens before the image's."""
        self.packing = Packing(len(self.before_image) + image_tokens, groups)

    def encode(self, turns: Sequence[Turn]) -> list[EncodedTurn]:
        """Tokenise the turns with a right answer, and find their names; other turns are for training heads alone."""
        learnt = [turn for turn in turns if turn.kind not in (REFER_ABSENT, MISTAKE)]
        if not learnt:
            return []
        prompts = [_prompt(turn.question) for turn in learnt]
        texts = [f"{p}{LlavaFamily.answer_separator}{t.answer}{EOS}" for p, t in zip(prompts, learnt, strict=True)]
        tokens = self.tokenizer(texts, return_offsets_mapping=True)
        skip = len(self.before_image) + 1
        encoded = []
        for turn, prompt, text, ids, offsets in zip(
            learnt, prompts, texts, tokens.input_ids, tokens.offset_mapping, strict=True
        ):
            ends = [end for _, end in offsets[skip:]]
            answer = _token_at(ends, len(prompt))
            names = []
            for name in find_names(text):
                before = _token_at(ends, name.start) - 1
                names.append(NamedTokens(name, _token_at(ends, name.end - 1), before if before >= answer - 1 else None))
            encoded.append(EncodedTurn(np.array(ids[skip:]), answer, turn.kind, tuple(names)))
        return encoded

    def pack(self, turns: Sequence[Sequence[EncodedTurn]], rng: np.random.Generator) -> PackedBatch:
        """Choose turns of each image at random, at most one in refer mode, and lay them out by their lengths."""
        placed = []
        for image, available in enumerate(turns):
            refer = [turn for turn in available if turn.kind == REFER]
            chosen = [turn for turn in available if turn.kind != REFER]
            if refer:
                chosen.append(refer[rng.integers(len(refer))])
            start = shorter = 0
            for count, length in self.packing.groups:
                fitting = [turn for turn in chosen if shorter < len(turn.ids) <= length]
                for slot, index in enumerate(rng.permutation(len(fitting))[:count]):
                    placed.append(PlacedTurn(image, start + slot * length, fitting[index]))
                start, shorter = start + count * length, length
        ids = torch.zeros(len(turns), self.packing.length - self.packing.prefix, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        for place in placed:
            tokens = torch.from_numpy(place.turn.ids)
            ids[place.image, place.start : place.start + len(tokens)] = tokens
            labels[place.image, place.predicting] = tokens[place.turn.answer :]
        return PackedBatch(self.packing, ids, labels, tuple(placed))


def looking_targets(batch: PackedBatch, votes: torch.Tensor, words: Sequence[str], *, ahead: bool) -> LookingTargets:
    """Targets of attention for the names of a batch.

    Args:
        batch: packed turns.
        votes: ``[images, cells, words]`` of the tower.
        words: of the tower.
        ahead: whether at the tokens before names of present objects in answers; else at the ends of all names.
    """
    at, shares = [], [votes.new_zeros(0, 1 + votes.shape[1], dtype=torch.float32)]
    for place in batch.turns:
        for named in place.turn.names:
            token = named.before if ahead else named.last
            share = None if token is None else looking_share(named.name, votes[place.image], words)
            if token is not None and share is not None and not (ahead and share[0] > 0):
                at.append((place.image, place.start + token))
                shares.append(share[None])
    return LookingTargets(torch.tensor(at, dtype=torch.long, device=votes.device).reshape(-1, 2), torch.cat(shares))


def _prompt(question: str) -> str:
    return LlavaFamily.template.format(image=IMAGE, text=question)


def _token_at(ends: Sequence[int], character: int) -> int:
    """Index of the token that holds a character of the text, from the characters at which tokens end."""
    return next(i for i, end in enumerate(ends) if end > character)
