"""Visual chain of thought with a frozen LMM: a second look at the part of the image that matters for a question.

Nothing is trained for it: the LMM says what matters, its answer is grounded like any other, and the part of the image that it
points at is given to the LMM as a second image, enlarged (F-LMM, visual chain of thought).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.image_handle import ImageHandle
from flmm_core.types import GroundedAnswer, GroundedPhrase

FIRST_QUESTION = "Which object in the image is most relevant to the question: {question}"
SMALLEST = 16
"""Least height and width of the enlarged part, pixels; less only in a smaller image."""


@dataclass(frozen=True)
class CloserLook:
    """The answers of both rounds."""

    first: GroundedAnswer
    """What matters for the question, as the LMM answered."""
    phrase: GroundedPhrase | None
    """The phrase that was enlarged; None if nothing was found: the answer is then from the whole image alone."""
    box: tuple[int, int, int, int] | None
    """XYXY pixels of the enlarged part, ends exclusive."""
    answer: GroundedAnswer
    """Its masks lie in the whole image."""


def look_closer(pipeline: GroundingPipeline, image: ImageHandle, question: str) -> CloserLook:
    """Answer a question in two rounds.

    Args:
        pipeline: answers; its LMM must take two images.
        image: from its ``encode``.
        question: the user's words.

    Raises:
        CommandError: as for :meth:`GroundingPipeline.chat`.
        MemoryFullError: the device has too little memory left.
    """
    asked = FIRST_QUESTION.format(question=question)
    first = pipeline.chat(image, asked)
    found = [phrase for phrase in first.phrases if phrase.mask.any()]
    if not found and first.text.strip():  # the selector chose nothing: take the whole answer as one phrase
        whole = pipeline.ground(image, asked, first.text, [(0, len(first.text))])
        found = [phrase for phrase in whole.phrases if phrase.mask.any()]
    if not found:
        return CloserLook(first, None, None, pipeline.chat(image, question))
    phrase = max(found, key=lambda one: one.score)
    box = enlarged_part(phrase.box, first.image_height, first.image_width)
    return CloserLook(first, phrase, box, pipeline.chat(with_detail(pipeline, image, box), question))


def with_detail(pipeline: GroundingPipeline, image: ImageHandle, box: tuple[int, int, int, int]) -> ImageHandle:
    """A handle of the same image that shows the LMM a part of it as a second image; masks lie in the whole image.

    Args:
        pipeline: encodes both.
        image: from its ``encode``.
        box: XYXY pixels of the part, ends exclusive.
    """
    x0, y0, x1, y1 = box
    part = Image.fromarray(np.ascontiguousarray(image.pixels[y0:y1, x0:x1]))
    return ImageHandle(
        image.pixels,
        encode=lambda whole: pipeline.lmm.encode_images([whole, part]),
        start_sam=lambda _: image.start_sam(),
    )


def enlarged_part(box: tuple[int, int, int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """A box around the same middle that is at least :data:`SMALLEST` pixels high and wide, inside the image.

    Args:
        box: XYXY pixels, ends exclusive.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    (x0, x1), (y0, y1) = _stretched(box[0], box[2], width), _stretched(box[1], box[3], height)
    return x0, y0, x1, y1


def _stretched(start: int, end: int, length: int) -> tuple[int, int]:
    size = min(max(end - start, SMALLEST), length)
    first = min(max((start + end - size) // 2, 0), length - size)
    return first, first + size
