"""DeepSeek-VL with one tower and with two on tiny random models: the checks of every family, and both layouts."""

import json

import family_checks
import pytest
import tiny_deepseek_vl as tiny
import torch
from family_checks import QUESTION, REGIONS, SIZES
from tiny_models import random_image
from torch.nn import functional as F
from transformers import AutoProcessor, DeepseekVLHybridForConditionalGeneration

from flmm_core.families import Checkpoint, LmmShape, deepseek_vl_layout, family_of
from flmm_core.families.deepseek_vl import DeepseekVlFamily
from flmm_core.families.deepseek_vl_hybrid import DeepseekVlHybridFamily
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import lmm_shape

SETTINGS = {"siglip_entry": tiny.TOWERS}


@pytest.fixture(scope="module", params=[False, True], ids=["one tower", "two towers"])
def folder(request, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("deepseek_vl"), hybrid=request.param)


@pytest.fixture(scope="module")
def hybrid(folder):
    return "hybrid" in Checkpoint(folder).config["model_type"]


@pytest.fixture(scope="module")
def lmm(folder):
    return FrozenLmm.from_pretrained(folder)


@pytest.fixture
def tiny_sam(monkeypatch):
    monkeypatch.setattr(deepseek_vl_layout, "SamVisionConfig", tiny.TinySam)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_rows_are_those_of_eager_attention(folder, size):
    family_checks.check_rows(folder, random_image(*size))


