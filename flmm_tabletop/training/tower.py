"""First stage of flmm-tabletop: the vision tower learns which things are in a picture, from their names alone.

Each cell of the grid votes for every word (a colour, a kind, a colour with a kind, "object"); the votes are summed over the
picture and compared with the number of things of which the word is true. Where a thing is, is never told.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from flmm_core.data.dataset import Picture, read_dataset
from flmm_core.training.loop import LoopConfig, Losses, adamw, parameter_groups, train
from flmm_tabletop.training.frames import load_frames, normalised, rebrightened
from flmm_tabletop.vision_tower import TabletopTower, TabletopTowerConfig

ANY = "object"
"""The word that is true of every thing."""


@dataclass(frozen=True)
class TowerSettings:
    """What the stage depends on beside its loop."""

    data: Path
    val: Path
    batch: int = 32
    seed: int = 0


@dataclass(frozen=True)
class WordVotes:
    """How the content of a cell votes for words: the logarithm of how many things it adds to a word's number."""

    words: tuple[str, ...]
    weight: torch.Tensor
    """``[words, content channels]``."""
    bias: torch.Tensor
    """``[words]``."""

    _FILE = "words.safetensors"

    def save(self, folder: Path) -> None:
        """Write them beside a tower."""
        metadata = {"words": json.dumps(self.words)}
        save_file({"weight": self.weight.contiguous(), "bias": self.bias}, folder / self._FILE, metadata)

    @classmethod
    def load(cls, folder: Path) -> WordVotes:
        """Read what :meth:`save` wrote, on the CPU."""
        with safe_open(folder / cls._FILE, "pt") as file:
            words = json.loads(file.metadata()["words"])
            return cls(tuple(words), file.get_tensor("weight"), file.get_tensor("bias"))


class WordDetector(nn.Module):
    """The tower with one vote for each cell and word."""

    def __init__(self, tower: TabletopTower, words: int) -> None:
        super().__init__()
        self.tower = tower
        self.votes = nn.Linear(tower.content_channels, words)
        # Summed over some hundred cells, this starts every word near zero.
        nn.init.constant_(self.votes.bias, -8.0)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values ``[b, 3, frame, frame]`` to the logarithms of the numbers of things for each word, ``[b, words]``."""
        content = self.tower(pixel_values).last_hidden_state[..., : self.tower.content_channels]
        return self.votes(content).float().logsumexp(1)


def train_tower(out: Path, settings: TowerSettings, loop: LoopConfig, device: torch.device) -> None:
    """Train the tower and save it in ``out/tower`` (Hugging Face layout), and how its cells vote for words beside it."""
    torch.manual_seed(settings.seed)
    config = TabletopTowerConfig()
    pictures, held_out = list(read_dataset(settings.data)), list(read_dataset(settings.val))
    vocabulary = sorted({word for picture in pictures for word in _words(picture)})
    frames = load_frames(settings.data, pictures, config.image_size)
    targets = _targets(pictures, vocabulary)
    model = WordDetector(TabletopTower(config), len(vocabulary)).to(device)
    model.to(memory_format=torch.channels_last)

    def loss_at(step: int) -> Losses:
        rng = np.random.default_rng([settings.seed, step])
        index = rng.choice(len(pictures), settings.batch, replace=False)
        pixels = normalised(frames[np.sort(index)], device)
        flip = torch.from_numpy(rng.random(settings.batch) < 0.5).to(device)
        pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        pixels = rebrightened(pixels, rng)
        logits = model.train()(pixels.contiguous(memory_format=torch.channels_last))
        return {"words": F.poisson_nll_loss(logits, targets[np.sort(index)].to(device)) * 10}

    val_frames, val_targets = load_frames(settings.val, held_out, config.image_size), _targets(held_out, vocabulary)

    def measure(_: int) -> dict[str, float]:
        return _measure(model.eval(), val_frames, val_targets, device)

    optimizer = adamw(parameter_groups(model.parameters(), loop), loop)
    train(model, loss_at, out=out, config=loop, settings=settings, device=device, optimizers=[optimizer], every=(500, measure))
    model.tower.save_pretrained(out / "tower")
    WordVotes(tuple(vocabulary), model.votes.weight.detach(), model.votes.bias.detach()).save(out / "tower")


def _words(picture: Picture) -> Counter[str]:
    """How many things each word is true of."""
    return Counter(word for name in picture.names for word in (name, *name.split(), ANY))


def _targets(pictures: Sequence[Picture], vocabulary: Sequence[str]) -> torch.Tensor:
    """``[pictures, words]`` float32, the number of things of which the word is true."""
    index = {word: i for i, word in enumerate(vocabulary)}
    targets = torch.zeros(len(pictures), len(vocabulary))
    for row, picture in enumerate(pictures):
        for word, count in _words(picture).items():
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
