"""The whole path on one screen: image and words in, answer and masks out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flmm_core import checkpoints
from flmm_core.config import GroundingConfig
from flmm_core.devices import resolve_device
from flmm_core.errors import CommandError, explained
from flmm_core.frozen_lmm import EncodedImage, FrozenLmm
from flmm_core.heads import GroundingHeads
from flmm_core.image_files import as_seen
from flmm_core.image_geometry import mask_box
from flmm_core.keyword_spans import select_keywords
from flmm_core.lmm_trace import LmmTrace
from flmm_core.noun_chunks import noun_chunker
from flmm_core.repetition import loop_start
from flmm_core.sam_refiner import SamImage
from flmm_core.types import CoarseMasks, GroundedAnswer, GroundedPhrase, KeywordSpan, StageSeconds

CUT = " ..."
"""Stands for what an answer repeated."""


@dataclass(frozen=True)
class SetImage:
    """What both models keep of the image that commands are about."""

    lmm: EncodedImage
    sam: SamImage


class GroundingPipeline:
    """Answers about an image and points at what the answer names.

    ``set_image`` pays for the image once; ``chat`` and ``refer`` are then cheap. Not thread-safe.
    """

    def __init__(self, *, lmm: FrozenLmm, heads: GroundingHeads, config: GroundingConfig | None = None) -> None:
        self.lmm = lmm
        self.heads = heads.to(lmm.device).eval()
        self.config = config or GroundingConfig()
        if self.heads.keyword_selector is None:
            noun_chunker()  # what it loads belongs to the start, not to the first answer
        self._image: SetImage | None = None
        self._image_seconds = 0.0

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
        heads = checkpoints.load_heads(config.heads, shape=shape, sam=checkpoints.load_sam(config.sam))
        checkpoints.check_origin(config.heads, lmm=config.lmm, sam=config.sam)
        options = {"refer_prompt": config.refer_prompt, "reuse_prefix": config.reuse_prefix}
        lmm = checkpoints.load_lmm(config.lmm, device=device, dtype=dtype, **options)
        with explained("heads", config.heads):  # they move to the LMM's device here
            return cls(lmm=lmm, heads=heads, config=config)

    def set_image(self, image: np.ndarray | Image.Image) -> None:
        """Encode an image for the commands that follow.

        Args:
            image: ``[H, W, 3]`` uint8 RGB, or a PIL image, which is turned upright: masks lie in the upright image. If it
                cannot be encoded there is no image afterwards.
        """
        self._image = None
        pixels = rgb_array(image)
        clock = _Clock(self.lmm.device)
        self._image = SetImage(self.lmm.encode_image(Image.fromarray(pixels)), self.heads.sam.encode_image(pixels))
        self._image_seconds = clock.lap()

    def chat(
        self,
        text: str,
        *,
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        on_coarse: Callable[[CoarseMasks], None] | None = None,
    ) -> GroundedAnswer:
        """Answer ``text`` and ground the phrases that the keyword selector picks.

        Args:
            text: the user's words.
            max_new_tokens: longest answer; None for the configured one.
            on_text: called with the whole answer so far after each token.
            on_coarse: called with the phrases' masks before they are refined.

        Returns:
            The answer; one that reached its limit while it said the same thing over and over is cut there, and ends in ``CUT``.

        Raises:
            CommandError: ``text`` has no letter or digit, or holds special tokens of the LMM or more than its context.
        """
        image = self._require(text=text)
        clock = _Clock(self.lmm.device)
        limit = self.config.max_new_tokens if max_new_tokens is None else max_new_tokens
        trace = self.lmm.generate(image.lmm, text, max_new_tokens=limit, on_text=on_text)
        lmm_seconds = clock.lap()
        spans = select_keywords(trace, self.heads.keyword_selector, threshold=self.config.selector_threshold)
        end = len(trace.text) if trace.ended else loop_start(trace.text)
        answer = self._ground(trace, [span for span in spans if span.end <= end], image, lmm_seconds, clock, on_coarse)
        return answer if end == len(trace.text) else replace(answer, text=trace.text[:end] + CUT)

    def refer(self, phrases: str | Sequence[str], *, on_coarse: Callable[[CoarseMasks], None] | None = None) -> GroundedAnswer:
        """Ground given phrases, read together in one pass; nothing is generated.

        Args:
            phrases: one phrase or several; the masks come in the same order.
            on_coarse: called with the phrases' masks before they are refined.

        Returns:
            An answer whose text is the phrase as given; several are joined by full stops, as the LMM reads them.

        Raises:
            CommandError: a phrase has no letter or digit, or holds special tokens of the LMM or more than its context.
        """
        given = [phrases] if isinstance(phrases, str) else list(phrases)
        if not given:
            raise ValueError("phrases: expected at least one, got none")
        for phrase in given:
            image = self._require(text=phrase)
        clock = _Clock(self.lmm.device)
        trace, spans = self.lmm.read_phrases(image.lmm, given)
        answer = self._ground(trace, spans, image, clock.lap(), clock, on_coarse)
        return replace(answer, text=answer.text[: spans[-1].end])  # without the full stop that only the LMM needs

    def read(self, text: str, answer: str) -> LmmTrace:
        """Let the LMM read a given answer to ``text`` as if it had written it; nothing is generated or grounded.

        Args:
            text: the user's words.
            answer: the assistant's words.
        """
        return self.lmm.read_answer(self._require(text=text).lmm, text, answer)

    @torch.no_grad()
    def coarse_masks(self, trace: LmmTrace, spans: Sequence[KeywordSpan]) -> CoarseMasks:
        """Attention of the phrases' tokens through the U-Net, un-padded."""
        return self.heads.coarse_masks(_attention(trace, spans), trace.geometry)

    @torch.no_grad()
    def _ground(
        self,
        trace: LmmTrace,
        spans: Sequence[KeywordSpan],
        image: SetImage,
        lmm_seconds: float,
        clock: _Clock,
        on_coarse: Callable[[CoarseMasks], None] | None,
    ) -> GroundedAnswer:
        keywords_seconds = clock.lap()
        maps = _attention(trace, spans)
        presence = self.heads.presence_of([_states(trace, span) for span in spans], maps).tolist()
        coarse = self.heads.coarse_masks(maps, trace.geometry)
        mask_head_seconds = clock.lap()
        if on_coarse is not None:
            on_coarse(coarse)
            clock.lap()
        phrases = self._refine(trace, spans, presence, coarse, image.sam)
        seconds = StageSeconds(self._image_seconds, lmm_seconds, keywords_seconds, mask_head_seconds, clock.lap())
        self._image_seconds = 0.0
        return GroundedAnswer(trace.text, phrases, image.sam.image_height, image.sam.image_width, seconds)

    def _refine(
        self, trace: LmmTrace, spans: Sequence[KeywordSpan], presence: Sequence[float], coarse: CoarseMasks, image: SamImage
    ) -> tuple[GroundedPhrase, ...]:
        """Phrases with their masks; those whose thing is not there are not refined and get an empty one."""
        present = [i for i, probability in enumerate(presence) if probability >= self.config.presence_threshold]
        texts = [self.heads.text_tokens(_states(trace, spans[i])) for i in present]
        refined = self.heads.sam(image, coarse.logits[present], texts)
        nothing = np.zeros((image.image_height, image.image_width), bool)
        phrases = [
            GroundedPhrase(span.text, span.start, span.end, nothing, (0, 0, 0, 0), 0.0, probability, absent=True)
            for span, probability in zip(spans, presence, strict=True)
        ]
        # One phrase at a time: masks of a whole answer at image size can be large.
        for i, low_res in zip(present, refined.low_res, strict=True):
            phrases[i] = self._phrase(spans[i], presence[i], self.heads.sam.to_image(low_res[None], image)[0])
        return tuple(phrases)

    def _phrase(self, span: KeywordSpan, presence: float, logits: torch.Tensor) -> GroundedPhrase:
        """A phrase with its mask, from logits ``[H, W]``."""
        threshold = self.config.mask_threshold
        mask = logits > float(np.log(threshold / (1 - threshold)))
        box = mask_box(mask)
        score = float(logits[mask].sigmoid().mean()) if box else 0.0
        return GroundedPhrase(span.text, span.start, span.end, mask.cpu().numpy(), box or (0, 0, 0, 0), score, presence)

    def _require(self, *, text: str) -> SetImage:
        """The image, once a command can be taken."""
        if not isinstance(text, str) or not any(sign.isalnum() for sign in text):
            raise CommandError(f"text: expected at least one letter or digit, got {text!r:.80}")
        self.lmm.words.check(text)
        if self._image is None:
            raise ValueError("image: expected set_image() before a command, got no image yet")
        return self._image


def _attention(trace: LmmTrace, spans: Sequence[KeywordSpan]) -> torch.Tensor:
    """Maps ``[n, c, h, w]`` of the phrases."""
    return trace.merged_attention([(span.token_start, span.token_end) for span in spans])


def _states(trace: LmmTrace, span: KeywordSpan) -> torch.Tensor:
    """Hidden states ``[l, t, d]`` of a phrase's tokens."""
    return trace.hidden_states[:, span.token_start : span.token_end]


class _Clock:
    """Seconds between laps, with the device's work finished."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = time.perf_counter()

    def lap(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        before, self._last = self._last, time.perf_counter()
        return self._last - before


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
