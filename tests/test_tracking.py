"""Masks that follow pictures: compared with masks that were moved as the pictures were."""

import cv2
import numpy as np
import pytest
import torch

from flmm_core.images.geometry import mask_box
from flmm_core.images.masks import Overlap
from flmm_core.spatial.tracking import MaskTracker
from flmm_core.types import GroundedAnswer, GroundedPhrase


def picture(height=240, width=320):
    """A cluttered picture, and the masks of its things."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 60, (height // 8, width // 8, 3), np.uint8)
    pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) + np.uint8(80)
    masks = []
    for x, y in ((0.3, 0.4), (0.6, 0.6), (0.75, 0.3)):
        mask = np.zeros((height, width), np.uint8)
        axes = (int(0.09 * width), int(0.12 * height))
        cv2.ellipse(mask, (int(x * width), int(y * height)), axes, 20, 0, 360, 1, -1)
        texture = cv2.resize(rng.integers(0, 90, (height // 6, width // 6, 3), np.uint8), (width, height))
        pixels[mask > 0] = texture[mask > 0] + rng.integers(40, 140, 3, dtype=np.uint8)
        masks.append(mask > 0)
    return np.ascontiguousarray(pixels), masks


def moved(array, step, interpolation=cv2.INTER_LINEAR):
    """As a camera that pans, turns and comes nearer sees it after some steps."""
    height, width = array.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 0.6 * step, 1.008**step)
    matrix[:, 2] += np.array([0.006 * width, -0.005 * height]) * step
    return cv2.warpAffine(array, matrix, (width, height), flags=interpolation, borderMode=cv2.BORDER_REPLICATE)


def answer_of(masks):
    phrases = []
    for i, mask in enumerate(masks):
        box = tuple(int(edge) for edge in mask_box(torch.from_numpy(mask)))
        phrases.append(GroundedPhrase(f"thing {i}", 0, 7, torch.from_numpy(mask), box, 0.9))
    return GroundedAnswer("things", tuple(phrases), *masks[0].shape)


@pytest.mark.parametrize("size", [(240, 320), (720, 1280), (320, 200)], ids=str)
def test_masks_follow_a_moving_camera(size):
    pixels, masks = picture(*size)
    tracker = MaskTracker(pixels, answer_of(masks))
    for step in range(1, 11):
        answer = tracker.follow(moved(pixels, step))
    assert answer.text == "things" and answer.seconds.total == 0.0
    for phrase, mask in zip(answer.phrases, masks, strict=True):
        truth = moved(mask.astype(np.uint8), 10, cv2.INTER_NEAREST) > 0
        assert Overlap.of(phrase.mask, truth).iou > 0.9 > 0.75 > Overlap.of(mask, truth).iou
        assert phrase.box == tuple(int(edge) for edge in mask_box(phrase.pixels)) and phrase.score == 0.9


def test_a_still_picture_leaves_masks_as_they_are():
    pixels, masks = picture()
    tracker = MaskTracker(pixels, answer_of(masks))
    for _ in range(20):
        answer = tracker.follow(pixels.copy())
    for phrase, mask in zip(answer.phrases, masks, strict=True):
        assert Overlap.of(phrase.mask, mask).iou > 0.98


def test_what_leaves_the_picture_has_an_empty_mask_and_absent_things_stay_absent():
    pixels, masks = picture()
    edge = np.zeros_like(masks[0])
    edge[100:140, 310:] = True
    tracker = MaskTracker(pixels, answer_of([edge, np.zeros_like(edge)]))
    for step in range(1, 9):
        answer = tracker.follow(np.ascontiguousarray(np.roll(pixels, 3 * step, axis=1)))
    assert not answer.phrases[0].mask.any() and answer.phrases[0].box == (0, 0, 0, 0) and answer.phrases[0].score == 0.0
    assert not answer.phrases[1].mask.any()


def test_another_picture_is_not_followed():
    pixels, masks = picture()
    tracker = MaskTracker(pixels, answer_of(masks))
    assert tracker.follow(255 - pixels) is None
    assert tracker.follow(pixels[:200]) is None
    assert tracker.follow(pixels) is not None


def test_a_tiny_picture():
    pixels = np.zeros((1, 3, 3), np.uint8)
    answer = MaskTracker(pixels, answer_of([np.ones((1, 3), bool)])).follow(pixels)
    assert answer.phrases[0].mask.all()
