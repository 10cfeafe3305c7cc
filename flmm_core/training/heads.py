"""Last stage: everything that F-LMM trains learns on top of the frozen LMM.

U-Net, text projection, layer weights, SAM's prompt encoder and mask decoder, and the keyword selector (F-LMM, section 4; the
selector's loss has weight 0.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from flmm_core.checkpoints import HeadsOrigin, lmm_shape, load_sam, save_heads
from flmm_core.data.dataset import Picture, read_dataset
from flmm_core.heads import GroundingHeads, HeadsConfig
from flmm_core.mask_head import UNetConfig
from flmm_core.sam_refiner import SamImage, SamRefiner
from flmm_core.training.loop import LoopConfig, Losses, train
from flmm_core.training.losses import mask_losses
from flmm_core.training.traces import AnswerTrace, load_traces

SELECTOR_WEIGHT = 0.3


@dataclass(frozen=True)
class HeadsSettings:
    """What the stage depends on beside its loop."""

    data: Path
    val: Path
    lmm: Path
    sam: Path
    pictures: int = 4000
    """Pictures of ``data`` whose answers the LMM reads."""
    turns: int = 6
    """Answers for each picture."""
    batch: int = 8
    """Pictures of a step."""
    phrases: int = 3
    """Most phrases of a picture in one step."""
    base_channels: int = 32
    seed: int = 0


def train_heads(out: Path, settings: HeadsSettings, loop: LoopConfig, device: torch.device) -> None:
    """Train the heads and save them in ``out/heads``."""
    torch.manual_seed(settings.seed)
    shape = lmm_shape(settings.lmm)
    unet = UNetConfig(in_channels=shape.channels, base_channels=settings.base_channels)
    config = HeadsConfig(unet=unet, layers=shape.layers, hidden_size=shape.hidden_size)
    heads = GroundingHeads(config=config, sam=SamRefiner(sam=load_sam(settings.sam))).to(device)
    pictures, held_out = list(read_dataset(settings.data)), list(read_dataset(settings.val))
    read = partial(load_traces, lmm=settings.lmm, turns=settings.turns, seed=settings.seed)
    traces = _by_picture(read(out / "traces", data=settings.data, pictures=settings.pictures))
    val_traces = _by_picture(read(out / "val_traces", data=settings.val, pictures=100))
    stage = HeadsStage(heads, device, settings)

    def loss_at(step: int) -> Losses:
        rng = np.random.default_rng([settings.seed, 4, step])
        chosen = rng.choice(len(traces), settings.batch, replace=False)
        return stage.losses([(pictures[traces[i][0].picture], traces[i]) for i in chosen], rng)

    def measure(_: int) -> dict[str, float]:
        return stage.measure([(held_out[own[0].picture], own) for own in val_traces])

    train(heads.train(), loss_at, out=out, config=loop, settings=settings, device=device, every=(250, measure))
    save_heads(heads, out / "heads", origin=HeadsOrigin(lmm=settings.lmm.name, sam=settings.sam.name))


def _by_picture(traces: list[AnswerTrace]) -> list[list[AnswerTrace]]:
    """Traces of each picture together, without pictures whose answers name nothing."""
    grouped: dict[int, list[AnswerTrace]] = {}
    for trace in traces:
        grouped.setdefault(trace.picture, []).append(trace)
    return [own for own in grouped.values() if any(trace.objects for trace in own)]


class HeadsStage:
    """Heads on stored traces: losses for training, figures for held-out pictures."""

    def __init__(self, heads: GroundingHeads, device: torch.device, settings: HeadsSettings) -> None:
        if heads.keyword_selector is None:
            raise ValueError("heads: expected a keyword selector to train, got heads without one")
        self.heads = heads
        self.selector: nn.Module = heads.keyword_selector
        self.device = device
        self.settings = settings

    def losses(self, batch: list[tuple[Picture, list[AnswerTrace]]], rng: np.random.Generator) -> Losses:
        """Losses of some phrases of each picture, and of the selector on all its answers."""
        terms: dict[str, list[torch.Tensor]] = {"bce": [], "dice": [], "sam_bce": [], "sam_dice": []}
        states = torch.cat([trace.last_states.float() for _, own in batch for trace in own]).to(self.device)
        named = torch.cat([trace.named for _, own in batch for trace in own]).float().to(self.device)
        for picture, own in batch:
            phrases = [(trace, i) for trace in own for i in range(len(trace.objects))]
            chosen = [phrases[i] for i in rng.permutation(len(phrases))[: self.settings.phrases]]
            image = self.heads.sam.encode_image(picture.image())
            coarse, refined = self._masks(image, chosen)
            targets = self._targets(picture, chosen)
            small = F.interpolate(targets[:, None], coarse.shape[-2:], mode="area")[:, 0]
            for name, value in zip(terms, (*mask_losses(coarse, small), *mask_losses(refined, targets)), strict=True):
                terms[name].append(value)
        losses = {name: torch.stack(values).mean() for name, values in terms.items()}
        selected = F.binary_cross_entropy_with_logits(self.selector(states), named)
        return {**losses, "selector": SELECTOR_WEIGHT * selected}

    @torch.no_grad()
    def measure(self, batch: list[tuple[Picture, list[AnswerTrace]]]) -> dict[str, float]:
        """Measure cIoU of coarse and refined masks, and F1 of the selector on tokens."""
        self.heads.eval()
        sums = np.zeros((2, 2))
        right = found = true = 0
        for picture, own in batch:
            image = self.heads.sam.encode_image(picture.image())
            for trace in own:
                chosen = [(trace, i) for i in range(len(trace.objects))]
                selected = self.selector(trace.last_states.to(self.device)).cpu() > 0
                right += int((selected & trace.named).sum())
                found, true = found + int(selected.sum()), true + int(trace.named.sum())
                if not chosen:
                    continue
                targets = self._targets(picture, chosen) > 0
                coarse, refined = self._masks(image, chosen)
                coarse = F.interpolate(coarse[:, None], targets.shape[-2:], mode="bilinear")[:, 0]
                for row, logits in zip(sums, (coarse, refined), strict=True):
                    row += [int(((logits > 0) & targets).sum()), int(((logits > 0) | targets).sum())]
        self.heads.train()
        ciou = sums[:, 0] / np.maximum(sums[:, 1], 1)
        return {"unet_ciou": ciou[0], "sam_ciou": ciou[1], "selector_f1": 2 * right / max(1, found + true)}

    def _masks(self, image: SamImage, phrases: list[tuple[AnswerTrace, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the U-Net ``[n, h', w']`` and of SAM ``[n, H, W]``."""
        maps = torch.stack([trace.maps[i].float() for trace, i in phrases]).to(self.device)
        coarse = self.heads.coarse_masks(maps, phrases[0][0].geometry).logits.float()
        texts = [self.heads.text_tokens(trace.phrase_states[i].to(self.device)) for trace, i in phrases]
        low_res = self.heads.sam(image, coarse, texts).low_res
        return coarse, self.heads.sam.to_picture(low_res.float(), image)

    def _targets(self, picture: Picture, phrases: list[tuple[AnswerTrace, int]]) -> torch.Tensor:
        masks = [torch.from_numpy(picture.mask(trace.objects[i])) for trace, i in phrases]
        return torch.stack(masks).float().to(self.device)
