"""Trains everything that F-LMM learns on top of a frozen LMM.

U-Net, text projection, layer weights, SAM's prompt encoder and mask decoder (F-LMM, section 4), the keyword selector (weight
0.3), and beyond the paper the presence score, which learns from names of what is not there. What never changes is computed
once: the LMM's traces and SAM's image embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from flmm_core.checkpoints import HeadsOrigin, lmm_shape, save_heads
from flmm_core.config import GroundingConfig
from flmm_core.data.samples import Sample
from flmm_core.data.tabletop import read_dataset
from flmm_core.devices import resolve_device
from flmm_core.evaluation.matching import Overlap
from flmm_core.heads import GroundingHeads, HeadsConfig
from flmm_core.image_geometry import unpad
from flmm_core.mask_head import UNetConfig
from flmm_core.sam_checkpoints import load_sam
from flmm_core.sam_refiner import SamImage, SamRefiner
from flmm_core.training.embeddings import load_embeddings
from flmm_core.training.loop import Losses, adamw, parameter_groups, train
from flmm_core.training.losses import mask_losses
from flmm_core.training.settings import HeadsSettings, LoopConfig
from flmm_core.training.traces import AnswerTrace, Reader, load_traces

PROBE_WEIGHT = 0.3
"""Of the keyword selector's loss (F-LMM, section 4), and of the presence score's."""

SAM_RATE = 0.3
"""Learning rate of SAM's parts, which are trained already, as a share of the others'."""


def train_heads(out: Path, settings: HeadsSettings, loop: LoopConfig, device: torch.device) -> None:
    """Train the heads and save them in ``out/heads``."""
    torch.manual_seed(settings.seed)
    shape = lmm_shape(settings.lmm)
    unet = UNetConfig(in_channels=shape.channels, base_channels=settings.base_channels)
    config = HeadsConfig(unet=unet, layers=shape.layers, hidden_size=shape.hidden_size)
    heads = GroundingHeads(config=config, sam=SamRefiner(sam=load_sam(settings.sam))).to(device)
    stage = HeadsStage(heads, device, settings)
    reading = GroundingConfig(device=str(device), dtype=settings.dtype)
    reader = Reader(settings.lmm, *resolve_device(reading))
    read = partial(_load_examples, heads=heads, settings=settings, reader=reader)
    examples = read(out / "train", data=settings.data, samples=settings.samples)
    held_out = read(out / "val", data=settings.val, samples=settings.val_samples)

    def loss_at(step: int) -> Losses:
        rng = np.random.default_rng([settings.seed, 4, step])
        chosen = rng.choice(len(examples), settings.batch, replace=False)
        return stage.losses([examples[i] for i in chosen], rng)

    sam = list(heads.sam.parameters())
    others = [parameter for name, parameter in heads.named_parameters() if not name.startswith("sam.")]
    optimizer = adamw(parameter_groups(others, loop) + parameter_groups(sam, loop, factor=SAM_RATE), loop)
    every = (250, lambda _: stage.measure(held_out))
    train(heads.train(), loss_at, out=out, config=loop, settings=settings, device=device, optimizers=[optimizer], every=every)
    save_heads(heads, out / "heads", origin=HeadsOrigin.of(lmm=settings.lmm, sam=settings.sam))


@dataclass(frozen=True)
class Phrase:
    """A phrase of an answer that the LMM read."""

    trace: AnswerTrace
    index: int

    @property
    def objects(self) -> tuple[int, ...]:
        """The image's objects that it names; none if it names what is not there."""
        return self.trace.objects[self.index]

    @property
    def states(self) -> torch.Tensor:
        """``[l, t, d]`` hidden states of its tokens."""
        return self.trace.phrase_states(self.index)

    @property
    def map(self) -> torch.Tensor:
        """``[c, h, w]`` its attention."""
        return self.trace.maps[self.index]


@dataclass(frozen=True)
class Example:
    """An image with all that the LMM read about it, and what SAM's frozen encoder sees."""

    sample: Sample
    traces: tuple[AnswerTrace, ...]
    image: SamImage

    @property
    def phrases(self) -> list[Phrase]:
        """All phrases of all answers."""
        return [Phrase(trace, i) for trace in self.traces for i in range(len(trace.objects))]

    def targets(self, phrases: Sequence[Phrase]) -> torch.Tensor:
        """True masks ``[n, H, W]`` float32 in {0, 1}."""
        return torch.stack([torch.from_numpy(self.sample.mask(phrase.objects)) for phrase in phrases]).float()


def _load_examples(
    folder: Path, *, data: Path, samples: int, heads: GroundingHeads, settings: HeadsSettings, reader: Reader
) -> list[Example]:
    """Examples of some images of a data set whose answers name something; traces and embeddings are kept in ``folder``."""
    available = list(read_dataset(data))
    traces = load_traces(folder / "traces", reader, data=data, samples=samples, turns=settings.turns, seed=settings.seed)
    grouped: dict[int, list[AnswerTrace]] = {}
    for trace in traces:
        grouped.setdefault(trace.sample, []).append(trace)
    images = load_embeddings(folder / "embeddings", [available[i].path for i in grouped], sam=settings.sam, refiner=heads.sam)
    examples = [
        Example(available[i], tuple(answers), image) for (i, answers), image in zip(grouped.items(), images, strict=True)
    ]
    return [example for example in examples if any(phrase.objects for phrase in example.phrases)]


