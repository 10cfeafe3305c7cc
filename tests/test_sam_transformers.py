"""SAM 2 and HQ-SAM as refiners, on tiny random models: what they compute is what transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import random_image, save_model, tiny_heads
from transformers import (
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    SamHQConfig,
    SamHQModel,
    SamImageProcessor,
)

from flmm_core.engines.networks import NetworkSizes
from flmm_core.errors import LoadError
from flmm_core.heads.grounding_heads import GroundingHeads
from flmm_core.loading.checkpoints import save_heads
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.sam.refiner_config import RefinerConfig

SIDE = 128


def tiny_sam2():
    backbone = {
        "hidden_size": 8, "num_attention_heads": 1, "image_size": [SIDE, SIDE], "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    sizes = [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2]
    vision = {
        "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone}, "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": sizes, "fpn_hidden_size": 32,
    }  # fmt: skip
    prompts = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 8}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


def tiny_sam_hq():
    vision = {
        "hidden_size": 24, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
        "patch_size": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 32, "num_pos_feats": 16,
    }  # fmt: skip
    prompts = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 8}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16, "vit_dim": 24}
    return SamHQModel(SamHQConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


KINDS = {"sam2": tiny_sam2, "sam_hq": tiny_sam_hq}


@pytest.fixture(scope="module", params=KINDS)
def theirs(request):
    torch.manual_seed(0)
    model = KINDS[request.param]().eval()
    for parameter in model.parameters():  # what begins as zero would hide mistakes
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    out = tmp_path_factory.mktemp("sam")
    theirs.save_pretrained(out)
    theirs.mask_decoder.dynamic_multimask_via_stability = False  # the refiner asks for the single mask, whatever it looks like
    return out


@pytest.fixture(scope="module")
def refiner(folder):
    return SamRefiner(sam=load_sam(folder)).eval()


@torch.no_grad()
@pytest.mark.parametrize("given", [("masks", "boxes"), ("masks", "boxes", "points"), ("points",)], ids="+".join)
def test_masks_are_those_of_transformers(theirs, refiner, given):
    """Mask, box and points of two phrases, the second without a positive cell, from pixels to logits over the square input."""
    image = np.asarray(random_image(60, 100))
    seen = refiner.encode_image(image)
    coarse = torch.randn(2, 15, 25)
    coarse[1] = -1.0
    used = RefinerConfig(use_text=False, use_mask="masks" in given, use_box="boxes" in given, points=2 * ("points" in given))
    prompter = SamRefiner(sam=refiner.model, config=used)
    prompts = prompter.prompts(seen, coarse, [torch.zeros(0, refiner.text_size)] * 2)
    ours, iou = prompter.decoder_network(seen.embedding, **{name: getattr(prompts, name) for name in used.prompts})
    pixels, _ = refiner.preprocess(image)
    for i in range(2):  # a batch of theirs is of images
        out = theirs(
            pixel_values=pixels,
            input_boxes=prompts.boxes[i][None, None] if used.use_box else None,
            input_masks=prompts.masks[i][None] if used.use_mask else None,
            input_points=prompts.points[i][None, None] if used.points else None,
            input_labels=prompts.labels[i][None, None].long() if used.points else None,
            multimask_output=False,
        )
        assert torch.allclose(ours[i], out.pred_masks[0, 0], atol=1e-4)
        assert torch.allclose(iou[i], out.iou_scores[0, 0], atol=1e-5)


def test_pixels_are_those_of_the_processor(theirs, refiner):
    image = random_image(60, 100)
    if isinstance(theirs, Sam2Model):
        processor = Sam2ImageProcessor(size={"height": SIDE, "width": SIDE})
    else:
        processor = SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    ours, size = refiner.preprocess(np.asarray(image))
    assert size == ((SIDE, SIDE) if isinstance(theirs, Sam2Model) else (77, SIDE))
    assert (ours[0] - expected).abs().mean() < 0.02, "but for the rounding of resized pixels"


@torch.no_grad()
def test_prompts_may_be_left_out(refiner):
    seen = refiner.encode_image(np.asarray(random_image(60, 100)))
    texts = [torch.randn(3, refiner.text_size), torch.randn(2, refiner.text_size)]
    low_res = refiner(seen, torch.randn(2, 15, 25), texts).low_res
    assert low_res.shape == (2, *refiner.mask_size)
    other = refiner(seen, torch.randn(2, 15, 25), [text + 1 for text in texts]).low_res
    assert not torch.allclose(low_res, other), "words count"
    assert refiner.to_image(low_res, seen).shape == (2, 60, 100)


def test_what_depends_on_the_image_alone_does_not_learn(refiner):
    image = refiner.encode_image(np.asarray(random_image(60, 100)))
    loss = refiner(image, torch.randn(1, 15, 25), [torch.randn(2, refiner.text_size)]).low_res.mean()
    loss.backward()
    learning = {name for name, parameter in refiner.named_parameters() if parameter.requires_grad}
    assert learning and all(".prompt_encoder." in name or ".mask_decoder." in name for name in learning)
    assert not any("conv_s" in name for name in learning)
    assert any(parameter.grad is not None for name, parameter in refiner.named_parameters() if ".mask_decoder." in name)


def test_heads_on_it_are_saved_loaded_and_used(folder, refiner, tmp_path):
    save_model(tmp_path)
    heads = GroundingHeads(config=tiny_heads().config, sam=SamRefiner(sam=load_sam(folder)))
    save_heads(heads, tmp_path / "own_heads")
    pipeline = GroundingPipeline.from_pretrained(
        tmp_path / "lmm", tmp_path / "own_heads", folder, device="cpu", presence_threshold=0.0
    )
    answer = pipeline.refer(pipeline.encode(random_image(48, 64)), ["a mug", "a lemon"])
    assert [phrase.mask.shape for phrase in answer.phrases] == [(48, 64)] * 2
    with pytest.raises(ValueError, match=r"engines: expected a SAM of segment-anything, got Sam(2|Hq)"):
        NetworkSizes.of(heads)


def test_missing_weights_are_refused(theirs, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.startswith("mask_decoder.upscale"))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({key: value for key, value in state.items() if key != name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"expected every weight of sam(2|_hq), but 1 are missing"):
        load_sam(tmp_path)
