"""LMMs as transformers loads them, by their families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from flmm_core.common.devices import free_memory, room_for_weights
from flmm_core.errors import LoadError
from flmm_core.families import Checkpoint, LmmShape, LoadedLmm, family_of
from flmm_core.families.load_options import LoadOptions
from flmm_core.lmm.generation_settings import OwnSettings, settle
from flmm_core.weights.files import stored_tensors
from flmm_core.weights.fingerprints import lmm_weight_files


def lmm_shape(source: str | Path) -> LmmShape:
    """Layers, heads and sizes of an LMM from the config of a folder or a Hugging Face name, without its weights."""
    checkpoint = Checkpoint(source)
    family = family_of(checkpoint)
    return family.shape(family.text_config(checkpoint))


def load_plain(
    source: str | Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: str = "none",
    image_tokens: int = 0,
    spread: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> LoadedLmm:
    """Load an LMM without the attention recorder, with the generation settings that are kept.

    Args:
        source: folder or Hugging Face name.
        device: where the model goes.
        dtype: number format of the model.
        quantization: of the decoder's matrices: none, int8 or int4.
        image_tokens: most tokens of an image; 0 for as many as the checkpoint's own processor gives.
        spread: whether the layers may be spread over all GPUs if the first one cannot hold the weights.
        settings: in place of the family's ``settings``, which the checkpoint's files do not say.

    Raises:
        LoadError: all GPUs together cannot hold the weights.
        ValueError: unknown settings, a quantization that the family does not support, or too few image tokens for it.
    """
    checkpoint = Checkpoint(source, settings)
    family = family_of(checkpoint)
    if unknown := sorted(set(checkpoint.settings) - set(family.settings)):
        raise ValueError(f"settings: expected some of {sorted(family.settings)}, got {', '.join(unknown)}")
    own = OwnSettings.of(checkpoint, family.decoder_folder)
    spread = spread and torch.device(device).type == "cuda" and quantization == "none" and family.quantizes
    room = _room(checkpoint, dtype) if spread else None
    how = LoadOptions(dtype, device, quantization, generation=own.config(), room=room)
    if quantization != "none" and not family.quantizes:
        kind = family.model_type
        raise ValueError(f"quantization: expected none for {kind}, which does not load with fewer bits, got {quantization}")
    loaded = family.load(checkpoint, how)
    if how.room is not None:
        _check_placed(loaded.model)
    elif quantization == "none":
        loaded.model.to(device)  # type: ignore[arg-type]
    if image_tokens:
        loaded.family.limit_image_tokens(image_tokens)
    settle(loaded, checkpoint)
    own.log_ignored(checkpoint.source)
    return replace(loaded, ignored_settings=own.ignored)


def _room(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[int, int] | None:
    """Bytes of weights for each GPU, of an LMM that the first one cannot hold."""
    free = free_memory()
    if len(free) < 2:
        return None
    files = (path for paths in lmm_weight_files(checkpoint.source).values() for path in paths)
    numbers = sum(tensor.numbers for path in files for tensor in stored_tensors(path).values())
    room = room_for_weights(numbers * dtype.itemsize, free)
    if room is not None and find_spec("accelerate") is None:
        raise ValueError(f"device auto: expected the package accelerate, to spread the LMM over {len(free)} GPUs, got none")
    return room


def _check_placed(model: PreTrainedModel) -> None:
    """Refuse an LMM of which accelerate left layers on the disk: each token would read them anew."""
    places: Any = getattr(model, "hf_device_map", {})
    if left := [name for name, place in places.items() if place in ("cpu", "disk")]:
        raise LoadError(
            f"device auto: expected GPUs with room for all layers, got none for {left[0]} and {len(left) - 1} others"
        )
