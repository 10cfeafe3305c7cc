"""First stage of flmm-tabletop: the vision tower learns which objects are in an image, from their names alone.

Each cell of the grid votes for every word (a colour, a kind, a colour with a kind, "object"); the votes are summed over the
image and compared with the number of objects to which the word applies. The positions of objects are not used. The convolutions
learn first, by every word; then the tower's own votes, for single words alone, are fitted to what its cells have come to show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from flmm_core.common.output_files import replaced_folder
from flmm_core.data.samples import Sample
from flmm_core.data.tabletop import read_dataset
from flmm_core.data.visit import usable_samples
from flmm_core.training.loop import Losses, accelerator_on, adamw, parameter_groups, train
from flmm_core.training.settings import LoopConfig
from flmm_core.weights.folders import HUGGING_FACE_FILES
from flmm_sim.scene import COLORS, KINDS
from flmm_tabletop.training.frames import load_frames, normalised, rebrightened
from flmm_tabletop.training.settings import TowerSettings
from flmm_tabletop.vision_tower import ANY, TabletopTower, TabletopTowerConfig

WORDS = tuple(sorted((*KINDS, *COLORS, ANY)))
"""Words of a tower: no pairs, so that naming a red mug requires combining red and mug by attention."""

VOTE_RATE = 1e-2
"""Learning rate of the fit of the votes; it falls linearly from the first step."""


class WordDetector(nn.Module):
    """The tower's cells with one vote for each cell and word."""

    def __init__(self, tower: TabletopTower, votes: nn.Linear) -> None:
        super().__init__()
        self.tower = tower
        self.votes = votes
        # Summed over some hundred cells, this starts every word near zero.
        nn.init.constant_(self.votes.bias, -8.0)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values ``[b, 3, frame, frame]`` to the logarithms of the numbers of things for each word, ``[b, words]``."""
        return self.votes(self.tower.content(pixel_values)).float().logsumexp(1)


def train_tower(out: Path, settings: TowerSettings, loop: LoopConfig, device: torch.device) -> None:
    """Train the tower and save it in ``out/tower`` (Hugging Face layout); the fit of its votes has its log in ``out/votes``."""
    torch.manual_seed(settings.seed)
    config = TabletopTowerConfig(words=WORDS, hidden_size=len(WORDS) + TabletopTowerConfig.position_channels)
    samples, held_out = (usable_samples(read_dataset(folder), tell=tqdm.write) for folder in (settings.data, settings.val))
    frames = load_frames(settings.data, samples, config.image_size)
    val_frames = load_frames(settings.val, held_out, config.image_size)
    tower = TabletopTower(config)
    vocabulary = sorted({word for sample in samples for word in _words(sample)})
    model = WordDetector(tower, nn.Linear(config.stage_widths[-1], len(vocabulary)))
    model.to(device).to(memory_format=torch.channels_last)
    tower.votes.requires_grad_(False)
    targets, val_targets = count_targets(samples, vocabulary), count_targets(held_out, vocabulary)

    def loss_at(step: int) -> Losses:
        rng = np.random.default_rng([settings.seed, step])
        index = np.sort(rng.choice(len(samples), settings.batch, replace=False))
        pixels = normalised(frames[index], device)
        flip = torch.from_numpy(rng.random(settings.batch) < 0.5).to(device)
        pixels = rebrightened(torch.where(flip[:, None, None, None], pixels.flip(-1), pixels), rng)
        return {"words": _count_loss(model.train(), pixels, targets[index])}

    def measure(_: int) -> dict[str, float]:
        return _measure(model.eval(), val_frames, val_targets, device)

    optimizer = adamw(parameter_groups(model.parameters(), loop), loop)
    train(
        model,
        loss_at,
        out=out,
        config=loop,
        settings=settings,
        accelerator=accelerator_on(device),
        optimizers=[optimizer],
        every=(500, measure),
    )
    tower.requires_grad_(False)
    tower.votes.requires_grad_(True)
    fit_votes(
        tower,
        (frames, count_targets(samples, WORDS)),
        (val_frames, count_targets(held_out, WORDS)),
        out / "votes",
        settings,
        loop,
    )
    with replaced_folder(out / "tower", HUGGING_FACE_FILES, "tower") as folder:
        tower.save_pretrained(folder)


def fit_votes(
    tower: TabletopTower,
    learnt: tuple[np.ndarray, torch.Tensor],
    held_out: tuple[np.ndarray, torch.Tensor],
    out: Path,
    settings: TowerSettings,
    loop: LoopConfig,
) -> None:
    """Fit ``tower.votes``, the only part that requires a gradient, to what the finished cells show.

    Args:
        tower: with trained convolutions.
        learnt: frames ``[images, frame, frame, 3]`` uint8, and the numbers of things ``[images, words]`` as float32.
        held_out: the same of the images to measure on.
        out: folder of log and checkpoint.
        settings: of the stage.
        loop: of the stage; what concerns neither steps nor rates is taken from it.
    """
    frames, targets = learnt
    detector = WordDetector(tower, tower.votes).eval()

    def loss_at(step: int) -> Losses:
        rng = np.random.default_rng([settings.seed, 5, step])
        index = np.sort(rng.choice(len(frames), min(settings.vote_batch, len(frames)), replace=False))
        return {"words": _count_loss(detector, normalised(frames[index], tower.device), targets[index])}

    def measure(_: int) -> dict[str, float]:
        return _measure(detector, *held_out, tower.device)

    config = replace(loop, steps=settings.vote_steps, learning_rate=VOTE_RATE, weight_decay=0.0, warmup=0.0, fall=1.0)
    optimizer = adamw(parameter_groups(tower.parameters(), config), config)
    train(
        detector,
        loss_at,
        out=out,
        config=config,
        settings=settings,
        accelerator=accelerator_on(tower.device),
        optimizers=[optimizer],
        every=(400, measure),
    )


def _count_loss(model: WordDetector, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logarithms = model(pixels.contiguous(memory_format=torch.channels_last))
    return F.poisson_nll_loss(logarithms, targets.to(logarithms.device)) * 10


def _words(sample: Sample) -> Counter[str]:
    """How many things each word is true of."""
    return Counter(word for name in sample.names for word in (name, *name.split(), ANY))


def count_targets(samples: Sequence[Sample], vocabulary: Sequence[str]) -> torch.Tensor:
    """``[images, words]`` float32, the number of things of which the word is true."""
    index = {word: i for i, word in enumerate(vocabulary)}
    targets = torch.zeros(len(samples), len(vocabulary))
    for row, sample in enumerate(samples):
        for word, count in _words(sample).items():
            if word in index:
                targets[row, index[word]] = count
    return targets


@torch.no_grad()
def _measure(model: WordDetector, frames: np.ndarray, targets: torch.Tensor, device: torch.device) -> dict[str, float]:
    log_counts = torch.cat([model(normalised(frames[i : i + 32], device)).cpu() for i in range(0, len(frames), 32)])
    counts = log_counts.exp().round()
    found, true = counts > 0, targets > 0
    right = (found & true).sum().item()
    return {
        "precision": right / max(1, found.sum().item()),
        "recall": right / max(1, true.sum().item()),
        "exact": (found == true).all(1).float().mean().item(),
        "counted": (counts == targets)[true].float().mean().item(),
    }
