"""LLaVA-NeXT (``LlavaNextForConditionalGeneration``): the whole image, then tiles of it, a newline after each row of cells.

Each head gives a coarse map, of the whole image, and a fine one, of the tiles put together. Preprocessing is the published
heads': un-padded sizes truncate, where transformers rounds them to 7 digits first; and the un-padded cells are treated as
exactly the image, though they may be off by half a cell on each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaNextForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.modeling_outputs import BaseModelOutputWithPooling

from flmm_core.families.base import ImageFeatures, PreparedImages
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.layouts import ImageLayout
from flmm_core.families.llava import LlavaFamily
from flmm_core.types import ImageGeometry


@dataclass(frozen=True)
class AnyresLayout(ImageLayout):
    """The whole image in ``base x base`` cells, then the grid of the tiles with a newline behind each row."""

    geometry: ImageGeometry
    image_token_id: int
    base: int
    tiles: tuple[int, int]
    """Rows and columns of tiles."""
    cut: tuple[int, int]
    """Rows and columns of padding cells that are cut off on either side of the tiles."""

    @property
    def ids(self) -> tuple[int, ...]:
        """One image token for each cell and newline."""
        return (self.image_token_id,) * (self.base**2 + self.geometry.grid_height * (self.geometry.grid_width + 1))

    def maps(self, rows: Tensor) -> Tensor:
        """All coarse maps, enlarged to the fine grid, then all fine ones."""
        layers, heads, phrases, columns = rows.shape
        if columns != len(self.ids):
            raise ValueError(f"image columns: expected {len(self.ids)}, got {columns}")
        height, width = self.geometry.grid_height, self.geometry.grid_width
        every = rows.reshape(layers * heads, phrases, columns).transpose(0, 1)
        coarse = every[..., : self.base**2].unflatten(-1, (self.base, self.base))
        fine = every[..., self.base**2 :].unflatten(-1, (height, width + 1))[..., :width]
        return torch.cat([F.interpolate(coarse, (height, width), mode="bilinear"), fine], dim=1)


class LlavaNextFamily(LlavaFamily):
    """Base of the two published variants of LLaVA-NeXT and of the models derived from them."""

    model_type = "llava_next"
    architecture: ClassVar[Any] = LlavaNextForConditionalGeneration
    maps_per_head = 2
    decoder: str
    """Kind of the decoder, which identifies a checkpoint without a chat template."""

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        super().__init__(model=model, tokenizer=tokenizer, image_processor=image_processor)
        self.config: Any = model.config
        self.pinpoints: list[list[int]] = list(self.config.image_grid_pinpoints)

    @classmethod
    def doubt(cls, checkpoint: Checkpoint) -> str:
        """Judged by the chat template, or by the decoder if there is none."""
        decoder = cls.text_config(checkpoint).model_type
        if checkpoint.chat_template or decoder == cls.decoder:
            return super().doubt(checkpoint)
        return f"expected a decoder of kind {cls.decoder!r} where there is no chat template, got {decoder!r}"

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Stack the views of all images: whole image and tiles."""
        layouts = tuple(self._layout(image.height, image.width) for image in images)
        views = [view for image, layout in zip(images, layouts, strict=True) for view in self._views(image, layout)]
        sizes = torch.tensor([(image.height, image.width) for image in images])
        return PreparedImages({"pixel_values": torch.stack(views), "image_sizes": sizes}, layouts)

    def set_most_tokens(self, most: int) -> int:
        """By the sizes of all tiles together that an image may be given; the model takes them from its config."""
        tokens = {(height, width): self._most_tokens(height, width) for height, width in self.pinpoints}
        kept = [size for size, count in tokens.items() if count <= most] or [min(tokens, key=tokens.__getitem__)]
        self.pinpoints = self.config.image_grid_pinpoints = [list(size) for size in kept]
        return max(tokens[size] for size in kept)

    def _most_tokens(self, height: int, width: int) -> int:
        """Tokens of an image that fills tiles of ``height x width`` pixels together."""
        rows, columns = height // self.frame * self.grid, width // self.frame * self.grid
        return self.grid**2 + rows * (columns + 1)

    def _layout(self, height: int, width: int) -> AnyresLayout:
        best = select_best_resolution((height, width), self.pinpoints)
        tiles = (best[0] // self.frame, best[1] // self.frame)
        cells = (tiles[0] * self.grid, tiles[1] * self.grid)
        cut = self._cut(height, width, cells)
        grid = self._fine_grid(cells[0] - 2 * cut[0], cells[1] - 2 * cut[1])
        if min(grid) < 1:
            raise ValueError(
                f"image: expected sides that cover at least one cell of {cells} each, got {height} x {width} pixels"
            )
        return AnyresLayout(
            geometry=ImageGeometry(height, width, height, width, 0, 0, height, width, *grid),
            image_token_id=self.image_token_id,
            base=self.grid,
            tiles=tiles,
            cut=cut,
        )

    def _cut(self, height: int, width: int, cells: tuple[int, int]) -> tuple[int, int]:
        """Padding cells on either side of the image in the grid of all tiles."""
        if width / height > cells[1] / cells[0]:
            return (cells[0] - self._truncated(height * (cells[1] / width))) // 2, 0
        return 0, (cells[1] - self._truncated(width * (cells[0] / height))) // 2

    def _truncated(self, size: float) -> int:
        """Whole cells of an un-padded size."""
        return int(size)

    def _fine_grid(self, height: int, width: int) -> tuple[int, int]:
        """Fine cells of an image that covers ``height x width`` cells of the tiles."""
        return height, width

    def _views(self, image: Image.Image, layout: AnyresLayout) -> list[Tensor]:
        """The whole image, distorted to the frame, and its tiles, which are padded with black: each ``[3, frame, frame]``."""
        resample = Image.Resampling(self.resample)
        target = (layout.tiles[0] * self.frame, layout.tiles[1] * self.frame)
        height, width = get_patch_output_size(np.asarray(image), target, ChannelDimension.LAST)
        canvas = Image.new("RGB", (target[1], target[0]))
        canvas.paste(image.resize((width, height), resample), ((target[1] - width) // 2, (target[0] - height) // 2))
        views = [image.resize((self.frame, self.frame), resample)]
        for top in range(0, target[0], self.frame):
            views += [canvas.crop((x, top, x + self.frame, top + self.frame)) for x in range(0, target[1], self.frame)]
        return [self._normalised(np.asarray(view)) for view in views]

    def encode(self, model: PreTrainedModel, prepared: PreparedImages) -> ImageFeatures:
        """Run vision tower and projector on every view, join the tiles, cut the padding off and add newlines."""
        parts: Any = model.base_model
        config: Any = model.config
        pixels = prepared.inputs["pixel_values"].to(device=model.device, dtype=model.dtype)
        states = parts.vision_tower(pixels, output_hidden_states=True).hidden_states
        chosen = config.vision_feature_layer
        seen = states[chosen] if isinstance(chosen, int) else torch.cat([states[layer] for layer in chosen], dim=-1)
        skip = 1 if config.vision_feature_select_strategy == "default" else 0
        views = parts.multi_modal_projector(seen[:, skip:])
        packed: Any = []  # transformers declares one tensor, and takes one for each image
        done = 0
        for layout in prepared.layouts:
            assert isinstance(layout, AnyresLayout)
            count = 1 + layout.tiles[0] * layout.tiles[1]
            fine = self._fine(views[done + 1 : done + count], layout)
            newline = parts.image_newline.to(fine).expand(len(fine), 1, -1)
            packed.append(torch.cat([views[done], torch.cat([fine, newline], dim=1).flatten(0, 1)]))
            done += count
        return ImageFeatures(views=tuple(views), given=BaseModelOutputWithPooling(pooler_output=packed))

    def _fine(self, tiles: Tensor, layout: AnyresLayout) -> Tensor:
        """Features ``[tiles, cells, d]`` of tiles as one grid ``[h, w, d]`` without its padding."""
        grid = tiles.unflatten(1, (self.grid, self.grid)).unflatten(0, layout.tiles)
        grid = grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        (top, left), (height, width) = layout.cut, grid.shape[:2]
        return grid[top : height - top, left : width - left]


class LlavaNextVicunaFamily(LlavaNextFamily):
    """LLaVA-NeXT with the prompt of Vicuna."""

    decoder = "llama"


class LlavaNextMistralFamily(LlavaNextFamily):
    """LLaVA-NeXT with the prompt of Mistral."""

    decoder = "mistral"
    prompt_marks = ("[INST]", "[/INST]")
    template = "[INST] {image}{text} [/INST]"
