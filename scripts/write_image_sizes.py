"""Writes the table of image sizes into docs/real_models.md: tokens, maps and memory of VGA, full HD and 12 megapixels.

Each family runs its own preprocessing on images of these sizes, without a model. The settings of its image processor and the
sizes of its decoder are those of the checkpoint in the same document; ``FROM`` says where they are known from.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Glm4vImageProcessorPil,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessorPil,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PixtralImageProcessorPil,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
)

from flmm_core.families import FAMILIES, LmmFamily
from flmm_core.families.base import ModelOutline
from flmm_core.families.deepseek_vl import Pixels
from flmm_core.families.processed import ProcessedFamily
from flmm_core.loading.image_sizes import FULL_HD, TWELVE_MEGAPIXELS, VGA, ImageCost, Size, image_cost, large_images

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "real_models.md"
SIZES: Mapping[str, Size] = {"VGA": VGA, "Full HD": FULL_HD, "12 megapixels": TWELVE_MEGAPIXELS}
BEGIN, END = "<!-- image sizes -->\n", "<!-- end of image sizes -->"

FROM = {
    "grid": "one grid, whose size is in the table above",
    "class": "defaults of transformers' config class",
    "page": "`preprocessor_config.json` on public pages",
    "sister": "`preprocessor_config.json` of a sister checkpoint on public pages",
    "processor": "defaults of transformers' processor class and config class",
    "unchecked": "not compared with the checkpoint's `preprocessor_config.json`",
}


class _Words:
    """A tokenizer with one token for each mark and each run of line breaks."""

    start_image_token, end_image_token, bos_token = "<img>", "</img>", "<s>"

    def convert_ids_to_tokens(self, token: int) -> str:
        return "<image>"

    def convert_tokens_to_ids(self, token: str) -> int:
        return 7

    def __call__(self, text: str, add_special_tokens: bool = False) -> Any:
        return SimpleNamespace(input_ids=[7 if mark == "<image>" else 1 for mark in re.findall(r"<[^>]*>|\n+", text)])


@dataclass(frozen=True)
class Known:
    """What is known of a family's checkpoint."""

    known_from: str
    """Key of :data:`FROM`."""
    decoder: tuple[int, int, int, int]
    """Layers, query heads, key/value heads, head size."""
    vision: Mapping[str, Any]
    """Of the config of the vision tower."""
    processor: Any
    config: Any = None
    """Other entries of the config: a config of transformers, or a dictionary."""
    parts: Any = None
    """Other arguments of the family."""
    layer_types: tuple[str, ...] = ()

    def family(self, kind: type[LmmFamily], image_tokens: int = 0) -> LmmFamily:
        """The family without a model."""
        entries = vars(self.config) if hasattr(self.config, "model_type") else self.config or {}
        marks = dict.fromkeys(("image_token_id", "boi_token_id", "eoi_token_id"), 7)
        config = SimpleNamespace(**{**entries, **marks, "vision_config": SimpleNamespace(**self.vision)})
        given: dict[str, Any]
        given = {"pixels": self.parts} if isinstance(self.parts, Pixels) else {"image_processor": copy.copy(self.processor)}
        given |= self.parts if isinstance(self.parts, dict) else {}
        make: Any = kind
        if issubclass(kind, ProcessedFamily):
            config.get_text_config = lambda: self.text
            files: Any = SimpleNamespace(chat_template=_TEMPLATE, source="", config={})
            given = {"processor": copy.deepcopy(self.processor), "checkpoint": files}
        else:
            given["tokenizer"] = _Words()
        made: LmmFamily = make(model=ModelOutline(config, ()), **given)
        if image_tokens:
            made.limit_image_tokens(image_tokens)
        return made

    @property
    def text(self) -> Any:
        """Config of the decoder, as far as sizes need it."""
        layers, heads, key_heads, size = self.decoder
        found = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": key_heads, "head_dim": size}
        return SimpleNamespace(**found, hidden_size=heads * size, layer_types=list(self.layer_types))


_TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{{ '[IMG]' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{% endfor %}"
)


def _tokens() -> Any:
    """A tokenizer of few words; its seventh token is the image's."""
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({f"{i}": i for i in range(7)}, unk_token="0")), unk_token="0", image_token="[IMG]"
    )
    words.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "<|video|>"]})
    return words


_CLIP = CLIPImageProcessorPil()
_HALF = ((0.5,) * 3, (0.5,) * 3)
_SMALL = Pixels((127,) * 3, {"pixel_values": _HALF})
_BOTH = Pixels((127,) * 3, {"pixel_values": _HALF, "high_res_pixel_values": _HALF})
_7B, _MISTRAL = (32, 32, 32, 128), (32, 32, 8, 128)
_336 = {"image_size": 336, "patch_size": 14}
_LLAVA = {"vision_feature_select_strategy": "default"}
_NEXT = {**_LLAVA, "image_grid_pinpoints": LlavaNextConfig().image_grid_pinpoints}
_ONEVISION = LlavaOnevisionConfig()
_ANYRES = {
    name: getattr(_ONEVISION, name)
    for name in ("image_grid_pinpoints", "vision_aspect_ratio", "vision_feature_select_strategy")
}
_QWEN3 = Qwen2VLImageProcessorPil(size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16)
_QWEN2 = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056})
_TILES = {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}}
_LINEAR = ("linear_attention",) * 3 + ("full_attention",)
_SLIDING = ("sliding_attention",) * 5 + ("full_attention",)

