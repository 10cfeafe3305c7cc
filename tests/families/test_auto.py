"""Kinds without a file of their own, measured on tiny random models: layouts, proofs, what is kept, and what is refused."""

import json
import shutil

import family_checks
import hugging_face_models
import numpy as np
import pytest
import tiny_auto
import torch
from family_checks import QUESTION, SIZES
from tiny_models import random_image

from flmm_core import families
from flmm_core.errors import LoadError
from flmm_core.families import AutoFamily, Checkpoint, auto, family_of, processed
from flmm_core.families.glm4v import Glm4vFamily
from flmm_core.families.mistral3 import Mistral3Family
from flmm_core.families.stripes import centres
from flmm_core.families.view_grid import ViewGrid, ViewsLayout, measured_grid
from flmm_core.lmm import acceptance
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading.checkpoints import load_lmm
from flmm_core.loading.model_info import model_info

CPU, FLOAT = torch.device("cpu"), torch.float32
KINDS = {
    "glm4v": ((6, 10), None),
    "gemma4": ((6, 10), None),
    "aya_vision": ((4, 8), (4, 4)),
    "mistral3": ((5, 8), None),
    "lfm2_vl": ((4, 8), (3, 5)),
}
"""Finest grid of a landscape, and that of the whole image beside its tiles."""


