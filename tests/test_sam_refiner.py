"""SAM refiner: each prompt against an independent formulation, batching, and ablations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import PromptEncoder

from flmm_core.sam.points import interior_points
from flmm_core.sam.refiner import SamRefiner
from flmm_core.sam.refiner_config import RefinerConfig
from flmm_tabletop.sam_tiny import TinySamConfig, build_tiny_sam


@pytest.fixture(scope="module")
def refiner():
    torch.manual_seed(0)
    return SamRefiner(sam=build_tiny_sam(TinySamConfig(img_size=64, stem_width=8, fine_width=16, middle_width=16)))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def encoded(refiner, image):
    return refiner.encode_image(image)


def coarse_masks():
    """Three masks of 12 x 20 cells, of which the second is empty and the third is one rectangle."""
    torch.manual_seed(1)
    masks = torch.randn(3, 12, 20)
    masks[1] = -3.0
    masks[2] = -4.0
    masks[2, 3:9, 5:12] = 20.0  # far from the background, so the order of sigmoid and resizing shows in the box
    return masks


def text_tokens(*counts):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(count, 256, generator=generator) for count in counts]


def resize(values, height, width):
    """Bilinear without corner alignment, written out for one 2-d array."""

    def axis(size_in, size_out):
        x = np.clip((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, 0, None)
        low = np.minimum(x.astype(int), size_in - 1)
        return low, np.minimum(low + 1, size_in - 1), x - low

    top, bottom, y = axis(values.shape[0], height)
    left, right, x = axis(values.shape[1], width)
    rows = values[top] * (1 - y)[:, None] + values[bottom] * y[:, None]
    return rows[:, left] * (1 - x) + rows[:, right] * x


def test_image_is_encoded_as_sam_does(refiner, encoded, image):
    predictor = SamPredictor(refiner.model)
    predictor.set_image(image)
    assert torch.equal(encoded.embedding, predictor.get_image_embedding())
    assert (encoded.input_height, encoded.input_width) == predictor.input_size == (38, 64)


def test_mask_prompt(refiner, encoded):
    coarse = coarse_masks()
    masks = refiner.prompts(encoded, coarse, text_tokens(1, 1, 1)).masks
    assert masks.shape == (3, 1, 32, 32)
    outside = min(-1.0, float(coarse.min()))
    assert outside == -4.0
    for got, one in zip(masks[:, 0].numpy(), coarse.double().numpy(), strict=True):
        framed = np.full((64, 64), outside)
        framed[:38] = resize(one, 38, 64)
        np.testing.assert_allclose(got, resize(framed, 32, 32), atol=1e-5)


def test_mask_prompt_is_padded_with_minus_one_at_most(refiner, encoded):
    prompts = refiner.prompts(encoded, torch.full((1, 12, 20), 2.0), text_tokens(1))
    assert prompts.masks[0, 0, -1].eq(-1).all()


def test_box_prompt(refiner, encoded):
    coarse = coarse_masks()
    boxes = refiner.prompts(encoded, coarse, text_tokens(1, 1, 1)).boxes
    assert boxes.dtype == torch.float32
    for got, one in zip(boxes.numpy(), coarse.double().numpy(), strict=True):
        ys, xs = np.nonzero(resize(1 / (1 + np.exp(-one)), 48, 80) > 0.5)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 80, 48]
        np.testing.assert_allclose(got, np.array(box) * [64 / 80, 38 / 48, 64 / 80, 38 / 48], rtol=1e-6)
    assert boxes[1].tolist() == [0, 0, 64, 38]


def test_text_prompt_comes_after_the_box(refiner, encoded, monkeypatch):
    """The decoder sees two box tokens, then one token for each token of the phrase."""
    seen = []
    decoder = refiner.model.mask_decoder
    forward = decoder.forward

    def spy(**inputs):
        seen.append(inputs["sparse_prompt_embeddings"])
        return forward(**inputs)

    monkeypatch.setattr(decoder, "forward", spy)
    texts = text_tokens(3)
    with torch.no_grad():
        refiner(encoded, coarse_masks()[:1], texts)
        boxes = refiner.prompts(encoded, coarse_masks()[:1], texts).boxes
        expected, _ = refiner.model.prompt_encoder(points=None, boxes=boxes, masks=None)
    (sparse,) = seen
    assert sparse.shape == (1, 5, 256)
    assert torch.equal(sparse[0, :2], expected[0])
    assert torch.equal(sparse[0, 2:], texts[0])


def test_phrases_are_batched_by_token_count(refiner, encoded, monkeypatch):
    """Results are those of one pass for each phrase with the same prompts, in the order of the phrases."""
    coarse = torch.cat([coarse_masks()] * 7)[:20]
    texts = text_tokens(*([1, 3, 2, 3] * 5))
    batches = []
    decode = refiner._decode
    monkeypatch.setattr(refiner, "_decode", lambda *a: batches.append(a[2]) or decode(*a))
    with torch.no_grad():
        together = refiner(encoded, coarse, texts)
        prompts = refiner.prompts(encoded, coarse, texts)
        apart = [decode(encoded, prompts, [i], coarse) for i in range(20)]
    assert sorted(i for batch in batches for i in batch) == list(range(20))
    assert len(batches) == 4  # 5 + 5 + 8 + 2
    torch.testing.assert_close(together.low_res, torch.cat([one.low_res for one in apart]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.iou, torch.cat([one.iou for one in apart]), atol=1e-4, rtol=1e-4)


def test_to_image_is_sams_postprocessing(refiner, encoded):
    with torch.no_grad():
        low_res = refiner(encoded, coarse_masks(), text_tokens(2, 2, 2)).low_res
        full = refiner.to_image(low_res, encoded)
    assert full.shape == (3, 48, 80)
    for got, one in zip(full.numpy(), low_res.double().numpy(), strict=True):
        np.testing.assert_allclose(got, resize(resize(one, 64, 64)[:38], 48, 80), atol=1e-4)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_masks_at_image_size_have_their_boxes_and_scores(refiner, encoded, threshold):
    coarse, texts = coarse_masks(), text_tokens(1, 2, 2)
    with torch.no_grad():
        logits = refiner.to_image(refiner(encoded, coarse, texts).low_res, encoded).numpy()
    refined = refiner.masks(encoded, coarse, texts, threshold=threshold)
    assert len(refined) == 3
    for one, wanted in zip(refined, logits, strict=True):
        mask = wanted > np.log(threshold / (1 - threshold))
        np.testing.assert_array_equal(one.mask.numpy(), mask)
        ys, xs = np.nonzero(mask)
        assert one.box == ((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0))
        probability = 1 / (1 + np.exp(-wanted.astype(float)))
        assert one.score == pytest.approx(probability[mask].mean() if len(xs) else 0.0, abs=1e-5)
    assert refiner.masks(encoded, coarse[:0], [], threshold=threshold) == ()


def test_an_empty_mask_at_image_size(refiner, encoded, monkeypatch):
    monkeypatch.setattr(refiner, "to_image", lambda low_res, image: torch.full((1, 48, 80), -5.0))
    (refined,) = refiner.masks(encoded, coarse_masks()[:1], text_tokens(2), threshold=0.5)
    assert refined.mask.shape == (48, 80) and not refined.mask.any()
    assert refined.box == (0, 0, 0, 0) and refined.score == 0.0


@pytest.mark.parametrize("off", ["use_mask", "use_box", "use_text"])
def test_each_prompt_matters(refiner, encoded, off):
    with torch.no_grad():
        every = refiner(encoded, coarse_masks(), text_tokens(1, 2, 2)).low_res
        less = SamRefiner(sam=refiner.model, config=RefinerConfig(**{off: False}))(
            encoded, coarse_masks(), text_tokens(1, 2, 2)
        )
    assert less.low_res.shape == every.shape
    assert (less.low_res - every).abs().max() > 1e-3


def test_multimask_keeps_the_candidate_closest_to_the_coarse_mask(refiner, encoded):
    many = SamRefiner(sam=refiner.model, config=RefinerConfig(multimask=True))
    coarse, texts = coarse_masks()[2:], text_tokens(2)
    with torch.no_grad():
        chosen = many(encoded, coarse, texts)
        prompts = many.prompts(encoded, coarse, texts)
        sparse, dense = many.model.prompt_encoder(points=None, boxes=prompts.boxes, masks=prompts.masks)
        low_res, _ = many.model.mask_decoder(
            image_embeddings=encoded.embedding,
            image_pe=many.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([sparse, texts[0][None]], dim=1),
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        target = resize(1 / (1 + np.exp(-coarse[0].double().numpy())), 48, 80) > 0.5
        masks = many.to_image(low_res[0], encoded).numpy() > 0
    ious = [(mask & target).sum() / (mask | target).sum() for mask in masks]
    assert torch.equal(chosen.low_res[0], low_res[0, int(np.argmax(ious))])


# --- points ----------------------------------------------------------------------------------------------------------------


def test_points_are_the_peak_and_the_middles_of_free_circles():
    """In a bar of 4 x 16 cells with its peak at the left, 8 pixels to a cell; a second mask has two cells, a third none."""
    masks = torch.full((3, 16, 20), -1.0)
    masks[0, 6:10, 2:18] = 1.0
    masks[0, 7, 3] = 2.0
    masks[1, 0, 0], masks[1, 15, 19] = 1.0, 3.0
    points, labels = interior_points(torch.nn.functional.pad(masks, (0, 0, 0, 4), value=-1.0), 3, frame=160)
    cells = ((points + 0.5) / 8).tolist()
    assert cells[0][0] == [3.5, 7.5], "the middle of the peak's cell"
    (x, y), other = cells[0][1:]
    assert y in (7.5, 8.5) and 3.5 + 2 <= x <= 15.5, "two cells from the border and from the peak"
    assert abs(other[0] - x) >= 2 and abs(other[0] - 3.5) >= 2
    assert cells[1][:2] == [[19.5, 15.5], [0.5, 0.5]]
    assert labels.tolist() == [[1, 1, 1], [1, 1, -1], [-1, -1, -1]] and not points[labels < 0].any()


@pytest.fixture(scope="module")
def pointed(refiner):
    return SamRefiner(sam=refiner.model, config=RefinerConfig(use_text=False, points=3, multimask=True, choice="predicted"))


@pytest.mark.parametrize("box", [True, False])
def test_points_are_those_of_sam_predictor(refiner, encoded, image, box):
    """In pixels of the image they make the same masks by segment-anything's own predictor; the one that it prefers is kept."""
    config = RefinerConfig(use_text=False, use_mask=False, use_box=box, points=2, multimask=True, choice="predicted")
    many = SamRefiner(sam=refiner.model, config=config)
    coarse, texts = coarse_masks(), text_tokens(0, 0, 0)
    with torch.no_grad():
        prompts, refined = many.prompts(encoded, coarse, texts), many(encoded, coarse, texts)
    predictor = SamPredictor(refiner.model)
    predictor.set_image(image)
    scale = np.array([80 / 64, 48 / 38])
    for i in range(3):
        points = prompts.points[i].double().numpy() * scale
        corners = prompts.boxes[i].double().numpy() * np.tile(scale, 2)
        _, iou, low_res = predictor.predict(points, prompts.labels[i].numpy(), corners if box else None)
        assert refined.iou[i] == pytest.approx(iou.max(), abs=1e-5)
        np.testing.assert_allclose(refined.low_res[i], low_res[iou.argmax()], atol=1e-4)


