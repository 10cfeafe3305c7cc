"""The baseline: the same frozen LMM writes a box, from which SAM makes a mask.

Given phrases are located by both methods. The phrases of an answer are grounded by ours in the same pass; boxes need a
prompt for each phrase, or one prompt for answer and boxes together, which changes the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flmm_core.data.samples import NO_ANSWERS, REFER_KINDS, Dataset, Sample, expressions_of
from flmm_core.data.visit import visit_samples
from flmm_core.evaluation.cases import Case, ImageCases, figures_of
from flmm_core.evaluation.matching import is_right, normalise_answer
from flmm_core.evaluation.metrics import Figure, Tally, ratio, share
from flmm_core.families.boxes import Box
from flmm_core.images.geometry import mask_box
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.image_handle import ImageHandle
from flmm_core.sam.refiner import SamImage, SamRefiner

TOGETHER = " For each thing that you name, give its bounding box, too."
"""Suffix of a question that also asks for boxes."""


class BoxPrompter:
    """The LMM of a pipeline writes boxes in its own format, and SAM, as before the training of heads, makes masks of them.

    Args:
        pipeline: whose LMM is asked; its heads are not used.
        sam: prompted with boxes only; its image encoder is that of the pipeline's SAM.
    """

    def __init__(self, pipeline: GroundingPipeline, sam: Any) -> None:
        self.pipeline = pipeline
        self._refiner = SamRefiner(sam=sam).to(pipeline.lmm.device).eval()

    def point(self, image: ImageHandle, phrase: str) -> np.ndarray:
        """The mask ``[H, W]`` bool of a phrase; empty if the LMM writes no box."""
        return self.masks(image, [box for _, box in self.said(image, self.pipeline.lmm.family.boxes.ask(phrase))[1]])

    def said(self, image: ImageHandle, text: str) -> tuple[str, list[tuple[str, Box]]]:
        """The answer to ``text``, and its words and boxes."""
        lmm = self.pipeline.lmm
        trace = lmm.generate(image.lmm(), text, max_new_tokens=self.pipeline.config.max_new_tokens)
        return trace.text, lmm.family.boxes.parse(trace.text, trace.geometry)

    @torch.no_grad()
    def masks(self, image: ImageHandle, boxes: Sequence[Box]) -> np.ndarray:
        """The union ``[H, W]`` bool of SAM's masks of boxes."""
        seen: SamImage = image.start_sam().result()
        if not boxes:
            return np.zeros((seen.image_height, seen.image_width), bool)
        x, y = seen.input_width / seen.image_width, seen.input_height / seen.image_height
        device = seen.embedding.device
        prompts = torch.tensor(boxes, device=device) * torch.tensor([x, y, x, y], device=device)
        logits, _ = self._refiner.decoder_network(seen.embedding, boxes=prompts.float())
        return (self._refiner.to_image(logits[:, 0], seen) > 0).any(dim=0).cpu().numpy()


@dataclass(frozen=True)
class AnswerRecord:
    """A question that was answered with all methods."""

    phrases: int
    """Phrases of the LMM's answer, as selected by the keyword selector."""
    ours: int
    """Phrases with a mask from the same pass."""
    second: int
    """Phrases with a mask from a second prompt each."""
    together: int
    """Phrases whose words have a box when one prompt asks for answer and boxes."""
    ours_kept: bool
    """Whether the answer with grounding equals that without."""
    together_kept: bool
    """Whether the answer equals that without masks when boxes are requested in the same prompt."""
    seconds: tuple[float, float, float]
    """Time of ours, of the answer with a second prompt for each phrase, and of the single prompt."""


@dataclass(frozen=True)
class Comparison:
    """The results of all methods on one image."""

    ours: ImageCases
    boxes: ImageCases
    oracle: ImageCases
    """SAM's masks of the true boxes."""
    answers: tuple[AnswerRecord, ...]


def compare(prompter: BoxPrompter, sample: Sample, index: int, questions: int) -> Comparison:
    """Ground an image's expressions, each by itself, and answer some of its questions, with every method.

    Args:
        prompter: with the pipeline.
        sample: with ground truth.
        index: of the sample in the data set.
        questions: most questions of the image; those of expressions and without a right answer do not count.
    """
    pipeline = prompter.pipeline
    image = pipeline.encode(sample.image())
    image.lmm(), image.start_sam().result()  # cached for both methods
    asked = [one for turn in sample.turns if turn.kind in REFER_KINDS for one in expressions_of(turn)]
    ours: list[Case] = []
    boxes: list[Case] = []
    oracle: list[Case] = []
    seconds = [0.0, 0.0]
    for one in asked:
        began = time.monotonic()
        found = pipeline.refer(image, one.words).phrases[0].mask
        middle = time.monotonic()
        pointed = prompter.point(image, one.words)
        seconds[0] += middle - began
        seconds[1] += time.monotonic() - middle
        ours.append(Case.of(one.words, found, sample, one.objects))
        boxes.append(Case.of(one.words, pointed, sample, one.objects))
        true = [box_of(sample.mask(one.objects))] if one.objects else []
        oracle.append(Case.of(one.words, prompter.masks(image, true), sample, one.objects))
    turns = [turn for turn in sample.turns if turn.kind not in NO_ANSWERS][:questions]
    return Comparison(
        ImageCases(index, sample.path, tuple(ours), seconds[0]),
        ImageCases(index, sample.path, tuple(boxes), seconds[1]),
        ImageCases(index, sample.path, tuple(oracle), 0.0),
        tuple(_answered(prompter, image, turn.question) for turn in turns),
    )


