"""Gemma 3 on tiny random models: 8 x 8 image tokens, one layer in three with full attention, windows smaller than the image."""

import family_checks
import hugging_face_models
import pytest
import torch
from family_checks import ANSWER, QUESTION, REGIONS, SIZES
from tiny_models import random_image
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from flmm_core.families import LmmShape
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import lmm_shape

TEMPLATE = (
    "{{ bos_token }}{%- for message in messages -%}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{{ '<end_of_turn>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"
)
FULL = (2, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    words = hugging_face_models.words(
        "<start_of_turn>", "<end_of_turn>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )  # fmt: skip
    text = Gemma3TextConfig(
        vocab_size=len(words), num_hidden_layers=6, sliding_window_pattern=3, sliding_window=20, head_dim=8,
        query_pre_attn_scalar=8, **hugging_face_models.TEXT,
    )  # fmt: skip
    vision = SiglipVisionConfig(image_size=64, patch_size=4, vision_use_head=False, **hugging_face_models.TOWER)
    begin, end, mark = words.convert_tokens_to_ids(["<start_of_image>", "<end_of_image>", "<image_soft_token>"])
    config = Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=64, boi_token_index=begin, eoi_token_index=end,
        image_token_index=mark,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zeros, if nobody trains it
    processor = Gemma3ImageProcessorPil(size={"height": 64, "width": 64})
    return hugging_face_models.save(tmp_path_factory.mktemp("gemma3"), model, words, processor, TEMPLATE)


@pytest.fixture(scope="module")
def lmm(folder):
    return FrozenLmm.from_pretrained(folder)


def processor_of(lmm):
    return Gemma3Processor(
        lmm.family.image_processor, lmm.words.tokenizer, chat_template=lmm.words.tokenizer.chat_template, image_seq_length=64
    )


def test_only_layers_of_full_attention_give_maps(folder, lmm):
    assert lmm_shape(folder) == LmmShape(6, 4, 32, mapless_layers=4)
    assert lmm.shape.channels == 8
    trace = lmm.teacher_force(lmm.encode_image(random_image()), QUESTION, ANSWER)
    assert tuple(layer.layer for layer in trace.attention.layers) == FULL
    assert trace.states.shape[0] == 6


@pytest.mark.parametrize("name", SIZES)
def test_rows_are_those_of_eager_attention(folder, name):
    family_checks.check_rows(folder, random_image(*SIZES[name]))


def test_answers_that_share_a_pass_are_those_of_each_alone(folder):
    family_checks.check_batches(folder, random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("name", SIZES)
def test_a_region_of_the_image_is_the_same_region_of_the_maps(lmm, name, region):
    family_checks.check_position_truth(lmm, random_image(*SIZES[name]), region)


def one_prefix(lmm, image):
    return lmm.decoder.read_prefix(image, lmm.words.prompt_tokens("", image.layouts))


@torch.no_grad()
def test_image_tokens_see_each_other_also_in_the_cached_prefix(lmm):
    """The first cell's state depends on the last cell's features; and the prefix is what the whole sequence computes."""
    image = lmm.encode_image(random_image())
    whole = FrozenLmm(model=lmm.model, tokenizer=lmm.words.tokenizer, family=lmm.family, reuse_prefix=False)
    behind = lmm.teacher_force(image, QUESTION, ANSWER)
    at_once = whole.teacher_force(whole.encode_image(random_image()), QUESTION, ANSWER)
    torch.testing.assert_close(behind.states, at_once.states, atol=1e-4, rtol=1e-4)
    prefix = one_prefix(lmm, image)
    image.features.given.pooler_output[:, -1] += 1
    other = one_prefix(lmm, EncodedImage(image.layouts, image.features))
    first = lmm.words.prompt_tokens("", image.layouts).image_starts[0]
    assert not torch.allclose(prefix.cache.layers[1].keys[:, :, first], other.cache.layers[1].keys[:, :, first])


def test_greedy_answers_are_those_of_the_plain_model(folder):
    images = [random_image(*size, seed=i) for i, size in enumerate(SIZES.values())]
    family_checks.check_greedy(folder, images)


@torch.no_grad()
def test_answers_are_those_of_the_processors_inputs(folder, lmm):
    image = random_image(*SIZES["landscape"])
    processor = processor_of(lmm)
    text = processor.apply_chat_template(hugging_face_models.turn(QUESTION), add_generation_prompt=True)
    theirs = processor(images=[image], text=text, add_special_tokens=False, return_tensors="pt")
    plain = Gemma3ForConditionalGeneration.from_pretrained(folder).eval()
    family_checks.check_own_inputs(lmm, plain, image, QUESTION, theirs)


def test_a_tiny_head_trains(folder):
    family_checks.check_training(folder)


@pytest.mark.parametrize("names", [("landscape",), ("portrait", "square")], ids="-".join)
def test_prompt_and_images_are_the_processors(lmm, names):
    images = [random_image(*SIZES[name], seed=i) for i, name in enumerate(names)]
    processor = processor_of(lmm)
    text = processor.apply_chat_template(hugging_face_models.turn("where is it?", len(images)), add_generation_prompt=True)
    theirs = processor(images=[images], text=text, add_special_tokens=False, return_tensors="pt")
    prepared = lmm.family.prepare(images)
    ids = lmm.words.prompt_tokens("where is it?", prepared.layouts).ids
    assert theirs["input_ids"][0].tolist() == list(ids)
    assert torch.equal(theirs["pixel_values"], prepared.inputs["pixel_values"])
    inputs = lmm.family.model_inputs(lmm.model, torch.tensor([ids]), lmm.family.encode(lmm.model, prepared))
    assert torch.equal(theirs["token_type_ids"], inputs["token_type_ids"])


def test_later_turns_are_those_of_the_chat_template(lmm):
    hugging_face_models.check_turns(lmm, TEMPLATE, kept=("<start_of_turn>assistant\n", "<start_of_turn>model\n"))
