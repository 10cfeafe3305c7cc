"""LLaVA-OneVision on tiny random models: the checks of every family, and the processor's own tokens."""

import copy
import json

import family_checks
import hugging_face_models
import pytest
import torch
from family_checks import REGIONS, SIZES
from tiny_models import random_image, tokenizer
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

from flmm_core.families import Checkpoint, family_of
from flmm_core.families.llava_onevision import LlavaOnevisionFamily
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import lmm_shape

WHOLE_CELLS = {"landscape": (87, 131), "portrait": (131, 87), "square": (131, 131)}
"""Odd sizes whose un-padded cells are the image to a pixel; of others, half a cell may be missing or too much."""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_llava_onevision(folder, most_tiles):
    """3 layers x 4 heads, 8 x 8 cells for each tile of 112 pixels."""
    torch.manual_seed(0)
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>", "<video>", "<|im_start|>", "<|im_end|>"]})
    text = Qwen2Config(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=112, patch_size=14,
        vision_use_head=False,
    )  # fmt: skip
    pinpoints = [[112, 112], [112, 224], [224, 112], [224, 224]]
    image, video = words.convert_tokens_to_ids(["<image>", "<video>"])
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=image, video_token_index=video,
        image_grid_pinpoints=pinpoints, vision_aspect_ratio=f"anyres_max_{most_tiles}",
    )  # fmt: skip
    LlavaOnevisionForConditionalGeneration(config).eval().save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    images = LlavaOnevisionImageProcessorPil(
        size={"height": 112, "width": 112}, image_grid_pinpoints=pinpoints, image_mean=half, image_std=half
    )
    processor = LlavaOnevisionProcessor(
        images, words, LlavaOnevisionVideoProcessor(), num_image_tokens=64, vision_feature_select_strategy="full",
        chat_template=TEMPLATE, vision_aspect_ratio=f"anyres_max_{most_tiles}",
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder, processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """With 9 tiles at most nothing is shrunk here; with 1, four tiles are."""
    return {tiles: save_llava_onevision(tmp_path_factory.mktemp(f"tiles{tiles}"), tiles) for tiles in (9, 1)}


@pytest.fixture(scope="module")
def lmms(saved):
    return {tiles: FrozenLmm.from_pretrained(folder) for tiles, (folder, _) in saved.items()}


@pytest.mark.parametrize("tiles", [9, 1])
def test_rows_are_those_of_eager_attention(saved, tiles):
    family_checks.check_rows(saved[tiles][0], random_image(*SIZES["landscape"]))
    family_checks.check_rows(saved[tiles][0], random_image(*SIZES["square"]))


@pytest.mark.parametrize("tiles", [9, 1])
def test_answers_that_share_a_pass_are_those_of_each_alone(saved, tiles):
    family_checks.check_batches(saved[tiles][0], random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("size", WHOLE_CELLS.values(), ids=WHOLE_CELLS)
def test_a_region_of_the_image_is_the_same_region_of_the_maps(lmms, size, region):
    half = lmms[9].shape.channels // 2
    family_checks.check_position_truth(lmms[9], random_image(*size), region, channels=slice(half, None), reach=5)
    family_checks.check_position_truth(lmms[9], random_image(*size), region, channels=slice(half), reach=2 * max(size) / 8)


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_positions_hold_where_tiles_are_shrunk(lmms, region):
    image = random_image(*WHOLE_CELLS["square"])
    geometry = lmms[1].family.prepare([image]).layouts[0].geometry
    assert (geometry.grid_height, geometry.grid_width) == (8, 8)
    family_checks.check_position_truth(lmms[1], image, region, channels=slice(12, None), reach=5)


def test_greedy_answers_are_those_of_the_plain_model(saved):
    family_checks.check_greedy(saved[9][0], [random_image(*SIZES["landscape"])])
    family_checks.check_greedy(saved[1][0], [random_image(*SIZES["portrait"])])


def test_a_tiny_head_trains(saved):
    assert lmm_shape(saved[9][0]).channels == 24
    family_checks.check_training(saved[9][0])


@pytest.mark.parametrize("tiles", [9, 1])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_tokens_and_pixels_are_the_processors(saved, lmms, tiles, size):
    processor, lmm = saved[tiles][1], lmms[tiles]
    family_checks.check_tiled_processor(lmm, processor, random_image(*size))


@pytest.mark.parametrize("tiles", [9, 1])
@torch.no_grad()
def test_features_of_two_images_are_those_of_the_model(lmms, tiles):
    lmm = lmms[tiles]
    prepared = lmm.family.prepare([random_image(*SIZES["portrait"]), random_image(*SIZES["square"])])
    own = lmm.model.get_image_features(**prepared.inputs, return_dict=True).pooler_output
    for layout, expected, got in zip(
        prepared.layouts, own, lmm.family.encode(lmm.model, prepared).given.pooler_output, strict=True
    ):
        assert len(layout.ids) == len(got)
        torch.testing.assert_close(got, expected)


def test_unpadded_sizes_are_rounded_as_the_model_does(lmms):
    """637 * (8 / 392) is 12.999..., which transformers takes for 13."""
    family = copy.copy(lmms[9].family)
    family.pinpoints = [[112, 224]]
    layout = family.prepare([random_image(392, 637)]).layouts[0]
    assert (layout.geometry.grid_height, layout.geometry.grid_width) == (8, 14)


def test_the_prompt_decides(saved, tmp_path):
    assert family_of(Checkpoint(saved[9][0])) is LlavaOnevisionFamily
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_onevision", "text_config": {"model_type": "llama"}}))
    with pytest.raises(ValueError, match=r"llava_onevision: expected a decoder of kind 'qwen2'.*, got 'llama'"):
        family_of(Checkpoint(tmp_path))


def test_later_turns_are_those_of_the_chat_template(lmms):
    hugging_face_models.check_turns(lmms[9], TEMPLATE, kept=("assistant \n", "assistant\n"))