class HeadsStage:
    """Heads on stored traces: losses for training, figures for held-out images."""

    def __init__(self, heads: GroundingHeads, device: torch.device, settings: HeadsSettings) -> None:
        if heads.keyword_selector is None or heads.presence is None:
            raise ValueError("heads: expected a keyword selector and a presence score to train, got heads without them")
        self.heads = heads
        self.device = device
        self.settings = settings

    def losses(self, batch: Sequence[Example], rng: np.random.Generator) -> Losses:
        """Mask losses of some phrases of each image, and losses of selector and presence score on all its answers."""
        terms: dict[str, list[torch.Tensor]] = {"bce": [], "dice": [], "sam_bce": [], "sam_dice": []}
        chosen = [self._choose(example, rng) for example in batch]
        for example, phrases, coarse in zip(batch, chosen, self._coarse(chosen), strict=True):
            targets = example.targets(phrases).to(self.device)
            small = F.interpolate(targets[:, None], coarse.shape[-2:], mode="area")[:, 0]
            refined = slice(self.settings.refined)
            logits = self._refined(example, phrases[refined], coarse[refined])
            pairs = (*mask_losses(coarse, small), *mask_losses(logits, targets[refined]))
            for values, value in zip(terms.values(), pairs, strict=True):
                values.append(value)
        losses = {name: torch.stack(values).mean() for name, values in terms.items()}
        traces = [trace for example in batch for trace in example.traces]
        picked = torch.cat([self._keywords(trace) for trace in traces])
        named = torch.cat([trace.named for trace in traces]).float().to(self.device)
        phrases = [phrase for example in batch for phrase in example.phrases]
        there = torch.tensor([bool(phrase.objects) for phrase in phrases], device=self.device).float()
        losses["selector"] = PROBE_WEIGHT * F.binary_cross_entropy_with_logits(picked, named)
        losses["presence"] = PROBE_WEIGHT * F.binary_cross_entropy_with_logits(self._presence(phrases), there)
        return losses

    @torch.no_grad()
    def measure(self, examples: Sequence[Example]) -> dict[str, float]:
        """CIoU of coarse and refined masks, F1 of the selector on tokens, and how well the presence score tells absence."""
        self.heads.eval()
        overlaps = np.zeros((2, 2))
        tokens = np.zeros(3)
        kept: list[bool] = []
        caught: list[bool] = []
        for example in examples:
            for trace in example.traces:
                picked = self._keywords(trace).cpu() > 0
                tokens += [int((picked & trace.named).sum()), int(picked.sum()), int(trace.named.sum())]
            phrases = example.phrases
            for phrase, logit in zip(phrases, self._presence(phrases).tolist(), strict=True):
                (kept if phrase.objects else caught).append((logit > 0) == bool(phrase.objects))
            phrases = [phrase for phrase in phrases if phrase.objects]
            true = example.targets(phrases).to(self.device) > 0
            (coarse,) = self._coarse([phrases])
            refined = self._refined(example, phrases, coarse)
            coarse = F.interpolate(coarse[:, None], true.shape[-2:], mode="bilinear")[:, 0]
            for row, logits in zip(overlaps, (coarse, refined), strict=True):
                overlap = Overlap.of((logits > 0).cpu().numpy(), true.cpu().numpy())
                row += [overlap.shared, overlap.union]
        self.heads.train()
        unet, sam = overlaps[:, 0] / np.maximum(overlaps[:, 1], 1)
        f1 = 2 * tokens[0] / max(1, tokens[1] + tokens[2])
        present, absent = (float(np.mean(rows)) if rows else float("nan") for rows in (kept, caught))
        return {"unet_ciou": unet, "sam_ciou": sam, "selector_f1": f1, "present_kept": present, "absent_caught": absent}

    def _choose(self, example: Example, rng: np.random.Generator) -> list[Phrase]:
        present = [phrase for phrase in example.phrases if phrase.objects]
        return [present[i] for i in rng.permutation(len(present))[: self.settings.phrases]]

    def _coarse(self, groups: Sequence[Sequence[Phrase]]) -> list[torch.Tensor]:
        """Logits ``[n, h', w']`` of the U-Net for each group of phrases about one image; one pass where maps are alike."""
        maps = [torch.stack([phrase.map for phrase in phrases]).float().to(self.device) for phrases in groups]
        if len({group.shape[1:] for group in maps}) == 1:
            logits = self.heads.mask_head(torch.cat(maps)).float().split([len(group) for group in maps])
        else:
            logits = tuple(self.heads.mask_head(group).float() for group in maps)
        return [unpad(masks, phrases[0].trace.geometry) for masks, phrases in zip(logits, groups, strict=True)]

    def _refined(self, example: Example, phrases: Sequence[Phrase], coarse: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, H, W]`` of SAM."""
        texts = [self.heads.text_tokens(self._mixed(phrase.states)) for phrase in phrases]
        image = example.image.to(self.device)
        return self.heads.sam.to_image(self.heads.sam(image, coarse, texts).low_res.float(), image)

    def _presence(self, phrases: Sequence[Phrase]) -> torch.Tensor:
        """Logits ``[n]``; phrases about images of other shapes may have maps of other sizes."""
        logits = [
            self.heads.presence_logits([self._mixed(phrase.states)], phrase.map[None].to(self.device)) for phrase in phrases
        ]
        return torch.cat([one for one in logits if one is not None])

    def _keywords(self, trace: AnswerTrace) -> torch.Tensor:
        """Logits ``[t]`` of an answer's tokens."""
        logits = self.heads.keyword_logits(self._mixed(trace.states))
        assert logits is not None
        return logits

    def _mixed(self, states: torch.Tensor) -> torch.Tensor:
        return self.heads.mix(states.to(self.device))
