"""Heads in training: their losses on images that LMM and SAM have read, and their figures on held-out images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from flmm_core.drawing.overlay import contact_sheet, draw_overlay
from flmm_core.drawing.truth import drawn_phrase
from flmm_core.heads.grounding_heads import GroundingHeads
from flmm_core.images.geometry import unpad
from flmm_core.images.masks import Overlap
from flmm_core.training.examples import Example, Phrase
from flmm_core.training.loop import Losses
from flmm_core.training.losses import mask_losses
from flmm_core.training.settings import HeadsSettings
from flmm_core.training.traces import AnswerTrace
from flmm_core.types import GroundedAnswer

PROBE_WEIGHT = 0.3
"""Weight of the loss of the keyword selector (F-LMM, section 4), and of that of the presence score."""

DRAWN = 6
"""Phrases of an image that are drawn."""

FIGURES = ("unet_ciou", "sam_ciou", "selector_f1", "present_kept", "absent_caught")


class HeadsStage(nn.Module):
    """Losses of the heads for training, and counts and drawings for held-out images."""

    def __init__(self, heads: GroundingHeads, settings: HeadsSettings) -> None:
        super().__init__()
        if heads.keyword_selector is None or heads.presence is None:
            raise ValueError("heads: expected a keyword selector and a presence score to train, got heads without them")
        self.heads = heads
        self.settings = settings

    @property
    def device(self) -> torch.device:
        """Device of the heads."""
        return self.heads.text_layer_weights.device

    def forward(self, batch: Sequence[Example], rngs: Sequence[np.random.Generator]) -> Losses:
        """Mask losses of some phrases of each image, and losses of the selector and the presence score on all its answers.

        Each loss is a mean over images of the loss of one image, so it does not depend on which images share a batch.

        Args:
            batch: the images.
            rngs: one for each image; they choose its phrases.

        Returns:
            Scalars: ``bce`` and ``dice`` of the U-Net's masks, the same of SAM's, ``selector`` and ``presence``.
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
    def sums(self, examples: Iterable[Example]) -> torch.Tensor:
        """Counts on held-out examples, ``[11]`` float32, from which :func:`figures_of` computes ratios.

        The counts of several processes are added.
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
        """Logits ``[n, h', w']`` of the U-Net for each group of phrases about one image; one pass if all maps have one size."""
        maps = [torch.stack([phrase.map for phrase in phrases]).float().to(self.device) for phrases in groups]
        if len({group.shape[1:] for group in maps}) == 1:
            logits = self.heads.mask_head(torch.cat(maps)).float().split([len(group) for group in maps])
        else:
            logits = tuple(self.heads.mask_head(group).float() for group in maps)
        return [unpad(masks, phrases[0].trace.geometry) for masks, phrases in zip(logits, groups, strict=True)]

    def _refined(self, example: Example, phrases: Sequence[Phrase], coarse: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, H, W]`` of SAM for phrases of one image and their coarse masks ``[n, h', w']``."""
        texts = [self.heads.text_tokens(self._mixed(phrase.states)) for phrase in phrases]
        image = example.image.to(self.device)
        return self.heads.sam.to_image(self.heads.sam(image, coarse, texts).low_res.float(), image)

    def _presence(self, phrases: Sequence[Phrase]) -> torch.Tensor:
        """Presence logits ``[n]``, phrase by phrase, as the maps of images of different shapes may differ in size."""
        logits = [
            self.heads.presence_logits([self._mixed(phrase.states)], phrase.map[None].to(self.device)) for phrase in phrases
        ]
        return torch.cat([one for one in logits if one is not None])

    def _keywords(self, trace: AnswerTrace) -> torch.Tensor:
        """Keyword logits ``[t]`` of an answer's tokens."""
        logits = self.heads.keyword_logits(self._mixed(trace.states))
        assert logits is not None
        return logits

    def _mixed(self, states: torch.Tensor) -> torch.Tensor:
        return self.heads.mix(states.to(self.device))


def figures_of(sums: torch.Tensor) -> dict[str, float]:
    """Figures from :meth:`HeadsStage.sums`.

    These are the cIoU of coarse and refined masks, the selector's F1 on tokens, and the accuracy of the presence score on
    present and on absent objects; NaN where nothing was counted.
    """
    shared, union, sam_shared, sam_union, hits, picked, named, kept, there, caught, absent = sums.tolist()
    ratios = ((shared, union), (sam_shared, sam_union), (2 * hits, picked + named), (kept, there), (caught, absent))
    return {name: above / below if below else float("nan") for name, (above, below) in zip(FIGURES, ratios, strict=True)}
