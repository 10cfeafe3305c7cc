"""The rows of the benchmark: which variants run side by side, and which ratio is the figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from flmm_bench import naive
from flmm_bench.measuring import Spread, interleaved
from flmm_bench.subjects import SPANS
from flmm_core.engines.attach import attach
from flmm_core.engines.export import export_networks
from flmm_core.engines.networks import Engine, NetworkSizes, module_of
from flmm_core.engines.onnx_engine import OnnxEngine
from flmm_core.engines.tensorrt_engine import TensorrtEngine
from flmm_core.heads.interface import Heads
from flmm_core.images.masks import Overlap
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import Callbacks, Stage
from flmm_core.requests.image_handle import ImageHandle
from flmm_core.types import StageSeconds

QUESTION = "what is on the table?"


@dataclass(frozen=True)
class Row:
    """One figure of one model."""

    what: str
    subject: str
    figure: Spread
    target: float | None
    """None for a figure without a target."""
    at_most: bool
    """Whether the figure is to be at most the target; otherwise at least."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Medians of the variants that the ratio compares, seconds or, where the name says so, MB."""

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without a target."""
        if self.target is None:
            return None
        return self.figure.median <= self.target if self.at_most else self.figure.median >= self.target


class _Tokens(BaseStreamer, Callbacks):
    """Records when tokens are generated, by ``generate`` itself or by a command."""

    def __init__(self, tokens: int) -> None:
        self.times: list[float] = []
        self._tokens = tokens
        self._prompt = True
        self._generating = False

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt first, then with each token."""
        if not self._prompt:
            self.times.append(time.perf_counter())
        self._prompt = False

    def end(self) -> None:
        """Nothing is buffered, so nothing remains to be done."""

    def on_stage(self, stage: Stage) -> None:
        """Note whether the LMM generates."""
        self._generating = stage == "lmm"

    def cancelled(self) -> bool:
        """Called after each token of a command; never cancels."""
        if self._generating:
            finish()
            self.times.append(time.perf_counter())
        return False

    def parts(self, began: float) -> dict[str, float]:
        """Seconds to the first token, and from it to the last."""
        times = self.times[: self._tokens]  # a command calls once more when its next stage begins
        return {"prefill": times[0] - began, "decoding": times[-1] - times[0]}


def capture_rows(subject: str, pipeline: GroundingPipeline, image: np.ndarray, *, tokens: int, rounds: int) -> Iterator[Row]:
    """Chat with recorded attention against plain generation, without heads; both encode the image."""

    def plain() -> Mapping[str, float]:
        seen, began = _Tokens(tokens), time.perf_counter()
        with naive.attention_of(pipeline.lmm, "sdpa"):
            naive.generate(pipeline.lmm, image, QUESTION, tokens, streamer=seen)
        return seen.parts(began)

    def captured() -> Mapping[str, float]:
        pipeline.images.forget()
        seen, began = _Tokens(tokens), time.perf_counter()
        pipeline.chat(pipeline.encode(image), QUESTION, max_new_tokens=tokens, masks=False, callbacks=seen)
        return seen.parts(began)

    times = interleaved({"plain": plain, "captured": captured}, rounds=rounds, title=f"capture, {subject}")
    for part, what in (("prefill", "prefill (to the first token)"), ("decoding", "decoding")):
        seconds = {name: times.of(name, part).median for name in ("captured", "plain")}
        yield Row(f"chat with capture / plain: {what}", subject, times.ratio("captured", "plain", part), 1.05, True, seconds)


def command_rows(
    subject: str, pipeline: GroundingPipeline, images: tuple[np.ndarray, ...], *, tokens: int, heads: str
) -> Iterator[Row]:
    """Whole chat commands with four phrases, naive and ours: the first and a further one about each image.

    Args:
        subject: the model's name.
        pipeline: ours; the naive path runs its heads in PyTorch, whatever engine they have.
        images: ``[H, W, 3]`` uint8 RGB, one for each round.
        tokens: of an answer.
        heads: name of the backend of our heads.
    """
    took: dict[str, list[StageSeconds]] = {"first": [], "further": []}

    def ours(name: str, image: np.ndarray) -> None:
        took[name].append(pipeline.chat(pipeline.encode(image), QUESTION, max_new_tokens=tokens).seconds)

    def plain(image: np.ndarray) -> None:
        with naive.attention_of(pipeline.lmm, "sdpa"):
            naive.generate(pipeline.lmm, image, QUESTION, tokens)

    variants: dict[str, Callable[[np.ndarray], object]] = {
        "first": partial(ours, "first"),
        "further": partial(ours, "further"),
        "naive": lambda image: naive.chat(pipeline, image, QUESTION, tokens, SPANS),
        "plain generation": plain,
    }
    fresh = iter(images)

    def run() -> Mapping[str, float]:
        image, parts = next(fresh), {}
        for name, work in variants.items():
            began = time.perf_counter()
            work(image)
            finish()
            parts[name] = time.perf_counter() - began
        return parts

    times = interleaved({"all": run}, rounds=len(images), title=f"commands, {subject}", warm_up=False)
    for part, target in (("first", 1.5), ("further", 8.0)):
        what = f"naive / ours with {heads} heads: chat with 4 phrases, {part} command on an image"
        seconds = {name: times.of("all", name).median for name in ("naive", part, "plain generation")}
        yield Row(what, subject, times.parts_ratio("all", "naive", part), target, False, seconds)
    limit = 0.15 if pipeline.lmm.device.type == "cuda" else None
    for part, commands in took.items():
        words = [seconds.image + seconds.lmm for seconds in commands]
        totals = [seconds.total for seconds in commands]
        share = Spread.of([1 - answer / total for answer, total in zip(words, totals, strict=True)])
        medians = {"to the answer": Spread.of(words).median, "to the masks": Spread.of(totals).median}
        yield Row(f"share of a {part} command that is not the LMM's own", subject, share, limit, True, medians)


