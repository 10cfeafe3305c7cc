"""Trains everything that F-LMM learns on top of a frozen LMM.

U-Net, text projection, layer weights, SAM's prompt encoder and mask decoder (F-LMM, section 4), the keyword selector (weight
0.3), and beyond the paper the presence score, which learns from names of what is not there. On one or many GPUs and machines
(``torchrun --nproc_per_node 8 -m flmm_cli train heads ...``); what a step sees depends on its number alone, not on how many
processes share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from flmm_core.common.devices import resolve_device
from flmm_core.config import GroundingConfig
from flmm_core.data.formats import open_dataset
from flmm_core.data.samples import Dataset
from flmm_core.data.visit import spread
from flmm_core.drawing.overlay import contact_sheet, draw_overlay
from flmm_core.drawing.truth import drawn_phrase
from flmm_core.families import LoadedLmm
from flmm_core.heads.grounding_heads import GroundingHeads, HeadsConfig
from flmm_core.heads.unet import UNetConfig
from flmm_core.images.geometry import unpad
from flmm_core.images.masks import Overlap, share_on
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading.checkpoints import HeadsOrigin, fingerprints, lmm_shape, load_lmm, save_heads
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.training.examples import Example, ExampleReader, Phrase, TraceCache
from flmm_core.training.loop import Losses, accelerator_on, adamw, parameter_groups, train
from flmm_core.training.losses import mask_losses
from flmm_core.training.settings import HeadsSettings, LoopConfig
from flmm_core.training.traces import AnswerTrace
from flmm_core.types import GroundedAnswer
from flmm_core.verification.frozen_report import total_checksum, weight_checksums

PROBE_WEIGHT = 0.3
"""Of the keyword selector's loss (F-LMM, section 4), and of the presence score's."""

CALIBRATION = 64
"""Images on which attention heads are compared."""

DRAWN = 6
"""Held-out images that are drawn when figures are measured."""

FIGURES = ("unet_ciou", "sam_ciou", "selector_f1", "present_kept", "absent_caught")


def train_heads(out: Path, settings: HeadsSettings, loop: LoopConfig, device: torch.device) -> None:
    """Train the heads and save them in ``out/heads``.

    Args:
        out: folder of results.
        settings: of the stage.
        loop: of the loop; its steps follow from ``settings.epochs``.
        device: a process of several takes one of this kind.

    Raises:
        RuntimeError: the weights of the LMM changed.
    """
    accelerator = accelerator_on(device)
    # Data first: what is wrong with them is said before an LMM is loaded.
    data, val = ([open_dataset(source) for source in sources] for sources in (settings.data, settings.val))
    refiner = SamRefiner(sam=load_sam(settings.sam)).to(accelerator.device)
    dtype = resolve_device(GroundingConfig(device=str(accelerator.device), dtype=settings.dtype))[1]
    lmm = load_lmm(settings.lmm, device=accelerator.device, dtype=dtype)
    before = _checksum(lmm)

    def reader(opened: Sequence[Dataset[Any]], folder: str, limit: int, variants: int) -> ExampleReader:
        datasets = [limited(dataset, limit) for dataset in opened]
        cache = None
        if settings.cache:
            made_from: dict[str, str | int | float] = {
                f"data_{number}": dataset.fingerprint() for number, dataset in enumerate(datasets)
            }
            made_from |= fingerprints(lmm=settings.lmm, sam=settings.sam)
            made_from |= {"dtype": str(dtype), "turns": settings.turns, "variants": variants, "seed": settings.seed}
            room = int(settings.cache_gigabytes * 1e9 / accelerator.num_processes)
            cache = TraceCache(Path(settings.cache) / folder, made_from, room)
        options = {"turns": settings.turns, "variants": variants, "seed": settings.seed}
        return ExampleReader(datasets, lmm=lmm, refiner=refiner, cache=cache, tell=tqdm.write, **options)

    examples = reader(data, "train", settings.limit, settings.variants)
    held_out = reader(val, "val", settings.val_samples, 1)
    shape = lmm_shape(settings.lmm)
    kept = best_channels(examples, settings.attention_heads) if settings.attention_heads else ()
    torch.manual_seed(settings.seed)
    unet = UNetConfig(shape.channels, settings.base_channels, kept, settings.sink_quantile)
    config = HeadsConfig(unet=unet, layers=shape.layers, hidden_size=shape.hidden_size)
    heads = GroundingHeads(config=config, sam=refiner).to(accelerator.device)
    stage = HeadsStage(heads, settings)
    batches = Batches(len(examples), settings, accelerator, loop.accumulate)
    loop = replace(loop, steps=batches.steps)
    wrapped = accelerator.prepare(stage)

    def loss_at(step: int) -> Losses:
        places = batches.at(step)
        batch = [examples.read(*batches.image(place)) for place in places]
        return wrapped(batch, [np.random.default_rng([settings.seed, 4, place]) for place in places])

    def measure(step: int) -> dict[str, float]:
        indices = range(accelerator.process_index, len(held_out), accelerator.num_processes)
        seen = (held_out.read(index, 0) for index in tqdm(indices, desc="held out", unit="image", leave=False))
        sums = accelerator.reduce(stage.sums(seen).to(accelerator.device))
        if accelerator.is_main_process:
            drawn = stage.draw([held_out.read(index, 0) for index in range(min(DRAWN, len(held_out)))])
            _save_picture(out / "pictures" / f"step_{step:06d}.png", drawn)
        return figures_of(sums.cpu())

    sam = [parameter for parameter in heads.sam.parameters() if parameter.requires_grad]
    others = [parameter for name, parameter in heads.named_parameters() if not name.startswith("sam.")]
    groups = parameter_groups(others, loop) + parameter_groups(sam, loop, factor=settings.sam_rate)
    train(
        wrapped,
        loss_at,
        out=out,
        config=loop,
        settings=settings,
        accelerator=accelerator,
        optimizers=[adamw(groups, loop)],
        every=(min(settings.measure_every, loop.steps), measure),
    )
    if (after := _checksum(lmm)) != before:
        raise RuntimeError(f"LMM {settings.lmm}: expected weights as before, {before[:12]}, got {after[:12]}")
    if accelerator.is_main_process:
        print(f"LMM: unchanged, {before[:12]}; skipped images: {len(examples.skipped | held_out.skipped)}")
        save_heads(heads, out / "heads", origin=HeadsOrigin.of(lmm=settings.lmm, sam=settings.sam))
    accelerator.wait_for_everyone()


def best_channels(examples: ExampleReader, count: int) -> tuple[int, ...]:
    """The attention channels that point best, in order: a calibration on some images, without training.

    A channel points as well as the mean share of its attention to the image that falls on what is named.

    Args:
        examples: to calibrate on, :data:`CALIBRATION` images spread over them.
        count: channels wanted.

    Raises:
        ValueError: the LMM has fewer channels, or nothing is named.
    """
    shares: list[np.ndarray] = []
    for index in tqdm(spread(len(examples), CALIBRATION), desc="attention heads", unit="image", leave=False):
        example = examples.read(index, 0)
        present = [phrase for phrase in example.phrases if phrase.objects]
        targets = example.targets(present).numpy() > 0 if present else ()
        for phrase, truth in zip(present, targets, strict=True):
            shares.append(share_on(unpad(phrase.map[None].float(), phrase.trace.geometry)[0].numpy(), truth))
    if not shares or count > len(shares[0]):
        raise ValueError(f"attention_heads: expected at most {len(shares[0]) if shares else 0}, got {count}")
    order = np.argsort(-np.mean(shares, axis=0), kind="stable")
    return tuple(sorted(order[:count].tolist()))


def limited(dataset: Dataset[Any], limit: int) -> Dataset[Any]:
    """A data set of at most ``limit`` images, spread over it; 0 for all of them."""
    return replace(dataset, entries=[dataset.entries[i] for i in spread(len(dataset), limit or None)])


def _checksum(lmm: FrozenLmm) -> str:
    return total_checksum(weight_checksums(LoadedLmm(lmm.model, lmm.words.tokenizer, lmm.family)))


def _save_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)


class Batches:
    """Which images each step sees: every epoch all of them, in an order that depends on the seed and the epoch alone."""

    def __init__(self, images: int, settings: HeadsSettings, accelerator: Accelerator, accumulate: int) -> None:
        self._images = images
        self._seed = settings.seed
        self._batch = settings.batch
        self._processes, self._process = accelerator.num_processes, accelerator.process_index
        together = self._batch * self._processes * accumulate
        self.steps = max(1, round(settings.epochs * images / together))
        """Of the optimiser."""
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def at(self, step: int) -> list[int]:
        """Places in the endless sequence of images of this process's part of a step."""
        first = (step * self._processes + self._process) * self._batch
        return list(range(first, first + self._batch))

    def image(self, place: int) -> tuple[int, int]:
        """The image at a place of the sequence, and the epoch."""
        epoch, at = divmod(place, self._images)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, 5, epoch]).permutation(self._images)
        return int(self._order[1][at]), epoch


