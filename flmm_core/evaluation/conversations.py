"""Grounded conversation generation (GCG): the LMM describes an image, and its words and masks are compared with ground truth.

Words are compared by METEOR and CIDEr of pycocoevalcap, which runs Java; masks by AP50 of pycocotools, mean IoU of a one-to-one
matching, and mask recall, as in GLaMM (section 4).
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flmm_core.data.masks import mask_rle
from flmm_core.data.samples import DESCRIBE, Dataset, Sample
from flmm_core.data.visit import visit_samples
from flmm_core.evaluation.metrics import Figure, Tally, ratio, share
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.image_handle import ImageHandle

MATCH = 0.5
"""Least IoU, and least similarity of the words, of a phrase that counts as recalled."""

_AP_RESAMPLES = 500
"""Resamples of the bootstrap of AP50, each of which computes AP50 again."""

Similarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Similarity of each of ``n`` phrases with each of ``m`` others, ``[n, m]`` in [-1, 1]."""


@dataclass(frozen=True)
class MaskedPhrase:
    """A phrase and its compressed mask."""

    words: str
    rle: dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Generated and true description of an image, with their phrases."""

    index: int
    """Index of the sample in the data set."""
    path: Path
    caption: str
    phrases: tuple[MaskedPhrase, ...]
    true_captions: tuple[str, ...]
    true_phrases: tuple[MaskedPhrase, ...]
    seconds: float


def converse(pipeline: GroundingPipeline, image: ImageHandle, sample: Sample, index: int) -> Conversation | None:
    """Ask for a description of an image; None if its ground truth has none."""
    turns = [turn for turn in sample.turns if turn.kind == DESCRIBE]
    if not turns:
        return None
    began = time.monotonic()
    answer = pipeline.chat(image, turns[0].question)
    found = tuple(MaskedPhrase(one.text, mask_rle(one.mask)) for one in answer.phrases if one.mask.any())
    first = turns[0]
    true = tuple(
        MaskedPhrase(words, mask_rle(sample.mask(span.objects)))
        for words, span in zip(first.phrases, first.spans, strict=True)
        if span.objects
    )
    said = tuple(turn.answer for turn in turns)
    return Conversation(index, sample.path, answer.text, found, said, true, time.monotonic() - began)


def run_conversations(
    pipeline: GroundingPipeline, dataset: Dataset[Any], *, tell: Callable[[str], None], limit: int | None = None
) -> list[Conversation]:
    """Describe the images of a data set, with a progress bar.

    Args:
        pipeline: what is evaluated.
        dataset: whose images it describes.
        tell: called with one line for each sample that cannot be used; it is skipped.
        limit: images to look at, spread over the data set; None for all.
    """

    def use(index: int, sample: Sample) -> Conversation | None:
        return converse(pipeline, pipeline.encode(sample.image()), sample, index)

    conversations = visit_samples(dataset, use, tell=tell, limit=limit)
    if not conversations:
        raise ValueError(f"{dataset.folder}: expected images with a description, got none")
    return conversations


def conversation_figures(conversations: Sequence[Conversation], similarity: Similarity | None = None) -> dict[str, Figure]:
    """METEOR, CIDEr, AP50, mIoU and mask recall; the first two are NaN without Java.

    Intervals resample images. METEOR of all captions together is no mean of theirs, but close to it: its interval is as wide as
    that of their mean.

    Args:
        conversations: what was said.
        similarity: of phrases, by some model of language; None to recall masks by their IoU alone, which the row says.
    """
    figures = {**_caption_figures(conversations), "AP50": _ap50(conversations)}
    paired = [_mean_pair_iou(one) for one in conversations]
    figures["mIoU"] = ratio(paired, [1.0] * len(paired), count=len(paired))
    recalled = [Tally(_recalled(one, similarity), len(one.true_phrases)) for one in conversations]
    figures["mask recall" if similarity else "mask recall (words not compared)"] = share(recalled)
    return figures


def _caption_figures(conversations: Sequence[Conversation]) -> dict[str, Figure]:
    count = len(conversations)
    if shutil.which("java") is None:
        missing = Figure(math.nan, math.nan, math.nan, count)
        return {"METEOR": missing, "CIDEr": missing}
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer = PTBTokenizer()
        true = tokenizer.tokenize({i: [{"caption": c} for c in one.true_captions] for i, one in enumerate(conversations)})
        said = tokenizer.tokenize({i: [{"caption": one.caption}] for i, one in enumerate(conversations)})
        meteor, meteors = Meteor().compute_score(true, said)
        _, cider = Cider().compute_score(true, said)
    mean = ratio(meteors, [1.0] * count, count=count)
    whole = Figure(meteor, meteor + mean.low - mean.value, meteor + mean.high - mean.value, count)
    return {"METEOR": whole, "CIDEr": ratio(np.asarray(cider, float).tolist(), [1.0] * count, count=count)}


def _ap50(conversations: Sequence[Conversation]) -> Figure:
    """Average precision at IoU 0.5 of masks of one class, each with score 1."""
    count = sum(len(one.true_phrases) for one in conversations)
    annotations = [
        {"id": 0, "image_id": i, "category_id": 1, "segmentation": p.rle, "area": float(coco_mask.area(p.rle)), "iscrowd": 0}
        for i, one in enumerate(conversations)
        for p in one.true_phrases
    ]
    for number, annotation in enumerate(annotations, 1):  # pycocotools never matches a number 0
        annotation["id"] = number
    found = [
        {"image_id": i, "category_id": 1, "segmentation": phrase.rle, "score": 1.0}
        for i, one in enumerate(conversations)
        for phrase in one.phrases
    ]
    if not annotations or not found:
        return Figure(0.0 if annotations else math.nan, math.nan, math.nan, count)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        sizes = [next((p.rle["size"] for p in (*one.true_phrases, *one.phrases)), (0, 0)) for one in conversations]
        images = [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes)]
        truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.params.iouThrs = np.array([MATCH])
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        matched = list(evaluation.evalImgs)  # of each image

        def precision(images: Sequence[int]) -> float:
            evaluation.evalImgs = [matched[i] for i in images]
            evaluation.accumulate()
            known = evaluation.eval["precision"]
            return float(known[known > -1].mean()) if (known > -1).any() else math.nan

        everything = range(len(matched))
        draws = np.sort(np.random.default_rng(0).choice(len(matched), (_AP_RESAMPLES, len(matched))))
        low, high = np.nanpercentile([precision(draw) for draw in draws.tolist()], (2.5, 97.5))
        return Figure(precision(everything), float(low), float(high), count)


def _ious(conversation: Conversation) -> np.ndarray:
    """``[n, m]`` IoU of each true mask with each predicted one."""
    true, found = ([phrase.rle for phrase in phrases] for phrases in (conversation.true_phrases, conversation.phrases))
    if not true or not found:
        return np.zeros((len(true), len(found)))
    return np.asarray(coco_mask.iou(found, true, [0] * len(true))).T


def _matches(scores: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Pairs of rows and columns, each at most once, the highest score first, while it is above ``least``."""
    scores, pairs = scores.copy(), []
    while scores.size and scores.max() > least:
        row, column = np.unravel_index(int(scores.argmax()), scores.shape)
        pairs.append((int(row), int(column)))
        scores[row, :] = scores[:, column] = -1.0
    return pairs


