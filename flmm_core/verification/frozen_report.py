"""Whether an LMM stays as it was: its weights, and the token ids that it answers with, before and after the attention recorder.

One model is asked everything twice: first as transformers loaded it, by ``model.generate`` alone, then as
:class:`~flmm_core.lmm.frozen_lmm.FrozenLmm` serves it. The first pass must be over before the recorder is installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from flmm_core.families import LoadedLmm, PreparedImages
from flmm_core.lmm.attention_recorder import ATTENTION_NAME
from flmm_core.lmm.cuda_graphs import allows_static_decoding
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.tokens import LmmWords
from flmm_core.lmm.trace import LmmTrace

END = -1
"""Stands for whichever end token an answer ended with."""

ANEW, KEPT, BATCH, GRAPHS = "read anew", "kept prefix", "one batch", "CUDA graphs"
"""Ways to serve: the image is read with each question; keys and values of it are kept; several questions are answered together;
and, on a GPU, graphs decode."""

_TOGETHER = 8
"""Questions of a batch."""

_ROUNDINGS = 4
"""So many spacings of a half-precision format, at the largest score, may lie between scores that rounding can swap."""


@dataclass(frozen=True)
class PlainAnswer:
    """What ``model.generate`` wrote."""

    ids: tuple[int, ...]
    """Of the ``t`` tokens; with :data:`END` in the place of an end token."""
    near: tuple[Mapping[int, float], ...]
    """For each token, which ids scored a rounding below the best or nearer, and how far below; empty in float32."""


@dataclass(frozen=True)
class Outcome:
    """A served answer beside the plain one."""

    place: int | None = None
    """First token that differs, counted from 0; None if the answers are identical."""
    expected: int | None = None
    """The plain model's id there, or :data:`END`; None if its answer stops before."""
    got: int | None = None
    """The served one."""
    gap: float | None = None
    """How far below the best the plain model scored ``got``, if that is no more than a rounding; else None."""

    @property
    def identical(self) -> bool:
        """Whether all ids are the same."""
        return self.place is None

    @property
    def differs(self) -> bool:
        """Whether rounding does not explain it."""
        return self.place is not None and self.gap is None

    def __str__(self) -> str:
        if self.identical:
            return "identical"
        if self.differs:
            return f"differs at token {self.place}: {self.expected} became {self.got}"
        return f"token {self.place}: two best scores a rounding apart ({self.gap:.3g})"


@dataclass(frozen=True)
class Compared:
    """One question about one image."""

    image: str
    question: str
    tokens: int
    """Of the plain answer, its end included."""
    outcomes: Mapping[str, Outcome]
    """By the way to serve."""


@dataclass(frozen=True)
class FrozenReport:
    """What was compared."""

    answers: tuple[Compared, ...]
    before: Mapping[str, str]
    """Checksum of each weight and buffer of the model that gave the plain answers."""
    after: Mapping[str, str]

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of weights that are not as they were, are gone or are new."""
        names = sorted({*self.before, *self.after})
        return tuple(name for name in names if self.before.get(name) != self.after.get(name))

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Of all questions and ways to serve."""
        return tuple(outcome for answer in self.answers for outcome in answer.outcomes.values())

    @property
    def differing(self) -> int:
        """Answers that differ, and not by rounding."""
        return sum(outcome.differs for outcome in self.outcomes)

    @property
    def frozen(self) -> bool:
        """Whether nothing differs."""
        return not self.changed and not self.differing

    def summary(self) -> str:
        """Two lines for people."""
        identical = sum(outcome.identical for outcome in self.outcomes)
        rounded = len(self.outcomes) - identical - self.differing
        weights = f"weights: all {len(self.before)} as before" if not self.changed else f"weights changed: {self.changed}"
        return (
            f"answers: {identical} of {len(self.outcomes)} identical, {rounded} with two best scores a rounding apart,"
            f" {self.differing} different; {sum(answer.tokens for answer in self.answers)} tokens of the plain model\n{weights}"
        )

    def record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "frozen": self.frozen,
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
    """Ask every question about every image, of the plain model and then of the frozen one.

    Args:
        loaded: an LMM that was never recorded; it is tapped afterwards.
        images: RGB, by name.
        questions: the user's words.
        max_new_tokens: longest answer.

    Raises:
        ValueError: the model has the recorder already, or there is nothing to ask.
    """
    if not images or not questions:
        raise ValueError(f"expected images and questions, got {len(images)} images and {len(questions)} questions")
    plain = dict(plain_answers(loaded, images, questions, max_new_tokens=max_new_tokens))
    before = weight_checksums(loaded)  # bitsandbytes lays its weights out for the CPU when they are first used
    model: Any = loaded.model
    ways: dict[str, dict[str, Any]] = {ANEW: {"reuse_prefix": False, "cuda_graphs": False}}
    if loaded.family.reuses_prefix:
        ways[KEPT] = {"reuse_prefix": True, "cuda_graphs": False}
    if model.device.type == "cuda" and allows_static_decoding(model):
        ways[GRAPHS] = {"reuse_prefix": True, "cuda_graphs": True}
    lmms = {
        way: FrozenLmm(model=model, tokenizer=loaded.tokenizer, family=loaded.family, **options)
        for way, options in ways.items()
    }
    layer_weights = torch.eye(lmms[ANEW].shape.layers, device=model.device)[:1]
    served: dict[tuple[str, str], dict[str, Outcome]] = {asked: {} for asked in plain}
    for way, lmm in lmms.items():
        encoded = {name: lmm.encode_image(image) for name, image in images.items()}
        for (name, question), expected in plain.items():
            trace = lmm.generate(encoded[name], question, max_new_tokens=max_new_tokens, layer_weights=layer_weights)
            served[name, question][way] = compare(expected, served_ids(trace))
        if way == ANEW and lmm.can_batch and len(plain) > 1:
            for i in range(0, len(plain), _TOGETHER):
                batch = list(plain)[i : i + _TOGETHER]
                asked = [lmm.question(encoded[name], words, max_new_tokens=max_new_tokens) for name, words in batch]
                for key, trace in zip(batch, lmm.generate_batch(asked, layer_weights=layer_weights), strict=True):
                    served[key][BATCH] = compare(plain[key], served_ids(trace))
    answers = (Compared(name, words, len(plain[name, words].ids), outcomes) for (name, words), outcomes in served.items())
    return FrozenReport(tuple(answers), before, weight_checksums(loaded))


