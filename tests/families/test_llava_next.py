"""LLaVA-NeXT on tiny random models: the checks of every family, the two prompts, and the processor's own tokens."""

import copy
import json

import family_checks
import pytest
import torch
from family_checks import REGIONS, SIZES
from tiny_models import random_image, tokenizer
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    MistralConfig,
)

from flmm_core.families import Checkpoint, family_of
from flmm_core.families.llava_next import LlavaNextMistralFamily, LlavaNextVicunaFamily
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import lmm_shape

WHOLE_CELLS = {"landscape": (87, 131), "portrait": (131, 87), "square": (131, 131)}
"""Odd sizes whose un-padded cells are the image to a pixel; of others, half a cell may be missing or too much."""

IMAGES = "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
WORDS = "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
TEMPLATES = {
    "vicuna": "{% for message in messages %}USER: " + IMAGES + WORDS + " {% endfor %}ASSISTANT:",
    "mistral": "{% for message in messages %}[INST] " + IMAGES + WORDS + " [/INST]{% endfor %}",
}


def save_llava_next(folder, kind):
    """3 layers x 4 heads, 8 x 8 cells for each tile of 112 pixels."""
    torch.manual_seed(0)
    words = tokenizer()
    decoder = LlamaConfig if kind == "vicuna" else MistralConfig
    text = decoder(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=1024, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=112, patch_size=14,
        projection_dim=16,
    )  # fmt: skip
    pinpoints = [[112, 224], [224, 112], [224, 224]]
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    LlavaNextForConditionalGeneration(config).eval().save_pretrained(folder)
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 112}, crop_size=112, image_grid_pinpoints=pinpoints)
    processor = LlavaNextProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATES[kind],
        num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder, processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return {kind: save_llava_next(tmp_path_factory.mktemp(kind), kind) for kind in TEMPLATES}


@pytest.fixture(scope="module")
def lmm(saved):
    return FrozenLmm.from_pretrained(saved["vicuna"][0])


@pytest.mark.parametrize(
    ("kind", "size"), [("mistral", SIZES["landscape"]), ("vicuna", SIZES["portrait"]), ("mistral", SIZES["square"])], ids=SIZES
)
def test_rows_are_those_of_eager_attention(saved, kind, size):
    family_checks.check_rows(saved[kind][0], random_image(*size))


@pytest.mark.parametrize("kind", ["mistral", "vicuna"])
def test_answers_that_share_a_pass_are_those_of_each_alone(saved, kind):
    family_checks.check_batches(saved[kind][0], random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("size", WHOLE_CELLS.values(), ids=WHOLE_CELLS)
def test_a_region_of_the_image_is_the_same_region_of_the_maps(lmm, size, region):
    half = lmm.shape.channels // 2
    family_checks.check_position_truth(lmm, random_image(*size), region, channels=slice(half, None), reach=5)
    family_checks.check_position_truth(lmm, random_image(*size), region, channels=slice(half), reach=2 * max(size) / 8)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_greedy_answers_are_those_of_the_plain_model(saved, kind):
    family_checks.check_greedy(saved[kind][0], [random_image(*SIZES["landscape"]), random_image(*SIZES["portrait"], seed=1)])


def test_a_tiny_head_trains(saved):
    assert lmm_shape(saved["mistral"][0]).channels == 24
    family_checks.check_training(saved["mistral"][0])


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_tokens_and_pixels_are_the_processors(saved, kind, size):
    folder, processor = saved[kind]
    lmm = FrozenLmm.from_pretrained(folder)
    family_checks.check_tiled_processor(lmm, processor, random_image(*size))


@torch.no_grad()
def test_features_of_two_images_are_those_of_the_model(lmm):
    prepared = lmm.family.prepare([random_image(*SIZES["portrait"]), random_image(*SIZES["square"])])
    own = lmm.model.get_image_features(**prepared.inputs, return_dict=True).pooler_output
    features = lmm.family.encode(lmm.model, prepared)
    for layout, expected, got in zip(prepared.layouts, own, features.given.pooler_output, strict=True):
        assert len(layout.ids) == len(got)
        torch.testing.assert_close(got, expected)
    assert [view.shape for view in features.views] == [(64, 32)] * (3 + 5)


def test_unpadded_sizes_truncate(lmm):
    """637 * (8 / 392) is 12.999...: the published heads saw 12 cells, transformers rounds to 13 and cuts off fewer."""
    family = copy.copy(lmm.family)
    family.pinpoints = [[112, 224]]
    layout = family.prepare([random_image(392, 637)]).layouts[0]
    assert (layout.geometry.grid_height, layout.geometry.grid_width) == (8, 12)


def test_an_image_that_is_too_thin_for_a_cell_is_refused(lmm):
    with pytest.raises(ValueError, match=r"at least one cell of \(16, 8\) each, got 400 x 10 pixels"):
        lmm.encode_image(random_image(400, 10))


@pytest.mark.parametrize(
    ("template", "decoder", "family"),
    [
        (TEMPLATES["vicuna"], "mistral", LlavaNextVicunaFamily),
        (TEMPLATES["mistral"], "llama", LlavaNextMistralFamily),
        (None, "llama", LlavaNextVicunaFamily),
        (None, "mistral", LlavaNextMistralFamily),
    ],
)
def test_the_chat_template_decides_or_else_the_decoder(tmp_path, template, decoder, family):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next", "text_config": {"model_type": decoder}}))
    if template:
        (tmp_path / "chat_template.jinja").write_text(template)
    assert family_of(Checkpoint(tmp_path)) is family


def test_other_prompts_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next"}))
    (tmp_path / "chat_template.jinja").write_text(
        "<|im_start|>user\n<image>\n{{ messages[0]['content'][1]['text'] }}<|im_end|>"
    )
    with pytest.raises(ValueError, match=r"expected a chat template that writes \[INST\] ... \[/INST\], got"):
        family_of(Checkpoint(tmp_path))
