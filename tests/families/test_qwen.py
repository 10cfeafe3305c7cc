"""Qwen2.5-VL, Qwen3-VL and Qwen3.5: grids that follow the image, positions that the model keeps, deepstack, linear layers."""

import hugging_face_models
import pytest
import tiny_qwen
import torch
from family_checks import (
    ANSWER,
    QUESTION,
    REGIONS,
    SIZES,
    check_batches,
    check_greedy,
    check_position_truth,
    check_rows,
    check_training,
)
from PIL import Image
from tiny_models import random_image
from tiny_qwen import KINDS, MORE, save_qwen
from transformers import AutoModelForImageTextToText, AutoProcessor

from flmm_core.families import Checkpoint, family_of
from flmm_core.families.qwen2_5_vl import ASSISTANT
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading.checkpoints import lmm_shape


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save_qwen(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def lmm(folder):
    return FrozenLmm.from_pretrained(folder)


def linear(folder):
    return folder.name.startswith("qwen3_5")


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_those_of_eager_attention(folder, size):
    check_rows(folder, random_image(*SIZES[size]))


def test_answers_that_share_a_pass_are_those_of_each_alone(folder):
    check_batches(folder, random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("region", REGIONS)
def test_position_truth(lmm, size, region):
    check_position_truth(lmm, random_image(*SIZES[size]), REGIONS[region])


def test_greedy_text_is_the_plain_models(folder):
    check_greedy(folder, [random_image(*size, seed=i) for i, size in enumerate(SIZES.values())])


@pytest.mark.parametrize("kind", MORE)
def test_kinds_that_differ_by_a_line(kind, tmp_path):
    """One size, one region, one image."""
    image = random_image(*SIZES["landscape"])
    save_qwen(tmp_path, kind)
    check_rows(tmp_path, image)
    check_position_truth(FrozenLmm.from_pretrained(tmp_path), image, REGIONS["middle"])
    check_greedy(tmp_path, [image], tokens=8)


def test_a_head_trains(folder):
    check_training(folder)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
def test_prompt_and_inputs_are_the_processors_own(folder, lmm, size, count):
    """From chat template to greedy ids: what the model's own processor makes of the same images and words."""
    images = [random_image(*SIZES[size], seed=i) for i in range(count)]
    stock = AutoProcessor.from_pretrained(folder)
    pinned = type(stock)(lmm.family.image_processor, stock.tokenizer, stock.video_processor, stock.chat_template)
    content = [{"type": "image"}] * count + [{"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": content}]
    text = pinned.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=False)
    assert text == lmm.family.prompt(QUESTION, count)
    expected = pinned(text=text, images=images, return_tensors="pt")
    encoded = lmm.encode_images(images)
    assert lmm.words.prompt_tokens(QUESTION, encoded.layouts, chat=True).ids == tuple(expected["input_ids"][0].tolist())
    prepared = lmm.family.prepare(images)
    for name, value in prepared.inputs.items():
        assert torch.equal(value, expected[name]), name
    patches = [[1, *(2 * side for side in (one.geometry.grid_height, one.geometry.grid_width))] for one in prepared.layouts]
    assert prepared.inputs["image_grid_thw"].tolist() == patches
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    ids = model.generate(**expected, do_sample=False, max_new_tokens=8)[0, expected["input_ids"].shape[1] :].tolist()
    written = lmm.generate(encoded, QUESTION, max_new_tokens=8)
    assert [*written.token_ids, *[2] * written.ended] == ids


def test_positions_belong_to_the_encoded_image(folder, lmm):
    """Answers about images of other shapes, asked in turns, are those of each image alone.

    Linear layers compute in chunks of 64 tokens, and two passes have other chunks than one: the plain model differs as much.
    """
    states, maps = (5e-3, 1e-4) if linear(folder) else (1e-4, 1e-5)
    images = [random_image(*SIZES[size]) for size in ("landscape", "portrait")]
    images.append(random_image(24, 24))
    alone = []
    for image in images:
        one = FrozenLmm.from_pretrained(folder, reuse_prefix=False)
        alone.append(one.teacher_force(one.encode_image(image), QUESTION, ANSWER))
    encoded = [lmm.encode_image(image) for image in images]
    deltas = {int(lmm.decoder.read_prefix(image, lmm.words.prompt_tokens("", image.layouts)).state) for image in encoded}
    assert len(deltas) > 1
    for _ in range(2):
        for image, expected in zip(encoded, alone, strict=True):
            got = lmm.teacher_force(image, QUESTION, ANSWER)
            spans = [(0, len(got.token_ids))]
            torch.testing.assert_close(got.states, expected.states, atol=states, rtol=0)
            torch.testing.assert_close(got.merged_attention(spans), expected.merged_attention(spans), atol=maps, rtol=0)
            lmm.generate(image, QUESTION, max_new_tokens=3)


def test_an_encoded_image_is_left_alone(lmm):
    """Also the states of linear layers, which are written in place."""
    image = lmm.encode_image(random_image())
    first = lmm.generate(image, QUESTION, max_new_tokens=6)
    lmm.teacher_force(image, QUESTION, ANSWER)
    again = lmm.generate(image, QUESTION, max_new_tokens=6)
    assert torch.equal(first.states, again.states)


def test_channels_are_those_of_layers_with_softmax(folder):
    shape = lmm_shape(folder)
    assert (shape.layers, shape.mapless_layers, shape.channels) == ((5, 3, 8) if linear(folder) else (3, 0, 12))


def test_deepstack_features_reach_the_decoder(tmp_path):
    """Hidden states with the tower's middle features differ from those without."""
    lmm = FrozenLmm.from_pretrained(save_qwen(tmp_path, "qwen3_vl"), reuse_prefix=False)
    image = lmm.encode_image(random_image())
    before = lmm.teacher_force(image, QUESTION, ANSWER)
    output, _ = image.features.given
    assert len(output.deepstack_features) == 2
    for features in output.deepstack_features:
        features[0].zero_()
    after = lmm.teacher_force(image, QUESTION, ANSWER)
    assert torch.equal(after.states[0], before.states[0])
    assert (after.states[1] - before.states[1]).abs().max() > 1e-3


def test_the_checkpoints_template_decides(tmp_path, monkeypatch):
    monkeypatch.setitem(tiny_qwen.TEMPLATES, "qwen3_vl", "System: be brief.\n" + tiny_qwen.TEMPLATES["qwen3_vl"])
    lmm = FrozenLmm.from_pretrained(save_qwen(tmp_path, "qwen3_vl"))
    assert lmm.family.prompt("hi").startswith("System: be brief.\n<|im_start|>user\n<|vision_start|>")
    (tmp_path / "chat_template.jinja").unlink()
    bare = FrozenLmm.from_pretrained(tmp_path)
    assert bare.family.prompt("hi").startswith("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>hi<|im_end|>\n")
    (tmp_path / "chat_template.jinja").write_text("USER: <image>{{ messages[0]['content'][1]['text'] }} ASSISTANT:")
    with pytest.raises(ValueError, match=r"qwen3_vl: expected a chat template that writes <\|im_start\|>user"):
        family_of(Checkpoint(tmp_path))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_boxes_are_in_the_units_of_the_kind(kind, tmp_path):
    """Qwen2.5-VL counts pixels of what its processor made of the image, Qwen3-VL thousandths of the image."""
    lmm = FrozenLmm.from_pretrained(save_qwen(tmp_path, kind))
    image = Image.new("RGB", (150, 90))
    geometry = lmm.encode_image(image).layouts[0].geometry
    prepared = lmm.family.image_processor([image], return_tensors="pt")["image_grid_thw"][0].tolist()
    patch = lmm.model.config.vision_config.patch_size
    far = (prepared[2] * patch, prepared[1] * patch) if kind == "qwen2_5_vl" else (1000, 1000)
    ((_, box),) = lmm.family.boxes.parse(f'{{"bbox_2d": [{far[0] // 2}, 0, {far[0]}, {far[1]}]}}', geometry)
    assert box == pytest.approx((75, 0, 150, 90), abs=1.5)


def test_later_turns_are_those_of_the_chat_template(lmm):
    thought = ASSISTANT + "<think>\n\n</think>\n\n" if lmm.family.model_type == "qwen3_5" else ASSISTANT
    hugging_face_models.check_turns(lmm, lmm.words.tokenizer.chat_template, kept=(ASSISTANT, thought))