@pytest.fixture(scope="module", autouse=True)
def unnamed(tmp_path_factory):
    """In this file, these kinds have no file; and the user's cache is its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(families, "FAMILIES", {name: family for name, family in families.FAMILIES.items() if name not in KINDS})
        yield


@pytest.fixture(scope="module", params=KINDS)
def folder(request, made_once):
    return made_once(request.param, lambda folder: tiny_auto.save(folder, request.param))


@pytest.fixture(scope="module")
def lmm(folder):
    """Proven as it is loaded."""
    return load_lmm(folder, device=CPU, dtype=FLOAT)


# --- the checks of every family, and the proofs at load ---


def test_a_kind_without_a_file_is_measured_and_proven(folder, lmm):
    assert isinstance(lmm.family, AutoFamily) and lmm.family.model_type == folder.name
    proofs = lmm.family.measurements.proofs["float32"]
    assert list(proofs) == ["layout", "position", "greedy answer", "kept image"]
    grid, whole = KINDS[folder.name]
    measured = lmm.encode_image(random_image(*SIZES["landscape"])).layouts[0].grid
    assert (measured.cells, measured.whole, measured.idle) == (grid, whole, ())


def test_rows_are_those_of_eager_attention(folder, lmm):
    family_checks.check_rows(folder, random_image(*SIZES["landscape"]))


def test_greedy_answers_are_those_of_the_plain_model(folder, lmm):
    family_checks.check_greedy(folder, [random_image(*SIZES["landscape"])], dtypes=(FLOAT,), tokens=8)


def test_later_turns_are_those_of_the_chat_template(lmm):
    hugging_face_models.check_turns(lmm, lmm.family.chat.template)


def test_what_was_measured_is_kept(folder, lmm, monkeypatch):
    """A second start measures and proves nothing; the kind is described without a model."""
    monkeypatch.setattr(auto, "centres", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(acceptance, "position_truth", lambda *_, **__: pytest.fail("proven again"))
    again = load_lmm(folder, device=CPU, dtype=FLOAT)
    assert again.encode_image(random_image(480, 640)).layouts == lmm.encode_image(random_image(480, 640)).layouts
    facts = model_info(folder)[0].facts
    assert facts["family"] == f"{folder.name}, measured" and "640x480 image" in facts


# --- what makes a kind special ---


@pytest.fixture
def gemma4(made_once):
    return made_once("gemma4", lambda folder: tiny_auto.save(folder, "gemma4"))


def test_a_head_trains(gemma4):
    family_checks.check_training(gemma4)


def test_the_frozen_proof_passes_in_16_bits(gemma4):
    family_checks.check_greedy(gemma4, [random_image(*SIZES["square"])], dtypes=(torch.bfloat16,), tokens=8)


@pytest.mark.parametrize("kind", ["glm4v", "mistral3"])
def test_a_named_kind_has_the_grid_that_was_measured(kind, made_once, monkeypatch):
    """What a named family computes is what the pixels say."""
    named = {"glm4v": Glm4vFamily, "mistral3": Mistral3Family}[kind]
    measured = FrozenLmm.from_pretrained(folder := made_once(kind, lambda folder: tiny_auto.save(folder, kind)))
    monkeypatch.setattr(families, "FAMILIES", {kind: named})
    known = FrozenLmm.from_pretrained(folder)
    assert isinstance(known.family, named) and isinstance(measured.family, AutoFamily)
    for size in ("landscape", "portrait"):
        image = random_image(*SIZES[size])
        assert known.encode_image(image).layouts == measured.encode_image(image).layouts
    assert known.shape == measured.shape and known.family.prompt("why?") == measured.family.prompt("why?")


# --- layouts from centres ---


def even(rows, columns, top=0.0, left=0.0, height=1.0, width=1.0):
    ys, xs = top + (np.arange(rows) + 0.5) / rows * height, left + (np.arange(columns) + 0.5) / columns * width
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


TILES = [even(3, 4, top, left, 0.5, 0.5) for top in (0, 0.5) for left in (0, 0.5)]
BREAK = np.full((1, 2), np.nan)


@pytest.mark.parametrize(
    ("views", "grid"),
    [
        ([even(3, 5)], ViewGrid(1, 1, 3, 5, None, 0, ())),
        ([even(7, 1)], ViewGrid(1, 1, 7, 1, None, 0, ())),
        ([row for one in np.split(even(2, 3), 2) for row in (one, BREAK)], ViewGrid(1, 1, 2, 3, None, 0, (3, 7))),
        (TILES, ViewGrid(2, 2, 3, 4, None, 0, ())),
        ([even(5, 6), *TILES], ViewGrid(2, 2, 3, 4, (5, 6), 0, ())),
        ([*TILES, even(3, 4)], ViewGrid(2, 2, 3, 4, (3, 4), 4, ())),
        ([even(4, 4, 0, 0, 0.5), even(4, 4, 0.5, 0, 0.5), even(4, 4)], ViewGrid(1, 1, 8, 4, (4, 4), 1, ())),
    ],
    ids=["grid", "column", "breaks", "tiles", "whole first", "whole last", "below each other"],
)
def test_grids_of_centres(views, grid):
    noise = np.random.default_rng(0).uniform(-0.004, 0.004, (sum(map(len, views)), 2)) if "nan" not in str(views) else 0
    assert measured_grid(np.concatenate(views) + noise * 0.5) == grid
    assert ViewGrid.of_record(json.loads(json.dumps(grid.record()))) == grid


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([even(3, 4)[:-1]], "rows of equal length, got 3 rows of 3 to 4 tokens"),
        ([even(8, 8, 0.1, 0.2, 0.8, 0.6)], r"even grid over the image, got 8 x 8 tokens of which one is 1\.4 cells"),
        ([TILES[0], TILES[1], even(3, 3, 0.5, 0, 0.5, 0.5)], "tiles of one size, got 3 x 3 and 3 x 4 cells"),
        ([even(4, 4), even(4, 4), even(4, 4)], "one view of the whole image beside its tiles, got 3"),
        (TILES[:3], r"as many tiles in each row, got rows of \[1, 2\] tiles"),
        ([BREAK], "some that change with the pixels, got none"),
        ([np.full((9, 2), 0.5)], "even grid over the image"),
    ],
    ids=["ragged", "cropped", "tiles", "wholes", "missing", "none", "everywhere"],
)
def test_unclear_grids_are_refused(found, words):
    with pytest.raises(ValueError, match=words):
        measured_grid(np.concatenate(found))


def test_centres_are_where_the_pixels_are():
    """Features that average 3 x 4 cells of the pixels, and one that ignores them."""

    def features(image):
        pixels = torch.from_numpy(np.asarray(image, np.float32)).mean(dim=-1)
        cells = torch.nn.functional.adaptive_avg_pool2d(pixels[None], (3, 4)).flatten()
        return torch.cat([cells, torch.ones(1)])[:, None]

    found = centres(features, 80, 60)
    np.testing.assert_allclose(found[:-1], even(3, 4), atol=0.02)
    assert np.isnan(found[-1]).all()


# --- refusals ---


@pytest.fixture
def copied(tmp_path, made_once, monkeypatch):
    """A copy of Mistral 3's folder, to be changed, of which nothing is known yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = made_once("mistral3", lambda folder: tiny_auto.save(folder, "mistral3"))
    return shutil.copytree(source, tmp_path / "copy")


