"""Tiny random DeepSeek-VLs, with one tower and with two, in transformers' layout and in the published one."""

import json
import re
from functools import partial

import torch
from safetensors.torch import save_file
from tiny_models import TEXTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    DeepseekVLHybridImageProcessor,
    DeepseekVLHybridProcessor,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SamVisionConfig,
    SiglipVisionConfig,
)

BOS, EOS, IMAGE = "<|begin|>", "<|end|>", "<image_placeholder>"
TEMPLATE = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user"
    " provides, and assist the user with a variety of tasks using natural language.\n\n"
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' }}{% for part in message['content'] %}"
    "{{ '<image_placeholder>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TOWERS = {"siglip_small_patch16": {"width": 48, "layers": 2, "heads": 3, "patch_size": 16, "mlp_ratio": 2}}
TinySam = partial(
    SamVisionConfig, hidden_size=32, output_channels=8, num_hidden_layers=3, num_attention_heads=2, mlp_dim=64,
    window_size=4, global_attn_indexes=[1, 2], num_pos_feats=16, initializer_range=0.2,
)  # fmt: skip
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SMALL, FRAME = 128, 256


def tokenizer():
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=[BOS, EOS], initial_alphabet=alphabet))
    core.add_special_tokens([IMAGE])
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=EOS, extra_special_tokens={"image_token": IMAGE}
    )


