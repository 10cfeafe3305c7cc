"""Checks that an LMM stays frozen: its weights and its answers' token ids are the same with and without the attention recorder.

One model answers every question twice: first as transformers loads it, by ``model.generate`` alone, then as
:class:`~flmm_core.lmm.frozen_lmm.FrozenLmm` runs it. The first pass must be complete before the recorder is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from flmm_core.families import LoadedLmm
from flmm_core.lmm.cuda_graphs import allows_static_decoding
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.trace import LmmTrace
from flmm_core.verification.plain_answers import END, PlainAnswer, plain_answers
from flmm_core.verification.weight_checksums import total_checksum, weight_checksums

UNCACHED, CACHED, BATCH, GRAPHS = "no prefix cache", "prefix cache", "batch", "CUDA graphs"
"""Ways to answer: the image is read with each question; the keys and values of the image are cached; several questions are
answered in one batch; and, on a GPU, decoding runs as CUDA graphs."""

_TOGETHER = 8
"""Size of a batch."""


@dataclass(frozen=True)
class Outcome:
    """How an answer of FrozenLmm compares with the plain one of ``model.generate``."""

    place: int | None = None
    """First token that differs, counted from 0; None if the answers are identical."""
    expected: int | None = None
    """The plain model's id there, or :data:`END`; None if its answer stops before."""
    got: int | None = None
    """Id of FrozenLmm's answer there, or :data:`END`; None if it stops before."""
    gap: float | None = None
    """Distance of the plain model's score of ``got`` to its best score, if rounding explains it; else None."""

    @property
    def identical(self) -> bool:
        """Whether all token ids are equal."""
        return self.place is None

    @property
    def differs(self) -> bool:
        """Whether the answers differ by more than rounding explains."""
        return self.place is not None and self.gap is None

    def __str__(self) -> str:
        if self.identical:
            return "identical"
        if self.differs:
            return f"differs at token {self.place}: {self.expected} became {self.got}"
        return f"token {self.place}: two best scores a rounding apart ({self.gap:.3g})"


@dataclass(frozen=True)
class Compared:
    """The comparison for one question about one image."""

    image: str
    question: str
    tokens: int
    """Count of the plain answer's tokens, including the end token."""
    outcomes: Mapping[str, Outcome]
    """Outcomes by the way to answer."""


@dataclass(frozen=True)
class FrozenReport:
    """Result of :func:`verify_frozen`."""

    answers: tuple[Compared, ...]
    before: Mapping[str, str]
    """Checksum of each weight and buffer by name, after the plain answers."""
    after: Mapping[str, str]
    """The same after all other answers."""
    ignored_settings: Mapping[str, str] = field(default_factory=dict)
    """Generation settings of the checkpoint that neither side follows, by name, with the reason."""

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of weights that were modified, removed or added."""
        names = sorted({*self.before, *self.after})
        return tuple(name for name in names if self.before.get(name) != self.after.get(name))

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Outcomes of all questions and ways to answer."""
        return tuple(outcome for answer in self.answers for outcome in answer.outcomes.values())

    @property
    def differing(self) -> int:
        """Count of the answers that differ by more than rounding explains."""
        return sum(outcome.differs for outcome in self.outcomes)

    @property
    def frozen(self) -> bool:
        """Whether all weights are unchanged and no answer differs by more than rounding explains."""
        return not self.changed and not self.differing

    def summary(self) -> str:
        """Two lines of text, and one more if settings of the checkpoint are ignored."""
        identical = sum(outcome.identical for outcome in self.outcomes)
        rounded = len(self.outcomes) - identical - self.differing
        weights = f"weights: all {len(self.before)} as before" if not self.changed else f"weights changed: {self.changed}"
        return (
            f"answers: {identical} of {len(self.outcomes)} identical, {rounded} with two best scores a rounding apart,"
            f" {self.differing} different; {sum(answer.tokens for answer in self.answers)} tokens of the plain model\n{weights}"
            + (
                f"\ngeneration settings ignored on both sides: {', '.join(self.ignored_settings)}"
                if self.ignored_settings
                else ""
            )
        )

    def record(self) -> dict[str, Any]:
        """The report as an object for JSON."""
        return {
            "frozen": self.frozen,
            "ignored_settings": dict(self.ignored_settings),
            "weights": {
                "count": len(self.before),
                "before": total_checksum(self.before),
                "after": total_checksum(self.after),
                "changed": list(self.changed),
            },
            "identical": sum(outcome.identical for outcome in self.outcomes),
            "different": self.differing,
            "outcomes": len(self.outcomes),
            "answers": [
                {
                    "image": answer.image,
                    "question": answer.question,
                    "tokens": answer.tokens,
                    "outcomes": {way: _outcome_record(outcome) for way, outcome in answer.outcomes.items()},
                }
                for answer in self.answers
            ],
        }


