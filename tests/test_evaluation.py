"""Figures against hand-computed numbers, the matching rules, and the whole evaluation on an oracle and on tiny models."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_dataset import write_tiny_dataset
from tiny_models import save_model

from flmm_cli.model_options import load_pipeline
from flmm_core.config import GroundingConfig
from flmm_core.data.dataset import REFER, Span, Turn, read_dataset
from flmm_core.drawing.attention_figure import CELL, draw_attention
from flmm_core.errors import LoadError
from flmm_core.evaluation import metrics
from flmm_core.evaluation.attention_maps import HeadRanking, attention_rows, peaks, rank_heads, telling_turns
from flmm_core.evaluation.matching import match_phrases
from flmm_core.evaluation.metrics import Overlap, Retrieval, normalise_answer
from flmm_core.evaluation.report import report_of, table_rows, write_json
from flmm_core.evaluation.tabletop import PictureEvaluation, coarse_mask, evaluate_pictures, is_relational
from flmm_core.pipeline import GroundingPipeline
from flmm_core.types import CoarseMasks, GroundedAnswer, GroundedPhrase, StageSeconds


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "set", count=4)


@pytest.fixture(scope="module")
def pictures(data):
    return list(read_dataset(data))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    parts = save_model(tmp_path_factory.mktemp("model"))
    return GroundingConfig(**parts, device="cpu", max_new_tokens=6, selector_threshold=0.3)


# --- metrics ---------------------------------------------------------------------------------------------------------------


def test_answers_are_compared_without_case_punctuation_and_spacing():
    assert normalise_answer("  The red mug, is HERE. ") == "the red mug is here"
    assert normalise_answer("It's a mug!") == normalise_answer("it s a mug")
    assert normalise_answer("a mug") != normalise_answer("mug")


def test_wilson_interval():
    figure = metrics.share(8, 10)  # textbook values
    assert (figure.value, figure.count) == (0.8, 10)
    assert figure.low == pytest.approx(0.4902, abs=1e-4) and figure.high == pytest.approx(0.9433, abs=1e-4)
    assert metrics.share(10, 10).high == pytest.approx(1) and metrics.share(10, 10).low == pytest.approx(0.7225, abs=1e-4)
    assert metrics.share(0, 10).low == 0.0
    assert math.isnan(metrics.share(0, 0).value)


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
    text = "The red mug is left of the lemon."
    found, true = [(0, 11), (20, 22)], [(4, 11), (27, 32)]
    assert metrics.word_retrieval(text, found, true) == Retrieval(2, 4, 3)


# --- matching --------------------------------------------------------------------------------------------------------------


def phrase(text, start, mask=None):
    mask = np.zeros((2, 2), bool) if mask is None else mask
    return GroundedPhrase(text, start, start + len(text), mask, (0, 0, 0, 0), 0.0)


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


def test_relational_phrases():
    assert is_relational("mug left of the lemon") and is_relational("the thing next to the red can")
    assert not is_relational("the red mug") and not is_relational("red object")


def test_coarse_masks_are_thresholded_at_picture_size():
    logits = torch.tensor([[4.0, -4.0]])
    mask = coarse_mask(logits, (2, 8), 0.5)
    assert mask.shape == (2, 8) and mask[:, :4].all() and not mask[:, 4:].any()
    assert coarse_mask(logits, (2, 8), 0.9).sum() < mask.sum()


# --- the whole evaluation --------------------------------------------------------------------------------------------------


class Oracle:
    """Knows every answer and mask; ``spoil`` changes an answer before it is given."""

    def __init__(self, picture, spoil=lambda turn, answer: answer):
        self.picture, self.spoil = picture, spoil
        self.heads, self.config = SimpleNamespace(keyword_selector=None), GroundingConfig()
        self.seen = 0

    def set_image(self, image):
        self.seen += 1
        self.shape = image.shape[:2]

    def _answer(self, turn, on_coarse):
        phrases = [
            GroundedPhrase(turn.answer[s.start : s.end], s.start, s.end, self.picture.mask(s.objects), (0, 0, 1, 1), 1.0)
            for s in turn.spans
        ]
        seconds = StageSeconds(image=0.5 if turn.kind == "list" else 0.0, lmm=1.0)
        answer = self.spoil(turn, GroundedAnswer(turn.answer, tuple(phrases), *self.shape, seconds))
        masks = torch.tensor(np.array([p.mask for p in answer.phrases], dtype=np.float32).reshape(-1, *self.shape))
        on_coarse(CoarseMasks(masks * 20 - 10, None))
        return answer

    def chat(self, text, *, on_coarse):
        return self._answer(next(turn for turn in self.picture.turns if turn.question == text), on_coarse)

    def refer(self, phrases, *, on_coarse):
        turn = next(turn for turn in self.picture.turns if turn.kind == REFER)
        assert phrases == [turn.answer[s.start : s.end] for s in turn.spans]
        return self._answer(turn, on_coarse)


def test_an_oracle_gets_full_marks(pictures, tmp_path):
    records = [PictureEvaluation(Oracle(picture)).run(picture) for picture in pictures]
    report = report_of(records)
    assert report.pictures == 4 and set(report.answers) == {"list", "where", "relation", "count", "absence", "all"}
    assert report.answers["all"].value == 1 and report.answers["all"].count == 20
    assert report.absence_without_phrase.value == 1 and report.absence_without_phrase.count == 4
    for masks in (report.chat_masks, report.chat_masks_right, *report.refer_masks.values()):
        assert masks.coarse_ciou.value == masks.refined_ciou.value == masks.refined_miou.value == masks.coarse_miou.value == 1
    assert report.chat_masks.refined_ciou.count == 4 * 6
    assert [report.refer_masks[name].refined_ciou.count for name in ("names", "relations", "all")] == [4, 4, 8]
    assert report.selector is None and 0 < report.chunks.words.value <= 1
    assert report.chat_seconds.lmm == 1.0 and report.chat_seconds.image == 0.5
    assert report.mistakes == ()
    write_json(tmp_path / "new" / "figures.json", report, command="flmm eval")
    written = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert written["command"] == "flmm eval" and written["answers"]["all"]["value"] == 1
    assert any(row[:2] == ("refer, relations: cIoU, SAM", "1.000") for row in table_rows(report))


def test_a_wrong_answer_costs_what_it_missed_and_what_it_made_up(pictures):
    picture = pictures[0]
    turn = next(turn for turn in picture.turns if turn.kind == "relation")
    named = [picture.mask(span.objects) for span in turn.spans]
    made_up = np.zeros_like(named[0])
    made_up[:2, :3] = True

    def spoil(asked, answer):
        if asked != turn:
            return answer
        left, _ = answer.phrases
        return replace(answer, text="No.", phrases=(replace(left, start=0, end=1), phrase("lamp", 9, made_up)))

    record = next(r for r in PictureEvaluation(Oracle(picture, spoil)).run(picture).chat if r.kind == "relation")
    areas = [int(mask.sum()) for mask in named]
    assert not record.right and record.phrases == 2
    assert record.masks.refined == (Overlap(areas[0], areas[0]), Overlap(0, areas[1]), Overlap(0, 6))
    report = report_of([PictureEvaluation(Oracle(picture, spoil)).run(picture)])
    every = sum(sum(int(picture.mask(s.objects).sum()) for s in t.spans) for t in picture.turns if t.kind != REFER)
    assert report.chat_masks.refined_ciou.value == pytest.approx((every - areas[1]) / (every + 6))
    assert report.chat_masks_right.refined_ciou.value == 1
    assert report.answers["relation"].value == 0 and report.answers["all"].value == pytest.approx(4 / 5)
    assert [m.question for m in report.mistakes] == [turn.question]


def test_a_phrase_in_reply_to_an_absence_question_is_counted(pictures):
    def spoil(asked, answer):
        return (
            replace(answer, phrases=(phrase("black pan", 16, np.ones((48, 64), bool)),)) if asked.kind == "absence" else answer
        )

    report = report_of([PictureEvaluation(Oracle(pictures[0], spoil)).run(pictures[0])])
    assert report.absence_without_phrase.value == 0 and report.answers["absence"].value == 1
    assert report.chat_masks.refined_ciou.value < 1


def test_per_kind(pictures):
    doubled = replace(pictures[0], turns=pictures[0].turns * 2)
    assert len(PictureEvaluation(Oracle(doubled)).run(doubled).chat) == 10
    record = PictureEvaluation(Oracle(doubled), per_kind=1).run(doubled)
    assert [r.kind for r in record.chat] == ["list", "where", "relation", "count", "absence"] and len(record.refer) == 2


def timeless(records):
    return [replace(r, chat=tuple(replace(c, seconds=StageSeconds()) for c in r.chat)) for r in records]


def test_tiny_models_in_one_and_in_two_processes(pictures, config):
    here = evaluate_pictures(pictures[:2], config, per_kind=1)
    report = report_of(here)
    assert report.selector is not None and report.selector.words.count == report.chunks.words.count > 0
    assert 0 <= report.refer_masks["all"].coarse_ciou.value <= 1
    assert timeless(evaluate_pictures(pictures[:2], config, per_kind=1, workers=2, load=load_pipeline)) == timeless(here)


def test_refusals(pictures, config):
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        evaluate_pictures(pictures, config, workers=0)
    with pytest.raises(ValueError, match="pictures: expected at least one, got none"):
        evaluate_pictures([], config)
    with pytest.raises(LoadError, match="expected an existing"):
        evaluate_pictures(pictures, replace(config, heads="/nothing/here"))


# --- attention maps --------------------------------------------------------------------------------------------------------


def test_peaks_are_cell_centres():
    maps = np.zeros((2, 3, 4), np.float32)
    maps[0, 2, 3], maps[1, 0, 0] = 1, 1
    assert peaks(maps, 30, 80) == [(70, 25), (10, 5)]


def test_ranking():
    ranking = HeadRanking(np.array([1, 5, 5, 0, 9, 2]), phrases=10, chance=0.1, heads=3)
    assert ranking.best(3) == [4, 1, 2] and ranking.name(4) == "layer 2 head 2"
    assert ranking.accuracy(4).value == 0.9 and ranking.accuracy(4).count == 10


def test_attention_of_tiny_models(pictures, config):
    pipeline = GroundingPipeline.from_config(config)
    ranking = rank_heads(pipeline, pictures[:2])
    assert ranking.hits.shape == (12,) and ranking.phrases == 2 * 8 and 0 < ranking.chance < 1
    assert (ranking.hits <= ranking.phrases).all()
    channels = ranking.best(2)
    picture = pictures[2]
    rows = attention_rows(pipeline, picture.image(), ["red mug", "lemon"], channels)
    assert [row.phrase for row in rows] == ["red mug", "lemon"] and rows[0].truth is None and math.isnan(rows[0].mass(0))
    assert rows[0].maps.shape == (2, 3, 4)  # 4 x 4 cells, less the padding of a 4:3 picture
    drawn = draw_attention(rows, ranking, channels)
    assert drawn.dtype == np.uint8 and drawn.shape[1] > 5 * CELL
    known = replace(rows[0], truth=picture.mask((0,)), refined=picture.mask((0,)))
    assert 0 <= known.mass(0) <= 1 and known.iou(known.refined) == 1
    assert draw_attention([known], ranking, channels).shape[0] < drawn.shape[0]
    with pytest.raises(ValueError, match="rows: expected at least one phrase to draw, got none"):
        draw_attention([], ranking, channels)
    for picture, turn in telling_turns(pictures):
        assert [turn.answer[span.start : span.end] for span in turn.spans] == list(picture.names)
        rows = attention_rows(pipeline, picture.image(), list(picture.names), channels, (picture, turn))
        assert all((row.truth == picture.mask((i,))).all() for i, row in enumerate(rows)) and len(rows) == 2