def test_answers_that_share_a_pass_are_those_of_each_alone(folder):
    family_checks.check_batches(folder, random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_region_of_the_image_is_the_same_region_of_the_maps(folder, hybrid, size, region):
    lmm = FrozenLmm.from_pretrained(folder)
    reach = 0.0
    if hybrid:
        # Two strided convolutions make cells of SAM's patches; without their first taps each keeps to its own patches.
        reach = 20 * max(size) / tiny.FRAME  # enlarging blends neighbouring patches of 16, resizing a few pixels
        for convolution in (lmm.model.model.high_res_vision_proj.conv1, lmm.model.model.high_res_vision_proj.conv2):
            convolution.weight[..., 0, :] = 0
            convolution.weight[..., 0] = 0
    family_checks.check_position_truth(lmm, random_image(*size), region, reach=reach)


def test_greedy_answers_are_those_of_the_plain_model(folder):
    family_checks.check_greedy(folder, [random_image(*size, seed=i) for i, size in enumerate(SIZES.values())])


def test_a_tiny_head_trains(folder):
    family_checks.check_training(folder)


@pytest.mark.parametrize("images", [1, 2])
def test_the_prompt_is_that_of_the_processor(folder, lmm, images):
    processor = AutoProcessor.from_pretrained(folder)
    turn = [{"type": "image"}] * images + [{"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
    shown = [random_image(*size) for size in list(SIZES.values())[:images]]
    expected = processor(text=text, images=shown, return_tensors="pt").input_ids[0].tolist()
    encoded = lmm.encode_images(shown)
    layouts = encoded.layouts
    assert [len(view) for view in encoded.features.views] == [len(layout.ids) for layout in layouts] == [64] * images
    assert list(lmm.words.prompt_tokens(QUESTION, layouts, chat=True).ids) == expected
    plain = list(lmm.words.prompt_tokens(QUESTION, layouts).ids)
    system = lmm.words.tokenizer(lmm.family.system).input_ids
    assert [*system, *plain[1:]] == expected
    assert lmm.words.tokenizer.decode(plain).startswith(f"{tiny.BOS}User: {tiny.IMAGE}")


def test_phrases_are_read_without_spaces_between(lmm):
    """As the published heads were trained."""
    image = lmm.encode_image(random_image(*SIZES["landscape"]))
    trace, spans = lmm.teacher_force_phrases(image, ["red mug", "bowl"])
    prompt = lmm.words.prompt_tokens(lmm.refer_prompt, image.layouts).ids
    whole = lmm.words.tokenizer.decode([*prompt, *trace.token_ids])
    assert whole.endswith(f"{lmm.refer_prompt}\n\nAssistant:red mug.bowl.")
    own = [lmm.words.decode(trace.token_ids[span.token_start : span.token_end]) for span in spans]
    assert own == ["red mug", "bowl"]


def test_pixels_are_the_processors_but_for_sizes_that_truncate(folder, lmm, hybrid):
    processor = AutoProcessor.from_pretrained(folder)
    image = random_image(*SIZES["square"])
    expected, got = processor.image_processor([image], return_tensors="pt"), lmm.family.prepare([image]).inputs
    assert set(got) == set(expected) == ({"pixel_values", "high_res_pixel_values"} if hybrid else {"pixel_values"})
    for name, values in got.items():
        assert (values - expected[name]).abs().max() < 0.04  # both round colours to bytes once more or less, in steps of 1/127
    geometry = lmm.family.prepare([random_image(97, 173)]).layouts[0].geometry
    frame = tiny.FRAME if hybrid else tiny.SMALL
    assert (geometry.padded_height, geometry.padded_width) == (frame, frame)
    assert (geometry.inner_height, geometry.inner_width) == (int(97 * frame / 173), frame)
    assert geometry.inner_height != round(97 * frame / 173)
    assert lmm.family.prepare([random_image(12, 800)]).layouts[0].geometry.inner_height == 14


def test_an_answer_ends_with_the_tokenizers_end(lmm):
    assert lmm.model.config.text_config.eos_token_id == 2  # the config's default, a letter here
    assert lmm.model.generation_config.eos_token_id == lmm.words.tokenizer.eos_token_id == 1


def test_the_published_layout_gives_the_same_model(folder, lmm, hybrid, tiny_sam, tmp_path):
    source = tiny.publish(lmm.model, tmp_path / "published")
    assert family_of(Checkpoint(source)) is (DeepseekVlHybridFamily if hybrid else DeepseekVlFamily)
    assert lmm_shape(source) == lmm_shape(folder) == LmmShape(3, 4, 32)
    published = FrozenLmm.from_pretrained(source, settings=SETTINGS)
    expected = lmm.model.state_dict()
    state = published.model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name
    image = random_image(*SIZES["landscape"])
    for name, values in published.family.prepare([image]).inputs.items():
        torch.testing.assert_close(values, lmm.family.prepare([image]).inputs[name], atol=1e-6, rtol=0)
    traces = [one.generate(one.encode_image(image), QUESTION, max_new_tokens=6) for one in (lmm, published)]
    assert traces[0].token_ids == traces[1].token_ids
    maps = [trace.merged_attention([(0, len(trace.token_ids))]) for trace in traces]
    torch.testing.assert_close(*maps, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="vision tower: expected one of siglip_large_patch16_384, got siglip_small_patch16"):
        FrozenLmm.from_pretrained(source)
    with pytest.raises(ValueError, match=r"settings: expected some of \['siglip_entry'\], got siglip"):
        FrozenLmm.from_pretrained(source, settings={"siglip": {}})


def test_the_smallest_side_is_the_processors(lmm, tiny_sam, tmp_path):
    source = tiny.publish(lmm.model, tmp_path / "published")
    processor = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").write_text(json.dumps({**processor, "min_size": 20}))
    published = FrozenLmm.from_pretrained(source, settings=SETTINGS)
    assert published.family.prepare([random_image(12, 800)]).layouts[0].geometry.inner_height == 20


def test_published_weights_that_are_unknown_are_refused(folder, lmm, tiny_sam, tmp_path, monkeypatch):
    tensors = tiny.published_tensors(lmm.model, hybrid="high_res_cfg" in str(lmm.model.config))
    monkeypatch.setattr(tiny, "published_tensors", lambda *_: {**tensors, "vision_model.more": torch.ones(1)})
    source = tiny.publish(lmm.model, tmp_path / "published")
    with pytest.raises(ValueError, match=r"expected no other weights than the model's, got vision_model\.more"):
        FrozenLmm.from_pretrained(source, settings=SETTINGS)


def test_janus_is_refused(tmp_path):
    config = {"model_type": "multi_modality", "vision_config": {"cls": "CLIPVisionTower"}, "gen_vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="deepseek_vl: expected DeepSeek-VL, got a model that draws images too"):
        family_of(Checkpoint(tmp_path))


@torch.no_grad()
def test_both_towers_make_the_features(tmp_path):
    """Aligner of [SAM's end + alpha x SAM's first global layer, SigLIP]: computed here step by step."""
    lmm = FrozenLmm.from_pretrained(tiny.save(tmp_path, hybrid=True))
    prepared = lmm.family.prepare([random_image(*SIZES["landscape"])])
    model, kept = lmm.model.model, []
    hook = model.high_res_vision_model.vision_encoder.layers[1].register_forward_hook(lambda *args: kept.append(args[2]))
    end = model.high_res_vision_model(prepared.inputs["high_res_pixel_values"]).last_hidden_state
    hook.remove()
    middle = model.high_res_vision_neck(kept[0][0] if isinstance(kept[0], tuple) else kept[0])

    def cells(values):
        values = F.interpolate(values, size=(32, 32), mode="bilinear")
        for convolution in (model.high_res_vision_proj.conv1, model.high_res_vision_proj.conv2):
            values = F.conv2d(values, convolution.weight, stride=2, padding=1)
        return values

    fine = (cells(end) + 0.7 * cells(middle)).flatten(2).transpose(1, 2)
    assert (cells(middle).std() / cells(end).std()) > 0.05
    coarse = model.vision_model(prepared.inputs["pixel_values"]).last_hidden_state
    parts = [model.aligner.high_res_vision_proj(fine), model.aligner.vision_proj(coarse)]
    expected = model.aligner.proj(F.gelu(torch.cat(parts, dim=-1)))
    torch.testing.assert_close(lmm.family.encode(lmm.model, prepared).views[0], expected[0], atol=1e-5, rtol=0)


def test_the_published_seven_billion(tmp_path):
    """The hub's config of DeepSeek-VL-7B gives its sizes; no weights are made."""
    siglip = {"model_name": "siglip_large_patch16_384", "image_size": 384, "select_layer": -1}
    sam = {"model_name": "sam_b_downsample", "image_size": 1024, "select_layer": -1}
    config = {
        "model_type": "multi_modality",
        "vision_config": {"cls": "HybridVisionTower", "params": {"high_res_cfg": sam, "low_res_cfg": siglip}},
        "language_config": {
            "model_type": "llama", "num_hidden_layers": 30, "vocab_size": 102400, "max_position_embeddings": 16384
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert lmm_shape(tmp_path).channels == 960
    with torch.device("meta"):
        model = DeepseekVLHybridForConditionalGeneration(
            deepseek_vl_layout.model_config(Checkpoint(tmp_path), tiny.tokenizer())
        )
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes["model.aligner.high_res_vision_proj.weight"] == (2048, 1024)
    assert shapes["model.vision_model.embeddings.position_embedding.weight"] == (576, 1024)
    assert shapes["model.high_res_vision_model.vision_encoder.layers.11.attn.qkv.weight"] == (2304, 768)
    assert "lm_head.weight" in shapes
