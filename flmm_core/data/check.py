"""Inspects a data set: counts its contents and finds samples that cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from flmm_core.common.plain_text import printable
from flmm_core.data.broken import BrokenSampleError, sample_errors
from flmm_core.data.samples import Dataset, Sample

KEPT_MESSAGES = 10
"""Most messages of one kind that a report keeps; the others are counted."""


@dataclass
class Findings:
    """Contents of a data set, and its unusable samples."""

    images: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Turns of each kind."""
    phrases: int = 0
    absent: int = 0
    """Phrases that refer to no object in their image."""
    tags: Counter[str] = field(default_factory=Counter)
    """Phrases with each tag."""
    masks: int = 0
    ignored: int = 0
    """Masks of pixels that are ignored in evaluations."""
    coverage: list[float] = field(default_factory=list)
    """Share of its image that each mask covers."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images of each height and width."""
    broken: int = 0
    broken_messages: list[str] = field(default_factory=list)
    """The first messages, one line each."""
    left_out: int = 0
    left_out_messages: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    """Some samples, spread over the data set, for visual inspection."""

    def rows(self) -> Iterator[tuple[str, str]]:
        """Names of the counts, and the counts, as text."""
        yield "images", f"{self.images:,}"
        for kind, count in self.kinds.most_common():
            yield f"turns: {kind}", f"{count:,}"
        yield "phrases", f"{self.phrases:,}"
        yield "phrases of nothing in the image", f"{self.absent:,}"
        for tag, count in sorted(self.tags.items()):
            yield f"phrases: {tag}", f"{count:,}"
        yield "masks", f"{self.masks:,}"
        if self.ignored:
            yield "masks whose pixels do not count", f"{self.ignored:,}"
        if self.coverage:
            low, middle, high = np.percentile(self.coverage, (25, 50, 75))
            yield "share of the image that a mask covers: median (quartiles)", f"{middle:.3f} ({low:.3f} to {high:.3f})"
        for (height, width), count in self.sizes.most_common(3):
            yield f"images of {height}x{width} (height x width)", f"{count:,}"
        yield "broken images, skipped", f"{self.broken:,}"
        yield "phrases or masks left out", f"{self.left_out:,}"


def look_through(dataset: Dataset[Any], *, limit: int | None = None, shown: int = 10) -> Findings:
    """Read images and annotations of a data set, with a progress bar.

    Args:
        dataset: what to read.
        limit: images to read, spread over the data set; None for all.
        shown: samples to keep.
    """
    count = len(dataset)
    indices = range(count) if limit is None or limit >= count else np.linspace(0, count - 1, limit).astype(int).tolist()
    findings = Findings()
    spread = set(np.linspace(0, len(indices) - 1, min(shown, len(indices))).astype(int).tolist()) if len(indices) else set()
    waiting = 0
    for place, index in enumerate(tqdm(indices, desc=f"{dataset.format} {dataset.split}".strip(), unit="image")):
        waiting += place in spread
        try:
            with sample_errors(dataset.name(index)):
                sample = dataset[index]
                sample.image()
                coverage = [float(sample.mask([i]).mean()) for i in range(len(sample.rles))]
        except BrokenSampleError as error:
            findings.broken += 1
            _keep(findings.broken_messages, str(error))
            continue
        _count(findings, sample)
        findings.coverage += coverage
        if waiting and sample.turns:  # replaces a broken one
            findings.samples.append(sample)
            waiting -= 1
    return findings


def _count(findings: Findings, sample: Sample) -> None:
    findings.images += 1
    spans = [span for turn in sample.turns for span in turn.spans]
    findings.kinds.update(turn.kind for turn in sample.turns)
    findings.phrases += len(spans)
    findings.absent += sum(not span.objects for span in spans)
    findings.tags.update(tag for span in spans for tag in span.tags)
    findings.masks += len(sample.rles)
    findings.ignored += len(sample.ignored)
    findings.left_out += len(sample.left_out)
    for message in sample.left_out:
        _keep(findings.left_out_messages, f"{sample.path.name}: {message}")
    if sample.rles:
        findings.sizes[tuple(sample.rles[0]["size"])] += 1


def _keep(messages: list[str], message: str) -> None:
    if len(messages) < KEPT_MESSAGES:
        messages.append(printable(message))
