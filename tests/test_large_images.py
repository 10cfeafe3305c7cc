"""Memory that commands about large images take, in a process of its own."""

import subprocess
import sys

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from flmm_core.pipeline import GroundingPipeline


def kilobytes(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry + ":"))

root, height, width, phrases = sys.argv[1], *map(int, sys.argv[2:])
parts = (f"{root}/{part}" for part in ("lmm", "heads", "sam"))
pipeline = GroundingPipeline.from_pretrained(*parts, device="cpu", presence_threshold=0.0)
pipeline.refer(pipeline.encode(np.zeros((48, 64, 3), np.uint8)), ["lemon"] * phrases)
pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
before = kilobytes("VmRSS")
answer = pipeline.refer(pipeline.encode(pixels), ["lemon"] * phrases)
assert [phrase.mask.shape for phrase in answer.phrases] == [(height, width)] * phrases
print((kilobytes("VmHWM") - before) * 1024)
"""


def test_an_8k_image_takes_the_stated_memory(tiny_llava):
    """A byte for each pixel of each mask, and 20 for each pixel of the image (docs/reference.md, grounding_node)."""
    height, width, phrases = 4320, 7680, 6
    command = [sys.executable, "-c", SCRIPT, str(tiny_llava.parent), str(height), str(width), str(phrases)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    bound = (phrases + 20) * height * width
    assert 0.2 * bound < int(run.stdout) < bound
