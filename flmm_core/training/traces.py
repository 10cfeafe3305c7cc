"""What the frozen LMM pays attention to while it reads the answers of a data set, computed once and kept on disk.

The images are read by the same :class:`FrozenLmm` that serves at run time: on the CPU by one process for each core.
An answer of 100 tokens takes 26 MB on disk with an LMM of 7 B (32 layers, hidden size 4096), and 1 MB for each phrase.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from flmm_core.cache_manifest import require_manifest
from flmm_core.checkpoints import fingerprints, load_lmm
from flmm_core.data.samples import MISTAKE, Sample, Turn
from flmm_core.data.tabletop import DATASET_FILES, read_dataset
from flmm_core.fingerprints import file_fingerprint
from flmm_core.frozen_lmm import FrozenLmm
from flmm_core.lmm_trace import LmmTrace
from flmm_core.types import ImageGeometry

CHUNK = 50
"""Images of one file; a stopped run goes on with the first file that is missing."""


@dataclass(frozen=True)
class AnswerTrace:
    """One answer that the LMM read."""

    sample: int
    """Index in the data set."""
    geometry: ImageGeometry
    objects: tuple[tuple[int, ...], ...]
    """The image's objects that each of the ``n`` phrases names; none for a name of what is not there."""
    spans: tuple[tuple[int, int], ...]
    """Half-open token range of each phrase."""
    maps: torch.Tensor
    """``[n, c, h, w]`` float16 attention, merged over each phrase's tokens."""
    states: torch.Tensor
    """``[l, t, d]`` float16 hidden states of the answer's tokens."""
    named: torch.Tensor
    """``[t]`` bool: tokens of phrases that a keyword selector should choose."""

    def phrase_states(self, phrase: int) -> torch.Tensor:
        """``[l, t, d]`` hidden states of a phrase's tokens."""
        start, end = self.spans[phrase]
        return self.states[:, start:end]


@dataclass(frozen=True)
class Reader:
    """The LMM that reads, as each worker process loads it."""

    lmm: str
    """As for :func:`~flmm_core.checkpoints.load_lmm`."""
    device: torch.device
    dtype: torch.dtype

    @property
    def workers(self) -> int:
        """Processes: one for each core; a GPU has room for one."""
        return 1 if self.device.type == "cuda" else os.cpu_count() or 1

    def load(self) -> FrozenLmm:
        """The model."""
        return load_lmm(self.lmm, device=self.device, dtype=self.dtype)


def load_traces(folder: Path, reader: Reader, *, data: Path, samples: int, turns: int, seed: int) -> list[AnswerTrace]:
    """Read answers of ``samples`` images spread over a data set, up to ``turns`` each, one of every kind first.

    They are kept in ``folder``, with a manifest of what they were made from.

    Returns:
        Traces whose tensors are mapped from their files: memory holds what is used.

    Raises:
        ValueError: the folder holds traces of another LMM or number format, of other turns or of another seed.
    """
    questions, annotations = (file_fingerprint(data / name) for name in DATASET_FILES)
    made_from = {"lmm": fingerprints(lmm=reader.lmm)["lmm"], "questions": questions, "annotations": annotations}
    made_from["dtype"] = str(reader.dtype)
    require_manifest(folder, {**made_from, "samples": samples, "turns": turns, "seed": seed})
    available = sum(1 for _ in read_dataset(data))
    total = min(samples, available)
    chosen = [i * available // total for i in range(total)]
    jobs = [chosen[start : start + CHUNK] for start in range(0, total, CHUNK)]
    missing = [job for job in jobs if not _file(folder, job).exists()]
    shares = [share for i in range(reader.workers) if (share := missing[i :: reader.workers])]
    read = partial(_read_jobs, folder, reader, data=data, turns=turns, seed=seed)
    with tqdm(total=total, initial=total - sum(map(len, missing)), desc="attention", unit="image") as bar:
        if len(shares) == 1:
            for done in read(shares[0]):
                bar.update(done)
        elif shares:
            with ProcessPoolExecutor(len(shares)) as pool:
                for future in as_completed([pool.submit(_read_share, read, share) for share in shares]):
                    bar.update(future.result())
    return [trace for job in jobs for trace in _load(_file(folder, job))]


def _file(folder: Path, job: list[int]) -> Path:
    return folder / f"{job[0]:06d}-{job[-1]:06d}.pt"


def _load(path: Path) -> Iterator[AnswerTrace]:
    for fields in torch.load(path, weights_only=True, mmap=True):
        yield AnswerTrace(**{**fields, "geometry": ImageGeometry(**fields["geometry"])})


def _read_share(read: Callable[[list[list[int]]], Iterator[int]], share: list[list[int]]) -> int:
    """In a worker process."""
    torch.set_num_threads(1)
    return sum(read(share))


def _read_jobs(folder: Path, reader: Reader, jobs: list[list[int]], *, data: Path, turns: int, seed: int) -> Iterator[int]:
    """Write the files of some jobs; gives how many images each has."""
    lmm = reader.load()
    samples = list(read_dataset(data))
    for job in jobs:
        traces = [trace for index in job for trace in _read_image(lmm, samples[index], index, turns, seed)]
        temporary = _file(folder, job).with_suffix(".tmp")
        torch.save([{**vars(trace), "geometry": asdict(trace.geometry)} for trace in traces], temporary)
        temporary.rename(_file(folder, job))
        yield len(job)


def _read_image(lmm: FrozenLmm, sample: Sample, index: int, turns: int, seed: int) -> Iterator[AnswerTrace]:
    rng = np.random.default_rng([seed, 3, index])
    image = lmm.encode_image(Image.fromarray(sample.image()))
    chosen = _choose(sample.turns, turns, rng)
    traces = lmm.read_answers(image, [(turn.question, turn.answer) for turn in chosen])
    for turn, trace in zip(chosen, traces, strict=True):
        yield _answer_trace(trace, turn, index)


def _choose(turns: Sequence[Turn], most: int, rng: np.random.Generator) -> list[Turn]:
    """Turns in random order, but no second one of a kind before the first of every other."""
    order = [turns[i] for i in rng.permutation(len(turns))]
    before: Counter[str] = Counter()
    rounds = []
    for turn in order:
        rounds.append(before[turn.kind])
        before[turn.kind] += 1
    return [order[i] for i in np.argsort(rounds, kind="stable")[:most]]


def _answer_trace(trace: LmmTrace, turn: Turn, index: int) -> AnswerTrace:
    spans = tuple(trace.span_of(span.start, span.end) for span in turn.spans)
    named = torch.zeros(len(trace.token_ids), dtype=torch.bool)
    for span, (start, end) in zip(turn.spans, spans, strict=True):
        # What a wrong answer names is chosen like any other thing; that it is not there is found out afterwards.
        named[start:end] = bool(span.objects) or turn.kind == MISTAKE
    return AnswerTrace(
        sample=index,
        geometry=trace.geometry,
        objects=tuple(span.objects for span in turn.spans),
        spans=spans,
        maps=trace.merged_attention(spans).half().cpu(),
        states=trace.states.half().cpu(),
        named=named,
    )
