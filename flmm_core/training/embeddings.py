"""SAM's image embeddings of many images, computed once and kept on disk: the image encoder never learns with the heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from flmm_core.cache_manifest import require_manifest
from flmm_core.checkpoints import fingerprints
from flmm_core.fingerprints import files_fingerprint
from flmm_core.image_files import read_image
from flmm_core.sam_refiner import SamImage, SamRefiner


def load_embeddings(folder: Path, paths: Sequence[Path], *, sam: str, refiner: SamRefiner) -> list[SamImage]:
    """Embeddings of image files; a stopped run goes on where it ended.

    Args:
        folder: where they are kept, in float16; a manifest says of what.
        paths: of the images.
        sam: where the refiner's SAM was loaded from.
        refiner: runs the image encoder.

    Returns:
        One for each image, memory-mapped.

    Raises:
        ValueError: the folder holds embeddings of other images or of another SAM.
    """
    require_manifest(folder, {"images": files_fingerprint(paths), "sam": fingerprints(sam=sam)["sam"]})
    images = []
    for index, path in enumerate(tqdm(paths, desc="SAM embeddings", unit="image")):
        file = folder / f"{index:06d}.npy"
        image = read_image(path)
        if not file.exists():
            embedding = refiner.encode_image(image).embedding.half().cpu().numpy()
            temporary = folder / "unfinished.npy"
            np.save(temporary, embedding)
            temporary.rename(file)
        kept = torch.from_numpy(np.load(file, mmap_mode="c"))
        height, width = image.shape[:2]
        images.append(SamImage(kept, height, width, *refiner.input_size(height, width)))
    return images