def _outcome_record(outcome: Outcome) -> dict[str, Any]:
    if outcome.identical:
        return {"identical": True}
    fields = {"first_difference": outcome.place, "expected": outcome.expected, "got": outcome.got, "rounding": outcome.gap}
    return {"identical": False, **fields}


@torch.no_grad()
def verify_frozen(
    loaded: LoadedLmm, images: Mapping[str, Image.Image], questions: Sequence[str], *, max_new_tokens: int
) -> FrozenReport:
    """Compare the answers of ``model.generate`` and of FrozenLmm to every question about every image.

    Args:
        loaded: an LMM without the attention recorder; it has the recorder afterwards.
        images: RGB, by name.
        questions: the user's words.
        max_new_tokens: length limit of an answer.

    Raises:
        ValueError: the model has the recorder already, or there are no images or no questions.
    """
    if not images or not questions:
        raise ValueError(f"expected images and questions, got {len(images)} images and {len(questions)} questions")
    plain = dict(plain_answers(loaded, images, questions, max_new_tokens=max_new_tokens))
    before = weight_checksums(loaded)  # after the first use: bitsandbytes changes the layout of its weights on the CPU then
    model: Any = loaded.model
    ways: dict[str, dict[str, Any]] = {UNCACHED: {"reuse_prefix": False, "cuda_graphs": False}}
    if loaded.family.reuses_prefix:
        ways[CACHED] = {"reuse_prefix": True, "cuda_graphs": False}
    if model.device.type == "cuda" and allows_static_decoding(model):
        ways[GRAPHS] = {"reuse_prefix": True, "cuda_graphs": True}
    lmms = {
        way: FrozenLmm(model=model, tokenizer=loaded.tokenizer, family=loaded.family, **options)
        for way, options in ways.items()
    }
    layer_weights = torch.eye(lmms[UNCACHED].shape.layers, device=model.device)[:1]
    served: dict[tuple[str, str], dict[str, Outcome]] = {asked: {} for asked in plain}
    for way, lmm in lmms.items():
        encoded = {name: lmm.encode_image(image) for name, image in images.items()}
        for (name, question), expected in plain.items():
            trace = lmm.generate(encoded[name], question, max_new_tokens=max_new_tokens, layer_weights=layer_weights)
            served[name, question][way] = compare(expected, served_ids(trace))
        if way == UNCACHED and lmm.can_batch and len(plain) > 1:
            for i in range(0, len(plain), _TOGETHER):
                batch = list(plain)[i : i + _TOGETHER]
                asked = [lmm.question(encoded[name], words, max_new_tokens=max_new_tokens) for name, words in batch]
                for key, trace in zip(batch, lmm.generate_batch(asked, layer_weights=layer_weights), strict=True):
                    served[key][BATCH] = compare(plain[key], served_ids(trace))
    answers = (Compared(name, words, len(plain[name, words].ids), outcomes) for (name, words), outcomes in served.items())
    return FrozenReport(tuple(answers), before, weight_checksums(loaded), loaded.ignored_settings)


def served_ids(trace: LmmTrace) -> tuple[int, ...]:
    """Ids of FrozenLmm's answer in the form of :attr:`PlainAnswer.ids`, with its thought."""
    return (*trace.thought_ids, *trace.token_ids, *([END] if trace.ended else []))


def compare(expected: PlainAnswer, got: Sequence[int]) -> Outcome:
    """Find the first token at which an answer differs from the plain one, and whether rounding explains it.

    Args:
        expected: the plain answer.
        got: ids of FrozenLmm's answer, with :data:`END`.
    """
    if tuple(got) == expected.ids:
        return Outcome()
    shared = min(len(expected.ids), len(got))
    place = next((i for i in range(shared) if expected.ids[i] != got[i]), shared)
    if place == shared:  # one answer is a prefix of the other
        ours = got[place] if place < len(got) else None
        return Outcome(place, expected.ids[place] if place < len(expected.ids) else None, ours)
    return Outcome(place, expected.ids[place], got[place], expected.near[place].get(got[place]))
