"""InternVL on tiny random models: tiles of 8 x 8 cells, up to six of them, and a thumbnail."""

import json

import family_checks
import hugging_face_models
import pytest
import torch
from family_checks import REGIONS, SIZES
from tiny_models import random_image
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    Qwen2Config,
)

from flmm_core.families import Checkpoint, family_of
from flmm_core.lmm.frozen_lmm import FrozenLmm

TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
ALL_SIZES = {**SIZES, "small": (61, 59), "wide": (64, 300)}
TILES = {"landscape": (2, 3), "portrait": (3, 2), "square": (2, 2), "small": (1, 1), "wide": (1, 5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    words = hugging_face_models.words(
        "<|im_start|>", "<|im_end|>", start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    text = Qwen2Config(vocab_size=len(words), num_hidden_layers=3, **hugging_face_models.TEXT)
    vision = InternVLVisionConfig(image_size=[64, 64], patch_size=[4, 4], **hugging_face_models.TOWER)
    mark = words.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(vision_config=vision, text_config=text, image_token_id=mark, image_seq_length=64)
    processor = GotOcr2ImageProcessorPil(size={"height": 64, "width": 64}, max_patches=6)
    model = InternVLForConditionalGeneration(config)
    return hugging_face_models.save(tmp_path_factory.mktemp("internvl"), model, words, processor, TEMPLATE)


@pytest.fixture(scope="module")
def lmm(folder):
    return FrozenLmm.from_pretrained(folder)


@pytest.mark.parametrize("name", ["landscape", "small"])
def test_rows_are_those_of_eager_attention(folder, name):
    family_checks.check_rows(folder, random_image(*ALL_SIZES[name]))


def test_answers_that_share_a_pass_are_those_of_each_alone(folder):
    family_checks.check_batches(folder, random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("name", ["landscape", "portrait", "square", "small"])
def test_a_region_of_the_image_is_the_same_region_of_the_maps(lmm, name, region):
    """Fine maps to the cell; coarse ones to the thumbnail's cells."""
    image = random_image(*ALL_SIZES[name])
    half = lmm.shape.channels // 2
    family_checks.check_position_truth(lmm, image, region, channels=slice(half, None))
    family_checks.check_position_truth(lmm, image, region, channels=slice(half), reach=max(image.size) / 8 + 8)


def test_coarse_and_fine_maps_hold_all_attention_to_the_image(lmm):
    trace = lmm.teacher_force(lmm.encode_image(random_image(*SIZES["landscape"])), family_checks.QUESTION, family_checks.ANSWER)
    rows = trace.attention.mean_rows([(0, 2)], trace.image_columns())
    maps = trace.merged_attention([(0, 2)])
    torch.testing.assert_close(maps.unflatten(1, (2, -1)).sum(dim=(1, 3, 4)).flatten(), rows.sum(dim=-1).flatten())


def test_greedy_answers_are_those_of_the_plain_model(folder):
    family_checks.check_greedy(folder, [random_image(*size, seed=i) for i, size in enumerate(SIZES.values())])


def test_a_tiny_head_trains(folder):
    family_checks.check_training(folder)


@pytest.mark.parametrize("names", [("landscape",), ("wide",), ("small",), ("portrait", "small", "square")], ids="-".join)
def test_prompt_and_images_are_the_processors(lmm, names):
    images = [random_image(*ALL_SIZES[name], seed=i) for i, name in enumerate(names)]
    words = lmm.words.tokenizer
    processor = InternVLProcessor(
        lmm.family.image_processor, words, InternVLVideoProcessor(), image_seq_length=64, chat_template=TEMPLATE
    )
    text = processor.apply_chat_template(hugging_face_models.turn("where is it?", len(images)), add_generation_prompt=True)
    theirs = processor(images=images, text=text, return_tensors="pt")
    prepared = lmm.family.prepare(images)
    assert theirs["input_ids"][0].tolist() == list(lmm.words.prompt_tokens("where is it?", prepared.layouts).ids)
    assert torch.equal(theirs["pixel_values"], prepared.inputs["pixel_values"])
    assert [(one.rows, one.columns) for one in prepared.layouts] == [TILES[name] for name in names]


def test_other_layouts_and_decoders_are_refused(tmp_path):
    for config, words in (
        ({"model_type": "internvl_chat"}, r"expected the layout of transformers \(its name ends in -hf or -HF\)"),
        ({"model_type": "internvl", "text_config": {"model_type": "gpt_oss"}}, "plain softmax attention, got gpt_oss"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=words):
            family_of(Checkpoint(tmp_path))


def test_later_turns_are_those_of_the_chat_template(lmm):
    hugging_face_models.check_turns(lmm, TEMPLATE)
