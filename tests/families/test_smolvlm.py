"""SmolVLM and Idefics3 on tiny random models: tiles of 8 x 8 cells with row and column tokens, the whole image last."""

import family_checks
import hugging_face_models
import pytest
import torch
from family_checks import REGIONS, SIZES
from tiny_models import random_image
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from flmm_core.lmm.frozen_lmm import FrozenLmm

TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}"
    "{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
SPLITS = {"landscape": (2, 3), "portrait": (3, 2), "square": (3, 3), "wide": (1, 3)}
KINDS = {
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil, "<|im_start|>"),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, "<|begin_of_text|>"),
}


def save(folder, kind, *, split=True):
    torch.manual_seed(0)
    config_class, model_class, processor_class, start = KINDS[kind]
    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    words = hugging_face_models.words(*special, *ROWS, start=start, begins=kind == "idefics3")
    text = LlamaConfig(vocab_size=len(words), num_hidden_layers=3, **hugging_face_models.TEXT)
    vision = {"image_size": 64, "patch_size": 4, **hugging_face_models.TOWER}
    mark = words.convert_tokens_to_ids("<image>")
    config = config_class(vision_config=vision, text_config=text, image_token_id=mark, scale_factor=2)
    sizes = {"size": {"longest_edge": 192}, "max_image_size": {"longest_edge": 64}}
    template = TEMPLATE.replace("<|im_start|>", start)
    processor = processor_class(**sizes, do_image_splitting=split)
    return hugging_face_models.save(folder, model_class(config), words, processor, template)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("smolvlm"), request.param)


@pytest.fixture(scope="module")
def lmm(folder):
    return FrozenLmm.from_pretrained(folder)


def test_rows_are_those_of_eager_attention(folder):
    family_checks.check_rows(folder, random_image(*SIZES["landscape"]))


def test_answers_that_share_a_pass_are_those_of_each_alone(folder):
    family_checks.check_batches(folder, random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("name", SIZES)
def test_a_region_of_the_image_is_the_same_region_of_the_maps(lmm, name, region):
    """Fine maps to the cell, but for what resizing twice blends; coarse ones to the whole image's cells."""
    image = random_image(*SIZES[name])
    half = lmm.shape.channels // 2
    family_checks.check_position_truth(lmm, image, region, channels=slice(half, None), reach=8)
    family_checks.check_position_truth(lmm, image, region, channels=slice(half), reach=max(image.size) / 8 + 12)


def test_an_image_that_is_not_split_is_one_view(tmp_path):
    lmm = FrozenLmm.from_pretrained(save(tmp_path, "smolvlm", split=False))
    image = random_image(*SIZES["landscape"])
    (layout,) = lmm.family.prepare([image]).layouts
    assert (layout.rows, layout.columns, layout.views, layout.geometry.grid_height) == (1, 1, 1, 8)
    family_checks.check_position_truth(lmm, image, REGIONS["end"], reach=12)


def test_greedy_answers_are_those_of_the_plain_model(folder):
    family_checks.check_greedy(folder, [random_image(*SIZES["landscape"])])


def test_a_tiny_head_trains(folder):
    family_checks.check_training(folder)


@pytest.mark.parametrize("names", [("landscape",), ("wide",), ("portrait", "square")], ids="-".join)
def test_prompt_and_images_are_the_processors(lmm, names):
    """Idefics3's processor serves both: SmolVLM's own wants a package that nothing else here does."""
    sizes = {**SIZES, "wide": (50, 190)}
    images = [random_image(*sizes[name], seed=i) for i, name in enumerate(names)]
    words, family = lmm.words.tokenizer, lmm.family
    processor = Idefics3Processor(family.image_processor, words, image_seq_len=64, chat_template=words.chat_template)
    text = processor.apply_chat_template(hugging_face_models.turn("where is it?", len(images)), add_generation_prompt=True)
    theirs = processor(images=images, text=text, add_special_tokens=False, return_tensors="pt")
    prepared = family.prepare(images)
    assert theirs["input_ids"][0].tolist() == list(lmm.words.prompt_tokens("where is it?", prepared.layouts).ids)
    assert torch.equal(theirs["pixel_values"], prepared.inputs["pixel_values"])
    for name, layout in zip(names, prepared.layouts, strict=True):
        assert (layout.rows, layout.columns) == SPLITS[name]
        string = get_image_prompt_string(*SPLITS[name], 64, "<fake_token_around_image>", "<image>", "<global-img>")
        assert words.decode(list(layout.ids)) == string


def test_later_turns_are_those_of_the_chat_template(lmm):
    hugging_face_models.check_turns(lmm, lmm.words.tokenizer.chat_template)
