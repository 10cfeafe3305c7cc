"""The whole path on one screen: image and words in, answer and masks out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from flmm_core.common.devices import resolve_device
from flmm_core.config import GroundingConfig
from flmm_core.engines.attach import attach_backend
from flmm_core.errors import CommandCancelledError, CommandError, MemoryFullError, explained, memory_explained
from flmm_core.heads.grounding_heads import GroundingHeads
from flmm_core.images.files import as_seen
from flmm_core.images.geometry import mask_box
from flmm_core.keywords.noun_chunks import noun_chunker
from flmm_core.keywords.repetition import loop_start
from flmm_core.keywords.spans import select_keywords
from flmm_core.lmm.frozen_lmm import FrozenLmm, Question
from flmm_core.lmm.trace import LmmTrace
from flmm_core.loading import checkpoints
from flmm_core.requests.callbacks import Callbacks, Stage
from flmm_core.requests.chat_command import ChatCommand
from flmm_core.requests.image_handle import ImageCache, ImageHandle, SamThread
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamImage
from flmm_core.types import CoarseMasks, GroundedAnswer, GroundedPhrase, KeywordSpan, StageSeconds

CUT = " ..."
"""Stands for what an answer repeated."""


class GroundingPipeline:
    """Answers about images and points at what the answers name.

    ``encode`` makes a handle of an image, which ``chat`` and ``refer`` take: what depends on the image alone is computed
    once, when the first command needs it. Not thread-safe.
    """

    def __init__(self, *, lmm: FrozenLmm, heads: GroundingHeads, config: GroundingConfig | None = None) -> None:
        self.lmm = lmm
        self.heads = heads.to(lmm.device).eval()
        self.config = config or GroundingConfig()
        self.backend = "torch, fp32"
        """What runs the heads' networks."""
        self._layer_weights = self.heads.layer_weights().detach()
        if self.heads.keyword_selector is None:
            noun_chunker()  # what it loads belongs to the start, not to the first answer
        sam = SamThread(self.heads.sam)
        self._images = ImageCache(
            self.config.image_cache * 2**20,
            lambda pixels: ImageHandle(pixels, encode=self.lmm.encode_image, start_sam=sam.start),
        )

    @classmethod
    def from_pretrained(
        cls,
        lmm: str | Path = GroundingConfig.lmm,
        heads: str | Path = GroundingConfig.heads,
        sam: str | Path = GroundingConfig.sam,
        **options: object,
    ) -> GroundingPipeline:
        """Load the three parts.

        Args:
            lmm: folder, Hugging Face name, or the name of a registered model, as for the other two.
            heads: folder, or published ``.pth`` file.
            sam: folder, or ``.pth`` file of segment-anything.
            options: the other entries of :class:`~flmm_core.config.GroundingConfig`, for instance ``device``.

        Raises:
            LoadError: says which file cannot be used, what was expected and what was found.
            DeviceError: this machine has no such device.
        """
        config = GroundingConfig(lmm=str(lmm), heads=str(heads), sam=str(sam), **options)  # type: ignore[arg-type]
        return cls.from_config(config)

    @classmethod
    def from_config(cls, config: GroundingConfig) -> GroundingPipeline:
        """Load what ``config`` names."""
        device, dtype = resolve_device(config)
        if config.cpu_threads:
            torch.set_num_threads(config.cpu_threads)
        shape = checkpoints.lmm_shape(config.lmm)
        heads = checkpoints.load_heads(config.heads, shape=shape, sam=load_sam(config.sam))
        checkpoints.check_origin(config.heads, lmm=config.lmm, sam=config.sam)
        options = {name: getattr(config, name) for name in ("quantization", "refer_prompt", "reuse_prefix", "cuda_graphs")}
        lmm = checkpoints.load_lmm(config.lmm, device=device, dtype=dtype, **options)
        with explained("heads", config.heads):  # they move to the LMM's device here
            pipeline = cls(lmm=lmm, heads=heads, config=config)
            if config.heads_backend != "torch":
                chosen = {"precision": config.heads_precision, "folder": config.engines}
                pipeline.backend = attach_backend(heads, config.heads_backend, device=device, **chosen).description
            return pipeline

    def encode(self, image: np.ndarray | Image.Image) -> ImageHandle:
        """A handle of an image for commands; an image that came before gives its earlier handle while that is kept.

        Args:
            image: ``[H, W, 3]`` uint8 RGB, or a PIL image, which is turned upright: masks lie in the upright image.
        """
        return self._images.handle(rgb_array(image))

    def with_detail(self, image: ImageHandle, box: tuple[int, int, int, int]) -> ImageHandle:
        """A handle of the same image that shows the LMM a part of it once more, as a second image; masks lie in the whole.

        Args:
            image: from :meth:`encode`.
            box: XYXY pixels of the part, ends exclusive.
        """
        x0, y0, x1, y1 = box
        part = Image.fromarray(np.ascontiguousarray(image.pixels[y0:y1, x0:x1]))
        return ImageHandle(
            image.pixels,
            encode=lambda whole: self.lmm.encode_images([whole, part]),
            start_sam=lambda _: image.start_sam(),
        )

    def chat(self, image: ImageHandle, text: str, **options: Any) -> GroundedAnswer:
        """Answer ``text`` and ground the phrases that the keyword selector picks.

        Args:
            image: from :meth:`encode`.
            text: the user's words.
            options: the other fields of :class:`~flmm_core.requests.chat_command.ChatCommand`.

        Returns:
            The answer; one that reached its limit while it said the same thing over and over is cut there, and ends in ``CUT``.

        Raises:
            CommandError: ``text`` has no letter or digit, or holds special tokens of the LMM or more than its context.
            CommandCancelledError: ``callbacks`` said so.
            MemoryFullError: the device has too little memory left; what was kept of images is freed.
        """
        (outcome,) = self.chat_batch([ChatCommand(image, text, **options)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def chat_batch(self, commands: Sequence[ChatCommand]) -> Iterator[GroundedAnswer | Exception]:
        """Answer several commands as :meth:`chat` does, the LMM writing all answers in one batch if its family allows that.

        The answers are those that each command alone gets, but for rounding. ``seconds.lmm`` is of the whole batch. If the
        batch finds too little memory, its commands are answered one by one.

        Yields:
            The outcome of each command, in their order and as soon as it is there: an answer, or what :meth:`chat` raises.
        """
        begun = [_outcome(partial(self._begin_chat, command)) for command in commands]
        begun = [_outcome(chat.begin_lmm) if isinstance(chat, _Chat) else chat for chat in begun]
        chats = [chat for chat in begun if isinstance(chat, _Chat)]
        written = self._write(chats)
        if len(chats) > 1 and isinstance(written[0], MemoryFullError):
            errors = [chat if isinstance(chat, Exception) else None for chat in begun]
            del begun, chats, written  # they hold what was kept of the images
            for command, error in zip(commands, errors, strict=True):
                yield from self.chat_batch([command]) if error is None else [error]
            return
        traces = iter(written)
        for chat in begun:
            if isinstance(chat, Exception):
                yield chat
                continue
            trace = next(traces)
            yield trace if isinstance(trace, Exception) else _outcome(partial(self._end_chat, chat, trace))

    def _begin_chat(self, asked: ChatCommand) -> _Chat:
        self._check(asked.text)
        with self._command(asked.image, asked.callbacks, masks=asked.masks) as command:
            question = self.lmm.question(
                asked.image.lmm(),
                asked.text,
                max_new_tokens=self.config.max_new_tokens if asked.max_new_tokens is None else asked.max_new_tokens,
                history=asked.history,
                on_text=command.on_text,
                on_trace=self._early_masks(command) if asked.masks else None,
                cancelled=command.callbacks.cancelled,
            )
            command.rest()
            return _Chat(asked, command, question)

    def _write(self, chats: Sequence[_Chat]) -> Sequence[LmmTrace | Exception]:
        """What the LMM says to each."""
        try:
            with memory_explained("command", partial(self._free, *(chat.asked.image for chat in chats))):
                return self.lmm.generate_batch([chat.question for chat in chats], layer_weights=self._layer_weights)
        except Exception as error:
            return [error] * len(chats)
        finally:
            for chat in chats:
                chat.command.rest()

    def _end_chat(self, chat: _Chat, trace: LmmTrace) -> GroundedAnswer:
        with memory_explained("command", partial(self._free, chat.asked.image)):
            chat.command.begin("keywords")
            spans: Sequence[KeywordSpan] = ()
            end = len(trace.text) if trace.ended else loop_start(trace.text)
            if chat.asked.masks:
                spans = [span for span in self.keywords(trace) if span.end <= end]
            answer = self._ground(trace, spans, chat.command, chat.asked.max_phrases)
            return answer if end == len(trace.text) else replace(answer, text=trace.text[:end] + CUT)

    def refer(
        self,
        image: ImageHandle,
        phrases: str | Sequence[str],
        *,
        max_phrases: int | None = None,
        callbacks: Callbacks | None = None,
    ) -> GroundedAnswer:
        """Ground given phrases, read together in one pass; nothing is generated.

        Args:
            image: from :meth:`encode`.
            phrases: one phrase or several; the masks come in the same order.
            max_phrases: most of them that get a mask; None for the configured number.
            callbacks: follows the command, and may cancel it.

        Returns:
            An answer whose text is the phrase as given; several are joined by full stops, as the LMM reads them.

        Raises:
            CommandError: a phrase has no letter or digit, or holds special tokens of the LMM or more than its context.
            CommandCancelledError: ``callbacks`` said so.
            MemoryFullError: the device has too little memory left; what was kept of images is freed.
        """
        given = [phrases] if isinstance(phrases, str) else list(phrases)
        if not given:
            raise ValueError("phrases: expected at least one, got none")
        for phrase in given:
            self._check(phrase)
        with self._command(image, callbacks, masks=True) as command:
            command.begin("lmm")
            trace, spans = self.lmm.teacher_force_phrases(image.lmm(), given, layer_weights=self._layer_weights)
            command.begin("keywords")
            answer = self._ground(trace, spans, command, max_phrases)
            return replace(answer, text=answer.text[: spans[-1].end])  # without the full stop that only the LMM needs

    def ground(
        self,
        image: ImageHandle,
        text: str,
        answer: str,
        ranges: Sequence[tuple[int, int]],
        *,
        callbacks: Callbacks | None = None,
    ) -> GroundedAnswer:
        """Let the LMM read a given answer to ``text`` as if it had written it, and ground given phrases of it.

        Args:
            image: from :meth:`encode`.
            text: the user's words.
            answer: the assistant's words.
            ranges: characters ``[start, end)`` of the answer that get masks, all of them; the masks come in the same order.
            callbacks: follows the command, and may cancel it.

        Raises:
            ValueError: a range lies outside the answer or is empty.
            CommandError: as for :meth:`chat`.
            MemoryFullError: the device has too little memory left.
        """
        self._check(text)
        for start, end in ranges:
            if not 0 <= start < end <= len(answer):
                raise ValueError(f"ranges: expected characters of an answer of {len(answer)}, got {start} to {end}")
        with self._command(image, callbacks, masks=True) as command:
            command.begin("lmm")
            trace = self.lmm.teacher_force(image.lmm(), text, answer, layer_weights=self._layer_weights)
            command.begin("keywords")
            spans = [KeywordSpan(answer[start:end], start, end, *trace.span_of(start, end)) for start, end in ranges]
            return self._ground(trace, spans, command, len(spans))

    def describe(self) -> dict[str, str]:
        """What it is and where it runs, for people."""
        lmm = str(self.lmm.model.dtype).removeprefix("torch.")
        if self.config.quantization != "none":
            lmm += f", {self.config.quantization}"
        return {
            "lmm": f"{self.config.lmm} ({lmm})",
            "heads": self.config.heads,
            "sam": self.config.sam,
            "heads backend": self.backend,
            "device": torch.cuda.get_device_name(self.lmm.device) if self.lmm.device.type == "cuda" else "cpu",
        }

    def device_memory(self) -> int:
        """Bytes that PyTorch has on the GPU; 0 without one."""
        return torch.cuda.memory_reserved(self.lmm.device) if self.lmm.device.type == "cuda" else 0

    def forget(self) -> None:
        """Free all that is kept of images; handles compute anew what they need."""
        self._images.forget()

    def teacher_force(self, image: ImageHandle, text: str, answer: str) -> LmmTrace:
        """Let the LMM read a given answer to ``text`` as if it had written it; nothing is generated or grounded.

        Args:
            image: from :meth:`encode`.
            text: the user's words.
            answer: the assistant's words.
        """
        self._check(text)
        return self.lmm.teacher_force(image.lmm(), text, answer, layer_weights=self._layer_weights)

    @torch.no_grad()
    def keywords(self, trace: LmmTrace) -> tuple[KeywordSpan, ...]:
        """Phrases of an answer that are to get a mask, by the keyword selector, or noun chunks without one."""
        logits = self.heads.keyword_logits(trace.states) if trace.token_ids else None
        return select_keywords(trace, logits, threshold=self.config.selector_threshold)

    @torch.no_grad()
    def coarse_masks(self, trace: LmmTrace, spans: Sequence[KeywordSpan]) -> CoarseMasks:
        """Attention of the phrases' tokens through the U-Net, un-padded."""
        return self.heads.coarse_masks(_attention(trace, spans), trace.geometry)

    def _early_masks(self, command: _Command) -> Callable[[LmmTrace], None] | None:
        """What shows phrases while the answer is being written; None if nobody looks."""
        if type(command.callbacks).on_phrases is Callbacks.on_phrases:
            return None
        shown: set[int] = set()

        def look(trace: LmmTrace) -> None:
            spans = [span for span in self.keywords(trace) if span.token_end < len(trace.token_ids) and span.start not in shown]
            if spans:
                shown.update(span.start for span in spans)
                command.callbacks.on_phrases(spans, self.coarse_masks(trace, spans))

        return look

    @contextmanager
    def _command(self, image: ImageHandle, callbacks: Callbacks | None, *, masks: bool) -> Iterator[_Command]:
        """Begin a command: what its image costs is paid first."""
        with memory_explained("command", partial(self._free, image)):
            command = _Command(image, callbacks or Callbacks(), self.lmm.device)
            command.begin("image")
            if masks:
                image.start_sam()
            image.lmm()
            yield command

    def _free(self, *images: ImageHandle) -> None:
        """Give up what is kept of these and other images, when memory is short."""
        for image in images:
            image.forget()
        self.forget()
        self.lmm.forget()
        if self.lmm.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _ground(
        self, trace: LmmTrace, spans: Sequence[KeywordSpan], command: _Command, most: int | None = None
    ) -> GroundedAnswer:
        kept, left_out = _surest(spans, self.config.max_phrases if most is None else most)
        height, width = command.image.pixels.shape[:2]
        phrases: tuple[GroundedPhrase, ...] = ()
        if kept:
            command.begin("mask_head")
            maps = _attention(trace, kept)
            presence = self._presence(trace, kept, maps)
            coarse = self.heads.coarse_masks(maps, trace.geometry)
            command.callbacks.on_coarse(coarse)
            command.begin("refiner")
            phrases = self._refine(trace, kept, presence, coarse, command.image.start_sam().result())
        return GroundedAnswer(trace.text, phrases, height, width, command.seconds(), left_out)

    def _presence(self, trace: LmmTrace, spans: Sequence[KeywordSpan], maps: torch.Tensor) -> list[float]:
        """Probability of each phrase's thing to be there; 1 without a presence score."""
        logits = self.heads.presence_logits([_states(trace, span) for span in spans], maps)
        return [1.0] * len(spans) if logits is None else logits.sigmoid().tolist()

    def _refine(
        self, trace: LmmTrace, spans: Sequence[KeywordSpan], presence: Sequence[float], coarse: CoarseMasks, image: SamImage
    ) -> tuple[GroundedPhrase, ...]:
        """Phrases with their masks; those whose thing is not there are not refined and get an empty one."""
        present = [i for i, probability in enumerate(presence) if probability >= self.config.presence_threshold]
        texts = [self.heads.text_tokens(_states(trace, spans[i])) for i in present]
        refined = self.heads.sam(image, coarse.logits[present], texts)
        nothing = torch.zeros(image.image_height, image.image_width, dtype=torch.bool)
        phrases = [
            GroundedPhrase(span.text, span.start, span.end, nothing, (0, 0, 0, 0), 0.0, probability, absent=True)
            for span, probability in zip(spans, presence, strict=True)
        ]
        masks, figures = [], []
        threshold = float(np.log(self.config.mask_threshold / (1 - self.config.mask_threshold)))
        for low_res in refined.low_res:  # one by one: logits of a whole answer at image size can be large
            logits = self.heads.sam.to_image(low_res[None], image)[0]
            masks.append(logits > threshold)
            total = logits.sigmoid_().masked_fill_(~masks[-1], 0).sum()
            figures.append(torch.cat([mask_box(masks[-1]).double(), (total.double() / masks[-1].sum().clamp_min(1))[None]]))
        # Boxes and scores of all phrases wait for the device together; the masks stay there.
        for i, mask, numbers in zip(present, masks, torch.stack(figures).tolist() if figures else [], strict=True):
            span, (x0, y0, x1, y1) = spans[i], map(int, numbers[:4])
            phrases[i] = GroundedPhrase(span.text, span.start, span.end, mask, (x0, y0, x1, y1), numbers[4], presence[i])
        return tuple(phrases)

    def _check(self, text: str) -> None:
        if not isinstance(text, str) or not any(sign.isalnum() for sign in text):
            raise CommandError(f"text: expected at least one letter or digit, got {text!r:.80}")
        self.lmm.words.check(text)


def _surest(spans: Sequence[KeywordSpan], most: int) -> tuple[list[KeywordSpan], tuple[str, ...]]:
    """The spans that get masks, and the texts of the others; both in the order of the text."""
    best = sorted(sorted(range(len(spans)), key=lambda i: -spans[i].score)[:most])
    return [spans[i] for i in best], tuple(span.text for i, span in enumerate(spans) if i not in set(best))


def _attention(trace: LmmTrace, spans: Sequence[KeywordSpan]) -> torch.Tensor:
    """Maps ``[n, c, h, w]`` of the phrases."""
    return trace.merged_attention([(span.token_start, span.token_end) for span in spans])


def _states(trace: LmmTrace, span: KeywordSpan) -> torch.Tensor:
    """Mixed states ``[3, t, d]`` of a phrase's tokens."""
    return trace.states[:, span.token_start : span.token_end]


class _Command:
    """One command in work: its image, who follows it, and how long its stages took."""

    def __init__(self, image: ImageHandle, callbacks: Callbacks, device: torch.device) -> None:
        self.image = image
        self.callbacks = callbacks
        self._device = device
        self._began: list[tuple[Stage | None, float]] = []

    @property
    def on_text(self) -> Callable[[str], None] | None:
        """What wants the text as it comes; None if nobody does, as every token's text costs time."""
        return None if type(self.callbacks).on_text is Callbacks.on_text else self.callbacks.on_text

    def begin(self, stage: Stage) -> None:
        """End the stage before, with the device's work finished, and begin another.

        Raises:
            CommandCancelledError: the command is not wanted any more.
        """
        self._began.append((stage, self._now()))
        if self.callbacks.cancelled():
            raise CommandCancelledError(f"command: cancelled before the stage {stage}")
        self.callbacks.on_stage(stage)

    def rest(self) -> None:
        """End the stage before; others' stages come."""
        self._began.append((None, self._now()))

    def seconds(self) -> StageSeconds:
        """Of the stages up to now."""
        ends = [*(at for _, at in self._began[1:]), self._now()]
        return StageSeconds(**{stage: end - at for (stage, at), end in zip(self._began, ends, strict=True) if stage})

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclass(frozen=True)
class _Chat:
    """A chat command in work."""

    asked: ChatCommand
    command: _Command
    question: Question

    def begin_lmm(self) -> _Chat:
        """Begin its next stage, once the images of all are ready."""
        self.command.begin("lmm")
        return self


T = TypeVar("T")


def _outcome(run: Callable[[], T]) -> T | Exception:
    """What ``run`` returns or raises: one command's error is not its neighbours'."""
    try:
        return run()
    except Exception as error:
        return error


def rgb_array(image: np.ndarray | Image.Image) -> np.ndarray:
    """Check an image and return it as contiguous ``[H, W, 3]`` uint8 RGB; a PIL image :func:`as people see it <as_seen>`."""
    if isinstance(image, Image.Image):
        image = as_seen(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image: expected uint8 RGB of shape [H, W, 3] or a PIL image, got {got}")
    if 0 in image.shape:
        raise ValueError(f"image: expected at least one pixel, got {list(image.shape)}")
    return np.ascontiguousarray(image)
