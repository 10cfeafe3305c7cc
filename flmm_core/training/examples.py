"""Images with all that the frozen models make of them: read as they are needed, or taken from a cache on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmm_core.data.samples import BrokenSampleError, Dataset, Sample
from flmm_core.errors import CommandError
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.sam.refiner import SamImage, SamRefiner
from flmm_core.training.traces import AnswerTrace, choose_turns, read_turns
from flmm_core.types import ImageGeometry
from flmm_core.weights.cache_manifest import require_manifest


@dataclass(frozen=True)
class Phrase:
    """A phrase of an answer that the LMM read."""

    trace: AnswerTrace
    index: int

    @property
    def objects(self) -> tuple[int, ...]:
        """The image's objects that it names; none if it names what is not there."""
        return self.trace.objects[self.index]

    @property
    def states(self) -> torch.Tensor:
        """``[l, t, d]`` hidden states of its tokens."""
        return self.trace.phrase_states(self.index)

    @property
    def map(self) -> torch.Tensor:
        """``[c, h, w]`` its attention."""
        return self.trace.maps[self.index]


@dataclass(frozen=True)
class Example:
    """An image with all that the LMM read about it, and what SAM's frozen encoder sees."""

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
    """What was read of images, on disk, up to a size; what does not fit is read again each time.

    Args:
        folder: where it is kept; a manifest says of what.
        made_from: all that the contents depend on.
        most: bytes that this process may add to what is there.

    Raises:
        ValueError: the folder holds traces of another LMM, of other data or of another choice of turns.
    """

    def __init__(self, folder: Path, made_from: dict[str, str | int | float], most: int) -> None:
        require_manifest(folder, made_from)
        self._folder = folder
        self._room = most - sum(path.stat().st_size for path in folder.glob("*.pt"))

    def get(self, name: str) -> dict[str, Any] | None:
        """What is kept under a name, its tensors mapped from the file; None if there is nothing."""
        path = self._folder / f"{name}.pt"
        return torch.load(path, weights_only=True, mmap=True) if path.exists() else None

    def put(self, name: str, fields: dict[str, Any]) -> None:
        """Keep tensors and numbers, if there is room."""
        if self._room <= 0:
            return
        temporary = self._folder / f"{name}.{os.getpid()}.tmp"
        torch.save(fields, temporary)
        self._room -= temporary.stat().st_size
        temporary.replace(self._folder / f"{name}.pt")


class ExampleReader:
    """Reads images of data sets with the frozen models.

    Args:
        datasets: what to read; image ``i`` counts through all of them.
        lmm: reads answers.
        refiner: its SAM's frozen encoder sees the images.
        turns: most answers of an image.
        variants: choices of an image's turns and expressions, which take turns over the epochs.
        seed: of these choices.
        cache: keeps what was read; None to read every time.
        tell: called with one line for each image that cannot be used, once.
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
        """Images that cannot be used, as far as they were asked for."""

    def __len__(self) -> int:
        return sum(map(len, self._datasets))

    def read(self, index: int, epoch: int) -> Example:
        """An image, or the next one that can be used and names anything.

        Raises:
            ValueError: there is none in all data sets.
        """
        for step in range(len(self)):
            if (number := (index + step) % len(self)) in self.skipped:
                continue
            try:
                example = self._read(number, epoch % self._variants)
            except (BrokenSampleError, CommandError) as error:
                self._skip(number, str(error))
                continue
            if example.phrases:
                return example
            self._skip(number, f"{example.sample.path}: its answers name nothing")
        raise ValueError("data: expected an image whose answers name something, got none that can be used")

    def _skip(self, number: int, reason: str) -> None:
        self.skipped.add(number)
        self._tell(f"skipped: {reason}")

    def _read(self, number: int, variant: int) -> Example:
        which, index = 0, number
        while index >= len(self._datasets[which]):
            index -= len(self._datasets[which])
            which += 1
        sample = self._datasets[which][index]
        name = f"{which}-{index:07d}-{variant}"
        if self._cache is not None and (fields := self._cache.get(name)) is not None:
            return Example(sample, tuple(map(_trace_of, fields["traces"])), SamImage(**fields["image"]))
        rng = np.random.default_rng([self._seed, 3, number, variant])
        traces = read_turns(self._lmm, sample, choose_turns(sample, self._turns, rng))
        self._refiner.model.image_encoder.eval()  # it never learns, whatever the rest does
        seen = self._refiner.encode_image(sample.image())
        image = replace(seen, embedding=seen.embedding.half().cpu())
        if self._cache is not None:
            records = [{**vars(trace), "geometry": asdict(trace.geometry)} for trace in traces]
            self._cache.put(name, {"traces": records, "image": vars(image)})
        return Example(sample, traces, image)


def _trace_of(fields: dict[str, Any]) -> AnswerTrace:
    return AnswerTrace(**{**fields, "geometry": ImageGeometry(**fields["geometry"])})
