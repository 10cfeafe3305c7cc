"""The frozen LMM: an image is encoded once, then answers about it are generated or read.

Nothing in the model changes: weights need no gradient, the attention tap only looks on, and generation is
``model.generate`` itself. This file knows sequences and caches; what is special to a model is in its family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from flmm_core import attention_tap, config
from flmm_core.attention_tap import KeptQueries
from flmm_core.config import GroundingConfig
from flmm_core.errors import CommandError
from flmm_core.families import LmmFamily, family_of
from flmm_core.lmm_trace import LmmTrace
from flmm_core.lmm_words import LmmWords
from flmm_core.types import ImageGeometry, KeywordSpan


@dataclass(frozen=True)
class EncodedImage:
    """What depends on the image alone: image features, and the cache of the prompt up to the image's last token."""

    geometry: ImageGeometry
    features: Any
    """What the model takes as ``mm_encoder_outputs["image"]``."""
    image_tokens: int
    prefix_ids: tuple[int, ...]
    """Token ids up to and including the last image token."""
    prefix_cache: tuple[tuple[Tensor, Tensor], ...] | None
    """Keys and values ``[1, k, s, e]`` of each layer, or None if the image is to be read anew each time."""


@dataclass(frozen=True)
class LmmShape:
    """Numbers of an LMM that grounding heads must fit."""

    layers: int
    heads: int
    """Query heads of each layer."""
    hidden_size: int

    @property
    def channels(self) -> int:
        """Attention channels, layers * query heads."""
        return self.layers * self.heads

    @classmethod
    def from_config(cls, lmm_config: PreTrainedConfig) -> LmmShape:
        """From the config of the whole LMM."""
        text = lmm_config.get_text_config()
        return cls(int(text.num_hidden_layers), int(text.num_attention_heads), int(text.hidden_size))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> LmmShape:
        """From the config of a folder or a Hugging Face name, without its weights."""
        lmm_config = _read_config(source)
        family_of(lmm_config.model_type)
        return cls.from_config(lmm_config)


def _read_config(source: str | Path) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(str(source))