def _mean_pair_iou(conversation: Conversation) -> float:
    ious = _ious(conversation)
    pairs = _matches(ious, 0.0)
    return float(np.mean([ious[pair] for pair in pairs])) if pairs else 0.0


def _recalled(conversation: Conversation, similarity: Similarity | None) -> int:
    """Count of the true phrases that are recalled: IoU and similarity of the words reach their thresholds."""
    ious = _ious(conversation)
    if similarity is not None and ious.size:
        alike = similarity([p.words for p in conversation.true_phrases], [p.words for p in conversation.phrases])
        ious = np.where(alike >= MATCH, ious, 0.0)
    return len(_matches(ious, np.nextafter(MATCH, 0.0)))


def bert_similarity(source: str) -> Similarity:
    """Cosine of mean last hidden states of a BERT, as GLaMM compares phrases.

    Args:
        source: folder or Hugging Face name, for instance ``bert-base-uncased``.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()
    kept: dict[str, np.ndarray] = {}

    @torch.no_grad()
    def embedded(words: str) -> np.ndarray:
        if words not in kept:
            states = model(**tokenizer(words, return_tensors="pt", truncation=True)).last_hidden_state[0].mean(dim=0)
            kept[words] = (states / states.norm()).numpy()
        return kept[words]

    return lambda some, others: np.stack([embedded(w) for w in some]) @ np.stack([embedded(w) for w in others]).T
