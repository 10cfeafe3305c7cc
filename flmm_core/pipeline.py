"""The whole path on one screen: image and words in, answer and masks out. Memory and batches: requests/ and chat/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_core.config import AUTO, DEFAULT_MODEL, GroundingConfig
from flmm_core.heads.interface import Heads
from flmm_core.heads.phrases import refined_phrases
from flmm_core.images.files import rgb_array
from flmm_core.keywords.repetition import loop_start, shown_text
from flmm_core.keywords.spans import Range, check_ranges, select_keywords, spans_from_ranges, surest_spans
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.trace import LmmTrace
from flmm_core.loading.parts import PYTORCH, describe_parts, load_parts
from flmm_core.requests.callbacks import Callbacks
from flmm_core.requests.chat_command import ChatCommand, check_limits
from flmm_core.requests.early_phrases import early_phrases
from flmm_core.requests.image_handle import ImageHandle
from flmm_core.requests.image_memory import ImageMemory
from flmm_core.requests.named_things import picked_phrases
from flmm_core.requests.running import RunningChat, RunningCommand
from flmm_core.types import CoarseMasks, GroundedAnswer, GroundedPhrase, KeywordSpan


class GroundingPipeline:
    """Answers questions about images and grounds what the answers name, on the device of the LMM. Not thread-safe."""

    def __init__(self, *, lmm: FrozenLmm, heads: Heads, config: GroundingConfig | None = None, backend: str = PYTORCH) -> None:
        self.lmm = lmm
        self.heads = heads.to(lmm.device).eval()
        self.config = config or GroundingConfig()
        self.backend = backend
        self.images = ImageMemory(lmm=lmm, sam=heads.sam, limit=self.config.image_cache * 2**20)
        self.layer_weights = heads.layer_weights().detach()
        """``[k, l]`` float32: decoder layers in the mixtures of hidden states that the heads read."""

    @classmethod
    def from_pretrained(
        cls, lmm: str | Path = DEFAULT_MODEL, heads: str | Path = AUTO, sam: str | Path = AUTO, **options: Any
    ) -> GroundingPipeline:
        """Load the three parts; the options are the other entries of :class:`~flmm_core.config.GroundingConfig`."""
        return cls.from_config(GroundingConfig(lmm=str(lmm), heads=str(heads), sam=str(sam), **options))

    @classmethod
    def from_config(cls, config: GroundingConfig) -> GroundingPipeline:
        """Load what a configuration names; raises what :func:`~flmm_core.loading.parts.load_parts` does."""
        parts = load_parts(config)
        return cls(lmm=parts.lmm, heads=parts.heads, config=parts.config, backend=parts.backend)

    def encode(self, image: np.ndarray | Image.Image) -> ImageHandle:
        """A handle of an image, ``[H, W, 3]`` uint8 RGB or PIL (turned upright); what depends on it alone is cached."""
        return self.images.handle(rgb_array(image))

    def chat(self, image: ImageHandle, text: str, **options: Any) -> GroundedAnswer:
        """Answer ``text`` and ground the phrases that are picked of the answer. A loop at the length limit is ``CUT``.

        Args:
            image: from :meth:`encode`.
            text: the user's words.
            options: the other fields of :class:`~flmm_core.requests.chat_command.ChatCommand`.

        Raises:
            CommandError: ``text`` has no letter or digit, or holds special tokens of the LMM or more than its context.
            CommandCancelledError: the callbacks cancelled it.
            MemoryFullError: the device has too little memory left; what was cached of images is freed.
        """
        with self.images.guard(image):
            chat = self.begin_chat(ChatCommand(image, text, **options))
            chat.run.begin("lmm")
            (trace,) = self.lmm.generate_batch([chat.question], layer_weights=self.layer_weights)
            return self.finish_chat(chat, trace)

    def begin_chat(self, command: ChatCommand) -> RunningChat:
        """The part of :meth:`chat` before the LMM answers."""
        self.lmm.words.check_command(command.text)
        run = self._encoded(command.image, command.callbacks, sam=command.masks)
        question = self.lmm.question(
            command.image.lmm(),
            command.text,
            max_new_tokens=self.config.max_new_tokens if command.max_new_tokens is None else command.max_new_tokens,
            history=command.history,
            on_text=run.callbacks.text_callback,
            on_trace=early_phrases(run.callbacks, self.keywords, self.coarse_masks) if command.masks else None,
            cancelled=run.callbacks.cancelled,
        )
        return RunningChat(command, run, question)

    def finish_chat(self, chat: RunningChat, trace: LmmTrace) -> GroundedAnswer:
        """The part of :meth:`chat` after the LMM has answered."""
        chat.run.begin("keywords")
        end = len(trace.text) if trace.ended else loop_start(trace.text)
        spans, reason = [span for span in self.keywords(trace) if span.end <= end] if chat.command.masks else [], ""
        if chat.command.masks and not self.heads.selects_keywords:
            spans, reason = picked_phrases(self.lmm, chat, trace, spans, end, self.layer_weights)
        answer = self._masked(trace, spans, chat.run, chat.command.max_phrases)
        return replace(answer, text=shown_text(trace, end), reason=reason)

    def refer(
        self,
        image: ImageHandle,
        phrases: str | Sequence[str],
        *,
        max_phrases: int | None = None,
        callbacks: Callbacks | None = None,
    ) -> GroundedAnswer:
        """Ground given phrases, read together in one pass; nothing is generated. Raises what :meth:`chat` does.

        Masks come in the order of the phrases; the answer's text joins them by full stops, as the LMM reads them. The options
        are those of :class:`~flmm_core.requests.chat_command.ChatCommand`.
        """
        check_limits(max_phrases=max_phrases)
        given = [phrases] if isinstance(phrases, str) else list(phrases)
        self.lmm.words.check_phrases(given)
        with self.images.guard(image):
            run = self._encoded(image, callbacks)
            run.begin("lmm")
            trace, spans = self.lmm.teacher_force_phrases(image.lmm(), given, layer_weights=self.layer_weights)
            run.begin("keywords")
            answer = self._masked(trace, spans, run, max_phrases)
            return replace(answer, text=answer.text[: spans[-1].end])  # without the full stop that only the LMM needs

    def ground(
        self, image: ImageHandle, text: str, answer: str, ranges: Sequence[Range], *, callbacks: Callbacks | None = None
    ) -> GroundedAnswer:
        """Ground phrases of a given answer to ``text``, read as if the LMM had written it. Raises what :meth:`chat` does.

        All ``ranges``, characters ``[start, end)`` of ``answer``, get masks, which come in the same order.
        """
        self.lmm.words.check_command(text)
        check_ranges(answer, ranges)
        with self.images.guard(image):
            run = self._encoded(image, callbacks)
            run.begin("lmm")
            trace = self.teacher_force(image, text, answer)
            run.begin("keywords")
            return self._masked(trace, spans_from_ranges(trace, ranges), run, len(ranges))

    def teacher_force(self, image: ImageHandle, text: str, answer: str) -> LmmTrace:
        """Let the LMM read a given answer to ``text`` as if it had written it; nothing is generated or grounded."""
        self.lmm.words.check_command(text)
        return self.lmm.teacher_force(image.lmm(), text, answer, layer_weights=self.layer_weights)

    @torch.no_grad()
    def keywords(self, trace: LmmTrace) -> tuple[KeywordSpan, ...]:
        """Phrases of an answer that are to get a mask, by the keyword selector, or noun chunks without one."""
        logits = self.heads.keyword_logits(trace.states) if trace.token_ids else None
        return select_keywords(trace, logits, threshold=self.config.selector_threshold)

    @torch.no_grad()
    def coarse_masks(self, trace: LmmTrace, spans: Sequence[KeywordSpan]) -> CoarseMasks:
        """What the heads make of the attention of the phrases' tokens, un-padded."""
        return self.heads.coarse_masks(trace.phrase_attention(spans), trace.geometry)

    def _encoded(self, image: ImageHandle, callbacks: Callbacks | None, *, sam: bool = True) -> RunningCommand:
        """Begin a command with its first stage, the image; SAM's encoder runs beside the LMM."""
        run = RunningCommand(image, callbacks, self.lmm.device)
        run.begin("image")
        if sam:
            image.start_sam()
        image.lmm()
        return run

    @torch.no_grad()
    def _masked(self, trace: LmmTrace, spans: Sequence[KeywordSpan], run: RunningCommand, most: int | None) -> GroundedAnswer:
        """The answer with masks for the surest phrases: coarse masks, presence, SAM."""
        kept, left_out = surest_spans(spans, self.config.max_phrases if most is None else most)
        phrases: tuple[GroundedPhrase, ...] = ()
        if kept:
            run.begin("mask_head")
            maps = trace.phrase_attention(kept)
            coarse = self.heads.coarse_masks(maps, trace.geometry)
            presence = self.heads.presence_probabilities(trace.phrase_states(kept), maps, coarse)
            run.callbacks.on_coarse(coarse)
            run.begin("refiner")
            sam_image = run.image.start_sam().result()
            phrases = refined_phrases(self.heads, trace, kept, presence, coarse, sam_image, self.config)
        height, width = run.image.pixels.shape[:2]
        return GroundedAnswer(trace.text, phrases, height, width, run.seconds(), left_out)

    def set_thresholds(self, **thresholds: Any) -> None:
        """Change ``selector_threshold``, ``presence_threshold`` or ``mask_threshold`` for later commands."""
        self.config = replace(self.config, **thresholds)

    def describe(self) -> dict[str, str]:
        """Models, device and backend, for people."""
        return describe_parts(self.config, self.lmm, self.heads, self.backend)

    def device_memory(self) -> int:
        """Bytes that PyTorch has on the GPU; 0 without one."""
        return torch.cuda.memory_reserved(self.lmm.device) if self.lmm.device.type == "cuda" else 0
