"""The decoder of a frozen LMM, run over prompts with images: prefix cache, recorded attention, mixed hidden states.

Generation and teacher forcing run the model through this class, so that an image's prefix is read once for both. This file
knows sequences and caches; it knows no words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from flmm_core.errors import CommandError
from flmm_core.families import LmmFamily
from flmm_core.lmm import attention_recorder
from flmm_core.lmm.attention_recorder import AttentionRecorder
from flmm_core.lmm.cuda_graphs import StaticDecoder, allows_static_decoding
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.lmm.hidden_states import StateMixer, mixing
from flmm_core.lmm.prefix_cache import Prefix, can_be_cropped, crop_cache, fork_cache
from flmm_core.lmm.tokens import PromptTokens


@dataclass(frozen=True)
class Recording:
    """What is recorded of the kept tokens while the decoder runs."""

    attention: AttentionRecorder
    states: StateMixer


class Decoder:
    """Runs the decoder of one model.

    Args:
        model: frozen; the attention recorder is installed in it.
        family: of the model.
        reuse_prefix: whether prompts about an image share its keys and values.
        cuda_graphs: whether tokens are decoded in static shapes, where device and model allow it.
    """

    def __init__(self, *, model: PreTrainedModel, family: LmmFamily, reuse_prefix: bool, cuda_graphs: bool) -> None:
        attention_recorder.install(model)
        self.model: Any = model
        self.family = family
        self.reuse_prefix = reuse_prefix and family.reuses_prefix
        text: Any = model.config.get_text_config()
        self.shape = family.shape(text)
        self.map_layers = family.map_layers(text)
        self.static: StaticDecoder | None = None
        """Decodes in static shapes; None where that is off or not possible."""
        if cuda_graphs and model.device.type == "cuda" and allows_static_decoding(model):
            self.static = StaticDecoder(model)

    @property
    def device(self) -> torch.device:
        """Where the model is; of one whose layers are on several devices, where its inputs and results are."""
        device: torch.device = self.model.device
        return device

    @property
    def context(self) -> int | None:
        """Positions that the decoder can hold; None if its config does not say."""
        limit: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit

    @property
    def end_ids(self) -> set[int]:
        """Ids of the tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)

    def tensor(self, *sequences: Sequence[int]) -> Tensor:
        """Sequences of equal length as ``[b, s]`` int64 on the model's device."""
        return torch.tensor([list(ids) for ids in sequences], dtype=torch.long, device=self.device)

    def check_length(self, length: int, image_tokens: int, new_tokens: int) -> None:
        """Refuse a sequence that the context cannot hold.

        Args:
            length: tokens of the sequence, those of the images included.
            image_tokens: tokens of the images.
            new_tokens: tokens that may be generated behind it.

        Raises:
            CommandError: the text is too long, or ``new_tokens`` leave no room for any.
        """
        limit = self.context
        if limit is None or length + new_tokens <= limit:
            return
        if (room := limit - image_tokens - new_tokens) < 1:
            raise CommandError(
                f"max_new_tokens: expected fewer than {limit - image_tokens} (context of {limit}, less {image_tokens} for the"
                f" image), got {new_tokens}"
            )
        raise CommandError(
            f"text: expected at most {room} tokens with the prompt's own (context of {limit}, less {image_tokens} for the"
            f" image and {new_tokens} for the answer), got {length - image_tokens}"
        )

    @torch.no_grad()
    def read_prefix(self, image: EncodedImage, prompt: PromptTokens) -> Prefix | None:
        """Run the decoder over a prompt up to the end of its last image, and cache the result in the image.

        Returns:
            The cached prefix; None if images are read again for each prompt.
        """
        if not self.reuse_prefix:
            return None
        ids = prefix_ids(image, prompt)
        if ids not in image.prefixes:
            inputs = self.family.model_inputs(self.model, self.tensor(ids), image.features)
            output = self.model(**inputs, cache=self.family.new_cache(self.model), use_cache=True, logits_to_keep=1)
            image.prefixes[ids] = Prefix(ids, output.cache, self.family.model_state(self.model))
        return image.prefixes[ids]

    def start(self, image: EncodedImage, prompt: PromptTokens, ids: Sequence[int]) -> tuple[DynamicCache, dict[str, Any]]:
        """How to begin with a sequence.

        Args:
            image: of the prompt.
            prompt: its prefix is taken from the image's cache, if it is there.
            ids: the whole sequence.

        Returns:
            The cache to go on from; and what the model takes if it has to read the sequence from its first token, else nothing.
        """
        cache = self.family.new_cache(self.model)
        # The first command about an image reads its whole prompt in one pass, as plain generation does; the prefix is cut out
        # of that pass's cache afterwards.
        if prefix_ids(image, prompt) in image.prefixes or not can_be_cropped(cache):
            prefix = self.read_prefix(image, prompt)
            if prefix is not None:
                self.family.restore_state(self.model, prefix.state)
                return fork_cache(prefix.cache), {}
        return cache, self.family.model_inputs(self.model, self.tensor(ids), image.features)

    @contextmanager
    def caching_prefix(self, image: EncodedImage, prompt: PromptTokens, cache: DynamicCache) -> Iterator[None]:
        """Let the image keep the prompt's prefix, if the first pass inside the block reads it into ``cache``."""
        ids = prefix_ids(image, prompt)
        if not self.reuse_prefix or ids in image.prefixes:
            yield
            return

        def keep(*_: Any) -> None:
            if ids not in image.prefixes:
                image.prefixes[ids] = Prefix(ids, crop_cache(cache, len(ids)), self.family.model_state(self.model))

        hook = self.model.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def rest(self, sequences: Sequence[Sequence[int]], cache: DynamicCache) -> dict[str, Tensor]:
        """What the model takes of sequences behind the prefix that they share, which is in ``cache``.

        Args:
            sequences: whole ones; shorter ones are padded at their right.
            cache: of the prefix; repeated for each sequence, in place.
        """
        seen, longest = cache.get_seq_length(), max(map(len, sequences))
        assert all(ids[:seen] == sequences[0][:seen] for ids in sequences)
        rest = [[*ids[seen:], *[0] * (longest - len(ids))] for ids in sequences]
        if len(sequences) > 1:
            cache.batch_repeat_interleave(len(sequences))
        # Padding comes last, so causality hides it from all tokens that are wanted: no mask is needed.
        return {"input_ids": torch.tensor(rest, device=self.device)}

    @contextmanager
    def recording(self, start: int, cache: DynamicCache, layer_weights: Tensor | None) -> Iterator[Recording]:
        """Record the tokens from position ``start`` on, in every forward pass inside the block.

        Args:
            start: first position that is kept.
            cache: that the passes go on from.
            layer_weights: ``[k, l]`` float32 of the mixtures of hidden states; None for each layer by itself.
        """
        seen = cache.get_seq_length()
        weights = torch.eye(self.shape.layers, device=self.device) if layer_weights is None else layer_weights
        with (
            attention_recorder.record(start, seen=seen, layers=self.map_layers) as attention,
            mixing(self.model, start=start, seen=seen, layer_weights=weights) as states,
        ):
            yield Recording(attention, states)

    def forget(self) -> None:
        """Free what is kept between commands, apart from images."""
        if self.static:
            self.static.forget()


def prefix_ids(image: EncodedImage, prompt: PromptTokens) -> tuple[int, ...]:
    """Ids of a prompt up to the end of its last image."""
    return prompt.ids[: prompt.image_starts[-1] + len(image.layouts[-1].ids)]
