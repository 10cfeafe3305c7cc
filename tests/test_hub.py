"""Parts of a model on the Hugging Face Hub, from a cache in its layout: no network is asked."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from PIL import Image
from tiny_models import random_image, save_llava, save_model, tiny_heads, tiny_sam

from flmm_core.config import DEFAULT_MODEL
from flmm_core.errors import LoadError
from flmm_core.loading.checkpoints import HeadsOrigin, check_origin, fingerprints, lmm_shape, load_heads, save_heads
from flmm_core.loading.model_info import model_info
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.default import default_sam
from flmm_core.weights.sources import located


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    parts = save_model(root)
    save_heads(tiny_heads(), root / "heads", origin=HeadsOrigin.of(lmm=parts["lmm"], sam=parts["sam"]))
    published = tiny_heads(selector=False, presence=False).trained_state()
    torch.save({"state_dict": published}, root / "published.pth")
    return {**parts, "published": str(root / "published.pth")}


def cached(hub, repository, *files):
    """Put files into the cache as a download would."""
    folder, revision = hub / f"models--{repository.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder / "snapshots" / revision)


@pytest.fixture(scope="module")
def hub(parts, tmp_path_factory):
    hub = tmp_path_factory.mktemp("hub")
    for part in ("lmm", "heads", "sam"):
        cached(hub, f"owner/{part}", *(f"{parts[part]}/{name}" for name in os.listdir(parts[part])))
    cached(hub, "owner/files", parts["published"])
    return hub


@pytest.fixture
def offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_heads_and_sam_are_taken_from_the_hub(parts, offline):
    shape = lmm_shape(parts["lmm"])
    assert same(load_sam("owner/sam").state_dict(), load_sam(parts["sam"]).state_dict())
    for name, path in (("owner/heads", parts["heads"]), ("owner/files/published.pth", parts["published"])):
        loaded, expected = (load_heads(source, shape=shape, sam=tiny_sam()) for source in (name, path))
        assert same(loaded.state_dict(), expected.state_dict())
    assert fingerprints(heads="owner/heads", sam="owner/sam") == fingerprints(heads=parts["heads"], sam=parts["sam"])
    check_origin("owner/heads", lmm=parts["lmm"], sam="owner/sam")


def test_what_is_on_disk_comes_first(offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "sam").mkdir(parents=True)
    with pytest.raises(LoadError, match=r"SAM owner/sam/config.json: expected an existing file or folder"):
        load_sam("owner/sam")


def test_the_sam_of_an_lmm_without_one(parts, tiny_model, tmp_path):
    """The shipped one for the simulated world, which an LMM's vision tower tells; a stock one of the Hub for real images."""
    assert default_sam(DEFAULT_MODEL) == default_sam(located("lmm", DEFAULT_MODEL)) == DEFAULT_MODEL
    assert default_sam(save_llava(tmp_path / "own", tower="tabletop")) == DEFAULT_MODEL
    assert default_sam(tiny_model["lmm"]) == default_sam("owner/lmm") == "facebook/sam-vit-base"
    with pytest.raises(LoadError, match="LMM /nowhere: expected an existing folder"):
        default_sam("/nowhere")


def test_info_of_what_is_on_the_hub(offline):
    names = ("owner/heads", "owner/sam", "owner/lmm", "owner/files/published.pth")
    assert [model_info(name)[0].kind for name in names] == ["heads", "SAM", "LMM", "heads"]


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("owner/none", "config.json and model.safetensors of https://huggingface.co/owner/none in a folder"),
        ("owner/files/none.pth", "https://huggingface.co/owner/files/resolve/main/none.pth"),
    ],
)
def test_what_is_not_downloaded_yet(offline, source, remedy):
    with pytest.raises(LoadError) as error:
        load_sam(source)
    assert str(error.value) == (
        f"SAM {source}: expected a folder, a downloaded model or an answer of the Hugging Face Hub, got none; unset"
        f" HF_HUB_OFFLINE, or save {remedy} and give its path"
    )


@pytest.mark.parametrize(
    ("cause", "wanted"),
    [
        (RepositoryNotFoundError, "a folder or a model of the Hugging Face Hub, got a name that neither has"),
        (GatedRepoError, "access to this gated model, got none"),
    ],
)
def test_models_that_are_not_for_everybody(parts, monkeypatch, cause, wanted):
    def refuse(*_, **__):
        raise cause.__new__(cause)

    monkeypatch.setattr("flmm_core.weights.sources.snapshot_download", refuse)
    with pytest.raises(LoadError, match=f"^heads owner/heads: expected {wanted}"):
        load_heads("owner/heads", shape=lmm_shape(parts["lmm"]), sam=tiny_sam())


@pytest.mark.parametrize("name", ["./a/b", "/a/b", "a/b/c", "a//b"])
def test_paths_are_no_names_of_the_hub(name):
    with pytest.raises(LoadError, match="expected an existing file or folder, got nothing there"):
        load_sam(name)


def test_a_whole_model_from_the_hub(hub, tmp_path):
    Image.fromarray(np.asarray(random_image())).save(tmp_path / "image.png")
    out = tmp_path / "answer.json"
    command = [sys.executable, "-m", "flmm_cli", "ground", str(tmp_path / "image.png"), "the lemon", "--refer"]
    command += ["--lmm", "owner/lmm", "--heads", "owner/heads", "--sam", "owner/sam", "--json", str(out)]
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert not run.stderr  # no bars, no warnings
    assert json.loads(out.read_text())["model"] == {part: f"owner/{part}" for part in ("lmm", "heads", "sam")}
