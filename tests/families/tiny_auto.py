"""Tiny random models of kinds that have no file of their own, or a small one: in the hub's layout, processor included."""

from pathlib import Path

import torch
from hugging_face_models import TEXT, TOWER, words
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessorPil,
    Gemma4Processor,
    Gemma4TextConfig,
    Gemma4VideoProcessor,
    Gemma4VisionConfig,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessorPil,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessorPil,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessorPil,
    PixtralProcessor,
    PixtralVisionConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)


def _turns(user: str, assistant: str, image: str, end: str, *, start: str = "{{ bos_token }}") -> str:
    """A chat template that writes a mark before each turn, images in their places, and the assistant's mark at the end."""
    return (
        start + "{% for message in messages %}{% if message['role'] == 'user' %}{{ '" + user + "' }}{% else %}{{ '" + assistant
        + "' }}{% endif %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '" + image
        + "' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '" + end + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + assistant + "' }}{% endif %}"
    )  # fmt: skip


def save_glm4v(folder: Path) -> Path:
    """Patches of 4 pixels, 2 x 2 merged; rotary positions in three axes."""
    known = words(
        "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
        image_token="<|image|>", video_token="<|video|>", start="[gMASK]", begins=False,
    )  # fmt: skip
    names = ("image", "video", "image_start", "image_end", "video_start", "video_end")
    marks = ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    ids = {f"{name}_token_id": known.convert_tokens_to_ids(mark) for name, mark in zip(names, marks, strict=True)}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    text = {**TEXT, "vocab_size": len(known), "num_hidden_layers": 3, "rope_parameters": rope}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 4, "patch_size": 4, "out_hidden_size": 32,
        "image_size": 32, "initializer_range": 0.3,
    }  # fmt: skip
    model = Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=vision, **ids))
    images = Glm4vImageProcessorPil(size={"shortest_edge": 16 * 16, "longest_edge": 2 * 64 * 64}, patch_size=4)
    template = _turns("<|user|>\\n", "<|assistant|>\\n", "<|begin_of_image|><|image|><|end_of_image|>", "", start="[gMASK]")
    return _save(folder, model, Glm4vProcessor(images, known, Glm4vVideoProcessor(), chat_template=template))


def save_gemma4(folder: Path) -> Path:
    """Six layers: windows but for the third and the last; the last two share the keys of those before."""
    known = words(
        "<|turn>", "<turn|>", image_token="<|image|>", boi_token="<|image>", eoi_token="<image|>", audio_token="<|audio|>",
        boa_token="<|audio>", eoa_token="<audio|>", start="<bos>",
    )  # fmt: skip
    known.add_special_tokens({"additional_special_tokens": ["<|video|>"]})
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "video_token": "<|video|>"}
    names |= {"audio_token": "<|audio|>", "boa_token": "<|audio>"}
    ids = {f"{name}_id": known.convert_tokens_to_ids(mark) for name, mark in names.items()}
    text = Gemma4TextConfig(
        **TEXT, vocab_size=len(known), vocab_size_per_layer_input=len(known), hidden_size_per_layer_input=8, head_dim=8,
        global_head_dim=16, num_hidden_layers=6, num_kv_shared_layers=2, sliding_window=20,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    vision = Gemma4VisionConfig(**TOWER, num_key_value_heads=4, head_dim=8, patch_size=4, pooling_kernel_size=3)
    config = Gemma4Config(
        text_config=text, vision_config=vision, eoa_token_index=known.convert_tokens_to_ids("<audio|>"), **ids
    )
    images = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3)
    template = _turns("<|turn>user\\n", "<|turn>model\\n", "\\n\\n<|image|>\\n\\n", "<turn|>\\n")
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(), images, known, Gemma4VideoProcessor(patch_size=4, max_soft_tokens=70),
        chat_template=template, image_seq_length=70,
    )  # fmt: skip
    return _save(folder, Gemma4ForConditionalGeneration(config), processor)


