"""What ``auto`` stands for: the heads and the SAM of an LMM, decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flmm_core.config import ATTENTION, AUTO, GroundingConfig
from flmm_core.errors import explained
from flmm_core.loading.checkpoints import fingerprints, lmm_shape, read_heads_config, read_origin
from flmm_core.loading.head_choices import is_choice, kept_choice, read_choice
from flmm_core.sam.default import default_sam
from flmm_core.weights import sources
from flmm_core.weights.fingerprints import settings_fingerprint

PUBLISHED_SAM = "facebook/sam-vit-large"
"""The SAM of the published heads, whose files do not say it."""


def resolved(config: GroundingConfig) -> GroundingConfig:
    """A configuration that names its heads and its SAM.

    ``auto`` heads are those of a registered model with this LMM, or else ``attention``. ``attention`` becomes the file that
    ``flmm calibrate`` kept for this LMM, or stays: the heads are then chosen for each phrase. An ``auto`` SAM is that of
    published heads where they are given, or else that of :func:`~flmm_core.sam.default.default_sam`.

    Raises:
        LoadError: there is no such LMM, heads or SAM.
    """
    heads, sam = config.heads, config.sam
    if heads == AUTO:
        known = _registered_model(config.lmm)
        heads = known if known and _is_sam_of(sam, known) else ATTENTION
    if sam == AUTO:
        sam = PUBLISHED_SAM if heads.endswith(".pth") else default_sam(config.lmm)
    if heads == ATTENTION:
        heads = str(kept_choice(config.lmm) or ATTENTION)
    return replace(config, heads=heads, sam=sam)


def _registered_model(lmm: str) -> str:
    """Name of the registered model with this LMM, by its name or its weights; empty if there is none."""
    models = sources.registered_models()
    if lmm in models:
        return lmm
    shape = lmm_shape(lmm)
    for name, folder in models.items():
        config = read_heads_config(folder / "heads")
        if (config.unet.in_channels, config.layers, config.hidden_size) == (shape.channels, shape.layers, shape.hidden_size):
            with explained("LMM", lmm):
                if fingerprints(lmm=lmm)["lmm"] == read_origin(folder / "heads").lmm_fingerprint:
                    return name
    return ""


def _is_sam_of(sam: str, model: str) -> bool:
    """Whether a SAM is that of a registered model; ``auto`` is."""
    if sam in (AUTO, model):
        return True
    origin = read_origin(Path(sources.located("heads", model)))
    return fingerprints(sam=sam)["sam"] == origin.sam_fingerprint


def model_record(config: GroundingConfig, parts: Sequence[str] = ("lmm", "heads", "sam")) -> dict[str, dict[str, str | None]]:
    """Source and fingerprint of the parts that a configuration stands for, for records of what was measured.

    Attention heads that are chosen for each answer have no fingerprint.
    """
    taken = resolved(config)
    return {part: {"source": getattr(taken, part), "fingerprint": _fingerprint(part, getattr(taken, part))} for part in parts}


def _fingerprint(part: str, source: str) -> str | None:
    if part == "heads" and source == ATTENTION:
        return None
    if part == "heads" and is_choice(source):
        return settings_fingerprint(read_choice(source).record())
    return fingerprints(**{part: source})[part]
