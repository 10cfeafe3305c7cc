"""Labels of phrases beside their masks, where they cover least of other labels and objects."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from flmm_core.common.plain_text import printable
from flmm_core.drawing.style import color_of, font_of, ink_on, shortened, text_scale
from flmm_core.types import GroundedPhrase

Box = tuple[float, float, float, float]
"""XYXY pixels of the drawing, which is larger than the image."""


def draw_labels(image: Image.Image, phrases: Sequence[GroundedPhrase], boxes: Sequence[Box | None]) -> None:
    """Draw the words of each phrase beside its mask.

    Args:
        image: RGB, drawn on in place.
        phrases: of the answer.
        boxes: of the mask of each phrase in ``image``; a phrase without one gets no label.
    """
    draw = ImageDraw.Draw(image)
    font = font_of(max(14, text_scale(image.width, image.height) // 48))
    taken: list[Box] = []
    for index, phrase in enumerate(phrases):
        box = boxes[index]
        if box is None:
            continue
        text = shortened(printable(phrase.text), 32)
        length, pad = draw.textlength(text, font=font), font.size * 0.4
        size = (length + 2 * pad, font.size * 1.5)
        others = [other for other in boxes if other is not None and other is not box]
        place = _free_place(box, size, (image.width, image.height), taken, others)
        taken.append(place)
        color = color_of(index)
        draw.rounded_rectangle(place, radius=pad, fill=color, outline=(255, 255, 255), width=1)
        draw.text((place[0] + pad, (place[1] + place[3]) / 2), text, font=font, fill=ink_on(color), anchor="lm")


def _free_place(
    box: Box, size: tuple[float, float], bounds: tuple[int, int], taken: Sequence[Box], others: Sequence[Box]
) -> Box:
    """The place around ``box`` that covers least of other labels and objects.

    Args:
        box: of the phrase's mask.
        size: width and height of the label, pixels.
        bounds: width and height of the image, pixels.
        taken: labels drawn before.
        others: boxes of the other phrases' masks.
    """
    width, height = size
    x0, y0, x1, y1 = box
    middle_x, middle_y, gap = (x0 + x1) / 2, (y0 + y1) / 2, 6
    corners = (
        (middle_x - width / 2, y0 - height - gap),
        (middle_x - width / 2, y1 + gap),
        (x1 + gap, middle_y - height / 2),
        (x0 - width - gap, middle_y - height / 2),
        (x0, y0 - height - gap),
        (x1 - width, y0 - height - gap),
        (x0, y1 + gap),
        (x1 - width, y1 + gap),
        (middle_x - width / 2, middle_y - height / 2),
        (middle_x - width / 2, y0 - 2 * height - 2 * gap),
        (middle_x - width / 2, y1 + height + 2 * gap),
    )

    def placed(corner: tuple[float, float]) -> Box:
        left = min(max(corner[0], 2), max(bounds[0] - width - 2, 2))
        top = min(max(corner[1], 2), max(bounds[1] - height - 2, 2))
        return left, top, left + width, top + height

    def cost(entry: tuple[int, tuple[float, float]]) -> float:
        order, corner = entry
        place = placed(corner)
        area = width * height
        on_labels = sum(_overlap(place, other) for other in taken) / area
        on_objects = sum(_overlap(place, other) for other in others) / area
        return 20 * on_labels + 2 * on_objects + _overlap(place, box) / area + 0.05 * order

    return placed(min(enumerate(corners), key=cost)[1])


def _overlap(a: Box, b: Box) -> float:
    """Area of the intersection, pixels."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
