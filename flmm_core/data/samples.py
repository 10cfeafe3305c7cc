"""Images with ground truth: the type that readers of data sets return and that training and evaluation take.

A sample is an image, conversations about it whose phrases are character ranges, and the masks of the objects that they
name, as compressed COCO RLE. This file reads no other files than images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from flmm_core.config import GroundingConfig
from flmm_core.data.broken import BrokenSampleError, sample_errors
from flmm_core.images.files import read_image

REFER = "refer"
"""The kind of turn that refer mode reads: names of objects, each followed by a full stop."""

REFER_ABSENT = "refer_absent"
"""As ``REFER``, but some of the names refer to absent objects."""

MISTAKE = "mistake"
"""A wrong answer, which names absent objects."""

DESCRIBE = "describe"
"""A description of the whole image, whose phrases are grounded."""

REASON = "reason"
"""A question whose answer is unknown, while the region it refers to is known: one span without characters."""

DETAIL = "detail"
"""A question about a small part of the image: one span without characters, whose object is the part."""

NO_ANSWERS = (REFER, REFER_ABSENT, MISTAKE, REASON, DETAIL)
"""Kinds that are not used to train an LMM; every other kind has one right answer."""

REFER_KINDS = (REFER, REFER_ABSENT)
"""Kinds that refer mode reads, phrase by phrase."""


@dataclass(frozen=True)
class Span:
    """A name in an answer: characters ``[start, end)`` and the indices of the image's objects that it names."""

    start: int
    end: int
    objects: tuple[int, ...]
    """Empty for the name of an absent object, as in "there is no red mug"."""
    tags: tuple[str, ...] = ()
    """Groups that evaluations report separately, for instance ``thing`` and ``plural``."""


@dataclass(frozen=True)
class Turn:
    """A question and its true answer."""

    kind: str
    question: str
    answer: str
    spans: tuple[Span, ...]

    @property
    def present(self) -> tuple[Span, ...]:
        """Spans that name present objects."""
        return tuple(span for span in self.spans if span.objects)

    @property
    def phrases(self) -> tuple[str, ...]:
        """The words of each span."""
        return tuple(self.answer[span.start : span.end] for span in self.spans)


@dataclass(frozen=True)
class Expression:
    """A referring expression for some objects of an image."""

    words: str
    objects: tuple[int, ...]
    """Empty if it refers to no object in the image."""


def refer_turn(expressions: Sequence[Expression]) -> Turn:
    """A turn of refer mode: expressions as one answer, each followed by a full stop."""
    answer, spans = "", []
    for expression in expressions:
        answer += " " if answer else ""
        spans.append(Span(len(answer), len(answer) + len(expression.words), expression.objects))
        answer += expression.words + "."
    kind = REFER if all(span.objects for span in spans) else REFER_ABSENT
    return Turn(kind, GroundingConfig.refer_prompt, answer, tuple(spans))


def expressions_of(turn: Turn) -> list[Expression]:
    """The expressions that :func:`refer_turn` joined."""
    return [Expression(words, span.objects) for words, span in zip(turn.phrases, turn.spans, strict=True)]


@dataclass(frozen=True)
class Sample:
    """One image of a data set with its truth."""

    path: Path
    turns: tuple[Turn, ...]
    """Spans index ``names`` and ``rles``."""
    names: tuple[str, ...]
    """"red mug", one for each object."""
    rles: tuple[dict[str, Any], ...]
    """Compressed COCO masks ``[H, W]``, one for each object."""
    ignored: tuple[int, ...] = ()
    """Objects whose pixels are ignored in evaluations."""
    left_out: tuple[str, ...] = ()
    """Reasons why annotations cannot be used, one line each."""

    def image(self) -> np.ndarray:
        """Read the image, ``[H, W, 3]`` uint8 RGB.

        Raises:
            BrokenSampleError: it is missing or damaged, or of another size than its masks.
        """
        with sample_errors(str(self.path)):
            image = read_image(self.path)
        if self.rles and list(self.rles[0]["size"]) != list(image.shape[:2]):
            got, expected = ("x".join(map(str, size)) for size in (image.shape[:2], self.rles[0]["size"]))
            raise BrokenSampleError(f"{self.path}: expected {expected} (height x width), the size of its masks, got {got}")
        return image

    def mask(self, objects: Sequence[int]) -> np.ndarray:
        """Decode the union of some objects' masks, ``[H, W]`` bool."""
        return coco_mask.decode(coco_mask.merge([self.rles[i] for i in objects])).astype(bool)


Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Dataset(Generic[Entry]):
    """A data set on disk: the list of its samples is read at once, each sample when it is accessed."""

    format: str
    """Name of its layout."""
    folder: Path
    split: str
    """Empty if the folder is one split."""
    entries: Sequence[Entry]
    """One entry for each sample, from which ``load`` reads it."""
    load: Callable[[Entry], Sample]
    label: Callable[[Entry], str]
    """Name of an entry's file, for messages."""

    def fingerprint(self) -> str:
        """SHA-256 of the annotations of all samples, and of the sizes of their image files, which are not read.

        What is no regular file counts as missing.
        """
        digest = hashlib.sha256(f"{self.format} {self.split}".encode())
        for index, entry in enumerate(self.entries):
            if isinstance(entry, Path):
                digest.update(entry.read_bytes() if entry.is_file() else b"")
            else:
                digest.update(json.dumps(entry, default=str).encode())
            image = Path(self.name(index))
            image = image.with_suffix(".jpg") if isinstance(entry, Path) else image
            try:
                size = image.stat().st_size if image.is_file() else None
            except OSError:  # a name that no file can have
                size = None
            digest.update(str(size).encode())
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """The file of a sample or, if its entry does not say it, its number; for messages."""
        try:
            return self.label(self.entries[index])
        except Exception:  # the entry is damaged; reading it says how
            return f"{self.folder}: sample {index}"

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            BrokenSampleError: its annotations are damaged, or of another layout.
        """
        entry = self.entries[index]
        with sample_errors(self.name(index)):
            return self.load(entry)