def save(folder, *, hybrid, kv_heads=2, seed=0):
    """In transformers' layout: 3 layers x 4 heads, 8 x 8 image tokens. Only the tokenizer knows how an answer ends."""
    torch.manual_seed(seed)
    words = tokenizer()
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    sizes = TOWERS["siglip_small_patch16"]
    vision = SiglipVisionConfig(
        hidden_size=sizes["width"], intermediate_size=sizes["width"] * sizes["mlp_ratio"], num_attention_heads=sizes["heads"],
        num_hidden_layers=sizes["layers"], image_size=SMALL, patch_size=16, hidden_act="gelu", vision_use_head=False,
    )  # fmt: skip
    common = {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": words.convert_tokens_to_ids(IMAGE),
        "tie_word_embeddings": False,
    }
    if hybrid:
        model = DeepseekVLHybridForConditionalGeneration(
            DeepseekVLHybridConfig(high_res_vision_config=TinySam(image_size=FRAME), **common)
        )
        pixels = DeepseekVLHybridImageProcessor(
            image_mean=[0.5] * 3, image_std=[0.5] * 3, high_res_image_mean=CLIP_MEAN, high_res_image_std=CLIP_STD,
            size={"height": SMALL, "width": SMALL}, high_res_size={"height": FRAME, "width": FRAME}, resample=2,
        )  # fmt: skip
        kind = DeepseekVLHybridProcessor
        with torch.no_grad():
            for name, parameter in model.model.named_parameters():
                if name.startswith("high_res") and parameter.abs().max() < 0.01:  # zero in a new model
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            model.model.high_res_vision_alpha.fill_(0.7)
    else:
        model = DeepseekVLForConditionalGeneration(DeepseekVLConfig(**common))
        pixels = DeepseekVLImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": SMALL, "width": SMALL})
        kind = DeepseekVLProcessor
    model.eval().save_pretrained(folder)
    processor = kind(image_processor=pixels, tokenizer=words, chat_template=TEMPLATE, num_image_tokens=(SMALL // 16) ** 2)
    processor.save_pretrained(folder)
    return folder


def publish(model, folder):
    """The same model in the published layout, with what that holds and never uses."""
    hybrid = "Hybrid" in type(model).__name__
    folder.mkdir()
    text = model.config.text_config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    language = {name: getattr(text, name) for name in (*names, "vocab_size", "max_position_embeddings")}
    low = {"model_name": "siglip_small_patch16", "image_size": SMALL, "select_feature": "same", "select_layer": -1}
    high = {"model_name": "sam_b_downsample", "image_size": FRAME, "pixel_mean": CLIP_MEAN, "pixel_std": CLIP_STD}
    both = {"high_res_cfg": high, "low_res_cfg": {**low, "pixel_mean": [0.5] * 3, "pixel_std": [0.5] * 3}}
    config = {
        "model_type": "multi_modality",
        "language_config": {**language, "model_type": "llama", "torch_dtype": "float16"},
        "vision_config": {
            "cls": "HybridVisionTower" if hybrid else "CLIPVisionTower",
            "model_type": "vision",
            "params": both if hybrid else low,
        },
        "aligner_config": {"cls": "MlpProjector", "model_type": "aligner"},
    }
    processor = {
        "image_size": FRAME if hybrid else SMALL,
        "image_mean": CLIP_MEAN if hybrid else [0.5] * 3,
        "image_std": CLIP_STD if hybrid else [0.5] * 3,
        "do_normalize": not hybrid,
    }
    files = {
        "config": config,
        "preprocessor_config": processor,
        "processor_config": {"image_tag": IMAGE, "num_image_tokens": 64, "sft_format": "deepseek"},
    }
    for name, fields in files.items():
        (folder / f"{name}.json").write_text(json.dumps(fields))
    tokenizer().save_pretrained(folder)
    tensors = published_tensors(model, hybrid)
    shards = [dict(list(tensors.items())[i::2]) for i in range(2)]
    index = {"weight_map": {}}
    for i, shard in enumerate(shards):
        save_file({name: value.contiguous() for name, value in shard.items()}, folder / f"model-{i}.safetensors")
        index["weight_map"] |= dict.fromkeys(shard, f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def published_tensors(model, hybrid):
    """Weights by the names of the published code, written down from its modules (timm's ViT, segment-anything's encoder)."""
    low = "vision_model.vision_tower_low.vision_tower" if hybrid else "vision_model.vision_tower"
    high = "vision_model.vision_tower_high.vision_tower"
    rename = {
        "lm_head": "language_model.lm_head",
        "model.language_model": "language_model.model",
        "model.aligner.linear1": "aligner.layers.0",
        "model.aligner.linear2": "aligner.layers.2",
        "model.aligner.proj": "aligner.layers.1",
        "model.aligner.vision_proj": "aligner.low_up_proj",
        "model.aligner.high_res_vision_proj": "aligner.high_up_proj",
        "model.vision_model.embeddings.patch_embedding": f"{low}.patch_embed.proj",
        "model.vision_model.post_layernorm": f"{low}.norm",
        "model.high_res_vision_alpha": f"{high}.hd_alpha_downsamples",
        "model.high_res_vision_model.vision_encoder": high,
        "model.high_res_vision_neck": f"{high}.neck_hd",
        "model.high_res_vision_proj": f"{high}.downsamples",
    }
    state, tensors = model.state_dict(), {}
    for name, value in state.items():
        layer = re.match(r"model\.vision_model\.encoder\.layers\.(\d+)\.(\w+)\.(.+)", name)
        if name.endswith("position_embedding.weight"):
            tensors[f"{low}.pos_embed"] = value[None]
        elif layer and layer[2] == "self_attn":
            if layer[3].startswith("out_proj"):
                tensors[f"{low}.blocks.{layer[1]}.attn.proj.{layer[3].split('.')[1]}"] = value
            elif layer[3].startswith("q_proj"):
                whole = torch.cat([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
                tensors[f"{low}.blocks.{layer[1]}.attn.qkv.{layer[3].split('.')[1]}"] = whole
        elif layer:
            tensors[f"{low}.blocks.{layer[1]}.{layer[2].replace('layer_norm', 'norm')}.{layer[3]}"] = value
        else:
            start = max((old for old in rename if name.startswith(old)), key=len)
            tensors[_sam_name(rename[start] + name[len(start) :], high)] = value
    tensors[f"{low}.attn_pool.latent"] = torch.zeros(1, 1, 48)
    if hybrid:
        tensors |= {f"vision_model.{name}_layer_norm.weight": torch.ones(32) for name in ("high", "low")}
    return tensors


def _sam_name(name, high):
    """Segment-anything numbers the parts of a neck and calls layers blocks."""
    if not name.startswith(high):
        return name
    numbers = {"conv1": "0", "layer_norm1": "1", "conv2": "2", "layer_norm2": "3"}
    if ".neck" in name:
        return re.sub(r"\.(conv\d|layer_norm\d)\.", lambda found: f".{numbers[found[1]]}.", name)
    if ".downsamples" in name:
        return name.replace(".conv1.", ".0.").replace(".conv2.", ".1.")
    name = name.replace("patch_embed.projection", "patch_embed.proj").replace(".layers.", ".blocks.")
    return name.replace(".layer_norm", ".norm")
