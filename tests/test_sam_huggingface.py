"""SAM in the layout of transformers' `SamModel`: the same embeddings and masks as `SamModel` itself."""

import json

import pytest
import torch
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from flmm_core.errors import LoadError
from flmm_core.sam.checkpoints import load_sam
from flmm_core.weights.fingerprints import sam_fingerprint


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory):
    """A tiny random SamModel, and the folder it is saved in; windows that do not divide the grid, one global layer."""
    torch.manual_seed(0)
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=24, output_channels=64, num_hidden_layers=3, num_attention_heads=3, image_size=64, patch_size=8,
            window_size=3, global_attn_indexes=[1], num_pos_feats=32, mlp_dim=48,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=64, image_size=64, patch_size=8, mask_input_channels=12),
        mask_decoder_config=SamMaskDecoderConfig(hidden_size=64, mlp_dim=40, num_hidden_layers=2, iou_head_hidden_dim=28),
    )  # fmt: skip
    model = SamModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("sam")
    model.save_pretrained(folder)
    return model, folder


def test_image_embedding_is_that_of_samodel(huggingface):
    model, folder = huggingface
    sam, pixels = load_sam(folder), torch.rand(1, 3, 64, 64)
    assert [block.window_size for block in sam.image_encoder.blocks] == [3, 0, 3] and not sam.training
    with torch.no_grad():
        expected = model.get_image_embeddings(pixels)
        assert (sam.image_encoder(pixels) - expected).abs().max() < 1e-5
        assert expected.std() > 0.1


@pytest.mark.parametrize("multimask", [False, True])
def test_masks_of_box_and_mask_are_those_of_samodel(huggingface, multimask):
    model, folder = huggingface
    sam, embedding = load_sam(folder), torch.randn(1, 64, 8, 8)
    box, mask = torch.tensor([[9.0, 13.0, 40.5, 57.0]]), torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = model(image_embeddings=embedding, input_boxes=box[None], input_masks=mask, multimask_output=multimask)
        sparse, dense = sam.prompt_encoder(points=None, boxes=box, masks=mask)
        logits, iou = sam.mask_decoder(
            image_embeddings=embedding, image_pe=sam.prompt_encoder.get_dense_pe(), sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense, multimask_output=multimask,
        )  # fmt: skip
    assert logits.shape == (1, 3 if multimask else 1, 32, 32) and logits.std() > 0.02
    # Norms of the decoder: 1e-5 in segment-anything, 1e-6 in transformers.
    assert torch.allclose(logits, expected.pred_masks[0], atol=2e-4, rtol=0)
    assert torch.allclose(iou, expected.iou_scores[0], atol=2e-4, rtol=0)


def test_points_and_no_mask_are_mapped_too(huggingface):
    model, folder = huggingface
    encoder, points = load_sam(folder).prompt_encoder, torch.tensor([[[3.0, 50.0], [20.0, 8.0]]])
    with torch.no_grad():
        sparse, dense = encoder(points=(points, torch.tensor([[1, 0]])), boxes=None, masks=None)
        expected = model.prompt_encoder(
            input_points=points[None], input_labels=torch.tensor([[[1, 0]]]), input_boxes=None, input_masks=None
        )
    assert (sparse - expected[0][0]).abs().max() < 1e-5 and (dense - expected[1]).abs().max() == 0


def test_the_fingerprint_is_that_of_the_same_sam_as_pth(huggingface, tmp_path):
    _, folder = huggingface
    sam = load_sam(folder)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    assert sam_fingerprint(folder) == sam_fingerprint(tmp_path / "sam.pth")
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight[0, 0] += 1
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    assert sam_fingerprint(folder) != sam_fingerprint(tmp_path / "sam.pth")


def copy_with(folder, to, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (to / "config.json").write_text(json.dumps(config))
    (to / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return to


def test_what_segment_anything_cannot_compute_is_refused(huggingface, tmp_path):
    def other(config):
        config["mask_decoder_config"]["num_attention_heads"] = 4

    with pytest.raises(LoadError, match="mask_decoder_config: expected num_attention_heads 8 as in segment-anything, got 4"):
        load_sam(copy_with(huggingface[1], tmp_path, other))


def test_other_kinds_are_refused(huggingface, tmp_path):
    with pytest.raises(LoadError, match="expected format"):
        load_sam(copy_with(huggingface[1], tmp_path, lambda config: config.update(model_type="sam3")))
