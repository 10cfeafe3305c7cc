"""The frozen LMM: an image is encoded once, then answers about it are generated or read.

Nothing in the model changes: weights need no gradient, the attention recorder only observes, and generation is
``model.generate`` itself. What is special to a model is in its family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flmm_core import config
from flmm_core.common.tensor_memory import tensor_bytes
from flmm_core.config import GroundingConfig
from flmm_core.families import LmmFamily, LmmShape
from flmm_core.lmm import batch_generation, generation, teacher_forcing
from flmm_core.lmm.decoder import Decoder
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.lmm.generation import Question
from flmm_core.lmm.loading import load_plain
from flmm_core.lmm.tokens import AnswerTokens, Exchange, LmmWords
from flmm_core.lmm.trace import LmmTrace
from flmm_core.types import KeywordSpan

_COPIES = 2**29
"""Bytes for copies of an image's keys and values, where several answers are read in one pass."""


class FrozenLmm:
    """An LMM of one of the families, in evaluation mode, with the attention recorder installed."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        family: LmmFamily,
        refer_prompt: str = GroundingConfig.refer_prompt,
        reuse_prefix: bool = GroundingConfig.reuse_prefix,
        cuda_graphs: bool = GroundingConfig.cuda_graphs,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.words = LmmWords(tokenizer=tokenizer, family=family)
        self.family = family
        self.refer_prompt = refer_prompt
        self.decoder = Decoder(model=model, family=family, reuse_prefix=reuse_prefix, cuda_graphs=cuda_graphs)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantization: str = "none",
        image_tokens: int = 0,
        spread: bool = False,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> FrozenLmm:
        """Load from a folder or a Hugging Face name.

        Args:
            source: folder or name.
            device: as for :func:`~flmm_core.lmm.loading.load_plain`, like the five after it.
            dtype: number format of the model.
            quantization: of the decoder's matrices: none, int8 or int4.
            image_tokens: most tokens of an image; 0 for those of the checkpoint's own processor.
            spread: whether the layers may be on several GPUs.
            settings: in place of the family's ``settings``, which the checkpoint's files do not say.
            options: ``refer_prompt``, ``reuse_prefix`` and ``cuda_graphs``.
        """
        loaded = load_plain(
            source,
            device=device,
            dtype=dtype,
            quantization=quantization,
            image_tokens=image_tokens,
            spread=spread,
            settings=settings,
        )
        return cls(model=loaded.model, tokenizer=loaded.tokenizer, family=loaded.family, **options)

    @property
    def device(self) -> torch.device:
        """Where the model is; of one whose layers are on several devices, where its inputs and results are."""
        return self.model.device

    @property
    def shape(self) -> LmmShape:
        """Layers, heads and sizes that grounding heads must fit."""
        return self.decoder.shape

    @property
    def can_batch(self) -> bool:
        """Whether several answers may be generated in one batch: not where images see words, nor where layers are linear."""
        return self.family.reuses_prefix and self.family.reads_batches

    # --- images -----------------------------------------------------------------------------------------------------------

    def encode_image(self, image: Image.Image) -> EncodedImage:
        """Encode the one image of the prompts to come; see :meth:`encode_images`."""
        return self.encode_images([image])

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> EncodedImage:
        """Run the vision tower.

        Args:
            images: RGB, in the order of the prompt. Each has image tokens and maps of its own.

        Raises:
            ValueError: an image takes more tokens than its limit, as an extremely long one may.
        """
        prepared = self.family.prepare(images)
        tokens, most = max(len(layout.ids) for layout in prepared.layouts), self.family.image_tokens
        if most and tokens > most:
            sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
            raise ValueError(f"image: expected one of at most {most} tokens (image_tokens), got {tokens} for {sizes} pixels")
        return EncodedImage(prepared.layouts, self.family.encode(self.model, prepared))

    # --- generation -------------------------------------------------------------------------------------------------------

    def question(
        self,
        image: EncodedImage,
        text: str,
        *,
        max_new_tokens: int = GroundingConfig.max_new_tokens,
        history: Sequence[Exchange] = (),
        on_text: Callable[[str], None] | None = None,
        on_trace: Callable[[LmmTrace], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Question:
        """A checked question for :meth:`generate_batch`, so that one that cannot be answered stops no other.

        Args:
            image: from :meth:`encode_image`.
            text: the user's words.
            max_new_tokens: longest answer.
            history: questions about the image and their answers before this one, the oldest first.
            on_text: called with the whole answer so far after each token.
            on_trace: called with the trace of the answer so far after each token; static shapes are then not used.
            cancelled: asked after each token; the answer ends there once it is true.

        Raises:
            CommandError: ``text`` holds special tokens, or more than the context.
        """
        config.check("max_new_tokens", max_new_tokens)
        prompt = self.words.prompt_tokens(text, image.layouts, chat=True, history=history)
        self.decoder.check_length(len(prompt.ids), image.image_tokens, max_new_tokens)
        return Question(image, prompt, max_new_tokens, on_text, on_trace, cancelled)

    def generate(self, image: EncodedImage, text: str, *, layer_weights: Tensor | None = None, **options: Any) -> LmmTrace:
        """Answer greedily, with the same token ids that ``model.generate`` gives without this package.

        Args:
            image: from :meth:`encode_image`.
            text: the user's words.
            layer_weights: ``[k, l]`` float32, mixtures of hidden states to keep; None for each layer by itself.
            options: the others of :meth:`question`, which says what is refused.
        """
        return generation.generate(self.decoder, self.words, self.question(image, text, **options), layer_weights)

    def generate_batch(self, questions: Sequence[Question], *, layer_weights: Tensor | None = None) -> tuple[LmmTrace, ...]:
        """Answer several questions about any images, in one batch if :attr:`can_batch`.

        Args:
            questions: from :meth:`question`.
            layer_weights: as for :meth:`generate`.
        """
        if len(questions) < 2 or not self.can_batch:
            return tuple(generation.generate(self.decoder, self.words, one, layer_weights) for one in questions)
        return batch_generation.generate_batch(self.decoder, self.words, questions, layer_weights)

    # --- teacher forcing --------------------------------------------------------------------------------------------------

    def teacher_force(self, image: EncodedImage, prompt: str, answer: str, *, layer_weights: Tensor | None = None) -> LmmTrace:
        """Let the LMM read a given answer; nothing is generated.

        Args:
            image: from :meth:`encode_image`; many answers about one image share its cache.
            prompt: the user's words.
            answer: the assistant's words, exactly these.
            layer_weights: as for :meth:`generate`.
        """
        tokens = self.words.answer_tokens(prompt, answer, image.layouts)
        return self.teacher_force_tokens(image, tokens, answer, layer_weights=layer_weights)

    def teacher_force_tokens(
        self, image: EncodedImage, tokens: AnswerTokens, answer: str, *, layer_weights: Tensor | None = None
    ) -> LmmTrace:
        """Let the LMM read an answer that is tokenised already.

        Args:
            image: from :meth:`encode_image`.
            tokens: prompt and answer; the prompt with or without what stands before a chat.
            answer: text of the answer's tokens.
            layer_weights: as for :meth:`generate`.
        """
        return teacher_forcing.teacher_force(self.decoder, image, [tokens], [answer], layer_weights)[0]

    def teacher_force_batch(
        self, image: EncodedImage, turns: Sequence[tuple[str, str]], *, layer_weights: Tensor | None = None
    ) -> tuple[LmmTrace, ...]:
        """Let the LMM read several answers, each as :meth:`teacher_force` does; in one pass where the family allows it.

        Args:
            image: from :meth:`encode_image`.
            turns: prompts and answers.
            layer_weights: as for :meth:`generate`.
        """
        batch = [(self.words.answer_tokens(prompt, answer, image.layouts), answer) for prompt, answer in turns]
        size = 1
        if batch and self.family.reads_batches and (prefix := self.decoder.read_prefix(image, batch[0][0].prompt)):
            size = max(1, _COPIES // tensor_bytes(prefix.cache))
        traces: list[LmmTrace] = []
        for i in range(0, len(batch), size):
            tokens, answers = zip(*batch[i : i + size], strict=True)
            traces += teacher_forcing.teacher_force(self.decoder, image, tokens, answers, layer_weights)
        return tuple(traces)

    def teacher_force_phrases(
        self, image: EncodedImage, phrases: Sequence[str], *, layer_weights: Tensor | None = None
    ) -> tuple[LmmTrace, tuple[KeywordSpan, ...]]:
        """Let the LMM read phrases as the answer to :attr:`refer_prompt`, each followed by a full stop.

        Args:
            image: from :meth:`encode_image`.
            phrases: what to look for; each phrase's tokens see the phrases before it.
            layer_weights: as for :meth:`generate`.

        Returns:
            The trace and one span for each phrase, in order.
        """
        answer, ranges = "", []
        separator = "" if self.family.reads_apart else self.family.phrase_separator
        for phrase in phrases:
            answer += separator if answer else ""
            ranges.append((len(answer), len(answer) + len(phrase)))
            answer += phrase + "."
        tokens = self.words.answer_tokens(self.refer_prompt, answer, image.layouts, [start for start, _ in ranges])
        trace = self.teacher_force_tokens(image, tokens, answer, layer_weights=layer_weights)
        spans = []
        for phrase, (start, end) in zip(phrases, ranges, strict=True):
            first, last = trace.span_of(start, end)
            spans.append(KeywordSpan(phrase, start, end, first, last))
        return trace, tuple(spans)

    # --- limits and memory ------------------------------------------------------------------------------------------------

    def fits(self, image: EncodedImage, text: str, *, max_new_tokens: int, history: Sequence[Exchange] = ()) -> bool:
        """Whether the context holds a question with its history; arguments as of :meth:`question`."""
        length = len(self.words.prompt_tokens(text, image.layouts, chat=True, history=history).ids)
        return (limit := self.decoder.context) is None or length + max_new_tokens <= limit

    def forget(self) -> None:
        """Free what is kept between commands, apart from images."""
        self.decoder.forget()