def box_of(mask: np.ndarray) -> Box:
    """The box around a mask ``[H, W]`` bool."""
    x0, y0, x1, y1 = mask_box(torch.from_numpy(mask)).tolist()
    return x0, y0, x1, y1


def _answered(prompter: BoxPrompter, image: ImageHandle, question: str) -> AnswerRecord:
    pipeline = prompter.pipeline
    times = [time.monotonic()]
    ours = pipeline.chat(image, question)
    times.append(time.monotonic())
    plain = pipeline.chat(image, question, masks=False)
    words = [phrase.text for phrase in ours.phrases]
    second = sum(bool(prompter.point(image, phrase).any()) for phrase in words)
    times.append(time.monotonic())
    text, boxes = prompter.said(image, question + TOGETHER)
    prompter.masks(image, [box for _, box in boxes])
    times.append(time.monotonic())
    labels = [normalise_answer(label) for label, _ in boxes]
    together = sum(any(normalise_answer(phrase) in label for label in labels) for phrase in words)
    masked = sum(bool(phrase.mask.any()) for phrase in ours.phrases)
    spent = (times[1] - times[0], times[2] - times[1], times[3] - times[2])
    kept = (ours.text == plain.text, is_right(text, plain.text))
    return AnswerRecord(len(words), masked, second, together, *kept, spent)


def run_comparison(
    prompter: BoxPrompter,
    dataset: Dataset[Any],
    *,
    questions: int,
    tell: Callable[[str], None],
    limit: int | None = None,
) -> list[Comparison]:
    """Compare on a data set, with a progress bar.

    Args:
        prompter: with the pipeline.
        dataset: with expressions, questions or both.
        questions: most questions of an image.
        tell: called with one line for each sample that cannot be used; it is skipped.
        limit: number of images, spread over the data set; None for all.
    """

    def use(index: int, sample: Sample) -> Comparison | None:
        one = compare(prompter, sample, index, questions)
        return one if one.ours.cases or one.answers else None

    found = visit_samples(dataset, use, tell=tell, limit=limit)
    if not found:
        raise ValueError(f"{dataset.folder}: expected expressions or questions, got none")
    return found


@dataclass(frozen=True)
class Row:
    """A figure of each method; None where it does not apply."""

    name: str
    ours: Figure
    second: Figure | None = None
    """A box by a prompt for each phrase."""
    together: Figure | None = None
    """Answer and boxes by one prompt."""
    oracle: Figure | None = None
    """The true box: an upper bound for boxes."""
    lower: bool = False
    """Whether smaller values are better."""

    @property
    def better(self) -> str:
        """Which is better: ours, or the best of the boxes that the LMM writes."""
        rivals = [figure.value for figure in (self.second, self.together) if figure is not None]
        if not rivals:
            return "-"
        best = min(rivals) if self.lower else max(rivals)
        if self.ours.value == best:
            return "even"
        return "ours" if (self.ours.value < best) == self.lower else "boxes"


def comparison_rows(found: Sequence[Comparison]) -> list[Row]:
    """Rows that compare ours with boxes from a prompt for each phrase, and from one prompt for answer and boxes."""
    rows = []
    with_cases = [one for one in found if one.ours.cases]
    if with_cases:
        ours = figures_of([one.ours for one in with_cases])
        boxes = figures_of([one.boxes for one in with_cases])
        oracle = figures_of([one.oracle for one in with_cases])
        rows += [Row(f"expressions: {name}", ours[name], boxes[name], oracle=oracle[name]) for name in ours]
        spent = [_mean([image.seconds for image in images], [len(image.cases) for image in images])
                 for images in ([one.ours for one in with_cases], [one.boxes for one in with_cases])]  # fmt: skip
        rows.append(Row("expressions: seconds for each", spent[0], spent[1], lower=True))
    answered = [one.answers for one in found if one.answers]
    if answered:
        masked = [
            share([Tally(sum(getattr(a, way) for a in answers), sum(a.phrases for a in answers)) for answers in answered])
            for way in ("ours", "second", "together")
        ]
        rows.append(Row("answers: phrases with a mask", masked[0], masked[1], masked[2]))
        ours_kept, together_kept = (
            share([Tally.of(getattr(answer, way) for answer in answers) for answers in answered])
            for way in ("ours_kept", "together_kept")
        )
        rows.append(Row("answers: the same words as without masks", ours_kept, None, together_kept))
        seconds = [
            _mean([sum(a.seconds[way] for a in answers) for answers in answered], [len(answers) for answers in answered])
            for way in range(3)
        ]
        rows.append(Row("answers: seconds for each", seconds[0], seconds[1], seconds[2], lower=True))
    return rows


def _mean(sums: Sequence[float], counts: Sequence[int]) -> Figure:
    return ratio(sums, counts, count=sum(counts))
