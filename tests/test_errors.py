"""Errors of loading blame what is to blame: memory, network, rights, device or the file."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from tiny_models import SAM_CONFIG, save_llava, tiny_heads, tiny_sam
from transformers import LlavaForConditionalGeneration
from transformers.utils import hub as transformers_hub

from flmm_core.common.devices import resolve_device
from flmm_core.config import GroundingConfig
from flmm_core.errors import (
    DeviceError,
    LoadError,
    explained,
)
from flmm_core.families import LmmShape
from flmm_core.heads.grounding_heads import GroundingHeads
from flmm_core.loading.checkpoints import lmm_shape, load_heads, load_lmm, save_heads
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.checkpoints import load_sam
from flmm_core.weights import folders as weight_folders
from flmm_tabletop.sam_tiny import save_tiny_sam

CPU = torch.device("cpu")
SHAPE = LmmShape(layers=3, heads=4, hidden_size=32)
RESPONSE = SimpleNamespace(headers={}, request=None)


def real_cpu_error():
    """What PyTorch raises on this machine for more memory than it can have."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    return error.value


def fail_with(error):
    def fail(*_, **__):
        raise error

    return fail


def refused(kind, load, *, blames_the_file=False):
    with pytest.raises(ValueError) as error:
        load()
    message = str(error.value)
    assert type(error.value) is kind, repr(error.value)
    assert "\n" not in message and ("damaged" in message) == blames_the_file
    return message


GPU_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 3.94 GiB.")


