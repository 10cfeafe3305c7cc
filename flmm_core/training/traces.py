"""What the frozen LMM pays attention to while it reads the answers of a data set, computed once and kept on disk.

One worker process for each core reads its share of the pictures through the same :class:`FrozenLmm` that serves at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from flmm_core.data.dataset import Picture, Turn, read_dataset
from flmm_core.frozen_lmm import EncodedImage, FrozenLmm
from flmm_core.types import ImageGeometry

CHUNK = 50
"""Pictures of one file; a stopped run goes on with the first file that is missing."""


@dataclass(frozen=True)
class AnswerTrace:
    """One answer that the LMM read."""

    picture: int
    """Index in the data set."""
    geometry: ImageGeometry
    objects: tuple[tuple[int, ...], ...]
    """The picture's objects that each of the ``n`` phrases names."""
    maps: torch.Tensor
    """``[n, c, h, w]`` float16 attention, merged over each phrase's tokens."""
    phrase_states: tuple[torch.Tensor, ...]
    """``n`` times ``[l, t, d]`` float16 hidden states of the phrase's tokens."""
    last_states: torch.Tensor
    """``[t, d]`` float16 last hidden states of the whole answer."""
    named: torch.Tensor
    """``[t]`` bool: tokens that belong to a phrase."""


def load_traces(
    folder: Path, *, data: Path, lmm: Path, pictures: int, turns: int, seed: int, workers: int = 2
) -> list[AnswerTrace]:
    """Read answers of ``pictures`` pictures spread over a data set, up to ``turns`` each; cached in ``folder``.

    Half of the turns are chat answers of mixed kinds, one in four is a turn of refer mode where the picture has one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    available = sum(1 for _ in read_dataset(data))
    total = min(pictures, available)
    chosen = [i * available // total for i in range(total)]
    jobs = [chosen[start : start + CHUNK] for start in range(0, total, CHUNK)]
    missing = [job for job in jobs if not _file(folder, job).exists()]
    with (
        tqdm(total=total, initial=total - sum(map(len, missing)), desc="attention", unit="picture") as bar,
        ProcessPoolExecutor(workers) as pool,
    ):
        shares = [missing[i::workers] for i in range(workers)]
        futures = [pool.submit(_read_share, folder, data, lmm, share, turns, seed) for share in shares if share]
        for future in as_completed(futures):
            bar.update(future.result())
    return [trace for job in jobs for trace in _load(_file(folder, job))]


def _file(folder: Path, job: list[int]) -> Path:
    return folder / f"{job[0]:06d}-{job[-1]:06d}.pt"


def _load(path: Path) -> Iterator[AnswerTrace]:
    for fields in torch.load(path, weights_only=True):
        yield AnswerTrace(**{**fields, "geometry": ImageGeometry(**fields["geometry"])})


def _read_share(folder: Path, data: Path, lmm_folder: Path, jobs: list[list[int]], turns: int, seed: int) -> int:
    torch.set_num_threads(1)
    lmm = FrozenLmm.from_pretrained(lmm_folder)
    pictures = list(read_dataset(data))
    done = 0
    for job in jobs:
        traces = [trace for index in job for trace in _read_picture(lmm, pictures[index], index, turns, seed)]
        temporary = _file(folder, job).with_suffix(".tmp")
        torch.save([{**vars(trace), "geometry": asdict(trace.geometry)} for trace in traces], temporary)
        temporary.rename(_file(folder, job))
        done += len(job)
    return done


def _read_picture(lmm: FrozenLmm, picture: Picture, index: int, turns: int, seed: int) -> Iterator[AnswerTrace]:
    rng = np.random.default_rng([seed, 3, index])
    image = lmm.encode_image(Image.fromarray(picture.image()))
    order = [picture.turns[i] for i in rng.permutation(len(picture.turns))]
    refer = [turn for turn in order if turn.kind == "refer"][: max(1, turns // 4)]
    chat = [turn for turn in order if turn.kind != "refer"][: turns - len(refer)]
    for turn in (*chat, *refer):
        yield _read_turn(lmm, image, turn, index)


def _read_turn(lmm: FrozenLmm, image: EncodedImage, turn: Turn, index: int) -> AnswerTrace:
    trace = lmm.read_answer(image, turn.question, turn.answer)
    spans = [trace.span_of(span.start, span.end) for span in turn.spans]
    named = torch.zeros(len(trace.token_ids), dtype=torch.bool)
    for start, end in spans:
        named[start:end] = True
    return AnswerTrace(
        picture=index,
        geometry=trace.geometry,
        objects=tuple(span.objects for span in turn.spans),
        maps=trace.merged_attention(spans).half(),
        phrase_states=tuple(trace.hidden_states[:, start:end].half().clone() for start, end in spans),
        last_states=trace.hidden_states[-1].half().clone(),
        named=named,
    )
