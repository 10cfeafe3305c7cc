"""Why a checkpoint of no family is none, in one line that names the nearest family."""

from __future__ import annotations

from collections.abc import Collection
from difflib import SequenceMatcher
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flmm_core.families.checkpoint import Checkpoint


def near_miss(checkpoint: Checkpoint, families: Collection[str]) -> str:
    """What was expected and what came.

    Args:
        checkpoint: that no family claims.
        families: names of all families.

    Raises:
        LoadError: there is no config, or anything in place of one that says more.
    """
    if (adapter := checkpoint.json("adapter_config.json")) and not checkpoint.config:
        base = adapter.get("base_model_name_or_path", "an unknown model")
        return f"expected a whole model, got an adapter (PEFT) of {base}; merge it into that and save the result"
    if not checkpoint.config and (name := _gguf(checkpoint.source)):
        return f"expected a checkpoint of transformers (config.json and safetensors), got a GGUF file ({name})"
    checkpoint.require("config.json")
    kind = checkpoint.config.get("model_type")
    nearest = max(families, key=lambda name: (_likeness(str(kind), name), name))
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"expected an LMM that sees images, such as {nearest}, got {kind!r}, a model of text alone"
    return f"expected a kind of LMM that transformers can chat with about images, such as {nearest}, got {kind!r}"


def _gguf(source: str) -> str:
    """Name of a GGUF file that was given or lies in the folder; empty if there is none."""
    path = Path(source)
    found = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf")) if path.is_dir() else []
    return found[0].name if found else ""


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()