@pytest.mark.parametrize(
    "error",
    [
        real_cpu_error(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to allocate"),
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        SafetensorError("I/O error: Cannot allocate memory (os error 12)"),
    ],
)
def test_memory_of_the_machine(monkeypatch, tiny_model, error):
    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", fail_with(error))
    line = refused(LoadError, lambda: load_lmm(tiny_model["lmm"], device=CPU, dtype=torch.float32))
    assert line.startswith(f"LMM {tiny_model['lmm']}: expected enough free memory on this machine")
    monkeypatch.setattr(weight_folders, "load_file", fail_with(error))
    line = refused(LoadError, lambda: load_sam(tiny_model["sam"]))
    assert line.startswith(f"SAM {tiny_model['sam']}") and "end other programs" in line


def test_memory_of_the_gpu(monkeypatch, tiny_model):
    monkeypatch.setattr(LlavaForConditionalGeneration, "to", fail_with(GPU_FULL))
    line = refused(LoadError, lambda: load_lmm(tiny_model["lmm"], device=CPU, dtype=torch.float32))
    assert "expected enough free memory on the GPU, got too little (CUDA out of memory. Tried" in line
    assert line.endswith("or take a smaller model, a smaller number format (dtype) or device cpu")
    monkeypatch.undo()
    # Heads and SAM move to the GPU when the LMM is there already.
    monkeypatch.setattr(GroundingHeads, "to", fail_with(GPU_FULL))
    config = GroundingConfig(**tiny_model, device="cpu")
    assert refused(LoadError, lambda: GroundingPipeline.from_config(config)).startswith("heads ")


def test_a_gpu_that_fails(monkeypatch, tiny_model):
    error = RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might be ...")
    monkeypatch.setattr(LlavaForConditionalGeneration, "to", fail_with(error))
    line = refused(DeviceError, lambda: load_lmm(tiny_model["lmm"], device=CPU, dtype=torch.float32))
    assert line == f"device: expected a GPU that works, got {str(error).splitlines()[0]}; try device cpu"


def test_no_network(monkeypatch):
    """The libraries themselves, offline, with a name that is not on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused(LoadError, lambda: lmm_shape("nobody-at-all/no-such-model"))
    assert line == (
        "LMM nobody-at-all/no-such-model: expected a folder, a downloaded model or an answer of the Hugging Face Hub, got none;"
        " unset HF_HUB_OFFLINE, or save the files of https://huggingface.co/nobody-at-all/no-such-model in a folder and give"
        " its path"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (hub.GatedRepoError("403 Client Error.", response=RESPONSE), "ask for it at https://huggingface.co/o/n"),
        (hub.RepositoryNotFoundError("404 Client Error.", response=RESPONSE), "got a name that neither has"),
        (hub.LocalEntryNotFoundError("An error happened"), "got none; connect to the network, or save"),
        (hub.OfflineModeIsEnabled("offline"), "got none; connect"),
        (hub.HfHubHTTPError("503 Server Error: busy", response=RESPONSE), "got 503 Server Error: busy;"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer; connect"),
        (TimeoutError("timed out"), "got timed out; connect"),
    ],
)
def test_hub(monkeypatch, error, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers_hub, "hf_hub_download", fail_with(error))
    line = refused(LoadError, lambda: lmm_shape("o/n"))
    assert line.startswith("LMM o/n: expected ") and words in line


def test_a_file_that_the_hub_does_not_have(monkeypatch):
    error = hub.RemoteEntryNotFoundError("404: no such entry", response=RESPONSE)

    def load():
        with explained("LMM", "o/n"):
            raise OSError("o/n does not appear to have a file named config.json") from error

    assert "does not appear to have" in refused(LoadError, load, blames_the_file=True)


def test_a_folder_never_blames_the_hub(monkeypatch, tiny_model):
    error = OSError("Can't load the tokenizer")
    error.__cause__ = hub.LocalEntryNotFoundError("not in the cache")
    monkeypatch.setattr("flmm_core.families.llava.AutoTokenizer.from_pretrained", fail_with(error))
    load = lambda: load_lmm(tiny_model["lmm"], device=CPU, dtype=torch.float32)  # noqa: E731
    assert "(Can't load the tokenizer)" in refused(LoadError, load, blames_the_file=True)


def test_files_that_may_not_be_read(monkeypatch, tiny_model):
    file = f"{tiny_model['sam']}/model.safetensors"
    monkeypatch.setattr(
        "flmm_core.weights.folders.load_file", fail_with(PermissionError(errno.EACCES, "Permission denied", file))
    )
    line = refused(LoadError, lambda: load_sam(tiny_model["sam"]))
    assert line == f"SAM {file}: expected files that this user may read, got [Errno 13] Permission denied: '{file}'"


def test_mistakes_of_the_code_are_not_blamed_on_files():
    with pytest.raises(ZeroDivisionError), explained("SAM", "file"):
        _ = 1 / 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_gpus_that_are_not_there(monkeypatch, tiny_model, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    there = ", ".join(["cpu", "cuda:0", "cuda:1"][: count + 1])
    expected = f"device: expected one that this machine has ({there}), got 'cuda:7'"
    assert refused(DeviceError, lambda: resolve_device(GroundingConfig(device="cuda:7"))) == expected
    load = lambda: load_lmm(tiny_model["lmm"], device=torch.device("cuda:7"), dtype=torch.float32)  # noqa: E731
    assert refused(DeviceError, load) == expected
    assert not issubclass(DeviceError, LoadError)
    if count:
        last = f"cuda:{count - 1}"
        assert resolve_device(GroundingConfig(device=last)) == (torch.device(last), torch.bfloat16)
        assert resolve_device(GroundingConfig()) == (torch.device("cuda"), torch.bfloat16)
    else:
        assert refused(DeviceError, lambda: resolve_device(GroundingConfig(device="cuda"))).endswith("(cpu), got 'cuda'")
        assert resolve_device(GroundingConfig()) == (CPU, torch.float32)
    assert "got 'meta'" in refused(DeviceError, lambda: resolve_device(GroundingConfig(device="meta")))


def test_home_directories(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_llava(tmp_path / "model" / "lmm")
    save_heads(tiny_heads(), tmp_path / "model" / "heads")
    save_tiny_sam(tiny_sam(), SAM_CONFIG, tmp_path / "model" / "sam")
    assert lmm_shape("~/model/lmm") == SHAPE
    load_lmm("~/model/lmm", device=CPU, dtype=torch.float32)
    load_heads("~/model/heads", shape=SHAPE, sam=load_sam("~/model/sam"))
    # One level below the home directory a path looks like a name of the Hub.
    shutil.copytree(tmp_path / "model" / "lmm", tmp_path / "lmm")
    assert lmm_shape("~/lmm") == SHAPE
    assert "~nobody-at-all/sam: expected the home directory of a user" in refused(
        LoadError, lambda: load_sam("~nobody-at-all/sam")
    )
