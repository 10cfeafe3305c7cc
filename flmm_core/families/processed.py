"""Base of families whose prompt is the checkpoint's chat template and whose image tokens and pixels are its processor's.

Nothing is written down about the model but where its image tokens lie in the image, which subclasses say. Images are resized
with Pillow where the processor can, as in the training of the models; torchvision's processors give slightly different pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from inspect import signature
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flmm_core.common.plain_text import one_line
from flmm_core.errors import LoadError
from flmm_core.families.base import ImageFeatures, LmmFamily, LoadedLmm, ModelOutline, PreparedImages, check_complete
from flmm_core.families.chat_prompts import WORDS, ChatPrompts
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.layouts import ImageLayout
from flmm_core.families.load_options import LoadOptions
from flmm_core.families.view_grid import ViewGrid, ViewsLayout
from flmm_core.images.geometry import stretched_geometry

_EXAMPLE = "what is it?"
_OF_WORDS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor makes of the words, or of words and images together."""
_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Inputs that are 1 for image tokens, else 0."""
_PIXELS = ("pixel_values",)
"""Inputs that only the vision tower takes."""
FULL = ("full_attention", "attention")
"""Names of layers with softmax attention to all positions, as in ``layer_types``."""
_WINDOWS = ("sliding_attention", "chunked_attention")


class ProcessedFamily(LmmFamily):
    """A model of transformers with its own processor and chat template."""

    def __init__(self, *, model: PreTrainedModel, processor: Any, checkpoint: Checkpoint) -> None:
        config: Any = model.config
        self.processor = processor
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        token = next((getattr(config, name, None) for name in ("image_token_id", "image_token_index")), None)
        if token is None:
            raise LoadError(f"LMM {checkpoint.source}: expected the id of the image token (image_token_id), got none")
        self.image_token_id = int(token)
        self.image_token = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        if not checkpoint.chat_template:
            raise LoadError(f"LMM {checkpoint.source}: expected a chat template, got none")
        self.chat = ChatPrompts(self.tokenizer, checkpoint.chat_template, self.image_token)
        self.turn_end, self.answer_separator = self.chat.turn_end, self.chat.answer_separator
        self.linear = bool({*_kinds(config.get_text_config())} - {*FULL, *_WINDOWS})
        self.reads_batches = not self.linear

    @classmethod
    def load(cls, checkpoint: Checkpoint, how: LoadOptions) -> LoadedLmm:
        """Load model and processor."""
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(checkpoint.source, **how.given, output_loading_info=True)
            processor = _processor(checkpoint)
        except ImportError as error:
            raise LoadError(f"LMM {checkpoint.source}: expected the packages that it needs, got {one_line(error)}") from error
        model, report = loaded
        check_complete(report)
        family = cls(model=model, processor=processor, checkpoint=checkpoint)
        return LoadedLmm(model=model, tokenizer=family.tokenizer, family=family)

    @classmethod
    def unloaded(cls, checkpoint: Checkpoint, weights: Collection[str]) -> LmmFamily:
        """The family without a model."""
        outline = cast(PreTrainedModel, ModelOutline(AutoConfig.from_pretrained(checkpoint.source), weights))
        return cls(model=outline, processor=_processor(checkpoint), checkpoint=checkpoint)

    @classmethod
    def map_layers(cls, text: PreTrainedConfig) -> tuple[int, ...]:
        """Layers of full attention; all of them if the config tells no kinds apart."""
        kinds = _kinds(text)
        return tuple(i for i, kind in enumerate(kinds) if kind in FULL) or super().map_layers(text)

    # --- words and images ---

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text in the checkpoint's chat format, behind the images."""
        return self.chat.first(images).replace(WORDS, text)

    def later_prompt(self, text: str) -> str:
        """The user's text as the template writes a later turn."""
        return self.chat.later.replace(WORDS, text)

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """The processor's inputs, and its tokens of each image.

        Raises:
            ValueError: the processor writes other tokens around the images than the template.
        """
        singles = [self.processed([image]) for image in images]
        layouts = tuple(self.layout(image, one) for image, one in zip(images, singles, strict=True))
        together = singles[0] if len(singles) == 1 else self.processed(images)
        if len(singles) > 1:
            self._check_together(together, layouts)
        return PreparedImages(of_images(together), layouts)

    @abstractmethod
    def grid(self, image: Image.Image, tokens: tuple[int, ...], made: Any) -> ViewGrid:
        """Where an image's tokens lie in it.

        Args:
            image: RGB.
            tokens: ids of the image, those between its cells included.
            made: what the processor made of a prompt with this image alone.
        """

    def layout(self, image: Image.Image, made: Any) -> ViewsLayout:
        """The layout of an image; ``made`` as for :meth:`grid`.

        Raises:
            ValueError: the grid has another number of tokens.
        """
        tokens = self._tokens(made)
        grid = self.grid(image, tokens, made)
        if (count := tokens.count(self.image_token_id)) != grid.features:
            raise ValueError(f"image tokens: expected {grid.features} for {grid.cells[0]} x {grid.cells[1]} cells, got {count}")
        geometry = stretched_geometry(image, frame=(image.height, image.width), grid=grid.cells)
        return ViewsLayout(geometry, tokens, self.image_token_id, grid)

    def processed(self, images: Sequence[Image.Image]) -> Any:
        """What the processor makes of a prompt with images, as ``apply_chat_template`` calls it."""
        text = self.chat.rendered(len(images)).replace(WORDS, _EXAMPLE)
        options = {"add_special_tokens": False} if self.chat.whole else {}
        return self.processor(text=[text], images=[list(images)], return_tensors="pt", **options)

    def _tokens(self, made: Any) -> tuple[int, ...]:
        """Ids of an image: what the processor has between the ids before and behind the image's mark."""
        ids, ours = made["input_ids"][0].tolist(), self.tokenizer(self.prompt(_EXAMPLE)).input_ids
        place = ours.index(self.image_token_id)
        end = len(ids) - (len(ours) - place - 1)
        if ids[:place] != ours[:place] or ids[end:] != ours[place + 1 :]:
            raise ValueError(
                f"prompt: expected the processor to write {self.tokenizer.decode(ours)!r:.160} around the image, got"
                f" {self.tokenizer.decode(ids[: place + 1] + ids[end - 1 :])!r:.160}"
            )
        return tuple(ids[place:end])

    def _check_together(self, made: Any, layouts: Sequence[ImageLayout]) -> None:
        """Several images in one prompt must have the tokens that each has alone."""
        expected: list[int] = []
        left = iter(layouts)
        for token in self.tokenizer(self.prompt(_EXAMPLE, len(layouts))).input_ids:
            expected += next(left).ids if token == self.image_token_id else (token,)
        if made["input_ids"][0].tolist() != expected:
            raise ValueError(f"prompt: expected {len(layouts)} images with the tokens that each has alone, got others")

    def encode(self, model: PreTrainedModel, prepared: PreparedImages) -> ImageFeatures:
        """Run vision tower and projector; the model is given their output and the sizes that its positions follow from."""
        core: Any = model.base_model
        takes, also = signature(core.get_image_features).parameters, signature(model.forward).parameters
        inputs = {
            name: value.to(device=model.device, dtype=model.dtype if value.is_floating_point() else None)
            for name, value in prepared.inputs.items()
        }
        output = core.get_image_features(**{name: inputs[name] for name in inputs if name in takes}, return_dict=True)
        beside = {name: value for name, value in inputs.items() if name in also and name not in _PIXELS}
        return ImageFeatures(views=(flat_features(output.pooler_output),), given=(output, beside))

    # --- the decoder ---

    def model_inputs(self, model: PreTrainedModel, ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """Features, sizes, and which tokens are an image's (1; words 0) where the model asks for it."""
        output, beside = features.given
        kinds = (ids == self.image_token_id).long()
        types = {name: kinds for name in _TYPES if name in signature(model.forward).parameters}
        return {"input_ids": ids, "mm_encoder_outputs": {"image": output}, **beside, **types}

    def new_cache(self, model: PreTrainedModel) -> DynamicCache:
        """Keys and values of all positions; where layers are linear, the model's own cache, with a state for each of them."""
        return DynamicCache(config=model.config) if self.linear else DynamicCache()

    def model_state(self, model: PreTrainedModel) -> Any:
        """``rope_deltas`` of models with rotary positions in three axes: offset of the words' positions; else None."""
        return getattr(model.base_model, "rope_deltas", None)

    def restore_state(self, model: PreTrainedModel, state: Any) -> None:
        """Restore an image's ``rope_deltas``; the model keeps those of the last sequence only."""
        if state is not None:
            cast(Any, model.base_model).rope_deltas = state


def flat_features(features: Any) -> Tensor:
    """Features ``[n, d]`` of all image tokens, in the order of the tokens."""
    parts = [features] if isinstance(features, Tensor) else list(features)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _processor(checkpoint: Checkpoint) -> Any:
    """The checkpoint's processor, with its image processor on Pillow."""
    processor = AutoProcessor.from_pretrained(checkpoint.source)
    if not hasattr(processor, "image_processor"):
        got = type(processor).__name__
        raise LoadError(f"LMM {checkpoint.source}: expected a processor of images and words, got {got}")
    processor.image_processor = AutoImageProcessor.from_pretrained(checkpoint.source, backend="pil")
    return processor


def _kinds(text: PreTrainedConfig) -> Sequence[str]:
    """Kinds of the decoder's layers; none if its config does not tell them."""
    return getattr(text, "layer_types", None) or ()


def of_images(made: Any) -> dict[str, Tensor]:
    """What a processor made of the images: the model's inputs by name."""
    inputs = {name: value for name, value in made.items() if name not in _OF_WORDS}
    if others := [name for name, value in inputs.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"processor: expected tensors, got {type(inputs[others[0]]).__name__} as {others[0]}")
    return inputs
