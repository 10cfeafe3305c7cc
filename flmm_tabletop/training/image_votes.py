"""The frozen tower's votes for the images of a data set, computed once and cached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel

from flmm_core.common.output_files import written_file
from flmm_core.data.samples import Sample
from flmm_core.weights.cache_manifest import require_manifest
from flmm_core.weights.fingerprints import files_fingerprint, lmm_fingerprint
from flmm_tabletop.training.frames import normalised
from flmm_tabletop.vision_tower import TabletopTower

BATCH = 64
"""Images of one pass of the tower."""


def load_votes(
    cache: Path, tower_folder: Path, samples: Sequence[Sample], frames: np.ndarray, device: torch.device
) -> np.ndarray:
    """Votes of a trained tower, before they become evidence.

    Args:
        cache: folder of the votes.
        tower_folder: of the tower's stage.
        samples: of a data set.
        frames: ``[images or more, frame, frame, 3]`` uint8, beginning with these images.
        device: of the tower.

    Returns:
        ``[images, cells, words]`` float16, memory-mapped.

    Raises:
        ValueError: the cached votes are those of another tower or of other images.
    """
    files = files_fingerprint(sample.path for sample in samples)
    require_manifest(cache, {"tower": lmm_fingerprint(tower_folder), "images": len(samples), "files": files})
    path = cache / "votes.npy"
    if not path.exists():
        tower: TabletopTower = AutoModel.from_pretrained(tower_folder).eval().to(device, memory_format=torch.channels_last)
        cells = (tower.config.image_size // tower.config.patch_size) ** 2
        shape = (len(samples), cells, len(tower.config.words))
        with written_file(path) as temporary:
            votes = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            for first in tqdm(range(0, len(samples), BATCH), desc="votes", unit="batch"):
                part = slice(first, min(first + BATCH, len(samples)))
                with torch.no_grad():
                    votes[part] = tower.votes(tower.content(normalised(frames[part], device))).cpu().numpy()
            votes.flush()
    return np.load(path, mmap_mode="r")