@pytest.mark.parametrize("box", [True, False])
def test_points_are_embedded_as_segment_anything_does(refiner, box):
    ours = refiner.model.prompt_encoder
    theirs = PromptEncoder(ours.embed_dim, ours.image_embedding_size, ours.input_image_size, 16)
    theirs.load_state_dict(ours.state_dict())
    points, labels = torch.rand(2, 3, 2) * 64, torch.tensor([[1.0, -1, 0], [-1, -1, -1]])
    boxes = torch.rand(2, 4) * 64 if box else None
    with torch.no_grad():
        got, wanted = (one(points=(points, labels), boxes=boxes, masks=None)[0] for one in (ours, theirs))
    assert got.shape[1] == (5 if box else 4) and torch.equal(got, wanted)


def test_points_lie_inside_the_mask_and_without_one_are_not_given(pointed, encoded):
    coarse = coarse_masks()
    prompts = pointed.prompts(encoded, coarse, text_tokens(0, 0, 0))
    x, y = (prompts.points[2] + 0.5).unbind(-1)
    column, row = x / 64 * 20, y / 38 * 12
    assert ((column > 5) & (column < 12) & (row > 3) & (row < 9)).all()
    assert prompts.labels.tolist() == [[1, 1, 1], [-1, -1, -1], [1, 1, 1]]
    assert prompts.boxes[1].tolist() == [0, 0, 64, 38], "the box is the whole image, as without points"
    nothing = pointed(encoded, coarse[:0], [])
    assert nothing.low_res.shape == (0, 32, 32) and pointed.prompts(encoded, coarse[:0], []).points.shape == (0, 3, 2)


