"""Loading and saving SAMs: of ``segment_anything``, of transformers, and of formats that are registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam

from flmm_core.errors import LoadError, explained
from flmm_core.sam.transformers_sam import TransformersSam, is_transformers_sam, load_transformers_sam
from flmm_core.sam.vit import sam_vit_like
from flmm_core.weights import sources
from flmm_core.weights.folders import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_strictly,
    read_config,
    read_json,
    read_pth,
    read_safetensors,
    write_folder,
)
from flmm_core.weights.sam_names import check_sam_config, is_sam_model, segment_anything_names

_SAM_FORMATS: dict[str, Callable[..., Sam]] = {}
"""Builders of the SAMs that folders may hold, by format; see :func:`register_sam_format`."""


def load_sam(source: str | Path) -> Sam | TransformersSam:
    """Load a SAM, in evaluation mode.

    Args:
        source: a folder written by :func:`save_sam` in a registered format, a ``.pth`` file of ``segment_anything``
            (ViT-B, -L, -H or any other size: sizes are read from the weights), a folder of transformers' ``SamModel``,
            ``Sam2Model`` or ``SamHQModel``, a registered model, or a name of the Hub: ``owner/name`` for a folder,
            ``owner/name/file.pth`` for a file.

    Raises:
        LoadError: the file is damaged, of another kind, or of a format that is not registered.
    """
    path = sources.local("sam", source)
    with explained("SAM", path):
        config = read_json(path / CONFIG_FILE, "SAM") if path.is_dir() else {}
        if is_transformers_sam(config):
            return load_transformers_sam(path, config["model_type"]).eval()
        sam: Sam
        if path.is_dir() and not is_sam_model(config):
            kind, fields = read_config(path, _SAM_FORMATS, "SAM")
            sam, state = _SAM_FORMATS[kind](**fields), read_safetensors(path / WEIGHTS_FILE, "SAM")
        else:
            if path.is_dir():
                check_sam_config(config)
                state = segment_anything_names(read_safetensors(path / WEIGHTS_FILE, "SAM"))
            else:
                state = read_pth(path, "SAM")
            if "image_encoder.pos_embed" not in state:
                raise LoadError(f"SAM {path}: expected segment-anything weights with image_encoder.pos_embed, got none")
            sam = sam_vit_like(state)
        load_strictly(sam, state, what="SAM", source=path)
    return sam.eval()


def register_sam_format(kind: str, build: Callable[..., Sam]) -> None:
    """Let :func:`load_sam` read SAMs that are not those of ``segment_anything``.

    Args:
        kind: ``format`` in ``config.json`` of the folder.
        build: makes the SAM with weights that do not matter; its keyword arguments are the other fields of ``config.json``.
    """
    _SAM_FORMATS[kind] = build


def save_sam(sam: Sam, folder: str | Path, *, kind: str, fields: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write a SAM of a registered format for :func:`load_sam`.

    Args:
        sam: what the format's builder makes of ``fields``.
        folder: made if need be.
        kind: the format.
        fields: what ``config.json`` holds beside format and version.
        dtype: of the weights on disk.
    """
    write_folder(Path(folder), kind, fields, sam.state_dict(), dtype)
