"""Figures against hand-computed numbers, the matching rules, and the whole evaluation on an oracle and on tiny models."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_dataset import write_tiny_dataset

from flmm_core.config import GroundingConfig
from flmm_core.data.samples import REFER, REFER_ABSENT, Span, Turn
from flmm_core.data.tabletop import read_dataset
from flmm_core.errors import LoadError
from flmm_core.evaluation import metrics
from flmm_core.evaluation.benchmarks import referring, run_benchmark
from flmm_core.evaluation.matching import match_phrases, normalise_answer, overlaps, true_masks
from flmm_core.evaluation.metrics import Retrieval, Tally
from flmm_core.evaluation.report import report_of
from flmm_core.evaluation.tabletop import ImageEvaluation, coarse_mask, is_relational
from flmm_core.evaluation.workers import evaluate_images
from flmm_core.images.masks import Overlap
from flmm_core.pipeline import GroundingPipeline
from flmm_core.types import CoarseMasks, GroundedAnswer, GroundedPhrase, StageSeconds


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "set", count=4)


@pytest.fixture(scope="module")
def config(tiny_model):
    return GroundingConfig(**tiny_model, device="cpu", max_new_tokens=6, selector_threshold=0.3)


# --- metrics ---------------------------------------------------------------------------------------------------------------


def test_answers_are_compared_without_case_punctuation_and_spacing():
    assert normalise_answer("  The red mug, is HERE. ") == "the red mug is here"
    assert normalise_answer("It's a mug!") == normalise_answer("it s a mug")
    assert normalise_answer("a mug") != normalise_answer("mug")


def test_intervals_of_shares_resample_images_not_questions():
    rng = np.random.default_rng(1)
    alike = [
        Tally(10 * right, 10) for right in rng.integers(0, 2, 100).tolist()
    ]  # ten questions of an image stand or fall together
    mixed = [Tally(right, 10) for right in rng.binomial(10, sum(t.right for t in alike) / 1000, 100).tolist()]
    together, apart = metrics.share(alike), metrics.share(mixed)
    assert together.count == apart.count == 1000 and together.value == pytest.approx(apart.value, abs=0.03)
    width = 2 * 1.96 * math.sqrt(together.value * (1 - together.value) / 100)
    assert together.high - together.low == pytest.approx(width, rel=0.15)
    assert apart.high - apart.low == pytest.approx(width / math.sqrt(10), rel=0.15)


def test_a_share_of_all_or_nothing_is_no_certainty():
    figure = metrics.share([Tally(5, 5)] * 10 + [Tally(0, 0)])  # Wilson's interval of 10 of 10, from a textbook
    assert (figure.value, figure.high, figure.count) == (1, 1, 50) and figure.low == pytest.approx(0.7225, abs=1e-4)
    figure = metrics.share([Tally(0, 5)] * 10)
    assert (figure.value, figure.low) == (0, 0) and figure.high == pytest.approx(0.2775, abs=1e-4)
    assert math.isnan(metrics.share([Tally(0, 0)]).value) and math.isnan(metrics.share([]).value)


def test_overlaps():
    a, b = np.zeros((2, 4, 4), bool)
    a[:2], b[1:3] = True, True
    assert Overlap.of(a, b) == Overlap(4, 12) and Overlap.of(a, b).iou == pytest.approx(1 / 3)
    assert Overlap.of(a, None) == Overlap.of(None, a) == Overlap(0, 8)
    assert Overlap(0, 0).iou == 0


def test_cumulative_and_mean_iou():
    found = [[Overlap(1, 2), Overlap(0, 10)], [], [Overlap(8, 8)]]
    assert metrics.cumulative_iou(found).value == pytest.approx(9 / 20)
    assert metrics.mean_iou(found).value == pytest.approx((0.5 + 0 + 1) / 3)
    assert metrics.mean_iou(found).count == 3
    assert math.isnan(metrics.cumulative_iou([[], []]).value)


def test_bootstrap_is_fixed_and_covers():
    rng = np.random.default_rng(3)
    union = rng.integers(50, 150, 200)
    shared = (union * rng.uniform(0.6, 0.8, 200)).astype(int)
    figure = metrics.ratio(shared, union, count=200)
    assert figure == metrics.ratio(shared, union, count=200)
    assert figure.low < figure.value < figure.high
    # The delta method's interval of a ratio of means, computed on its own.
    residual = shared - figure.value * union
    half = 1.96 * residual.std(ddof=1) / math.sqrt(200) / union.mean()
    assert figure.high - figure.low == pytest.approx(2 * half, rel=0.1)
    same = metrics.ratio([3, 3, 3], [4, 4, 4], count=3)
    assert (same.low, same.value, same.high) == (0.75, 0.75, 0.75)


def test_f1():
    assert metrics.f1([Retrieval(2, 3, 2), Retrieval(0, 0, 1)]).value == pytest.approx(2 * 2 / (3 + 3))
    assert metrics.phrase_retrieval([(0, 3), (5, 9)], [(0, 3), (5, 8)]) == Retrieval(1, 2, 2)
    counts = [Retrieval(2, 3, 2), Retrieval(0, 1, 2)]
    assert metrics.precision(counts).value == 2 / 4 and metrics.recall(counts).value == 2 / 4
    assert metrics.precision(counts).count == 4 and sum(counts, Retrieval(0, 0, 0)) == Retrieval(2, 4, 4)
    text = "The red mug is left of the lemon."
    found, true = [(0, 11), (20, 22)], [(4, 11), (27, 32)]
    assert metrics.word_retrieval(text, found, true) == Retrieval(2, 4, 3)


# --- matching --------------------------------------------------------------------------------------------------------------


def phrase(text, start, mask=None, absent=False):
    pixels = torch.from_numpy(np.zeros((2, 2), bool) if mask is None else mask)
    return GroundedPhrase(text, start, start + len(text), pixels, (0, 0, 0, 0), 0.0, 1.0 - absent, absent)


def test_right_answers_match_by_place():
    turn = Turn("list", "?", "I see a red mug and another red mug.", (Span(8, 15, (0,)), Span(28, 35, (1,))))
    found = [phrase("another red mug", 20), phrase("a red mug", 6), phrase("see", 2)]
    assert sorted(match_phrases(found, turn, right=True)[:2]) == [(0, 1), (1, 0)]
    assert match_phrases(found, turn, right=True)[2:] == [(2, None)]


def test_a_phrase_over_two_spans_matches_only_the_larger():
    turn = Turn("list", "?", "a can and a red mug", (Span(2, 5, (0,)), Span(12, 19, (1,))))
    assert match_phrases([phrase("can and a red mug", 2)], turn, right=True) == [(0, 1), (None, 0)]


def test_wrong_answers_match_by_words():
    turn = Turn("relation", "?", "The red mug is left of the can.", (Span(4, 11, (0,)), Span(27, 30, (1,))))
    found = [phrase("can", 4), phrase("Red mug", 20), phrase("can", 50)]
    assert match_phrases(found, turn, right=False) == [(0, 1), (1, 0), (2, None)]
    assert match_phrases([], turn, right=False) == [(None, 0), (None, 1)]
    assert match_phrases([phrase("mug", 8)], turn, right=False) == [(None, 0), (None, 1), (0, None)]


def test_names_of_what_is_not_there_have_no_true_mask():
    turn = Turn("absence", "?", "no pan, but a can", (Span(3, 6, ()), Span(14, 17, (0,))))
    can, made_up = np.zeros((2, 3, 3), bool)
    can[0], made_up[2, :2] = True, True
    masks = {(0,): can}.__getitem__
    found = [phrase("pan", 3, made_up), phrase("can", 14, can), phrase("but", 8, np.zeros((3, 3), bool))]
    pairs = match_phrases(found, turn, right=True)
    assert overlaps(pairs, lambda i: found[i].mask, turn, masks) == (
        Overlap(0, 2),
        Overlap(3, 3),
    )  # nothing in place of nothing
    pan, other, third = true_masks(GroundedAnswer(turn.answer, tuple(found), 3, 3), turn, masks)
    assert pan is None and third is None and (other == can).all()


def test_relational_phrases():
    assert is_relational("mug left of the lemon") and is_relational("the thing next to the red can")
    assert not is_relational("the red mug") and not is_relational("red object")


def test_coarse_masks_are_thresholded_at_image_size():
    logits = torch.tensor([[4.0, -4.0]])
    mask = coarse_mask(logits, (2, 8), 0.5)
    assert mask.shape == (2, 8) and mask[:, :4].all() and not mask[:, 4:].any()
    assert coarse_mask(logits, (2, 8), 0.9).sum() < mask.sum()


# --- the whole evaluation --------------------------------------------------------------------------------------------------


class Oracle:
    """Knows every answer and mask; ``spoil`` changes an answer before it is given."""

    def __init__(self, sample, spoil=lambda turn, answer: answer):
        self.sample, self.spoil = sample, spoil
        self.heads, self.config = SimpleNamespace(selects_keywords=False), GroundingConfig()

    def encode(self, image):
        self.shape = image.shape[:2]
        return image

    def _answer(self, turn, callbacks):
        nothing = np.zeros(self.shape, bool)
        phrases = [
            phrase(turn.answer[s.start : s.end], s.start, self.sample.mask(s.objects) if s.objects else nothing, not s.objects)
            for s in turn.spans
        ]
        seconds = StageSeconds(image=0.5 if turn.kind == "list" else 0.0, lmm=1.0)
        answer = self.spoil(turn, GroundedAnswer(turn.answer, tuple(phrases), *self.shape, seconds))
        # The U-Net sees a thing in every name; what the presence score calls absent must not count all the same.
        masks = [np.ones(self.shape, bool) if phrase.absent else phrase.mask for phrase in answer.phrases]
        callbacks.on_coarse(
            CoarseMasks(torch.tensor(np.array(masks, dtype=np.float32).reshape(-1, *self.shape)) * 20 - 10, None)
        )
        return answer

    def chat(self, image, text, *, callbacks):
        return self._answer(next(turn for turn in self.sample.turns if turn.question == text), callbacks)

    def refer(self, image, phrases, *, callbacks):
        turns = (turn for turn in self.sample.turns if turn.kind in (REFER, REFER_ABSENT))
        return self._answer(
            next(turn for turn in turns if phrases == [turn.answer[s.start : s.end] for s in turn.spans]), callbacks
        )


def figures_of(samples, spoil=lambda turn, answer: answer):
    return report_of([ImageEvaluation(Oracle(sample, spoil)).run(sample) for sample in samples]).figures


MEASURES = ("cIoU, U-Net", "cIoU, SAM", "mean IoU, U-Net", "mean IoU, SAM")


def test_an_oracle_gets_full_marks(samples):
    report = report_of([ImageEvaluation(Oracle(sample)).run(sample) for sample in samples])
    figures = report.figures
    assert all(figure.value == 1 for name, figure in figures.items() if not name.startswith("noun chunks"))
    answers = [name for name in figures if name.startswith("answers: ")]
    assert answers == [f"answers: {kind}" for kind in ("list", "where", "relation", "count", "absence", "all")]
    assert figures["answers: all"].count == 20
    counts = {"chat": 24, "chat, right answers": 24, "refer": 12, "refer, names": 8, "refer, relations": 4, "chat, list": 8}
    for place, count in {**counts, "right chat answers and refer names": 32}.items():
        assert [figures[f"{place}: {measure}"].count for measure in MEASURES] == [count] * 4
    assert not any(name.startswith("chat, absence") for name in figures)
    assert [figures[f"absence without mask: {mode}"].count for mode in ("chat", "refer")] == [4, 4]
    assert [figures[f"present things kept: {mode}"].count for mode in ("chat", "refer")] == [24, 12]
    assert figures["noun chunks: F1 of words"].count == 4 * 12 and not any(name.startswith("selector") for name in figures)
    assert report.seconds.lmm == 1.0 and report.seconds.image == 0.5 and report.mistakes == ()
    record = json.loads(json.dumps(report.record()))
    assert record["images"] == 4 and [row["figure"] for row in record["rows"]] == list(figures)
    assert record["rows"][0] == {
        "figure": "answers: list",
        "value": 1,
        "low": pytest.approx(0.51, abs=1e-3),
        "high": 1,
        "count": 4,
    }
    assert ("refer, relations: cIoU, SAM", "1.000") in [row[:2] for row in report.table()]


def masked(answer, mask):
    return replace(answer, phrases=tuple(replace(p, pixels=torch.from_numpy(mask(p)), absent=False) for p in answer.phrases))


FAULTS = {
    "wrong words": (
        lambda turn, answer: replace(answer, text="No.") if turn.kind == "where" else answer,
        {"answers: where": 0, "answers: all": 0.8, "chat, where: cIoU, SAM": 1},
    ),
    "no mask in chat": (
        lambda turn, answer: masked(answer, lambda p: p.mask & False) if turn.kind == "count" else answer,
        {"chat, count: cIoU, U-Net": 0, "chat, count: mean IoU, SAM": 0, "chat: mean IoU, SAM": 5 / 6, "refer: cIoU, SAM": 1},
    ),
    "absent name pointed at in chat": (
        lambda turn, answer: masked(answer, lambda p: ~p.mask) if turn.kind == "absence" else answer,
        {
            "absence without mask: chat": 0,
            "answers: absence": 1,
            "chat: mean IoU, SAM": 6 / 7,
            "absence without mask: refer": 1,
        },
    ),
    "absent name pointed at in refer": (
        lambda turn, answer: masked(answer, lambda p: ~p.mask) if turn.kind == REFER_ABSENT else answer,
        {"absence without mask: refer": 0, "refer, names: mean IoU, SAM": 1 / 3, "refer, relations: cIoU, SAM": 1},
    ),
    "present things called absent in refer": (
        lambda turn, answer: (
            replace(answer, phrases=tuple(replace(p, pixels=p.pixels & False, absent=True) for p in answer.phrases))
            if turn.kind == REFER
            else answer
        ),
        {"present things kept: refer": 1 / 3, "present things kept: chat": 1, "refer, relations: cIoU, U-Net": 0},
    ),
}


@pytest.mark.parametrize(("spoil", "expected"), FAULTS.values(), ids=FAULTS)
def test_each_fault_lowers_its_own_figures(samples, spoil, expected):
    figures = figures_of(samples, spoil)
    for name, value in expected.items():
        assert figures[name].value == pytest.approx(value), name


def test_the_pooled_row_leaves_out_wrong_answers_and_relations(samples):
    pooled = "right chat answers and refer names: mean IoU, U-Net"

    def halved(turn, answer):
        return masked(answer, lambda p: p.mask & (np.arange(p.mask.shape[1]) < 0)) if turn.kind == REFER else answer

    def wrong(turn, answer):
        return replace(answer, text="No.", phrases=()) if turn.kind == "list" else answer

    assert figures_of(samples, halved)[pooled].value == pytest.approx(28 / 32)  # the four names, not the four relations
    assert figures_of(samples, wrong)[pooled] == replace(figures_of(samples)[pooled], count=24)
    assert figures_of(samples, wrong)["chat: mean IoU, U-Net"].value == pytest.approx(16 / 24)


def test_a_wrong_answer_costs_what_it_missed_and_what_it_made_up(samples):
    sample = samples[0]
    turn = next(turn for turn in sample.turns if turn.kind == "relation")
    named = [sample.mask(span.objects) for span in turn.spans]
    made_up = np.zeros_like(named[0])
    made_up[:2, :3] = True

    def spoil(asked, answer):
        if asked != turn:
            return answer
        left, _ = answer.phrases
        return replace(answer, text="No.", phrases=(replace(left, start=0, end=1), phrase("lamp", 9, made_up)))

    record = next(r for r in ImageEvaluation(Oracle(sample, spoil)).run(sample).chat if r.kind == "relation")
    areas = [int(mask.sum()) for mask in named]
    assert not record.right and [phrase.there for phrase in record.phrases] == [True, False]
    assert record.masks.refined == (Overlap(areas[0], areas[0]), Overlap(0, areas[1]), Overlap(0, 6))
    report = report_of([ImageEvaluation(Oracle(sample, spoil)).run(sample)])
    chat = [t for t in sample.turns if t.kind in ("list", "where", "relation", "count")]
    every = sum(int(sample.mask(s.objects).sum()) for t in chat for s in t.spans)
    assert report.figures["chat: cIoU, SAM"].value == pytest.approx((every - areas[1]) / (every + 6))
    assert report.figures["chat, right answers: cIoU, SAM"].value == 1
    assert [m.question for m in report.mistakes] == [turn.question]


def test_per_kind(samples):
    doubled = replace(samples[0], turns=samples[0].turns * 2)
    assert len(ImageEvaluation(Oracle(doubled)).run(doubled).chat) == 10
    record = ImageEvaluation(Oracle(doubled), per_kind=1).run(doubled)
    assert [r.kind for r in record.chat] == ["list", "where", "relation", "count", "absence"] and len(record.refer) == 4


def timeless(records):
    return [replace(r, chat=tuple(replace(c, seconds=StageSeconds()) for c in r.chat)) for r in records]


def test_tiny_models_in_one_and_in_two_processes(strip_data, tiny_qwen):
    """An image that a processor refuses costs itself, here and there."""
    config, dataset = (
        GroundingConfig(**tiny_qwen, device="cpu", max_new_tokens=4, selector_threshold=0.3),
        read_dataset(strip_data),
    )
    found = []
    for workers in (1, 2):
        told = []
        found.append(evaluate_images(list(dataset)[:3], config, tell=told.append, per_kind=1, workers=workers))
        (line,) = told
        assert line.startswith("skipped: ") and "000001.png: cannot be used (" in line and "aspect ratio" in line
    here, there = found
    figures = report_of(here).figures
    assert len(here) == 2
    assert figures["selector: F1 of words"].count == figures["noun chunks: F1 of words"].count == 24
    assert 0 <= figures["refer: cIoU, U-Net"].value <= 1
    assert timeless(there) == timeless(here)


def test_an_image_that_a_processor_refuses_costs_itself_in_a_benchmark(strip_data, tiny_qwen):
    pipeline, told = GroundingPipeline.from_config(GroundingConfig(**tiny_qwen, device="cpu")), []
    images = run_benchmark(pipeline, read_dataset(strip_data), referring("apart"), tell=told.append)
    assert [image.index for image in images] == [0, 2, 3]
    assert len(told) == 1 and "000001.png: cannot be used (" in told[0] and "aspect ratio" in told[0]


def test_every_image_refused(strip_data, tiny_qwen):
    config, told = GroundingConfig(**tiny_qwen, device="cpu"), []
    with pytest.raises(ValueError, match="samples: expected some that the model can use, got none"):
        evaluate_images(list(read_dataset(strip_data))[1:2], config, tell=told.append)
    assert len(told) == 1


class Exhausted:
    """A pipeline whose machine has no memory left."""

    def encode(self, image):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_lack_of_memory_ends_an_evaluation(samples, config):
    with pytest.raises(torch.OutOfMemoryError):
        evaluate_images(samples, config, tell=pytest.fail, load=lambda _: Exhausted())


def test_refusals(samples, config):
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        evaluate_images(samples, config, tell=pytest.fail, workers=0)
    with pytest.raises(ValueError, match="samples: expected at least one, got none"):
        evaluate_images([], config, tell=pytest.fail)
    with pytest.raises(LoadError, match="expected an existing"):
        evaluate_images(samples, replace(config, heads="/nothing/here"), tell=pytest.fail)