def refusal(folder):
    with pytest.raises(LoadError) as error:
        load_lmm(folder, device=CPU, dtype=FLOAT)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("_tokens", lambda self, made: (self.image_token_id,) * 9, "layout: image tokens: expected 48 for 6 x 8 cells, got 9"),
        ("prompt", lambda self, text, images=1: f"[INST]{text}[IMG][/INST]", "layout: prompt: expected the processor to write"),
    ],
)
def test_a_failed_proof_says_which_and_by_how_much(copied, monkeypatch, name, value, words):
    monkeypatch.setattr(AutoFamily, name, value)
    assert f"mistral3 has no family of its own, and could not be measured; {words}" in refusal(copied)


def test_an_image_in_another_place_is_refused(copied, monkeypatch):
    """The layout is turned by half: the position check says how far cells changed."""
    maps = ViewsLayout.maps
    monkeypatch.setattr(ViewsLayout, "maps", lambda self, rows: maps(self, rows).flip(-1))
    assert "position: expected cells that change by less than 0.001 outside" in refusal(copied)


def test_other_answers_are_refused(copied, monkeypatch):
    inputs = AutoFamily.model_inputs
    monkeypatch.setattr(AutoFamily, "model_inputs", lambda *args: {**inputs(*args), "position_ids": torch.zeros(1, 1).long()})
    assert "greedy answer: expected the plain model's token ids" in refusal(copied)


def test_images_that_see_words_are_refused(copied, monkeypatch):
    """What a question left in the keys of an image shows in the answer to another one."""
    read = FrozenLmm.teacher_force

    def seen(self, image, prompt, answer, **options):
        trace = read(self, image, prompt, answer, **options)
        if prompt != QUESTION:
            for prefix in image.prefixes.values():
                prefix.cache.layers[0].keys.mul_(1.5)
        return trace

    monkeypatch.setattr(FrozenLmm, "teacher_force", seen)
    assert "kept image: expected hidden states within 0.005 of those that read the image anew" in refusal(copied)


def test_files_that_do_not_say_enough_are_refused(copied):
    (copied / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}")
    assert "expected one that writes an image" in refusal(copied)
    (copied / "chat_template.jinja").unlink()
    assert "expected a chat template, got none" in refusal(copied)


def test_other_errors_are_one_line_too(copied, monkeypatch):
    """A package that is missing; a model that is used in a way that it does not know."""
    with monkeypatch.context() as patch:
        patch.setattr(processed.AutoProcessor, "from_pretrained", raiser(ImportError("X requires timm.\nInstall it")))
        assert "expected the packages that it needs, got " in refusal(copied)
    monkeypatch.setattr(AutoFamily, "encode", raiser(RuntimeError("shapes\ndiffer")))
    assert "could not be measured; layout: " in refusal(copied)


def raiser(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": {"model_type": "qwen3"}}, r"sees images, such as qwen3_5, got 'qwen3', a model of text alone"),
        ({"config.json": {"model_type": "qwen3_vl_"}}, "such as qwen3_vl, got 'qwen3_vl_'"),
        ({"adapter_config.json": {"base_model_name_or_path": "Qwen/x"}}, r"got an adapter \(PEFT\) of Qwen/x; merge it"),
        ({"model-Q4_K_M.gguf": {}}, r"got a GGUF file \(model-Q4_K_M.gguf\)"),
        ({}, "expected a config.json in the folder, got none"),
    ],
    ids=["text", "near miss", "adapter", "GGUF", "empty"],
)
def test_what_is_no_lmm_is_refused_with_the_nearest_family(tmp_path, files, words):
    for name, fields in files.items():
        (tmp_path / name).write_text(json.dumps(fields))
    with pytest.raises(LoadError, match=words):
        family_of(Checkpoint(tmp_path))
    if "model-Q4_K_M.gguf" in files:
        with pytest.raises(LoadError, match=words):
            family_of(Checkpoint(tmp_path / "model-Q4_K_M.gguf"))
