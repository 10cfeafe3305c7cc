"""Data sets of simulated scenes: what is written comes back, a stopped run goes on, and splits keep their words apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from flmm_core.data.samples import Sample
from flmm_core.data.tabletop import read_dataset
from flmm_sim import dataset_writer
from flmm_sim.dataset_writer import write_dataset
from flmm_sim.foreign_words import HELD_OUT_UNKNOWN_WORDS, UNKNOWN_WORDS
from flmm_sim.language import TURNS, questions
from flmm_sim.scene import scene_seed

SPLITS: Mapping[str, tuple[str, ...]] = {"train": UNKNOWN_WORDS, "odd": HELD_OUT_UNKNOWN_WORDS}
COUNT = 3


@pytest.fixture(scope="module")
def folders(renderer, tmp_path_factory) -> dict[str, Path]:
    folders = {split: tmp_path_factory.mktemp("data") / split for split in SPLITS}
    for split, folder in folders.items():
        write_dataset(folder, split=split, seed=4, count=COUNT, workers=1)
    return folders


def read(folder: Path) -> list[Sample]:
    samples = list(read_dataset(folder))
    assert len(samples) == COUNT
    return samples


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_come_back(renderer, folders, split):
    for index, sample in enumerate(read(folders[split])):
        scene = renderer.sample(scene_seed(split, 4, index))
        rng = np.random.default_rng(scene_seed(f"{split} questions", 4, index))
        assert list(sample.turns) == questions(scene, rng, unknown_words=SPLITS[split])
        assert {turn.kind for turn in sample.turns} <= set(TURNS)
        assert (sample.image() == scene.image).all()
        assert list(sample.names) == [thing.name for thing in scene.objects]
        assert all((sample.mask((i,)) == thing.mask).all() for i, thing in enumerate(scene.objects))


def test_names_of_what_is_not_there_come_back_empty(folders):
    spans = [span for sample in read(folders["odd"]) for turn in sample.turns if turn.kind == "absence" for span in turn.spans]
    assert len(spans) >= COUNT and {span.objects for span in spans} == {()}


def test_splits_share_no_scene(folders):
    one, other = (read(folders[split]) for split in SPLITS)
    assert not any((a.image() == b.image()).all() for a in one for b in other)


def test_a_finished_data_set_is_left_alone(folders, monkeypatch):
    monkeypatch.setattr(dataset_writer, "_write_chunk", None)  # nothing is left to draw
    before = {name: (folders["odd"] / name).read_bytes() for name in ("annotations.json", "questions.json")}
    write_dataset(folders["odd"], split="odd", seed=4, count=COUNT, workers=1)
    assert {name: (folders["odd"] / name).read_bytes() for name in before} == before


def test_other_scenes_are_not_mixed_in(folders):
    with pytest.raises(ValueError, match=r"expected a new folder or scenes of .*'seed': 5.*, got scenes of .*'seed': 4"):
        write_dataset(folders["odd"], split="odd", seed=5, count=COUNT, workers=1)
    with pytest.raises(ValueError, match="expected a count of at least 1, got 0"):
        write_dataset(folders["odd"], split="odd", seed=4, count=0, workers=1)
