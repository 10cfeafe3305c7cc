"""Heads that need no training: the choice of attention heads, their masks, presence, and the pipeline with them."""

import numpy as np
import pytest
import torch
from tiny_models import random_image, tiny_sam

from flmm_core.heads.attention_heads import AttentionHeads, blob_logits, blob_masks
from flmm_core.heads.attention_presence import attention_inside, auroc, fit_presence, middle_bands
from flmm_core.heads.head_choice import (
    HeadFigures,
    above_elbow,
    agreeing_heads,
    own_attention,
    ranked_heads,
    spatial_entropy,
)
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.refiner import SamRefiner
from flmm_core.types import CoarseMasks, ImageGeometry

POINTING = (4, 9, 17)
"""Channels of :func:`attention` that look at what a phrase names."""


def attention(places, channels=20, side=12, seed=0):
    """Maps ``[n, c, side, side]`` of phrases whose objects are at ``places``.

    Three channels look at the object, three always at one corner, as sinks do; six scatter their attention, and the others
    hardly look at the image.
    """
    random = np.random.default_rng(seed)
    maps = random.random((len(places), channels, side, side)) * 1e-4
    for phrase, (y, x) in zip(maps, places, strict=True):
        for channel in POINTING:
            phrase[channel, y : y + 3, x : x + 2] += 0.07
        for channel in (0, 5, 11):
            phrase[channel, 0, -1] += 0.9
        for channel in (1, 2, 3, 6, 7, 8):
            phrase[channel, random.integers(0, side, 12), random.integers(0, side, 12)] += 0.02
    return maps.astype(np.float32)


def square(side, *, pad=0):
    """Geometry of an image with a grid of ``side`` cells, with ``pad`` cells of padding above and below."""
    frame = side * 10
    return ImageGeometry(100, 200, frame, frame, pad * 10, 0, frame - 20 * pad, frame, side, side)


def test_the_elbow_parts_few_high_values_from_many_low_ones():
    values = np.array([0.9, 0.01, 0.02, 0.8, 0.015, 0.012, 0.85, 0.011])
    assert above_elbow(values).tolist() == [0, 3, 6]
    assert above_elbow(np.full(4, 0.5)).tolist() == [0, 1, 2, 3]
    assert above_elbow(np.array([0.3])).tolist() == [0]


def test_spatial_entropy_counts_places_and_not_cells():
    maps = np.zeros((1, 4, 6, 6))
    maps[0, 0, 1:3, 1:3] = 1  # one place
    maps[0, 1, 1, 1] = maps[0, 1, 2, 2] = 1  # one, at a corner
    maps[0, 2, 0, 0] = maps[0, 2, 4, 4] = 1  # two alike
    assert np.allclose(spatial_entropy(maps), [[0, 0, np.log(2), np.log(36)]])


def test_own_attention_is_what_other_phrases_do_not_get():
    maps = np.zeros((2, 1, 1, 3))
    maps[0, 0, 0] = [0.5, 0.2, 0]
    maps[1, 0, 0] = [0.1, 0.2, 0.4]
    assert np.allclose(own_attention(maps), [[0.4], [0.4]])


@pytest.mark.parametrize("criterion", ["entropy", "contrast"])
def test_heads_that_point_are_ranked_first(criterion):
    images = [attention([(1, 2), (6, 8), (8, 3)], seed=seed) for seed in range(4)]
    found = ranked_heads([HeadFigures.of(maps, criterion) for maps in images], criterion)
    assert {head.channel for head in found[:3]} == set(POINTING) or criterion == "entropy"
    assert set(POINTING) <= {head.channel for head in found[:6]}  # sinks are as sharp: entropy alone does not tell them apart
    assert all(head.votes == 12 for head in found[:3]) and found[0].attention > 0.3


def test_heads_of_one_phrase_agree_where_a_sink_is_alone():
    maps = attention([(6, 4)])[0]
    maps[5] = np.roll(maps[5], 3, axis=0)  # two sinks left that agree
    assert set(agreeing_heads(maps, 3)) == set(POINTING)


def test_choices_are_refused_in_one_line():
    with pytest.raises(ValueError, match="criterion: expected one of entropy, contrast, got 'best'"):
        HeadFigures.of(attention([(1, 1)]), "best")
    with pytest.raises(ValueError, match="expected at least one phrase to choose by, got none"):
        ranked_heads([], "entropy")