CHECKPOINTS: Mapping[str, Known] = {
    "llava": Known("grid", _7B, _336, _CLIP, _LLAVA),
    "llava_next_vicuna": Known("class", _7B, _336, _CLIP, _NEXT),
    "llava_next_mistral": Known("class", _MISTRAL, _336, _CLIP, _NEXT),
    "deepseek_vl": Known("grid", (24, 16, 16, 128), {"image_size": 384, "patch_size": 16}, None, None, _SMALL),
    "deepseek_vl_hybrid": Known(
        "grid", (30, 32, 32, 128), {"image_size": 384, "patch_size": 16}, None,
        {"high_res_vision_config": SimpleNamespace(image_size=1024)}, _BOTH,
    ),
    "mgm": Known("grid", _7B, _336, _CLIP, None, {"config": {"image_size_aux": 768}}),
    "mgm_gemma": Known("grid", (18, 8, 1, 256), _336, _CLIP, None, {"config": {"image_size_aux": 768}}),
    "mgm_hd": Known("grid", _7B, _336, _CLIP, None, {"config": {"image_size_aux": 1536, "image_grid": 2}}),
    "hpt_air": Known("grid", (32, 32, 4, 128), {"image_size": 392, "patch_size": 14}, _CLIP, _LLAVA, {"instruction": ""}),
    "hpt_air_1_5": Known("grid", _MISTRAL, {"image_size": 448, "patch_size": 14}, _CLIP, _LLAVA, {"instruction": ""}),
    "llava_onevision": Known(
        "class", (24, 14, 2, 64), {"image_size": 384, "patch_size": 14}, _CLIP, _ANYRES
    ),
    "qwen2_vl": Known("sister", (28, 12, 2, 128), {"spatial_merge_size": 2}, _QWEN2, None, {"template": ""}),
    "qwen2_5_vl": Known("page", (36, 16, 2, 128), {"spatial_merge_size": 2}, _QWEN2, None, {"template": ""}),
    "qwen3_vl": Known("page", (28, 16, 8, 128), {"spatial_merge_size": 2}, _QWEN3, None, {"template": ""}),
    "qwen3_vl_moe": Known("sister", (48, 32, 4, 128), {"spatial_merge_size": 2}, _QWEN3, None, {"template": ""}),
    "qwen3_5": Known("sister", (32, 16, 4, 256), {"spatial_merge_size": 2}, _QWEN3, None, {"template": ""}, _LINEAR * 8),
    "internvl": Known(
        "processor", (28, 16, 8, 128), {"image_size": (448, 448), "patch_size": (14, 14)},
        GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}), {"downsample_ratio": 0.5},
    ),
    "smolvlm": Known("sister", (24, 32, 32, 64), {"patch_size": 14}, SmolVLMImageProcessorPil(**_TILES), {"scale_factor": 3}),
    "gemma3": Known(
        "grid", (34, 8, 4, 256), {}, Gemma3ImageProcessorPil(size={"height": 896, "width": 896}), {"mm_tokens_per_image": 256},
        None, (_SLIDING * 6)[:34],
    ),
    "paligemma": Known(
        "grid", (26, 8, 4, 256), {"image_size": 448, "patch_size": 14},
        SiglipImageProcessorPil(size={"height": 448, "width": 448}),
    ),
    "glm4v": Known(
        "processor", (40, 32, 2, 128), {}, Glm4vProcessor(Glm4vImageProcessorPil(), _tokens(), Glm4vVideoProcessor())
    ),
    "mistral3": Known(
        "unchecked", (40, 32, 8, 128), {},
        PixtralProcessor(PixtralImageProcessorPil(size={"longest_edge": 1540}), _tokens(), patch_size=14, spatial_merge_size=2),
    ),
}  # fmt: skip


def cost(name: str, size: Size) -> ImageCost:
    """What an image takes in a family."""
    known = CHECKPOINTS[name]
    return image_cost(known.family(FAMILIES[name]), known.text, size)


def _row(name: str) -> list[str]:
    """Cells of a family: tokens and grid of the maps for each size, memory for all of them, the limit and its effect."""
    costs = [cost(name, size) for size in SIZES.values()]
    known = CHECKPOINTS[name]
    found = large_images(partial(known.family, FAMILIES[name]))
    return [
        f"`{name}`",
        *(f"{one.tokens:,} ({one.grid_width} x {one.grid_height})" for one in costs),
        " / ".join(f"{one.keys_values / 1e6:,.0f}" for one in costs),
        " / ".join(f"{one.maps / 1e6:,.1f}" for one in costs),
        f"{costs[0].queries / 1e6:.1f}",
        "" if found.most is None else f"{found.most:,}",
        "" if found.most is None else f"{found.limited:,}",
        known.known_from,
    ]


def block() -> str:
    """The table, and where its settings are known from."""
    memory = ("Keys and values, MB", "Maps of a phrase, MB", "Queries, MB")
    header = ["Family", *SIZES, *memory, "`image_tokens`", "Full HD then", "Known from"]
    lines = [header, ["---"] * len(header), *map(_row, FAMILIES)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([table, "", "Known from:", "", *(f"- *{key}*: {text}." for key, text in FROM.items()), ""])


def main() -> None:
    """Rewrite the block."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + "\n" + block() + "\n" + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
