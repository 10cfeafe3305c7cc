"""The rows of the benchmark: which variants are run side by side, and which ratio of them is the figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from flmm_bench import naive
from flmm_bench.measuring import Spread, interleaved
from flmm_bench.subjects import SPANS, shipped_pipeline
from flmm_core.engines.export import export_networks
from flmm_core.engines.names import NAMES
from flmm_core.engines.networks import NetworkSizes, module_of
from flmm_core.engines.onnx_engine import OnnxEngine
from flmm_core.heads import GroundingHeads
from flmm_core.pipeline import GroundingPipeline
from flmm_core.watcher import Stage, Watcher

QUESTION = "what is on the table?"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str
    subject: str
    figure: Spread
    target: float
    at_most: bool
    """Whether the figure is to be at most the target, or at least."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Medians that the ratio was made of, by variant."""

    @property
    def met(self) -> bool:
        """Whether the target is met by the median."""
        return self.figure.median <= self.target if self.at_most else self.figure.median >= self.target


class _Tokens(BaseStreamer, Watcher):
    """When tokens come: of ``generate`` itself, or of a command."""

    def __init__(self, tokens: int) -> None:
        self.times: list[float] = []
        self._tokens = tokens
        self._prompt = True
        self._talking = False

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, then each token."""
        if not self._prompt:
            self.times.append(time.perf_counter())
        self._prompt = False

    def end(self) -> None:
        """Nothing is buffered."""

    def on_stage(self, stage: Stage) -> None:
        """The LMM talks in one stage."""
        self._talking = stage == "lmm"

    def cancelled(self) -> bool:
        """Asked after each token of a command."""
        if self._talking:
            self.times.append(time.perf_counter())
        return False

    def parts(self, began: float) -> dict[str, float]:
        """Seconds to the first token, and from it to the last."""
        talk = self.times[: self._tokens]  # a command is asked once more when its next stage begins
        return {"prefill": talk[0] - began, "decoding": talk[-1] - talk[0]}


def capture_rows(subject: str, pipeline: GroundingPipeline, image: np.ndarray, *, tokens: int, rounds: int) -> Iterator[Row]:
    """Chat with capture against plain generation, without heads; the image is encoded anew by both."""

    def plain() -> Mapping[str, float]:
        seen, began = _Tokens(tokens), time.perf_counter()
        with naive.attention_of(pipeline.lmm, "sdpa"):
            naive.generate(pipeline.lmm, image, QUESTION, tokens, streamer=seen)
        return seen.parts(began)

    def captured() -> Mapping[str, float]:
        pipeline.forget()
        seen, began = _Tokens(tokens), time.perf_counter()
        pipeline.chat(pipeline.encode(image), QUESTION, max_new_tokens=tokens, masks=False, watch=seen)
        return seen.parts(began)

    times = interleaved({"plain": plain, "captured": captured}, rounds=rounds, title=f"capture, {subject}")
    for part, what in (("prefill", "prefill (to the first token)"), ("decoding", "decoding")):
        seconds = {name: times.of(name, part).median for name in ("captured", "plain")}
        yield Row(f"chat with capture / plain: {what}", subject, times.ratio("captured", "plain", part), 1.05, True, seconds)


def command_rows(subject: str, pipeline: GroundingPipeline, images: tuple[np.ndarray, ...], *, tokens: int) -> Iterator[Row]:
    """Whole chat commands with four phrases, naive and ours, on images that are new and on the same ones again."""
    fresh = iter(images)
    state: dict[str, np.ndarray] = {}

    def slow() -> None:
        naive.chat(pipeline, state.setdefault("image", images[0]), QUESTION, tokens, SPANS)

    def first() -> None:
        state["image"] = next(fresh)
        pipeline.chat(pipeline.encode(state["image"]), QUESTION, max_new_tokens=tokens)

    def further() -> None:
        pipeline.chat(pipeline.encode(state["image"]), QUESTION, max_new_tokens=tokens)

    def run() -> Mapping[str, float]:
        parts = {}
        for name, work in (("first", first), ("further", further), ("naive", slow)):
            began = time.perf_counter()
            work()
            parts[name] = time.perf_counter() - began
        return parts

    times = interleaved({"all": run}, rounds=len(images), title=f"commands, {subject}", warm_up=False)
    for part, target in (("first", 1.5), ("further", 8.0)):
        what = f"naive / ours: chat with 4 phrases, {part} command on an image"
        seconds = {name: times.of("all", name).median for name in ("naive", part)}
        yield Row(what, subject, times.parts_ratio("all", "naive", part), target, False, seconds)


def refer_rows(subject: str, pipeline: GroundingPipeline, image: np.ndarray, *, rounds: int) -> Iterator[Row]:
    """Refer with eight phrases against one, on an image that was encoded before."""
    handle = pipeline.encode(image)
    phrases = ["the mug", "the lemon", "the bowl", "the can", "the red mug", "the ball", "the box", "the plate"]
    variants = {f"{count} phrases": _refer(pipeline, handle, phrases[:count]) for count in (1, 8)}
    times = interleaved(variants, rounds=rounds, title=f"refer, {subject}")
    seconds = {name: times.of(name).median for name in variants}
    yield Row("refer: 8 phrases / 1 phrase", subject, times.ratio("8 phrases", "1 phrases"), 1.5, True, seconds)


def _refer(pipeline: GroundingPipeline, handle: object, phrases: list[str]) -> Callable[[], None]:
    def run() -> None:
        pipeline.refer(handle, phrases)  # type: ignore[arg-type]

    return run


@torch.no_grad()
def engine_rows(subject: str, heads: GroundingHeads, *, rounds: int) -> Iterator[Row]:
    """Heads in ONNX Runtime against PyTorch: each network, and all of a first command with four phrases together."""
    sizes = NetworkSizes.of(heads)
    inputs = {network: sizes.examples(network, phrases=4, grid=(64, 64), tokens=4) for network in NAMES}
    with TemporaryDirectory() as scratch:
        export_networks(heads, Path(scratch) / "onnx")
        engine = OnnxEngine(Path(scratch) / "onnx", heads, device=CPU)
        modules = {network: module_of(heads, network) for network in NAMES}

        def run(work: Callable[[str], object]) -> Mapping[str, float]:
            parts = {}
            for network in NAMES:
                began = time.perf_counter()
                work(network)
                parts[network] = time.perf_counter() - began
            return parts

        variants = {
            "onnx": lambda: run(lambda network: engine.run(network, inputs[network])),
            "torch": lambda: run(lambda network: modules[network](*inputs[network])),
        }
        times = interleaved(variants, rounds=rounds, title=f"engines, {subject}")
    for part in ("total", *NAMES):
        seconds = {name: times.of(name, part).median for name in variants}
        what = f"ONNX heads / PyTorch heads, CPU: {'all' if part == 'total' else part}"
        yield Row(what, subject, times.ratio("onnx", "torch", part), 0.8, True, seconds)


def mask_rows(images: tuple[np.ndarray, ...]) -> Iterator[Row]:
    """IoU of masks of the shipped model: ONNX against PyTorch, and the naive path against ours."""
    from flmm_core.engines.attach import attach

    pipeline = shipped_pipeline()
    theirs, slow = [], []
    for image in images:
        theirs.append([phrase.mask for phrase in pipeline.chat(pipeline.encode(image), QUESTION).phrases])
        slow.append(naive.chat(pipeline, image, QUESTION, pipeline.config.max_new_tokens, SPANS))
    with TemporaryDirectory() as scratch:
        export_networks(pipeline.heads, Path(scratch) / "onnx")
        attach(pipeline.heads, OnnxEngine(Path(scratch) / "onnx", pipeline.heads, device=CPU))
        pipeline.forget()
        ours = [[phrase.mask for phrase in pipeline.chat(pipeline.encode(image), QUESTION).phrases] for image in images]
    for what, found in (("masks: ONNX fp32 against PyTorch, least IoU", ours), ("masks: naive against ours, least IoU", slow)):
        least = min(_iou(one, other) for a, b in zip(found, theirs, strict=True) for one, other in zip(a, b, strict=True))
        yield Row(what, "flmm-tabletop", Spread(least, least, least, len(images) * len(SPANS)), 0.999, False)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 1.0