@pytest.mark.parametrize("channels", [POINTING, ()])
def test_a_coarse_mask_is_the_blob_without_the_padding(channels):
    maps = torch.from_numpy(attention([(5, 3), (7, 8)], side=12))
    coarse = blob_masks(maps, square(12, pad=2), channels)
    assert coarse.logits.shape == (2, 8, 12) and coarse.logits.dtype == torch.float32
    for logits, (y, x) in zip(coarse.logits, [(3, 3), (5, 8)], strict=True):
        assert divmod(int(logits.argmax()), 12) in [(y + dy, x + dx) for dy in range(3) for dx in range(2)]
        assert (logits[y : y + 3, x : x + 2] > 0).all() and (logits > 0).sum() <= 16  # with a margin of smoothing


def test_the_largest_of_two_blobs_is_taken():
    pointing = np.zeros((6, 8))
    pointing[1, 1] = 1.0
    pointing[3:5, 4:7] = 0.8
    assert ((blob_logits(pointing) > 0) == (pointing == 0.8)).all()
    assert np.isfinite(blob_logits(np.zeros((3, 3)))).all()


def test_no_phrase_gives_no_mask():
    assert blob_masks(torch.zeros(0, 20, 12, 12), square(12, pad=2)).logits.shape == (0, 8, 12)


def test_attention_inside_a_region_is_averaged_over_the_band():
    maps = torch.zeros(1, 4, 4, 4)
    maps[0, 1, :2] = 0.1
    maps[0, 2, 0] = 0.05
    region = torch.full((1, 8, 8), -1.0)
    region[0, :4] = 1  # the upper half, at twice the resolution
    inside = attention_inside(maps, CoarseMasks(region, square(4)), ((1, 3),))
    assert inside.tolist() == pytest.approx([(0.8 + 0.2) / 2])


def test_presence_tells_phrases_apart():
    random = np.random.default_rng(0)
    present, absent = np.exp(random.normal(-1, 0.4, 300)), np.exp(random.normal(-3, 0.4, 100))
    score = fit_presence(present, absent, ((0, 4),))
    assert np.exp(-2.3) < score.threshold < np.exp(-1.7)
    assert auroc(present, absent) > 0.99 and auroc(absent, present) < 0.01 and auroc(present, present) == 0.5
    assert fit_presence(np.full(3, 0.5), np.full(3, 0.1), ((0, 4),)).slope < 1e3  # pairs that separate
    with pytest.raises(ValueError, match="expected phrases of both kinds, got 3 present and 0 absent"):
        fit_presence(present[:3], absent[:0], ((0, 4),))


def test_the_middle_of_the_layers_is_taken_in_every_order_of_channels():
    layers = [layer for layer in range(8) for _ in range(2)]
    assert middle_bands(layers, 8) == ((4, 10),)
    assert middle_bands(layers + layers, 8) == ((4, 10), (20, 26))


def test_heads_without_training_read_no_hidden_states_and_write_no_words():
    heads = AttentionHeads(sam=SamRefiner(sam=tiny_sam()), layers=3, channels=(1, 2))
    assert heads.layer_weights().shape == (0, 3) and heads.keyword_logits(torch.zeros(0, 5, 32)) is None
    assert heads.text_tokens(torch.zeros(0, 5, 32)).shape == (0, 256)
    coarse = CoarseMasks(torch.zeros(2, 4, 4), square(4))
    assert heads.presence_probabilities([torch.zeros(0, 1, 32)] * 2, torch.zeros(2, 12, 4, 4), coarse) == [1.0, 1.0]


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return GroundingPipeline.from_pretrained(tiny_model["lmm"], "attention", tiny_model["sam"], device="cpu")


def test_the_pipeline_answers_and_points_without_training(pipeline):
    image = pipeline.encode(random_image())
    answer = pipeline.refer(image, ["red mug", "the handle of the mug"])
    assert [phrase.text for phrase in answer.phrases] == ["red mug", "the handle of the mug"]
    assert all(phrase.presence == 1.0 and phrase.mask.shape == (48, 64) for phrase in answer.phrases)
    assert pipeline.ground(image, "what is there?", "a red mug", [(2, 9)]).phrases[0].text == "red mug"
    assert isinstance(pipeline.chat(image, "what is there?", max_new_tokens=3).text, str)
    assert pipeline.describe()["heads"] == "attention (not trained: 5 attention heads, chosen for each phrase)"


def test_channels_are_named_by_layer_and_head(pipeline):
    image = pipeline.encode(random_image())
    trace = pipeline.teacher_force(image, "what is there?", "a red mug")
    assert trace.channel_heads() == tuple((layer, head) for layer in range(3) for head in range(4))
