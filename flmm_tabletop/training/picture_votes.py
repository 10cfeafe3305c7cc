"""The tower's votes for the pictures of a data set, computed once: what is frozen need not see a picture twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel

from flmm_core.cache_manifest import require_manifest
from flmm_core.data.dataset import Picture
from flmm_core.fingerprints import files_fingerprint, lmm_fingerprint
from flmm_tabletop.training.frames import normalised
from flmm_tabletop.vision_tower import TabletopTower

BATCH = 64
"""Pictures that the tower sees at once."""


def load_votes(
    cache: Path, tower_folder: Path, pictures: Sequence[Picture], frames: np.ndarray, device: torch.device
) -> np.ndarray:
    """Votes of a trained tower, before they become evidence.

    Args:
        cache: folder that keeps them.
        tower_folder: of the tower's stage.
        pictures: of a data set.
        frames: ``[pictures or more, frame, frame, 3]`` uint8, beginning with these pictures.
        device: where the tower computes.

    Returns:
        ``[pictures, cells, words]`` float16, memory-mapped.

    Raises:
        ValueError: the votes that are kept are of another tower, or of other pictures.
    """
    files = files_fingerprint(picture.path for picture in pictures)
    require_manifest(cache, {"tower": lmm_fingerprint(tower_folder), "pictures": len(pictures), "files": files})
    path = cache / "votes.npy"
    if not path.exists():
        tower: TabletopTower = AutoModel.from_pretrained(tower_folder).eval().to(device, memory_format=torch.channels_last)
        cells = (tower.config.image_size // tower.config.patch_size) ** 2
        temporary = path.with_suffix(".tmp")
        shape = (len(pictures), cells, len(tower.config.words))
        votes = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        for first in tqdm(range(0, len(pictures), BATCH), desc="votes", unit="batch"):
            part = slice(first, min(first + BATCH, len(pictures)))
            with torch.no_grad():
                votes[part] = tower.votes(tower.content(normalised(frames[part], device))).cpu().numpy()
        votes.flush()
        temporary.rename(path)
    return np.load(path, mmap_mode="r")
