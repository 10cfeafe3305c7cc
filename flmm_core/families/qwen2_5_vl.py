"""Qwen2.5-VL: an image keeps its shape, and its grid of tokens is the grid of patches divided by the merge.

Nobody has published heads for it, so preprocessing and prompt are the checkpoint's own: its image processor, pinned to Pillow
(what the model was trained with; torchvision's resizing differs slightly), and its chat template with the system turn, whether
phrases are read or a question is answered.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, cast

from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flmm_core.families.base import ImageFeatures, LmmFamily, LoadedLmm, ModelOutline, PreparedImages, check_complete
from flmm_core.families.boxes import JSON_PIXELS
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.layouts import GridLayout
from flmm_core.families.load_options import LoadOptions
from flmm_core.types import ImageGeometry

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
USER = "<|im_start|>user\n" + IMAGE + "{text}<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant\n"


class Qwen25VlFamily(LmmFamily):
    """Qwen2.5-VL, and the base of the other Qwen-VL models."""

    model_type = "qwen2_5_vl"
    boxes = JSON_PIXELS
    prompt_marks = (USER + ASSISTANT,)
    answer_separator = ""
    turn_end = "<|im_end|>\n"
    plain_template: ClassVar[str] = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + USER + ASSISTANT
    """For checkpoints without a chat template."""

    def __init__(
        self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any, template: str
    ) -> None:
        config: Any = model.config
        self.image_token_id = int(config.image_token_id)
        self.image_token = str(tokenizer.convert_ids_to_tokens(self.image_token_id))
        self.merge = int(config.vision_config.spatial_merge_size)
        self.image_processor = image_processor
        self.template = template or self.plain_template

    @classmethod
    def load(cls, checkpoint: Checkpoint, how: LoadOptions) -> LoadedLmm:
        """Load model, tokenizer and image processor."""
        source = checkpoint.source
        loaded: Any = AutoModelForImageTextToText.from_pretrained(source, **how.given, output_loading_info=True)
        model, report = loaded
        check_complete(report)
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        family = cls(model=model, tokenizer=tokenizer, image_processor=processor, template=checkpoint.prompt)
        return LoadedLmm(model=model, tokenizer=tokenizer, family=family)

    @classmethod
    def unloaded(cls, checkpoint: Checkpoint, weights: Collection[str]) -> LmmFamily:
        """The family without a model; the template is the checkpoint's."""
        return cls(
            model=cast(PreTrainedModel, ModelOutline(AutoConfig.from_pretrained(checkpoint.source), weights)),
            tokenizer=AutoTokenizer.from_pretrained(checkpoint.source),
            image_processor=AutoImageProcessor.from_pretrained(checkpoint.source, backend="pil"),
            template=checkpoint.prompt,
        )

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text in the checkpoint's chat format, behind the images."""
        return self.template.replace(IMAGE, IMAGE * images).replace("{text}", text)

    def later_prompt(self, text: str) -> str:
        """The user's text without system turn and image."""
        prompt = self.prompt(text, images=0)
        return prompt[prompt.index(USER.split(IMAGE)[0]) :]

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Each image at its own size, rounded to whole tokens; nothing is padded or cropped."""
        inputs = self.image_processor(images=list(images), return_tensors="pt")
        grids = inputs["image_grid_thw"].tolist()
        layouts = tuple(self._layout(image, height, width) for image, (_, height, width) in zip(images, grids, strict=True))
        return PreparedImages({name: inputs[name] for name in ("pixel_values", "image_grid_thw")}, layouts)

    def _layout(self, image: Image.Image, height: int, width: int) -> GridLayout:
        """Layout of an image of ``height x width`` patches."""
        patch = int(self.image_processor.patch_size)
        geometry = ImageGeometry(
            image_height=image.height,
            image_width=image.width,
            padded_height=height * patch,
            padded_width=width * patch,
            offset_y=0,
            offset_x=0,
            inner_height=height * patch,
            inner_width=width * patch,
            grid_height=height // self.merge,
            grid_width=width // self.merge,
        )
        return GridLayout(geometry, self.image_token_id)

    def set_most_tokens(self, most: int) -> int:
        """By the processor's most pixels. Its fewest are at most a quarter of them: where it enlarges, it rounds sides up."""
        own = self.image_processor
        unit = (int(own.patch_size) * self.merge) ** 2
        longest = min(int(own.size["longest_edge"]), most * unit)
        own.size = {"shortest_edge": min(int(own.size["shortest_edge"]), longest // 4), "longest_edge": longest}
        return longest // unit

    def encode(self, model: PreTrainedModel, prepared: PreparedImages) -> ImageFeatures:
        """Run vision tower and merger; the model is given their output and the grids, from which rotary positions follow."""
        grids = prepared.inputs["image_grid_thw"].to(model.device)
        pixels = prepared.inputs["pixel_values"].to(device=model.device, dtype=model.dtype)
        tower: Any = model
        output = tower.get_image_features(pixel_values=pixels, image_grid_thw=grids, return_dict=True)
        return ImageFeatures(views=tuple(output.pooler_output), given=(output, grids))

    def model_inputs(self, model: PreTrainedModel, ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """Features, grids, and which tokens are an image's (1; words 0)."""
        output, grids = features.given
        kinds = (ids == self.image_token_id).int()
        return {"input_ids": ids, "mm_encoder_outputs": {"image": output}, "image_grid_thw": grids, "mm_token_type_ids": kinds}

    def model_state(self, model: PreTrainedModel) -> Tensor:
        """``rope_deltas``: offset of the words' positions from their columns, as an image takes few positions."""
        return model.model.rope_deltas

    def restore_state(self, model: PreTrainedModel, state: Tensor) -> None:
        """Restore an image's ``rope_deltas``; the model keeps those of the last sequence only."""
        model.model.rope_deltas = state