def test_a_batch_with_points_is_that_of_each_phrase(pointed, encoded):
    coarse, texts = coarse_masks(), text_tokens(0, 2, 3)
    with torch.no_grad():
        together = pointed(encoded, coarse, texts)
        prompts = pointed.prompts(encoded, coarse, texts)
        apart = [pointed._decode(encoded, prompts, [i], coarse) for i in range(3)]
    torch.testing.assert_close(together.low_res, torch.cat([one.low_res for one in apart]), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        without = SamRefiner(sam=pointed.model, config=replace(pointed.config, points=0))(encoded, coarse, texts)
    assert (without.low_res - together.low_res).abs().max() > 1e-3, "points matter"


def test_prompts_that_no_refiner_takes():
    with pytest.raises(ValueError, match="expected 0 or more points and the choice coarse or predicted, got -1 and 'coarse'"):
        RefinerConfig(points=-1)
    with pytest.raises(ValueError, match="got 0 and 'best'"):
        RefinerConfig(choice="best")
    with pytest.raises(ValueError, match="expected at least one kind of prompts, got none"):
        RefinerConfig(use_mask=False, use_box=False, use_text=False)


def test_gradients_flow_through_the_mask_prompt_but_not_the_encoder(refiner, image):
    encoded = refiner.encode_image(image)
    coarse = coarse_masks().requires_grad_(True)
    texts = [text.requires_grad_(True) for text in text_tokens(1, 2, 2)]
    refiner(encoded, coarse, texts).low_res.square().mean().backward()
    assert coarse.grad.abs().sum() > 0 and all(text.grad.abs().sum() > 0 for text in texts)
    assert all(p.grad is None for p in refiner.model.image_encoder.parameters())
    refiner.zero_grad()


def test_nothing_to_refine(refiner, encoded):
    refined = refiner(encoded, torch.zeros(0, 12, 20), [])
    assert refined.low_res.shape == (0, 32, 32) and refined.iou.shape == (0,)


def test_one_text_for_each_mask(refiner, encoded):
    with pytest.raises(ValueError, match="expected one for each of 3 masks, got 2"):
        refiner(encoded, coarse_masks(), text_tokens(1, 1))


def test_extreme_images(refiner):
    for height, width in ((1, 1), (1, 500), (3, 2)):
        encoded = refiner.encode_image(np.zeros((height, width, 3), np.uint8))
        with torch.no_grad():
            refined = refiner(encoded, torch.randn(1, 5, 6), text_tokens(1))
        assert refiner.to_image(refined.low_res, encoded).shape == (1, height, width)


def test_default_tiny_sam_keeps_detail():
    sam = build_tiny_sam()
    count = sum(p.numel() for p in sam.image_encoder.parameters())
    assert 1e6 < count < 2e6
    assert sam.prompt_encoder.mask_input_size == (128, 128)
    with pytest.raises(ValueError, match="img_size: expected a multiple of 16 from 32 on, got 100"):
        TinySamConfig(img_size=100)
