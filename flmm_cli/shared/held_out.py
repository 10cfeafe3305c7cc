"""Held-out scenes for commands that measure, rendered at their first use and cached."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def rendered_scenes(count: int, seed: int, workers: int, *, split: str = "test") -> Path:
    """Folder of a data set, in the user's cache.

    Args:
        count: scenes.
        seed: of the data set.
        workers: processes that render.
        split: scenes of different splits differ.
    """
    import flmm_sim
    from flmm_sim.dataset_writer import write_dataset

    # A changed simulator renders other scenes from the same seed.
    sources = sorted(Path(flmm_sim.__path__[0]).glob("*.py"))
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flmm"
    out = cache / f"{split}-seed{seed}-count{count}-{version}"
    if not (out / "questions.json").exists():
        print(f"rendering {count} scenes into {out}", flush=True)
        write_dataset(out, split=split, seed=seed, count=count, workers=workers)
    return out