class FrozenLmm:
    """An LMM of one of the families, in evaluation mode, with the attention tap installed."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        family: LmmFamily,
        refer_prompt: str = GroundingConfig.refer_prompt,
        reuse_prefix: bool = GroundingConfig.reuse_prefix,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.words = LmmWords(tokenizer=tokenizer, family=family)
        self.family = family
        self.refer_prompt = refer_prompt
        self.reuse_prefix = reuse_prefix
        attention_tap.install(model)
        self.shape = LmmShape.from_config(model.config)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **options: Any
    ) -> FrozenLmm:
        """Load from a folder or a Hugging Face name.

        Args:
            source: folder or name.
            device: where the model goes.
            dtype: number format of the model.
            options: ``refer_prompt`` and ``reuse_prefix``.
        """
        loaded = family_of(_read_config(source).model_type).load(str(source), dtype=dtype)
        model = loaded.model.to(device)  # type: ignore[arg-type]
        return cls(model=model, tokenizer=loaded.tokenizer, family=loaded.family, **options)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> EncodedImage:
        """Run the vision tower, and the decoder over the prompt up to the image's last token.

        Args:
            image: RGB.
        """
        prepared = self.family.prepare(image)
        features = self.family.encode(self.model, prepared)
        image_tokens = self.family.image_tokens(features)
        ids = self.words.prompt_ids("", image_tokens)
        last = max(i for i, token in enumerate(ids) if token == self.family.image_token_id)
        prefix = ids[: last + 1]
        cache = None
        if self.reuse_prefix:
            output = self.model(
                input_ids=self._tensor(prefix),
                mm_encoder_outputs={"image": features},
                cache=DynamicCache(),
                use_cache=True,
                logits_to_keep=1,
            )
            cache = tuple((layer.keys, layer.values) for layer in output.cache.layers)
        return EncodedImage(prepared.geometry, features, image_tokens, prefix, cache)

    @torch.no_grad()
    def generate(
        self,
        image: EncodedImage,
        text: str,
        *,
        max_new_tokens: int = GroundingConfig.max_new_tokens,
        on_text: Callable[[str], None] | None = None,
    ) -> LmmTrace:
        """Answer greedily, with the same token ids that ``model.generate`` gives without us.

        Args:
            image: from :meth:`encode_image`.
            text: the user's words.
            max_new_tokens: longest answer.
            on_text: called with the whole answer so far after each token.

        Raises:
            CommandError: ``text`` holds special tokens, or more than the context.
        """
        config.check("max_new_tokens", max_new_tokens)
        ids = self.words.prompt_ids(text, image.image_tokens)
        self._check_length(len(ids), image.image_tokens, max_new_tokens)
        cache, images = self._start(image, ids)
        with attention_tap.record(start=len(ids)) as tap:
            output = self.model.generate(
                self._tensor(ids),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self.device),
                cache=cache,
                mm_encoder_outputs=images,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                return_dict_in_generate=True,
                output_hidden_states=True,
                streamer=_TextStreamer(self.words.decode, on_text) if on_text else None,
            )
            emitted = output.sequences[0, len(ids) :].tolist()
            # Step 0 holds the prompt's states; step i those of the token that step i-1 emitted.
            steps = [torch.cat(states[1:])[:, -1:] for states in output.hidden_states[1:]]
            ended = bool(emitted) and emitted[-1] in self._end_ids()
            if emitted and not ended:
                # At the length limit the last word was never fed back. Feed it, so that its row exists too.
                fed = self.model(
                    input_ids=self._tensor(emitted[-1:]),
                    cache=output.cache,
                    use_cache=True,
                    output_hidden_states=True,
                )
                steps.append(torch.cat(fed.hidden_states[1:]))
            kept = tap.finish()
        answer = emitted[:-1] if ended else emitted
        text_out, offsets = self.words.decode_with_offsets(answer)
        empty = torch.zeros(self.shape.layers, 0, self.shape.hidden_size, dtype=self.model.dtype, device=self.device)
        states = torch.cat(steps, dim=1) if steps else empty
        return self._trace(text_out, answer, offsets, ended, states, image, ids, kept)

    @torch.no_grad()
    def read_answer(self, image: EncodedImage, prompt: str, answer: str) -> LmmTrace:
        """Let the LMM read a given answer, teacher-forced; nothing is generated.

        Args:
            image: from :meth:`encode_image`; many answers about one image share its cache.
            prompt: the user's words.
            answer: the assistant's words, exactly these.
        """
        tokens = self.words.answer_tokens(prompt, answer, image.image_tokens)
        sequence = tokens.prompt_ids + tokens.ids
        self._check_length(len(sequence), image.image_tokens, 0)
        cache, images = self._start(image, sequence)
        seen = cache.get_seq_length()
        with attention_tap.record(start=len(tokens.prompt_ids)) as tap:
            output = self.model(
                input_ids=self._tensor(sequence[seen:]),
                mm_encoder_outputs=images,
                cache=cache,
                use_cache=True,
                output_hidden_states=True,
                logits_to_keep=1,
            )
            kept = tap.finish()
        states = torch.cat(output.hidden_states[1:])[:, -len(tokens.ids) :]
        return self._trace(answer, tokens.ids, tokens.offsets, True, states, image, tokens.prompt_ids, kept)

    def read_phrases(self, image: EncodedImage, phrases: Sequence[str]) -> tuple[LmmTrace, tuple[KeywordSpan, ...]]:
        """Let the LMM read phrases as the answer to :attr:`refer_prompt`, each followed by a full stop.

        Args:
            image: from :meth:`encode_image`.
            phrases: what to look for; each phrase's tokens see the phrases before it.

        Returns:
            The trace and one span for each phrase, in order.
        """
        answer, ranges = "", []
        for phrase in phrases:
            answer += " " if answer else ""
            ranges.append((len(answer), len(answer) + len(phrase)))
            answer += phrase + "."
        trace = self.read_answer(image, self.refer_prompt, answer)
        spans = []
        for phrase, (start, end) in zip(phrases, ranges, strict=True):
            first, last = trace.span_of(start, end)
            spans.append(KeywordSpan(phrase, start, end, first, last))
        return trace, tuple(spans)

    def _check_length(self, length: int, image_tokens: int, new_tokens: int) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None or length + new_tokens <= limit:
            return
        if (room := limit - image_tokens - new_tokens) < 1:
            raise ValueError(
                f"max_new_tokens: expected fewer than {limit - image_tokens} (context of {limit}, less {image_tokens} for the"
                f" image), got {new_tokens}"
            )
        raise CommandError(
            f"text: expected at most {room} tokens with the prompt's own (context of {limit}, less {image_tokens} for the"
            f" image and {new_tokens} for the answer), got {length - image_tokens}"
        )

    def _start(self, image: EncodedImage, ids: Sequence[int]) -> tuple[DynamicCache, dict[str, Any]]:
        """The cache to go on from, and the image features if the sequence is to be read from its beginning."""
        if image.prefix_cache is None:
            return DynamicCache(), {"image": image.features}
        if tuple(ids[: len(image.prefix_ids)]) != image.prefix_ids:
            raise ValueError("prompt: expected it to begin as it did when the image was encoded, got other tokens")
        # A growing cache concatenates into new tensors, so the image's own keys and values are never written to.
        return DynamicCache([(keys, values) for keys, values in image.prefix_cache]), {}

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], dtype=torch.long, device=self.device)

    def _end_ids(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)

    def _trace(
        self,
        text: str,
        token_ids: Sequence[int],
        offsets: tuple[tuple[int, int], ...],
        ended: bool,
        states: Tensor,
        image: EncodedImage,
        prompt_ids: Sequence[int],
        kept: KeptQueries,
    ) -> LmmTrace:
        columns = [i for i, token in enumerate(prompt_ids) if token == self.family.image_token_id]
        return LmmTrace(
            text=text,
            token_ids=tuple(token_ids),
            token_offsets=offsets,
            ended=ended,
            hidden_states=states,
            geometry=image.geometry,
            image_columns=torch.tensor(columns, device=self.device),
            kept=kept,
            family=self.family,
        )


class _TextStreamer(BaseStreamer):
    """Hands the answer so far to a callback; the first thing that ``generate`` streams is the prompt."""

    def __init__(self, decode: Callable[[Sequence[int]], str], on_text: Callable[[str], None]) -> None:
        self._decode = decode
        self._on_text = on_text
        self._ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        if self._ids is None:
            self._ids = []
            return
        self._ids.extend(value.flatten().tolist())
        self._on_text(self._decode(self._ids).strip())

    def end(self) -> None:
        """Nothing is buffered."""
