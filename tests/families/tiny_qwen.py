"""Tiny random Qwen-VL models in the hub's layout: processor, chat template and all; built in a second, no network."""

from pathlib import Path

import torch
from tiny_models import TEXTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

KINDS = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
MORE = ("qwen2_vl", "qwen3_vl_moe")
"""Whose families differ by a line from those."""
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
)
THOUGHT = (
    "{{ '<think>\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
TEMPLATES = {
    "qwen2_5_vl": SYSTEM + TURNS + "{% endif %}",
    "qwen3_vl": TURNS + "{% endif %}",
    "qwen3_5": TURNS + THOUGHT,
    "qwen2_vl": SYSTEM + TURNS + "{% endif %}",
    "qwen3_vl_moe": TURNS + "{% endif %}",
}
"""What the checkpoints' own templates write for one user's turn with images in front."""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet))
    words = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIAL
    )
    words.add_tokens(["<think>", "</think>"])
    return words


TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 32, "initializer_range": 0.3,
}  # fmt: skip
LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 3,
}  # fmt: skip
LAYERS = ["linear_attention", "full_attention", "linear_attention", "full_attention", "linear_attention"]


def _rope(*section, **more):
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **more}


def _model(kind, vocabulary, marks):
    text, vision = {**TEXT, "vocab_size": vocabulary}, VISION
    if kind == "qwen2_5_vl":
        text = {**text, "num_hidden_layers": 3, "rope_parameters": _rope(2, 1, 1)}
        vision = {**vision, "depth": 2, "window_size": 24, "fullatt_block_indexes": [1]}
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks))
    if kind == "qwen2_vl":
        text = {**text, "num_hidden_layers": 3, "rope_parameters": _rope(2, 1, 1)}
        vision = {"embed_dim": 24, "hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 4, "patch_size": 4}
        vision["initializer_range"] = 0.3
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **marks))
    text, vision = {**text, "head_dim": 16}, {**vision, "depth": 3, "num_position_embeddings": 36}
    if kind == "qwen3_vl_moe":
        text = {**text, "num_hidden_layers": 3, "rope_parameters": _rope(4, 2, 2), "num_experts": 4}
        text |= {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
        vision = {**vision, "deepstack_visual_indexes": [0, 1]}
        return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision, **marks))
    if kind == "qwen3_vl":
        text = {**text, "num_hidden_layers": 3, "rope_parameters": _rope(4, 2, 2)}
        vision = {**vision, "deepstack_visual_indexes": [0, 1]}
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **marks))
    rope = _rope(2, 1, 1, partial_rotary_factor=0.5)
    text = {**text, **LINEAR, "num_hidden_layers": 5, "layer_types": LAYERS, "rope_parameters": rope}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **marks))


def save_qwen(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """A model of the kind: 4 query heads on 2 of keys, patches of 4 pixels, 2 x 2 of them merged."""
    torch.manual_seed(seed)
    words = tokenizer()
    names = ("vision_start", "vision_end", "image", "video")
    marks = {f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in zip(names, SPECIAL[3:], strict=True)}
    model = _model(kind, len(words), marks).eval()
    model.save_pretrained(folder)
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessorPil(size=size, patch_size=4, merge_size=2, temporal_patch_size=2)
    processor, videos = Qwen3VLProcessor, Qwen3VLVideoProcessor
    if kind == "qwen2_vl":
        processor, videos = Qwen2VLProcessor, Qwen2VLVideoProcessor
    if kind == "qwen2_5_vl":
        processor, videos = Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
    processor(images, words, videos(), chat_template=TEMPLATES[kind]).save_pretrained(folder)
    return folder
