"""LMMs as transformers loads them, by their families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flmm_core.families import Checkpoint, LmmShape, LoadedLmm, family_of
from flmm_core.families.load_options import LoadOptions
from flmm_core.lmm.generation_settings import OwnSettings, settle


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
    settings: Mapping[str, Any] | None = None,
) -> LoadedLmm:
    """Load an LMM without the attention recorder, with the generation settings that are kept.

    Args:
        source: folder or Hugging Face name.
        device: where the model goes.
        dtype: number format of the model.
        quantization: of the decoder's matrices: none, int8 or int4.
        image_tokens: most tokens of an image; 0 for as many as the checkpoint's own processor gives.
        settings: in place of the family's ``settings``, which the checkpoint's files do not say.

    Raises:
        ValueError: unknown settings, a quantization that the family does not support, or too few image tokens for it.
    """
    checkpoint = Checkpoint(source, settings)
    family = family_of(checkpoint)
    if unknown := sorted(set(checkpoint.settings) - set(family.settings)):
        raise ValueError(f"settings: expected some of {sorted(family.settings)}, got {', '.join(unknown)}")
    own = OwnSettings.of(checkpoint, family.decoder_folder)
    how = LoadOptions(dtype, device, quantization, generation=own.config())
    if quantization != "none" and not family.quantizes:
        kind = family.model_type
        raise ValueError(f"quantization: expected none for {kind}, which does not load with fewer bits, got {quantization}")
    loaded = family.load(checkpoint, how)
    if quantization == "none":
        loaded.model.to(device)  # type: ignore[arg-type]
    if image_tokens:
        loaded.family.limit_image_tokens(image_tokens)
    settle(loaded, checkpoint)
    own.log_ignored(checkpoint.source)
    return replace(loaded, ignored_settings=own.ignored)
