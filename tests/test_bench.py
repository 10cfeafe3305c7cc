"""The benchmark: what it calls a ratio, what the naive path computes, and what it writes."""

import json
import time

import numpy as np
import pytest
import torch

from flmm_bench import naive
from flmm_bench.findings import Findings
from flmm_bench.measuring import Spread, interleaved
from flmm_bench.report import chart, rates_of, table, write
from flmm_bench.rows import ONNX, Row, capture_rows, command_rows, engine_rows, exported, mask_rows, refer_rows
from flmm_bench.subjects import SPANS, loaded_pipeline, random_images, random_lmm, random_pipeline, shipped_pipeline
from flmm_core.lmm.attention_recorder import ATTENTION_NAME


@pytest.fixture(scope="module")
def shipped():
    return shipped_pipeline()


@pytest.mark.timing
def test_ratios_are_taken_round_by_round_and_see_a_slow_variant():
    order = []

    def variant(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)
            return {"part": seconds}

        return run

    times = interleaved({"slow": variant("slow", 0.03), "quick": variant("quick", 0.01)}, rounds=3, title="test")
    assert 2 < times.ratio("slow", "quick").median < 4
    assert times.ratio("slow", "quick", "part").median == pytest.approx(3)
    assert times.of("slow").count == 3 and times.of("slow").low <= times.of("slow").median <= times.of("slow").high
    assert sorted(order[:2]) == sorted(order[2:4]) == ["quick", "slow"] and order[:2] != order[2:4], "expected turns"


def test_the_naive_path_gives_the_same_masks(shipped):
    (image,) = random_images(120, 160, 1)
    slow = naive.chat(shipped, image, "what is on the table?", 64, SPANS)
    phrases = shipped.chat(shipped.encode(image), "what is on the table?").phrases
    assert len(slow) == len(phrases) == len(SPANS)
    assert all(np.array_equal(mask, phrase.mask) for mask, phrase in zip(slow, phrases, strict=True))
    assert shipped.lmm.model.config.text_config._attn_implementation == ATTENTION_NAME  # it is put back


@pytest.mark.parametrize("anyres", [False, True])
def test_random_models_have_the_shape_that_they_say(shipped, anyres):
    lmm = random_lmm(anyres=anyres, layers=1, width=128, vision_layers=2)
    pipeline = random_pipeline(lmm, shipped.heads.sam.model)
    size = 672 if anyres else 336
    (image,) = random_images(size, size, 1)
    handle = pipeline.encode(image)
    assert handle.lmm().image_tokens == (2928 if anyres else 576)
    answer = pipeline.chat(handle, "what?", max_new_tokens=12)
    masks = naive.chat(pipeline, image, "what?", 12, SPANS)
    for mask, phrase in zip(masks, answer.phrases, strict=True):
        assert (mask & phrase.mask).sum() >= 0.99 * (mask | phrase.mask).sum()


@pytest.mark.timing
def test_rows_of_the_shipped_model(shipped):
    images = random_images(120, 160, 2)
    rows = [
        *capture_rows("tiny", shipped, images[0], tokens=4, rounds=2),
        *command_rows("tiny", shipped, images, tokens=14, heads="PyTorch"),
        *refer_rows("tiny", shipped, images[0], rounds=2, heads="PyTorch"),
    ]
    assert [row.figure.count for row in rows] == [2] * 7
    assert all(row.figure.median > 0 and all(value > 0 for value in row.seconds.values()) for row in rows)
    first, further, *shares = rows[2:6]
    assert first.seconds["first"] > further.seconds["further"]
    assert all(0 < row.figure.median < 1 and row.met is None for row in shares)


def test_the_naive_path_runs_its_heads_in_pytorch(shipped):
    def refuse(*_):
        raise AssertionError("an engine ran")

    shipped.heads.mask_head.engine = refuse
    try:
        with naive.pytorch_heads(shipped.heads):
            assert shipped.heads.mask_head.engine is None
        assert shipped.heads.mask_head.engine is refuse
    finally:
        shipped.heads.mask_head.engine = None


def test_onnx_heads_are_measured_and_compared(tiny_model, kept_models):
    tiny = loaded_pipeline(**tiny_model)
    images = random_images(120, 160, 1)
    with exported(tiny.heads, ONNX) as engine:
        rows = [
            *engine_rows("tiny", tiny.heads, engine, ONNX, rounds=2),
            *mask_rows("tiny", tiny, images, [(ONNX, engine)]),
        ]
    assert [row.what.rsplit(": ")[-1] for row in rows[:4]] == ["all", "unet", "sam_encoder", "sam_decoder"]
    assert [row.met for row in rows[4:]] == [True, True]


def test_what_is_written(tmp_path):
    rows = [
        Row("small enough", "model", Spread(0.5, 0.4, 0.6, 3), 0.8, True, {"one": 1.0, "other": 2.0}),
        Row("too small", "model", Spread(1.2, 1.1, 1.3, 3), 1.5, False),
        Row("only told", "model", Spread(1.2, 1.1, 1.3, 3), None, True),
    ]
    assert [row.met for row in rows] == [True, False, None]
    lines = table(rows).splitlines()
    assert "| 0.5 | 0.4 to 0.6 | 3 | <= 0.8 | yes | one 1 s, other 2 s |" in lines[2]
    assert "| 1.2 | 1.1 to 1.3 | 3 | >= 1.5 | no |" in lines[3]
    assert "| 3 |  |  |" in lines[4]
    rates = rates_of("cpu", torch.float32)
    assert rates.flops > 1e9 and rates.bytes > 1e8
    write(tmp_path, "run", Findings(rates, rows, {"prefill": "far"}, ["TensorRT: not there"]))
    record = json.loads((tmp_path / "run.json").read_text())
    assert [row["met"] for row in record["rows"]] == [True, False, None]
    assert record["machine"]["torch"] == torch.__version__
    written = (tmp_path / "run.md").read_text()
    assert "- prefill: far" in written and "- TensorRT: not there" in written
    assert (tmp_path / "run.png").stat().st_size > 1000
    assert chart(rows[:2]).size[1] > chart(rows[:1]).size[1]