class HeadsStage(nn.Module):
    """Heads on what the LMM read: losses for training, figures for held-out images."""

    def __init__(self, heads: GroundingHeads, settings: HeadsSettings) -> None:
        super().__init__()
        if heads.keyword_selector is None or heads.presence is None:
            raise ValueError("heads: expected a keyword selector and a presence score to train, got heads without them")
        self.heads = heads
        self.settings = settings

    @property
    def device(self) -> torch.device:
        """Where the heads are."""
        return self.heads.text_layer_weights.device

    def forward(self, batch: Sequence[Example], rngs: Sequence[np.random.Generator]) -> Losses:
        """Mask losses of some phrases of each image, and losses of selector and presence score on all its answers.

        Each is the mean over the images of the batch of what it is for one image, so that it does not matter which images
        share a batch.
        """
        terms: dict[str, list[torch.Tensor]] = {"bce": [], "dice": [], "sam_bce": [], "sam_dice": []}
        chosen = [self._choose(example, rng) for example, rng in zip(batch, rngs, strict=True)]
        naming = [(example, phrases) for example, phrases in zip(batch, chosen, strict=True) if phrases]
        for (example, phrases), coarse in zip(naming, self._coarse([phrases for _, phrases in naming]), strict=True):
            targets = example.targets(phrases).to(self.device)
            small = F.interpolate(targets[:, None], coarse.shape[-2:], mode="area")[:, 0]
            refined = slice(self.settings.refined)
            logits = self._refined(example, phrases[refined], coarse[refined])
            pairs = (*mask_losses(coarse, small), *mask_losses(logits, targets[refined]))
            for values, value in zip(terms.values(), pairs, strict=True):
                values.append(value)
        zero = torch.zeros((), device=self.device)
        losses = {name: torch.stack(values).sum() / len(batch) if values else zero for name, values in terms.items()}
        picked, present = [], []
        for example in batch:
            named = torch.cat([trace.named for trace in example.traces]).float().to(self.device)
            logits = torch.cat([self._keywords(trace) for trace in example.traces])
            picked.append(F.binary_cross_entropy_with_logits(logits, named))
            there = torch.tensor([bool(phrase.objects) for phrase in example.phrases], device=self.device).float()
            present.append(F.binary_cross_entropy_with_logits(self._presence(example.phrases), there))
        losses["selector"] = PROBE_WEIGHT * torch.stack(picked).mean()
        losses["presence"] = PROBE_WEIGHT * torch.stack(present).mean()
        return losses

    @torch.no_grad()
    def sums(self, examples: Any) -> torch.Tensor:
        """Counts of held-out examples, which :func:`figures_of` divides; those of several processes are added.

        Args:
            examples: an iterable of them.
        """
        training = self.heads.training
        self.heads.eval()
        overlaps, tokens = np.zeros((2, 2)), np.zeros(3)
        judged = np.zeros((2, 2))
        for example in examples:
            for trace in example.traces:
                picked = self._keywords(trace).cpu() > 0
                tokens += [int((picked & trace.named).sum()), int(picked.sum()), int(trace.named.sum())]
            phrases = example.phrases
            for phrase, logit in zip(phrases, self._presence(phrases).tolist(), strict=True):
                there = bool(phrase.objects)
                judged[0 if there else 1] += [(logit > 0) == there, 1]
            phrases = [phrase for phrase in phrases if phrase.objects]
            if not phrases:
                continue
            true = example.targets(phrases).to(self.device) > 0
            for row, masks in zip(overlaps, self._masks(example, phrases), strict=True):
                overlap = Overlap.of(masks.cpu().numpy(), true.cpu().numpy())
                row += [overlap.shared, overlap.union]
        self.heads.train(training)
        return torch.from_numpy(np.concatenate([overlaps.ravel(), tokens, judged.ravel()])).float()

    @torch.no_grad()
    def draw(self, examples: Sequence[Example]) -> np.ndarray:
        """A contact sheet ``[H, W, 3]`` uint8 RGB: the masks of some phrases of each image, with their IoU."""
        pictures = []
        for example in examples:
            phrases = [phrase for phrase in example.phrases if phrase.objects][:DRAWN]
            image = example.sample.image()
            if not phrases:
                continue
            found = self._masks(example, phrases)[1].cpu()
            true = example.targets(phrases) > 0
            shown, details, text = [], [], ""
            for phrase, mask, truth in zip(phrases, found, true, strict=True):
                words = " and ".join(example.sample.names[i] for i in phrase.objects[:3])
                text += ", " if text else ""
                shown.append(drawn_phrase(words, len(text), mask))
                text += words
                details.append(f"IoU {Overlap.of(mask.numpy(), truth.numpy()).iou:.2f}")
            pictures.append(draw_overlay(image, GroundedAnswer(text, tuple(shown), *image.shape[:2]), details=details))
        return contact_sheet(pictures) if pictures else np.zeros((1, 1, 3), np.uint8)

    def _masks(self, example: Example, phrases: Sequence[Phrase]) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks ``[n, H, W]`` bool of the U-Net and of SAM."""
        (coarse,) = self._coarse([phrases])
        refined = self._refined(example, phrases, coarse)
        coarse = F.interpolate(coarse[:, None], refined.shape[-2:], mode="bilinear")[:, 0]
        return coarse > 0, refined > 0

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


def figures_of(sums: torch.Tensor) -> dict[str, float]:
    """Figures from :meth:`HeadsStage.sums`.

    CIoU of coarse and refined masks, F1 of the selector on tokens, and how well the presence score tells what is there; NaN of
    nothing.
    """
    shared, union, sam_shared, sam_union, hits, picked, named, kept, there, caught, absent = sums.tolist()
    ratios = ((shared, union), (sam_shared, sam_union), (2 * hits, picked + named), (kept, there), (caught, absent))
    return {name: above / below if below else float("nan") for name, (above, below) in zip(FIGURES, ratios, strict=True)}