def save_aya_vision(folder: Path) -> Path:
    """Tiles of 4 x 4 cells, up to four of them, then the whole image; the template's mark is no token."""
    known = words(
        "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_OF_IMG|>",
        "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL", start="<BOS>",
    )  # fmt: skip
    text = Cohere2Config(**TEXT, vocab_size=len(known), num_hidden_layers=4, sliding_window=24)
    vision = SiglipVisionConfig(image_size=32, patch_size=4, vision_use_head=False, **TOWER)
    config = AyaVisionConfig(
        vision_config=vision, text_config=text, downsample_factor=2, adapter_layer_norm_eps=1e-6,
        image_token_index=known.convert_tokens_to_ids("<|IMG_PATCH|>"), alignment_intermediate_size=64,
    )  # fmt: skip
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=4, crop_to_patches=True)
    mark, end = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
    template = _turns(f"{mark}<|USER_TOKEN|>", f"{mark}<|CHATBOT_TOKEN|>", "<image>", end)
    processor = AyaVisionProcessor(images, known, patch_size=4, img_size=32, downsample_factor=2, chat_template=template)
    return _save(folder, AyaVisionForConditionalGeneration(config), processor)


def save_mistral3(folder: Path) -> Path:
    """Cells of 8 pixels at the image's own shape, a break token behind each row."""
    known = words("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    text = MistralConfig(**TEXT, vocab_size=len(known), num_hidden_layers=3, head_dim=8, sliding_window=None)
    vision = PixtralVisionConfig(**TOWER, image_size=64, patch_size=4)
    config = Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=known.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2
    )
    images = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 4, "width": 4})
    processor = PixtralProcessor(
        images, known, patch_size=4, spatial_merge_size=2, chat_template=_turns("[INST]", "[/INST]", "[IMG]", "")
    )
    return _save(folder, Mistral3ForConditionalGeneration(config), processor)


def save_lfm2_vl(folder: Path) -> Path:
    """Convolutions but for two layers; tiles of 4 x 4 cells and a thumbnail, with marks between them."""
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    known = words(
        "<|im_start|>", "<|im_end|>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *tiles, image_token="<image>",
        start="<|startoftext|>",
    )  # fmt: skip
    text = Lfm2Config(
        **TEXT, vocab_size=len(known), num_hidden_layers=5, conv_L_cache=3, block_auto_adjust_ff_dim=False,
        layer_types=["conv", "conv", "full_attention", "conv", "full_attention"],
    )  # fmt: skip
    tower = {name: value for name, value in TOWER.items() if name != "initializer_range"}
    vision = Siglip2VisionConfig(**tower, patch_size=4, num_patches=64, vision_use_head=False)
    config = Lfm2VlConfig(
        text_config=text, vision_config=vision, image_token_id=known.convert_tokens_to_ids("<image>"), downsample_factor=2,
        projector_hidden_size=48,
    )  # fmt: skip
    images = Lfm2VlImageProcessor(
        encoder_patch_size=4, downsample_factor=2, tile_size=32, min_image_tokens=4, max_image_tokens=16, max_tiles=4,
        size={"height": 32, "width": 32},
    )  # fmt: skip
    template = _turns("<|im_start|>user\\n", "<|im_start|>assistant\\n", "<image>", "<|im_end|>\\n")
    return _save(folder, Lfm2VlForConditionalGeneration(config), Lfm2VlProcessor(images, known, chat_template=template))


def _save(folder: Path, model, processor) -> Path:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


SAVE = {
    "glm4v": save_glm4v,
    "gemma4": save_gemma4,
    "aya_vision": save_aya_vision,
    "mistral3": save_mistral3,
    "lfm2_vl": save_lfm2_vl,
}
"""Writers by kind."""


def save(folder: Path, kind: str) -> Path:
    """A checkpoint of a kind, the same each time."""
    torch.manual_seed(0)
    return SAVE[kind](folder)
