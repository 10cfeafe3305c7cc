"""The limit `image_tokens`: what each family's processor offers, and the proofs with it."""

import family_checks
import pytest
import test_internvl
import test_llava_next
import test_llava_onevision
import test_smolvlm
import tiny_qwen
import torch
from family_checks import REGIONS, SIZES
from tiny_models import random_image, save_llava
from transformers import AutoImageProcessor

from flmm_cli.main import main
from flmm_core.errors import LoadError
from flmm_core.families import Checkpoint, family_of
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.weights.files import stored_tensors

internvl = test_internvl.folder
"""A fixture."""

LIMITS = {"qwen2_5_vl": 20, "qwen3_vl": 20, "qwen3_5": 30, "internvl": 200, "smolvlm": 350, "llava_next": 210, "onevision": 230}
"""Below what each family gives the largest of these images."""
FEWEST = {"llava": 16, "internvl": 64, "smolvlm": 67, "llava_next": 200, "onevision": 136}
"""Of a family with one grid, or with tiles; Qwen-VL's pixels have no fewest."""
IMAGES = [random_image(*size) for size in (*SIZES.values(), (400, 700), (60, 400), (31, 29))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, internvl):
    """Folders of tiny checkpoints."""
    root = tmp_path_factory.mktemp("limited")
    folders = {kind: tiny_qwen.save_qwen(root / kind, kind) for kind in tiny_qwen.KINDS}
    folders["llava"] = save_llava(root / "llava")
    folders["llava_next"] = test_llava_next.save_llava_next(root / "next", "vicuna")[0]
    folders["onevision"] = test_llava_onevision.save_llava_onevision(root / "onevision", 9)[0]
    folders["smolvlm"] = test_smolvlm.save(root / "smolvlm", "smolvlm")
    return {**folders, "internvl": internvl}


def family(folder, limit=0):
    checkpoint = Checkpoint(folder)
    made = family_of(checkpoint).unloaded(checkpoint, set(stored_tensors(folder / "model.safetensors")))
    if limit:
        made.limit_image_tokens(limit)
    return made


def tokens(made):
    return [len(made.prepare([image]).layouts[0].ids) for image in IMAGES]


@pytest.mark.parametrize("kind", LIMITS)
def test_no_image_takes_more(saved, kind):
    """And as many as before where the limit leaves room."""
    own, limited = tokens(family(saved[kind])), tokens(family(saved[kind], LIMITS[kind]))
    assert max(own) > LIMITS[kind] >= max(limited) > LIMITS[kind] / 3
    assert tokens(family(saved[kind], 10_000)) == own
    if kind.startswith("qwen"):
        assert [a for a in own if a < 10] == [b for a, b in zip(own, limited, strict=True) if a < 10]
        (thin,) = family(saved[kind], 5).prepare([random_image(9, 20)]).layouts  # is enlarged to the fewest pixels
        assert len(thin.ids) <= 5


@pytest.mark.parametrize("kind", FEWEST)
def test_the_fewest_tokens_are_the_limits(saved, kind):
    assert max(tokens(family(saved[kind], FEWEST[kind]))) <= FEWEST[kind]
    with pytest.raises(LoadError, match=rf"^image_tokens: expected at least {FEWEST[kind]}, .*, got {FEWEST[kind] - 1}$"):
        family(saved[kind], FEWEST[kind] - 1)


@pytest.mark.parametrize("kind", LIMITS)
def test_a_limited_model_answers_and_points_as_a_limited_plain_one(saved, kind):
    """Greedy ids are those of ``generate``, which counts tiles itself; maps show where pixels are."""
    report = family_checks.limited_report(saved[kind], LIMITS[kind], [random_image(400, 700)])
    assert report.frozen and all(outcome.identical for outcome in report.outcomes), report.summary()
    lmm = FrozenLmm.from_pretrained(saved[kind], image_tokens=LIMITS[kind])
    fine = slice(lmm.shape.channels // 2, None) if lmm.shape.maps_per_head == 2 else slice(None)
    image = random_image(131, 131)
    family_checks.check_position_truth(lmm, image, REGIONS["corner"], channels=fine, reach=16)


def test_pixels_are_those_of_the_processor_that_is_set_so(saved):
    """By the processors' own arguments."""
    arguments = {
        "qwen3_vl": {"size": {"shortest_edge": 256, "longest_edge": 20 * 64}},
        "internvl": {"max_patches": 2},
        "smolvlm": {"size": {"longest_edge": 128}},
    }
    called = {"qwen3_vl": {}, "internvl": {"crop_to_patches": True}, "smolvlm": {"return_row_col_info": True}}
    image = random_image(400, 700)
    for kind, given in arguments.items():
        processor = AutoImageProcessor.from_pretrained(saved[kind], backend="pil", **given)
        theirs = processor([[image]] if kind == "smolvlm" else [image], return_tensors="pt", **called[kind])
        assert torch.equal(family(saved[kind], LIMITS[kind]).prepare([image]).inputs["pixel_values"], theirs["pixel_values"])


def test_an_image_that_no_setting_makes_short_is_refused(saved):
    """A side keeps at least one token."""
    lmm = FrozenLmm.from_pretrained(saved["qwen3_vl"], image_tokens=20)
    lmm.encode_image(random_image(40, 400))
    with pytest.raises(ValueError, match=r"image: expected one of at most 20 tokens \(image_tokens\), got \d+ for 1600x8"):
        lmm.encode_image(random_image(8, 1600))


def test_the_command_gives_both_sides_the_limit(saved, tmp_path, capsys):
    random_image(400, 700).save(tmp_path / "large.png")
    (tmp_path / "questions.txt").write_text("what?\n")
    words = ["--images", tmp_path, "--questions", tmp_path / "questions.txt", "--max-new-tokens", 3, "--device", "cpu"]
    assert main(["verify-frozen", *map(str, (saved["internvl"], *words, "--image-tokens", 200))]) == 0
    assert "float32, at most 200 tokens an image on cpu: frozen" in capsys.readouterr().out
    assert main(["verify-frozen", *map(str, (saved["llava"], *words, "--image-tokens", 9))]) == 2
    assert capsys.readouterr().err.startswith("flmm verify-frozen: image_tokens: expected at least 16, ")
