"""Images of a data set as the vision tower's frames, decoded and resized once and cached beside the data set."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from flmm_core.common.output_files import written_file
from flmm_core.data.samples import Sample
from flmm_core.images.files import read_image
from flmm_core.images.geometry import long_side_geometry, place_in_frame
from flmm_core.weights.cache_manifest import require_manifest
from flmm_core.weights.fingerprints import files_fingerprint

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of RGB 0..1 in CLIP and LLaVA."""


def load_frames(folder: Path, samples: Sequence[Sample], frame: int) -> np.ndarray:
    """Frames of all images of a data set.

    Args:
        folder: of the data set; the frames are cached in its folder ``frames-<frame>``.
        samples: of that data set, in order.
        frame: side of the square frame, pixels.

    Returns:
        ``[images, frame, frame, 3]`` uint8, memory-mapped.

    Raises:
        ValueError: the cached frames were made from other images.
    """
    cache = folder / f"frames-{frame}"
    files = files_fingerprint(sample.path for sample in samples)
    require_manifest(cache, {"images": len(samples), "files": files, "frame": frame})
    path = cache / "frames.npy"
    if not path.exists():
        shape = (len(samples), frame, frame, 3)
        with written_file(path) as temporary, ProcessPoolExecutor(2) as pool:
            frames = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            done = pool.map(_frame, [p.path for p in samples], [frame] * len(samples), chunksize=64)
            for index, pixels in enumerate(tqdm(done, total=len(samples), desc="frames", unit="image")):
                frames[index] = pixels
            frames.flush()
    return np.load(path, mmap_mode="r")


def normalised(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """Frames ``[b, frame, frame, 3]`` uint8 as pixel values ``[b, 3, frame, frame]`` float32, channels last in memory."""
    pixels = torch.from_numpy(np.array(frames)).to(device).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    return pixels.sub_(mean).div_(std)


def rebrightened(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Make each image of pixel values ``[b, 3, frame, frame]`` brighter or darker by up to 15 %."""
    factors = torch.from_numpy(rng.uniform(0.85, 1.15, (len(pixels), 1, 1, 1)))
    return pixels * factors.float().to(pixels.device)


def _frame(path: Path, frame: int) -> np.ndarray:
    image = Image.fromarray(read_image(path))
    geometry = long_side_geometry(image_height=image.height, image_width=image.width, frame=frame, grid_height=1, grid_width=1)
    red, green, blue = (int(255 * channel) for channel in MEAN)
    return place_in_frame(image, geometry, background=(red, green, blue), resample=Image.Resampling.BICUBIC)
