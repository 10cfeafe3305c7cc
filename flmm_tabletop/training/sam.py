"""Third stage of flmm-tabletop: a small SAM learns to sharpen masks of simulated objects.

Its prompts imitate the output of a mask head: the true mask at the resolution of an attention grid, blurred, shifted and noisy,
and the box around that. The image encoder is frozen afterwards; prompt encoder and mask decoder are trained further with the
heads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch.nn import functional as F
from tqdm import tqdm

from flmm_core.common.output_files import replaced_folder
from flmm_core.data.samples import Sample
from flmm_core.data.tabletop import read_dataset
from flmm_core.data.visit import usable_samples
from flmm_core.evaluation.metrics import cumulative_iou
from flmm_core.images.masks import Overlap
from flmm_core.sam.refiner import SamImage, SamRefiner
from flmm_core.sam.refiner_config import RefinerConfig
from flmm_core.sam.transformers_sam import TransformersSam
from flmm_core.training.loop import Losses, accelerator_on, adamw, parameter_groups, train
from flmm_core.training.losses import mask_losses
from flmm_core.training.settings import LoopConfig
from flmm_core.weights.folders import HUGGING_FACE_FILES
from flmm_tabletop.sam_kinds import KINDS
from flmm_tabletop.sam_tiny import TinySamConfig, build_tiny_sam, save_tiny_sam
from flmm_tabletop.training.settings import SamSettings

COARSE = 64
"""Long side of the imitated coarse masks, cells."""
MEASURED = 100
"""Held-out images that are measured during training."""


def train_sam(out: Path, settings: SamSettings, loop: LoopConfig, device: torch.device) -> None:
    """Train SAM and save it in ``out/sam``."""
    torch.manual_seed(settings.seed)
    sam, save = _build(settings.kind)
    refiner = SamRefiner(sam=sam, config=RefinerConfig(use_text=False)).to(device)
    refiner.model.image_encoder.requires_grad_(True)
    samples, held_out = (usable_samples(read_dataset(folder), tell=tqdm.write) for folder in (settings.data, settings.val))

    def loss_at(step: int) -> Losses:
        rng = np.random.default_rng([settings.seed, 2, step])
        chosen = [samples[i] for i in rng.choice(len(samples), settings.batch, replace=False)]
        bce: list[torch.Tensor] = []
        dice: list[torch.Tensor] = []
        for image, sample in zip(_encode(refiner.train(), chosen), chosen, strict=True):
            logits, targets = _refine(refiner, image, sample, rng, settings)
            for losses, value in zip((bce, dice), mask_losses(logits, targets), strict=True):
                losses.append(value)
        return {"bce": torch.stack(bce).mean() * 5, "dice": torch.stack(dice).mean()}

    def measure(_: int) -> dict[str, float]:
        refiner.eval()
        found = [sharpened(refiner, sample, number, settings) for number, sample in enumerate(held_out[:MEASURED])]
        return {"ciou": cumulative_iou(found).value}

    optimizer = adamw(parameter_groups(refiner.parameters(), loop), loop)
    train(
        refiner,
        loss_at,
        out=out,
        config=loop,
        settings=settings,
        accelerator=accelerator_on(device),
        optimizers=[optimizer],
        every=(500, measure),
    )
    save(out / "sam")


def _build(kind: str) -> tuple[Sam | TransformersSam, Callable[[Path], None]]:
    """A SAM with random weights, and the function that saves it."""
    if kind == "sam":
        config = TinySamConfig()
        tiny = build_tiny_sam(config)
        return tiny, lambda folder: save_tiny_sam(tiny, config, folder)
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of sam, {', '.join(KINDS)}, got {kind!r}")
    build, adapter = KINDS[kind]
    model = build()

    def save(folder: Path) -> None:
        with replaced_folder(folder, HUGGING_FACE_FILES, "SAM") as new:
            model.save_pretrained(new)

    return adapter(model).eval(), save


def _encode(refiner: SamRefiner, samples: list[Sample]) -> list[SamImage]:
    """Embed images of one size together, with gradients."""
    images = [sample.image() for sample in samples]
    pixels, sizes = zip(*(refiner.preprocess(image) for image in images), strict=True)
    embeddings = refiner.model.image_encoder(torch.cat(pixels)).split(1)
    return [SamImage(e, *image.shape[:2], *size) for e, image, size in zip(embeddings, images, sizes, strict=True)]


def _refine(
    refiner: SamRefiner, image: SamImage, sample: Sample, rng: np.random.Generator, settings: SamSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and true masks ``[n, H, W]`` of some objects of an image."""
    count = min(settings.objects, len(sample.rles))
    objects = rng.permutation(len(sample.rles))[:count].tolist()
    targets = torch.stack([torch.from_numpy(sample.mask((i,))) for i in objects]).float().to(image.embedding.device)
    coarse = torch.stack([imitate_coarse(target, rng, settings.grid) for target in targets])
    low_res = refiner(image, coarse, [coarse.new_zeros(0, refiner.text_size)] * count).low_res
    return refiner.to_image(low_res.float(), image), targets


def imitate_coarse(mask: torch.Tensor, rng: np.random.Generator, grid: int) -> torch.Tensor:
    """A true mask ``[H, W]`` as a mask head might predict it: ``[h, w]`` logits with a long side of ``COARSE`` cells."""
    height, width = mask.shape
    scale = grid / max(height, width) * rng.uniform(0.8, 2.5)
    cells = (max(2, round(height * scale)), max(2, round(width * scale)))
    seen = F.interpolate(mask[None, None], cells, mode="area")
    size = (round(height * COARSE / max(height, width)), round(width * COARSE / max(height, width)))
    seen = F.interpolate(seen, size, mode="bilinear")[0, 0]
    shift = rng.integers(-2, 3, 2)
    seen = torch.roll(seen, (int(shift[0]), int(shift[1])), (0, 1))
    noise = torch.from_numpy(rng.standard_normal((1, 1, 6, 8)).astype(np.float32)).to(mask.device)
    blotches = F.interpolate(noise, size, mode="bicubic")[0, 0] * rng.uniform(0, 1.5)
    return (seen - rng.uniform(0.25, 0.55)) * rng.uniform(4, 14) + blotches


@torch.no_grad()
def sharpened(refiner: SamRefiner, sample: Sample, seed: int, settings: SamSettings | None = None) -> list[Overlap]:
    """Overlap of refined imitated coarse masks of some objects of an image with their true masks.

    Args:
        refiner: without text prompts.
        sample: an image with masks.
        seed: of the imitated masks.
        settings: number of objects, and grid.
    """
    image = refiner.encode_image(sample.image())
    logits, targets = _refine(refiner, image, sample, np.random.default_rng(seed), settings or SamSettings())
    return [Overlap.of(found > 0, true > 0) for found, true in zip(logits, targets, strict=True)]
