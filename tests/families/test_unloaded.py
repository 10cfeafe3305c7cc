"""A family without its model, as `flmm info` asks it, has the prompt and the layouts of the loaded one."""

import json

import pytest
import test_gemma3
import test_hpt
import test_internvl
import test_llava_next
import test_llava_onevision
import test_mgm
import test_paligemma
import test_smolvlm
import tiny_auto
import tiny_deepseek_vl
import tiny_qwen
import torch
from family_checks import SIZES
from tiny_models import random_image, save_llava

from flmm_core.families import FAMILIES, Checkpoint, family_of
from flmm_core.families.load_options import LoadOptions
from flmm_core.loading.model_info import model_info
from flmm_core.weights.files import stored_tensors

gemma3, internvl = test_gemma3.folder, test_internvl.folder
"""Fixtures."""

SAVE = {
    "llava": save_llava,
    "llava_class_token": lambda folder: with_class_token(save_llava(folder)),
    "llava_next_vicuna": lambda folder: test_llava_next.save_llava_next(folder, "vicuna")[0],
    "llava_next_mistral": lambda folder: test_llava_next.save_llava_next(folder, "mistral")[0],
    "llava_onevision": lambda folder: test_llava_onevision.save_llava_onevision(folder, 1)[0],
    "deepseek_vl": lambda folder: tiny_deepseek_vl.save(folder, hybrid=False),
    "deepseek_vl_hybrid": lambda folder: tiny_deepseek_vl.save(folder, hybrid=True),
    **{kind: lambda folder, kind=kind: test_mgm.save_mgm(folder, kind) for kind in test_mgm.KINDS},
    "hpt_air": lambda folder: test_hpt.save_hpt(folder, "air"),
    "hpt_air_1_5": lambda folder: test_hpt.save_hpt(folder, "air-1.5"),
    **{kind: lambda folder, kind=kind: tiny_qwen.save_qwen(folder, kind) for kind in tiny_qwen.KINDS + tiny_qwen.MORE},
    **{kind: lambda folder, kind=kind: test_smolvlm.save(folder, kind) for kind in test_smolvlm.KINDS},
    "paligemma": test_paligemma.save,
    **{kind: lambda folder, kind=kind: tiny_auto.save(folder, kind) for kind in ("glm4v", "mistral3")},
    "gemma3": None,
    "internvl": None,
}
"""Writers of a tiny checkpoint of each family; the others are fixtures."""


def with_class_token(folder):
    """The class token is among the image tokens: only the names of the weights tell that there is one."""
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "vision_feature_select_strategy": "full"}))
    return folder


@pytest.mark.parametrize("name", SAVE)
def test_prompt_and_layouts_are_those_of_the_loaded_family(name, request, tmp_path):
    folder = request.getfixturevalue(name) if SAVE[name] is None else SAVE[name](tmp_path)
    checkpoint = Checkpoint(folder)
    kind = family_of(checkpoint)
    names = {key for path in folder.rglob("*.safetensors") for key in stored_tensors(path)}
    loaded, unloaded = kind.load(checkpoint, LoadOptions()).family, kind.unloaded(checkpoint, names)
    assert unloaded.prompt("where is it?", 2) == loaded.prompt("where is it?", 2)
    for height, width in SIZES.values():
        ours, theirs = (family.prepare([random_image(height, width)]) for family in (unloaded, loaded))
        assert ours.layouts == theirs.layouts
        assert getattr(ours.layouts[0], "skipped", 0) == (name == "llava_class_token")
        assert all(torch.equal(ours.inputs[key], theirs.inputs[key]) for key in theirs.inputs)
    facts = model_info(folder)[0].facts
    assert FAMILIES[facts["family"]] is kind and "640x480 image" in facts and "memory" in facts


def test_every_family_is_tested():
    assert set(SAVE) - {"llava_class_token", "idefics3"} == set(FAMILIES)
