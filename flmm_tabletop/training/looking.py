"""Training targets for the attention of some heads: the object that a name refers to, before and after the name.

The targets are the votes of the tower, which was trained on words alone; so no positions are used for supervision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from flmm_sim.scene import COLORS, KINDS
from flmm_sim.wording import SYNONYMS
from flmm_tabletop.vision_tower import ANY

LOOK_HEADS: Mapping[int, int] = {1: 0, 2: 0, 3: 0}
"""Layer to the head that attends, at the end of a name, to the named object."""
AHEAD_HEADS: Mapping[int, int] = {4: 1, 5: 1}
"""Layer to the head that attends, before a name in the answer, to the object that it will name."""
PRESENT, ABSENT = 0.35, 0.05
"""An object is present if its votes sum to more than the first value, and absent if to less than the second."""
_FAINT = 1e-5
"""Added to attention, so that the loss is finite where attention is zero."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name in a text: "red mug", "blue things", "cups"."""

    start: int
    end: int
    """Characters ``[start, end)``."""
    color: str | None
    kind: str
    """One of the tower's words, whatever the text calls it."""


@dataclass(frozen=True)
class LookingTargets:
    """Targets for the attention of one head of some layers, at ``n`` tokens of a batch."""

    at: torch.Tensor
    """``[n, 2]`` int64: image of the batch, and token of its turns."""
    share: torch.Tensor
    """``[n, 1 + cells]`` float32, rows that sum to one: attention to the first token, and to each cell."""


def _spellings() -> dict[str, str]:
    kinds = {kind: kind for kind in KINDS}
    kinds |= {synonym.split()[-1]: kind for kind, synonyms in SYNONYMS.items() for synonym in synonyms}
    kinds |= {ANY: ANY, "thing": ANY, "one": ANY}
    return {spelt + ending: kind for ending in ("es", "s", "") for spelt, kind in kinds.items()}


_KIND_OF = _spellings()
_NAME = re.compile(
    rf"\b(?:({'|'.join(COLORS)}) )?(?:frying )?({'|'.join(sorted(_KIND_OF, key=len, reverse=True))})\b(?! (?:you|i)\b)",
    re.IGNORECASE,
)
"""The last part distinguishes the can on the table from "can you" and "can I"."""


def find_names(text: str) -> list[Name]:
    """Names in a question or answer; "object" without a colour is unspecific and left out."""
    names = []
    for match in _NAME.finditer(text):
        color, kind = match[1], _KIND_OF[match[2].lower()]
        if color is not None or kind != ANY:
            names.append(Name(*match.span(), None if color is None else color.lower(), kind))
    return names


def looking_share(name: Name, votes: torch.Tensor, words: Sequence[str]) -> torch.Tensor | None:
    """Target of attention for a name: ``[1 + cells]`` as in ``LookingTargets.share``, or None if presence is uncertain.

    Args:
        name: of an object.
        votes: ``[cells, words]`` of an image: logarithms of how many things each cell adds to a word's number.
        words: of the tower.
    """
    # The geometric mean of colour and kind is the mean of the logarithms.
    named = [votes[:, words.index(word)].float().clamp(max=1) for word in (name.kind, name.color) if word is not None]
    mass = torch.stack(named).mean(0).exp()
    total = float(mass.sum())
    if total > PRESENT:
        return torch.cat([mass.new_zeros(1), mass / total])
    if total < ABSENT:  # absent
        return torch.cat([mass.new_ones(1), torch.zeros_like(mass)])
    return None


def looking_loss(seen: Mapping[int, torch.Tensor], targets: LookingTargets) -> tuple[torch.Tensor, int]:
    """Cross-entropy of the heads' attention and its targets, summed over tokens and layers, and the number of terms.

    Args:
        seen: layer to the head's attention ``[images, tokens of the turns, prefix]``: the prefix's first token is the
            sequence's, its last ones are the cells.
        targets: the same for all these layers.
    """
    cells = targets.share.shape[1] - 1
    total = torch.zeros(())
    for attention in seen.values():
        at, share = targets.at.to(attention.device), targets.share.to(attention.device)
        own = attention[at[:, 0], at[:, 1]].float()
        looked = torch.cat([own[:, :1], own[:, -cells:]], 1)
        total = total.to(attention.device) - (share * (looked + _FAINT).log()).sum()
    return total, len(targets.at) * len(seen)
