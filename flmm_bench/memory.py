"""Peak memory of one chat at about 2,900 image tokens; a process for each variant, as freed memory may stay in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from flmm_bench.measuring import Spread
from flmm_bench.rows import QUESTION, Row

VARIANTS = ("plain", "captured", "naive")


def memory_rows(*, layers: int, width: int, tokens: int) -> list[Row]:
    """Extra peak memory of capture against that of the naive path, over plain generation."""
    peaks = {variant: _measured(variant, layers, width, tokens) for variant in VARIANTS}
    ours, theirs = peaks["captured"] - peaks["plain"], peaks["naive"] - peaks["plain"]
    ratio = max(ours, 0) / max(theirs, 1)
    figure = Spread(ratio, ratio, ratio, 1)
    megabytes = {f"{variant}, MB": peak / 2**20 for variant, peak in peaks.items()}
    what = "extra peak memory of capture / of the naive path, 2,928 image tokens"
    return [Row(what, f"anyres, {layers} layers of {width}", figure, 1 / 50, True, megabytes)]


def _measured(variant: str, layers: int, width: int, tokens: int) -> int:
    """Bytes above what the loaded model takes."""
    command = [sys.executable, "-m", "flmm_bench.memory", variant, *map(str, (layers, width, tokens))]
    # Large blocks go back to the system at once, so that the peak is that of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"memory of {variant}: expected a measurement, got {run.stderr.strip()[-500:]}")
    return int(run.stdout.split()[-1])


def _kilobytes(entry: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def _main(variant: str, layers: int, width: int, tokens: int) -> None:
    import flmm_tabletop
    from flmm_bench import naive
    from flmm_bench.subjects import random_images, random_lmm

    flmm_tabletop.register()
    lmm = random_lmm(anyres=True, layers=layers, width=width)
    image, other = random_images(672, 672, 2)

    def talk(shown: object, length: int) -> None:
        if variant == "captured":
            import torch
            from PIL import Image

            encoded = lmm.encode_image(Image.fromarray(shown))  # type: ignore[arg-type]
            trace = lmm.generate(encoded, QUESTION, max_new_tokens=length, mixes=torch.ones(3, layers) / layers)
            trace.merged_attention([(0, 2)])
        elif variant == "plain":
            with naive.attention_of(lmm, "sdpa"):
                naive.generate(lmm, shown, QUESTION, length)  # type: ignore[arg-type]
        else:
            with naive.attention_of(lmm, "eager"):
                wanted = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
                naive.generate(lmm, shown, QUESTION, length, **wanted)  # type: ignore[arg-type]

    talk(other, 2)  # threads and their workspaces
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here on
    before = _kilobytes("VmRSS")
    talk(image, tokens)
    print((_kilobytes("VmHWM") - before) * 1024)


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
