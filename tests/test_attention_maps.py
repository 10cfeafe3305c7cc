"""Where heads look: figures of attention maps against hand-computed ones, and their image."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from flmm_core.config import GroundingConfig
from flmm_core.data.tabletop import read_dataset
from flmm_core.drawing.attention_figure import CELL, draw_attention
from flmm_core.evaluation.attention_maps import HeadRanking, attention_rows, clear_names, rank_heads
from flmm_core.images.masks import peaks, share_on, touched_cells
from flmm_core.pipeline import GroundingPipeline


def test_peaks_are_cell_centres():
    maps = np.zeros((2, 3, 4), np.float32)
    maps[0, 2, 3], maps[1, 0, 0] = 1, 1
    assert peaks(maps, 30, 80) == [(70, 25), (10, 5)]


def test_attention_on_the_cells_of_a_thing():
    mask = np.zeros((6, 8), bool)
    mask[1, 3:5] = True  # two cells of two by two pixels
    assert touched_cells(mask, 3, 4).tolist() == [[False, True, True, False], [False] * 4, [False] * 4]
    maps = np.ones((2, 3, 4), np.float32)
    maps[1, 0, 1] = 10
    assert share_on(maps, mask) == pytest.approx([2 / 12, 11 / 21])


def test_ranking():
    hits = np.array([[1, 3, 3, 0, 5, 1], [0, 2, 2, 0, 4, 1]])
    attention = np.array([[0.1, 2.0, 3.0, 0.1, 0.5, 0.1]] * 2)
    ranking = HeadRanking(hits, attention, np.array([6, 4]), random_pointing=0.1, random_attention=0.2, heads=3)
    assert ranking.best(3) == [4, 2, 1] and ranking.layer_and_head(4) == (1, 1)  # of equal hits the steadier first
    assert ranking.pointing(4).value == 0.9 and ranking.pointing(4).count == 10 and ranking.attention_share(4) == 0.1
    record = json.loads(json.dumps(ranking.record()))
    best, second, *_, worst = record["heads"]
    assert best == {**best, "layer": 1, "head": 1, "pointing": 0.9, "attention": 0.1, "count": 10} and best["low"] < 0.9
    assert (second["layer"], second["head"], second["pointing"]) == (0, 2, 0.5) and worst["pointing"] == 0
    assert len(record["heads"]) == 6 and record["random"] == {"pointing": 0.1, "attention": 0.2}
    assert (record["images"], record["names"]) == (2, 10)


def test_an_image_that_a_processor_refuses_costs_itself(strip_data, tiny_qwen):
    pipeline, told = GroundingPipeline.from_config(GroundingConfig(**tiny_qwen, device="cpu")), []
    ranking = rank_heads(pipeline, list(read_dataset(strip_data)), tell=told.append)
    assert ranking.names.tolist() == [9, 9, 9]
    assert len(told) == 1 and "000001.png: cannot be used (" in told[0] and "aspect ratio" in told[0]


def test_attention_of_tiny_models(samples, tiny_model):
    pipeline = GroundingPipeline.from_config(GroundingConfig(**tiny_model, device="cpu"))
    ranking = rank_heads(pipeline, samples[:2], tell=pytest.fail)
    assert ranking.hits.shape == ranking.attention.shape == (2, 12)
    assert ranking.names.tolist() == [9, 9]  # 6 in chat, 2 and 1 in refer; neither the absent ones nor the wrong answer's
    assert 0 < ranking.random_pointing < ranking.random_attention < 1
    assert (ranking.hits <= 9).all() and (ranking.attention <= 9).all()
    channels = ranking.best(2)
    sample = samples[2]
    rows = attention_rows(pipeline, sample.image(), ["red mug", "lemon"], channels)
    assert (
        [row.phrase for row in rows] == ["red mug", "lemon"]
        and rows[0].truth is None
        and math.isnan(rows[0].attention_share(0))
    )
    assert rows[0].maps.shape == (2, 3, 4)  # 4 x 4 cells, less the padding of a 4:3 image
    drawn = draw_attention(rows, ranking.chart(), channels)
    assert drawn.dtype == np.uint8 and drawn.shape[1] > 5 * CELL
    known = replace(rows[0], truth=sample.mask((0,)), refined=sample.mask((0,)))
    assert 0 <= known.attention_share(0) <= 1 and known.iou(known.refined) == 1
    assert draw_attention([known], ranking.chart(), channels).shape[0] < drawn.shape[0]
    with pytest.raises(ValueError, match="rows: expected at least one phrase to draw, got none"):
        draw_attention([], ranking.chart(), channels)
    for sample, turn in clear_names(samples):
        assert [turn.answer[span.start : span.end] for span in turn.spans] == list(sample.names)
        rows = attention_rows(pipeline, sample.image(), list(sample.names), channels, (sample, turn))
        assert all((row.truth == sample.mask((i,))).all() for i, row in enumerate(rows)) and len(rows) == 2
