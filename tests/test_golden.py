"""Agreement with reference data that the published method computed on tiny models, through the ordinary loaders.

The data lie outside the repository: in ``$FLMM_GOLDEN``, or in ``../shared/golden`` next to it.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flmm_core.checkpoints import load_sam
from flmm_core.mask_head import UNetConfig, UNetHead
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam_refiner import RefinerConfig, SamRefiner

GOLDEN = Path(os.environ.get("FLMM_GOLDEN") or Path(__file__).resolve().parents[2] / "shared" / "golden")
TOLERANCE = 5e-5
"""Largest difference allowed; the reference itself varies by 1e-5 with the number of threads."""

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no reference data at {GOLDEN}; set FLMM_GOLDEN")


def assert_near(got, expected, tolerance=TOLERANCE):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance


def rgb(path):
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize("index", [0, 1])
def test_mask_head(index):
    folder = GOLDEN / "unet_base64"
    head = UNetHead(UNetConfig(in_channels=24)).eval()
    head.load_state_dict(torch.load(folder / "unet_head.pth", weights_only=True))
    maps = torch.from_numpy(np.load(folder / "inputs.npz")[f"attn_{index}"])
    with torch.no_grad():
        assert_near(head(maps), np.load(folder / "outputs.npz")[f"logits_{index}"][:, 0])


@pytest.fixture(scope="module")
def sam():
    return load_sam(GOLDEN / "sam_tiny.pth")


@pytest.mark.parametrize("name", ["landscape", "portrait"])
@torch.no_grad()
def test_sam_refiner(sam, name):
    folder = GOLDEN / "sam_refiner"
    inputs, outputs = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    refiner = SamRefiner(sam=sam)
    image = refiner.encode_image(np.asarray(rgb(folder / f"{name}.png")))
    assert [image.input_height, image.input_width] == outputs[f"{name}_sam_input_size"].tolist()
    assert_near(image.embedding[0, ::8], outputs[f"{name}_image_embedding_every8th_channel"])
    coarse = torch.from_numpy(inputs[f"{name}_coarse"])
    texts = [torch.from_numpy(inputs[f"{name}_text{i}"]) for i in range(3)]
    prompts = refiner.prompts(image, coarse, texts)
    assert_near(prompts.boxes, outputs[f"{name}_boxes"][:, 0])
    assert_near(prompts.masks[:, 0], outputs[f"{name}_prompt_masks"])
    refined = refiner(image, coarse, texts)
    assert_near(refined.low_res, outputs[f"{name}_low_res_masks"])
    assert_near(refined.iou, outputs[f"{name}_iou_predictions"][:, 0])
    assert_near(refiner.to_image(refined.low_res, image), outputs[f"{name}_sam_masks"])
    if name == "portrait":
        for part in ("mask", "box", "text"):
            less = SamRefiner(sam=sam, config=RefinerConfig(**{f"use_{part}": False}))(image, coarse, texts)
            assert_near(less.low_res[:, ::2, ::2], outputs[f"portrait_no_{part}_low_res_masks_every2nd_pixel"])
        many = SamRefiner(sam=sam, config=RefinerConfig(multimask=True))
        full = many.to_image(many(image, coarse, texts).low_res, image)
        assert_near(full[:, ::2, ::2], outputs["portrait_multimask_sam_masks_every2nd_pixel"])
        packed = np.packbits(full.numpy() > 0)
        assert np.array_equal(packed, outputs["portrait_multimask_sam_masks_positive_packbits"])


@pytest.mark.parametrize("reuse_prefix", [True, False], ids=["prefix", "whole"])
@torch.no_grad()
def test_llava(reuse_prefix):
    """Every stage of referring, and the whole of it."""
    folder = GOLDEN / "llava"
    outputs, inputs = np.load(folder / "outputs.npz"), json.loads((folder / "inputs.json").read_text())
    pipeline = GroundingPipeline.from_pretrained(
        folder / "lmm", folder / "flmm_heads.pth", GOLDEN / "sam_tiny.pth", device="cpu", reuse_prefix=reuse_prefix
    )
    assert pipeline.lmm.family.prompt(pipeline.config.refer_prompt) == inputs["instruction"].format(input=inputs["prompt"])
    for sample in inputs["samples"]:
        want = {key.removeprefix(f"{sample['name']}_"): outputs[key] for key in outputs.files if key.startswith(sample["name"])}
        photo = rgb(folder / f"{sample['name']}.png")
        assert_near(pipeline.lmm.family.prepare(photo).pixel_values[0], want["pixel_values"], 1e-6)
        image = pipeline.lmm.encode_image(photo)
        assert_near(image.features.pooler_output[0], want["projected_image_features"][0])
        trace, spans = pipeline.lmm.read_phrases(image, sample["phrases"])
        answer = want["input_ids"][want["labels"] != -100]
        assert list(trace.token_ids) == answer.tolist()
        groups = want["mask_ids"][want["labels"] != -100]
        for i, span in enumerate(spans):
            assert np.flatnonzero(groups == i).tolist() == list(range(span.token_start, span.token_end))
        assert np.array_equal(trace.image_columns, want["image_positions"])
        assert_near(trace.hidden_states, want["hidden_states_last24"][1:, -len(answer) :])
        maps = trace.merged_attention([(span.token_start, span.token_end) for span in spans])
        assert_near(maps, want["mask_attentions"], 5e-6)
        assert_near(pipeline.heads.mask_head(maps), want["mask_head_output"][:, 0])
        coarse = pipeline.coarse_masks(trace, spans)
        assert_near(coarse.logits, want["pred_masks"])
        tokens = pipeline.heads.text_tokens(trace.hidden_states)
        texts = [tokens[span.token_start : span.token_end] for span in spans]
        for i, text in enumerate(texts):
            assert_near(text, want[f"text_embeds_{i}"])
        sam_image = pipeline.heads.sam.encode_image(np.asarray(photo))
        assert_near(pipeline.heads.sam.prompts(sam_image, coarse.logits, texts).boxes, want["boxes"].reshape(-1, 4))
        assert_near(pipeline.heads.sam(sam_image, coarse.logits, texts).iou, want["iou_predictions"][:, 0])
        pipeline.set_image(photo)
        phrases = pipeline.refer(sample["phrases"]).phrases
        assert [phrase.text for phrase in phrases] == sample["phrases"]
        for phrase, logits in zip(phrases, want["sam_pred_masks"], strict=True):
            clear = np.abs(logits) > TOLERANCE  # nearer to the threshold, rounding decides
            assert np.array_equal(phrase.mask[clear], logits[clear] > 0)
