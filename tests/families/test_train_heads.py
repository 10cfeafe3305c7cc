"""Heads of any family are trained by the same command, on images of several shapes, and ground afterwards."""

import json

import pytest
import test_llava_next
import tiny_qwen
from tiny_dataset import write_tiny_dataset
from tiny_models import SAM_CONFIG, tiny_sam

from flmm_cli.main import main
from flmm_core.data.tabletop import read_dataset
from flmm_core.errors import LoadError
from flmm_core.pipeline import GroundingPipeline
from flmm_tabletop.sam_tiny import save_tiny_sam

SAVE = {
    "qwen2_5_vl": lambda folder: tiny_qwen.save_qwen(folder, "qwen2_5_vl"),
    "llava_next_vicuna": lambda folder: test_llava_next.save_llava_next(folder, "vicuna"),
}
LIMITS = {"qwen2_5_vl": 30, "llava_next_vicuna": 0}
"""Most tokens of an image."""


@pytest.mark.parametrize("family", SAVE)
def test_a_family_is_trained(family, tmp_path):
    SAVE[family](tmp_path / "lmm")
    save_tiny_sam(tiny_sam(), SAM_CONFIG, tmp_path / "sam")
    data = write_tiny_dataset(tmp_path / "data", count=4, portrait=(1, 3))
    val = write_tiny_dataset(tmp_path / "val", count=2, seed=1, portrait=(1,))
    options = {"lmm": tmp_path / "lmm", "sam": tmp_path / "sam", "data": data, "val": val, "out": tmp_path / "out"}
    options |= {"epochs": 30, "batch": 2, "base-channels": 4, "device": "cpu", "turns": 4, "learning-rate": 1e-3}
    options |= {"variants": 1, "cache": tmp_path / "cache", "refined": 1, "image-tokens": LIMITS[family]}
    assert main(["train", "heads", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]) == 0
    steps = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    first, last = (step for step in steps if "bce" in step)  # running averages after 50 and 60 steps
    assert last["bce"] + last["dice"] < first["bce"] + first["dice"]
    assert json.loads((tmp_path / "cache" / "train" / "manifest.json").read_text())["image_tokens"] == LIMITS[family]
    parts = [str(tmp_path / part) for part in ("lmm", "out/heads", "sam")]
    with pytest.raises(LoadError, match=rf"heads: expected image_tokens {LIMITS[family]}[ ,].*in their training, got 400$"):
        GroundingPipeline.from_pretrained(*parts, device="cpu", image_tokens=400)
    pipeline = GroundingPipeline.from_pretrained(*parts, device="cpu", image_tokens=LIMITS[family])
    for sample in read_dataset(val):
        image = sample.image()
        answer = pipeline.refer(pipeline.encode(image), ["red mug", "blue box"])
        assert [phrase.mask.shape for phrase in answer.phrases] == [image.shape[:2]] * 2
