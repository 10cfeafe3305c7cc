"""Outputs of the frozen models for images: computed when they are needed, or read from a cache on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmm_core.common.output_files import written_file
from flmm_core.common.plain_text import one_line, printable
from flmm_core.data.broken import BrokenSampleError, sample_errors
from flmm_core.data.samples import Dataset, Sample
from flmm_core.errors import of_machine
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.sam.refiner import SamImage, SamRefiner
from flmm_core.training.traces import AnswerTrace, choose_turns, read_turns
from flmm_core.types import ImageGeometry
from flmm_core.weights.cache_manifest import require_manifest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phrase:
    """A phrase of an answer that the LMM has read."""

    trace: AnswerTrace
    index: int

    @property
    def objects(self) -> tuple[int, ...]:
        """Indices of the objects that it names; empty if it names an absent object."""
        return self.trace.objects[self.index]

    @property
    def states(self) -> torch.Tensor:
        """``[l, t, d]`` hidden states of its tokens."""
        return self.trace.phrase_states(self.index)

    @property
    def map(self) -> torch.Tensor:
        """``[c, h, w]`` attention of the phrase."""
        return self.trace.maps[self.index]


@dataclass(frozen=True)
class Example:
    """An image with the answers that the LMM has read and the embedding of SAM's frozen encoder."""

    sample: Sample
    traces: tuple[AnswerTrace, ...]
    image: SamImage

    @property
    def phrases(self) -> list[Phrase]:
        """All phrases of all answers."""
        return [Phrase(trace, i) for trace in self.traces for i in range(len(trace.objects))]

    def targets(self, phrases: Sequence[Phrase]) -> torch.Tensor:
        """True masks ``[n, H, W]`` float32 in {0, 1}."""
        return torch.stack([torch.from_numpy(self.sample.mask(phrase.objects)) for phrase in phrases]).float()


class TraceCache:
    """A cache of examples on disk, limited in size; examples that do not fit are computed again each time.

    Args:
        folder: of the cache; a manifest records its sources.
        made_from: everything that the contents depend on.
        most: size limit of the folder, bytes.

    Raises:
        ValueError: the folder holds traces of another LMM, of other data or of another choice of turns.
    """

    def __init__(self, folder: Path, made_from: dict[str, str | int | float], most: int) -> None:
        require_manifest(folder, made_from)
        self._folder = folder
        self._room = most - sum(path.stat().st_size for path in folder.glob("*.pt"))

    def get(self, name: str) -> dict[str, Any] | None:
        """The entry with a name, its tensors mapped from the file; None if there is none.

        A damaged one is deleted, with a warning.
        """
        path = self._folder / f"{name}.pt"
        if not path.exists():
            return None
        try:
            fields: dict[str, Any] = torch.load(path, weights_only=True, mmap=True)
        except Exception as error:  # damaged files fail in many ways
            if isinstance(error, PermissionError) or of_machine(error):
                raise
            _log.warning(
                "%s: expected a whole file of traces, got a damaged one, which is made again (%s)", path, one_line(error)
            )
            self._room += path.stat().st_size
            path.unlink()
            return None
        return fields

    def put(self, name: str, fields: dict[str, Any]) -> None:
        """Store tensors and numbers, if the size limit allows it."""
        if self._room <= 0:
            return
        with written_file(self._folder / f"{name}.pt") as temporary:
            torch.save(fields, temporary)
            self._room -= temporary.stat().st_size


class ExampleReader:
    """Computes examples from data sets with the frozen models.

    Args:
        datasets: their images are numbered consecutively.
        lmm: reads answers.
        refiner: its SAM's frozen encoder sees the images.
        turns: largest number of answers of an image.
        variants: number of random choices of an image's turns and expressions, used cyclically over the epochs.
        seed: of these choices.
        cache: of examples; None for none.
        tell: called once with one line for each image that cannot be used.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset[Any]],
        *,
        lmm: FrozenLmm,
        refiner: SamRefiner,
        turns: int,
        variants: int,
        seed: int,
        cache: TraceCache | None,
        tell: Callable[[str], None],
    ) -> None:
        self._datasets = datasets
        self._lmm = lmm
        self._refiner = refiner
        self._turns = turns
        self._variants = variants
        self._seed = seed
        self._cache = cache
        self._tell = tell
        self.skipped: set[int] = set()
        """Numbers of the images that were found to be unusable."""

    def __len__(self) -> int:
        return sum(map(len, self._datasets))

    def read(self, index: int, epoch: int) -> Example:
        """The example of an image, or of the next one that can be used and names an object.

        Raises:
            ValueError: no image of the data sets can be used.
        """
        for step in range(len(self)):
            if (number := (index + step) % len(self)) in self.skipped:
                continue
            try:
                example = self._read(number, epoch % self._variants)
            except BrokenSampleError as error:
                self._skip(number, str(error))
                continue
            if example.phrases:
                return example
            self._skip(number, printable(f"{example.sample.path}: its answers name nothing"))
        raise ValueError("data: expected an image whose answers name something, got none that can be used")

    def _skip(self, number: int, reason: str) -> None:
        self.skipped.add(number)
        self._tell(f"skipped: {reason}")

    def _read(self, number: int, variant: int) -> Example:
        which, index = 0, number
        while index >= len(self._datasets[which]):
            index -= len(self._datasets[which])
            which += 1
        name = f"{which}-{index:07d}-{variant}"
        # A cache that cannot be read or written is no fault of the sample.
        kept = self._cache.get(name) if self._cache is not None else None
        with sample_errors(self._datasets[which].name(index)):
            sample = self._datasets[which][index]
            if kept is not None:
                return Example(sample, tuple(map(_trace_of, kept["traces"])), SamImage(**kept["image"]))
            example = self._computed(sample, np.random.default_rng([self._seed, 3, number, variant]))
        if self._cache is not None:
            records = [{**vars(trace), "geometry": asdict(trace.geometry)} for trace in example.traces]
            self._cache.put(name, {"traces": records, "image": vars(example.image)})
        return example

    def _computed(self, sample: Sample, rng: np.random.Generator) -> Example:
        """The example of a sample from the models; ``rng`` chooses its turns."""
        traces = read_turns(self._lmm, sample, choose_turns(sample, self._turns, rng))
        self._refiner.model.image_encoder.eval()  # frozen, also while the rest is in training mode
        seen = self._refiner.encode_image(sample.image())
        return Example(sample, traces, replace(seen, embedding=seen.embedding.half().cpu()))


def _trace_of(fields: dict[str, Any]) -> AnswerTrace:
    return AnswerTrace(**{**fields, "geometry": ImageGeometry(**fields["geometry"])})