def served_ids(trace: LmmTrace) -> tuple[int, ...]:
    """Ids of a generated answer, as :class:`PlainAnswer` has them."""
    return (*trace.token_ids, END) if trace.ended else trace.token_ids


def compare(expected: PlainAnswer, got: Sequence[int]) -> Outcome:
    """Where a served answer leaves the plain one first, and whether rounding explains it.

    Args:
        expected: the plain answer.
        got: ids of the served one, with :data:`END`.
    """
    if tuple(got) == expected.ids:
        return Outcome()
    shared = min(len(expected.ids), len(got))
    place = next((i for i in range(shared) if expected.ids[i] != got[i]), shared)
    if place == shared:  # one of them stops without an end
        ours = got[place] if place < len(got) else None
        return Outcome(place, expected.ids[place] if place < len(expected.ids) else None, ours)
    return Outcome(place, expected.ids[place], got[place], expected.near[place].get(got[place]))


def plain_answers(
    loaded: LoadedLmm, images: Mapping[str, Image.Image], questions: Sequence[str], *, max_new_tokens: int
) -> Iterator[tuple[tuple[str, str], PlainAnswer]]:
    """Answers of ``model.generate`` alone, each with the name of its image and its question.

    Raises:
        ValueError: the attention recorder is installed.
    """
    model, family = loaded.model.eval(), loaded.family
    if model.config.get_text_config()._attn_implementation == ATTENTION_NAME:
        raise ValueError("model: expected one that was never recorded, got one with the attention recorder")
    words = LmmWords(tokenizer=loaded.tokenizer, family=family)
    ends = _end_ids(model)
    for name, image in images.items():
        prepared = family.prepare([image])
        for question in questions:
            ids = torch.tensor([words.prompt_tokens(question, prepared.layouts, chat=True).ids], device=model.device)
            output: Any = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                **_plain_inputs(loaded, ids, prepared),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                return_dict_in_generate=True,
                output_scores=True,
            )
            written = output.sequences[0, ids.shape[1] :].tolist()
            near = tuple(_near(step[0], model.dtype, ends) for step in output.scores)
            yield (name, question), PlainAnswer(tuple(END if token in ends else token for token in written), near)


def _plain_inputs(loaded: LoadedLmm, ids: Tensor, prepared: PreparedImages) -> dict[str, Any]:
    """What ``generate`` takes beside the ids: pixels, if the model has a vision tower of its own, else embeddings."""
    model, family = loaded.model, loaded.family
    given = family.model_inputs(model, ids, family.encode(model, prepared))
    given.pop("input_ids", None)
    if given.pop("mm_encoder_outputs", None) is None:
        return given
    pixels = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in prepared.inputs.items()
    }
    return {**given, **pixels}


def _end_ids(model: PreTrainedModel) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _near(scores: Tensor, dtype: torch.dtype, ends: set[int]) -> dict[int, float]:
    """Ids of ``[vocabulary]`` scores that lie within rounding of the best, with their distance; none in float32."""
    if torch.finfo(dtype).bits > 16:
        return {}
    scores = scores.float()
    tolerance = _ROUNDINGS * torch.finfo(dtype).eps * scores[scores.isfinite()].abs().max()
    gaps = scores.max() - scores
    near: dict[int, float] = {}
    for token in (gaps < tolerance).nonzero()[:, 0].tolist():
        key, gap = END if token in ends else token, float(gaps[token])
        near[key] = min(gap, near.get(key, gap))
    return near


def weight_checksums(loaded: LoadedLmm) -> dict[str, str]:
    """SHA-256 of every byte of each weight and buffer, by name, as they lie in memory.

    Not of ``state_dict``, which makes bitsandbytes lay quantized weights out anew. Names of shared weights all count.
    """
    model = loaded.model
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    scales = {name: getattr(getattr(value, "quant_state", None), "absmax", None) for name, value in tensors.items()}
    tensors |= {f"{name}.absmax": value for name, value in scales.items() if value is not None}
    return {name: _checksum(value) for name, value in tensors.items()}


def _checksum(value: Tensor) -> str:
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(repr((value.dtype, tuple(value.shape))).encode() + b"\n" + data.tobytes()).hexdigest()


def total_checksum(checksums: Mapping[str, str]) -> str:
    """One checksum of many."""
    return hashlib.sha256(repr(sorted(checksums.items())).encode()).hexdigest()