def refer_rows(subject: str, pipeline: GroundingPipeline, image: np.ndarray, *, rounds: int, heads: str) -> Iterator[Row]:
    """Refer with eight phrases against one phrase, on an image that is encoded already."""
    handle = pipeline.encode(image)
    phrases = ["the mug", "the lemon", "the bowl", "the can", "the red mug", "the ball", "the box", "the plate"]
    variants = {f"{count} phrases": _refer(pipeline, handle, phrases[:count]) for count in (1, 8)}
    times = interleaved(variants, rounds=rounds, title=f"refer, {subject}")
    seconds = {name: times.of(name).median for name in variants}
    ratio = times.ratio("8 phrases", "1 phrases")
    yield Row(f"refer with {heads} heads: 8 phrases / 1 phrase", subject, ratio, 1.5, True, seconds)


def _refer(pipeline: GroundingPipeline, handle: ImageHandle, phrases: list[str]) -> Callable[[], None]:
    def run() -> None:
        pipeline.refer(handle, phrases)
        finish()

    return run


@dataclass(frozen=True)
class Backend:
    """A runtime of exported networks, and its targets."""

    name: str
    kind: Callable[..., Engine]
    precision: str
    time: float
    """Target: at most this fraction of PyTorch's time."""
    iou: float
    """Target: at least this IoU of its masks with PyTorch's."""


ONNX = Backend("ONNX", OnnxEngine, "fp32", 0.8, 0.999)
TENSORRT = Backend("TensorRT fp16", TensorrtEngine, "fp16", 1 / 3, 0.995)


@contextmanager
def exported(heads: Heads, backend: Backend) -> Iterator[Engine]:
    """The heads' networks in a backend on the heads' device; the exported files exist inside the block."""
    device = next(heads.parameters()).device
    with TemporaryDirectory() as scratch:
        export_networks(heads, Path(scratch) / "onnx", precision=backend.precision)
        yield backend.kind(Path(scratch) / "onnx", heads, device=device, precision=backend.precision)


@torch.no_grad()
def engine_rows(subject: str, heads: Heads, engine: Engine, backend: Backend, *, rounds: int) -> Iterator[Row]:
    """Heads in a backend against PyTorch: each network, and the sum over those of a first command with four phrases."""
    sizes = NetworkSizes.of(heads)
    device = next(heads.parameters()).device
    inputs = {
        network: tuple(one.to(device) for one in sizes.examples(network, phrases=4, grid=(64, 64), tokens=4))
        for network in heads.networks
    }
    modules = {network: module_of(heads, network) for network in heads.networks}

    def run(work: Callable[[str], object]) -> Mapping[str, float]:
        parts = {}
        for network in heads.networks:
            began = time.perf_counter()
            work(network)
            finish()
            parts[network] = time.perf_counter() - began
        return parts

    variants = {
        backend.name: lambda: run(lambda network: engine.run(network, inputs[network])),
        "PyTorch": lambda: run(lambda network: modules[network](*inputs[network])),
    }
    times = interleaved(variants, rounds=rounds, title=f"engines, {subject}")
    for part in ("total", *heads.networks):
        seconds = {name: times.of(name, part).median for name in variants}
        what = f"{backend.name} heads / PyTorch heads: {'all' if part == 'total' else part}"
        target = backend.time if part == "total" else None
        yield Row(what, subject, times.ratio(backend.name, "PyTorch", part), target, True, seconds)


def mask_rows(
    subject: str, pipeline: GroundingPipeline, images: tuple[np.ndarray, ...], engines: Sequence[tuple[Backend, Engine]]
) -> Iterator[Row]:
    """IoU of masks: the naive path against ours, and engines against PyTorch.

    Args:
        subject: the model's name.
        pipeline: ours, with heads in PyTorch, to which the engines are attached one after the other.
        images: ``[H, W, 3]`` uint8 RGB.
        engines: of these heads.
    """
    tokens = pipeline.config.max_new_tokens

    def masks() -> list[list[np.ndarray]]:
        pipeline.images.forget()
        return [[phrase.mask for phrase in pipeline.chat(pipeline.encode(image), QUESTION).phrases] for image in images]

    ours = masks()
    compared = {("naive against ours", ONNX.iou): [naive.chat(pipeline, image, QUESTION, tokens, SPANS) for image in images]}
    for backend, engine in engines:
        attach(pipeline.heads, engine)
        compared[f"{backend.name} heads against PyTorch heads", backend.iou] = masks()
    for (what, target), found in compared.items():
        pairs = [pair for image, wanted in zip(found, ours, strict=True) for pair in zip(image, wanted, strict=True)]
        least = min(Overlap.of(*pair).agreement for pair in pairs)
        spread = Spread(least, least, least, len(images) * len(SPANS))
        yield Row(f"masks: {what}, least IoU", subject, spread, target, False)


_CUDA = torch.cuda.is_available()


def finish() -> None:
    """Wait for the GPU, if there is one."""
    if _CUDA:
        torch.cuda.synchronize()
