"""Describes a checkpoint from its configs and the headers of its weights, without building a model or reading weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import get_safetensors_metadata, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from flmm_core.common.plain_text import one_line
from flmm_core.config import GroundingConfig
from flmm_core.errors import LoadError, explained
from flmm_core.families import Checkpoint, LmmFamily, LmmShape, family_name, family_of
from flmm_core.heads.unet import STAGES
from flmm_core.loading.checkpoints import HEADS_FORMAT, lmm_shape, read_heads_config, read_origin
from flmm_core.loading.defaults import resolved
from flmm_core.loading.head_choices import is_choice, read_choice
from flmm_core.loading.image_sizes import VGA, Size, image_cost, large_images
from flmm_core.loading.published_heads import published_lmms
from flmm_core.sam.transformers_sam import is_transformers_sam
from flmm_core.weights import sources
from flmm_core.weights.files import StoredTensor, stored_tensors
from flmm_core.weights.fingerprints import lmm_fingerprint, lmm_weight_files, sam_fingerprint
from flmm_core.weights.folders import CONFIG_FILE, WEIGHTS_FILE
from flmm_core.weights.sam_names import is_sam_model, segment_anything_names

_VITS = {(768, 12): "ViT-B", (1024, 24): "ViT-L", (1280, 32): "ViT-H"}
"""SAMs of segment-anything by the width and depth of their image encoders."""

_Found = TypeVar("_Found")
Tensors = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class ModelInfo:
    """Description of one part of a model."""

    kind: str
    """LMM, heads or SAM."""
    source: str
    facts: Mapping[str, str]
    """Properties by name, in the order of the output."""


def model_info(source: str | Path, *, image: Size | None = None, image_tokens: int = 0) -> tuple[ModelInfo, ...]:
    """Describe a source.

    Args:
        source: LMM, heads or SAM as for the loaders, or a registered model, which has all three.
        image: width and height of an image, to say of an LMM what it costs.
        image_tokens: most tokens of an image; 0 for those of the LMM's own processor.

    Raises:
        LoadError: it is not a model or part of one, or cannot limit an image to so few tokens.
    """
    if parts := sources.registered_parts(source):
        return lmm_info(parts["lmm"], image, image_tokens), heads_info(Path(parts["heads"])), sam_info(Path(parts["sam"]))
    with explained("model", source):
        path = _on_disk(source)
        if is_choice(path):
            return (ModelInfo("heads", str(path), read_choice(path).facts()),)
        kind = _kind(path)
    if kind == "LMM":
        return (lmm_info(path if path.exists() else source, image, image_tokens),)
    return (heads_info(path) if kind == "heads" else sam_info(path),)


def _on_disk(source: str | Path) -> Path:
    """The local file or folder; heads and SAMs on the Hub are downloaded, LMMs, whose weights can be large, are not."""
    path = Path(source).expanduser()
    if path.exists() or not sources.may_be_on_hub("heads", str(source)):
        return path
    if path.suffix in (".pth", ".json"):
        return sources.local("heads", source)
    with suppress(EntryNotFoundError):
        if _kind(Path(hf_hub_download(str(source), CONFIG_FILE)).parent) != "LMM":
            return sources.local("heads", source)
    return path


def _kind(path: Path) -> str:
    if path.is_file():
        names = stored_tensors(path)
        if any(name.startswith("mask_head.") for name in names):
            return "heads"
        if "image_encoder.pos_embed" in names:
            return "SAM"
        raise LoadError(f"{path}: expected heads or a SAM, got a file with other entries ({', '.join([*names][:2])} ...)")
    config = path / CONFIG_FILE
    fields = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if fields.get("format") == HEADS_FORMAT:
        return "heads"
    return "SAM" if is_sam_model(fields) or is_transformers_sam(fields) or "format" in fields else "LMM"


# --- LMMs -----------------------------------------------------------------------------------------------------------------


def lmm_info(source: str | Path, image: Size | None = None, image_tokens: int = 0) -> ModelInfo:
    """Describe an LMM; for one on the Hub small files are downloaded, but no weights. See :func:`model_info`."""
    shape, checkpoint = lmm_shape(source), Checkpoint(source)
    with explained("LMM", source):
        kind = family_of(checkpoint)
        # A property that cannot be determined, for instance without the Hub, is reported as not known.
        tensors, no_weights = _attempt(lambda: _lmm_tensors(checkpoint))
        find = partial(_words_and_grid, checkpoint, tensors, image, image_tokens)
        words, no_words = (find(), "") if image or image_tokens else _attempt(find)
        facts = {
            "family": family_name(kind, checkpoint),
            "layers": f"{shape.layers}"
            + (f", {shape.layers - shape.mapless_layers} give maps" if shape.mapless_layers else ""),
            "heads": f"{shape.heads} a layer",
            "channels": _channels(shape),
            "hidden size": f"{shape.hidden_size}",
            **(words or {"prompt and grid": f"not known ({no_words})"}),
            **(
                _weights(tensors, ("float32", "bfloat16"), _lmm_files(checkpoint))
                if tensors
                else {"weights": f"not known ({no_weights})"}
            ),
        }
        if others := kind.elsewhere(checkpoint):
            facts["needs too"] = ", ".join(others)
        if Path(checkpoint.source).is_dir() and tensors:
            facts["fingerprint"] = lmm_fingerprint(checkpoint.source)
            taken = resolved(GroundingConfig(lmm=str(source)))
            facts["by default"] = f"heads {taken.heads}, SAM {taken.sam}"
    return ModelInfo("LMM", str(source), facts)


def _attempt(find: Callable[[], dict[str, _Found]]) -> tuple[dict[str, _Found], str]:
    """The result and an empty reason, or no result and the reason."""
    try:
        return find(), ""
    except Exception as error:  # libraries and the Hub fail in many ways
        return {}, one_line(error)


def _channels(shape: LmmShape) -> str:
    maps = f"{shape.maps_per_head} maps x " if shape.maps_per_head > 1 else ""
    return f"{shape.channels} ({maps}{shape.layers - shape.mapless_layers} layers x {shape.heads} heads)"


def _lmm_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """All tensors, from headers; for safetensors on the Hub only the headers are requested."""
    if not Path(checkpoint.source).is_dir():
        return {
            name: StoredTensor.of_safetensors(tensor.dtype, tensor.shape)
            for file in get_safetensors_metadata(checkpoint.source).files_metadata.values()
            for name, tensor in file.tensors.items()
        }
    return {
        f"{part}{'.' if part else ''}{name}": tensor
        for part, files in lmm_weight_files(checkpoint.source).items()
        for file in files
        for name, tensor in stored_tensors(file).items()
    }


def _lmm_files(checkpoint: Checkpoint) -> list[Path]:
    """Weight files on disk."""
    if not Path(checkpoint.source).is_dir():
        return []
    return [file for files in lmm_weight_files(checkpoint.source).values() for file in files]


def _words_and_grid(checkpoint: Checkpoint, weights: Tensors, image: Size | None, image_tokens: int) -> dict[str, str]:
    """The prompt of a chat, and what an image takes; of an image that is asked for also its memory, and advice."""
    kind = family_of(checkpoint)

    def family(most: int) -> LmmFamily:
        made = kind.unloaded(checkpoint, weights)
        if most:
            made.limit_image_tokens(most)
        return made

    used = family(image_tokens)
    cost = image_cost(used, kind.text_config(checkpoint), image or VGA)
    facts = {
        "prompt": json.dumps(used.system + used.prompt("{text}"), ensure_ascii=False),
        f"{cost.width}x{cost.height} image": f"maps of {cost.grid_width} x {cost.grid_height} cells, {cost.tokens} tokens"
        f" ({cost.layout})",
    }
    if image is not None:
        parts = {"keys and values": cost.keys_values, "queries of an answer": cost.queries, "maps of a phrase": cost.maps}
        facts["its memory"] = ", ".join(f"{part} {_short(amount, 'B')}" for part, amount in parts.items())
        facts["image_tokens"] = str(large_images(family))
    return facts


# --- heads ----------------------------------------------------------------------------------------------------------------


def heads_info(path: Path) -> ModelInfo:
    """Describe heads, and the LMM and SAM that they belong to."""
    config, origin = read_heads_config(path), read_origin(path)
    with explained("heads", path):
        file = path / WEIGHTS_FILE if path.is_dir() else path
        tensors = stored_tensors(file)
        known = published_lmms(config.unet.in_channels)
        if path.is_dir():
            lmm, sam = _named(origin.lmm, origin.lmm_fingerprint), _named(origin.sam, origin.sam_fingerprint)
        else:
            lmm = (
                f"published heads with this number of channels: {known}"
                if known
                else "not stated, and no published heads have this number of channels"
            )
            sam = "not stated"
        facts = {
            "format": "this project's folder" if path.is_dir() else "published .pth",
            "channels": f"{config.unet.in_channels}" + (f", U-Net sees {len(config.unet.kept)}" if config.unet.kept else ""),
            "layers": f"{config.layers}",
            "hidden size": f"{config.hidden_size}",
            "U-Net": f"{config.unet.base_channels} channels, doubled in each of {STAGES} stages",
            "keyword selector": "yes" if config.keyword_selector else "no",
            "presence score": "yes" if config.presence else "no",
            "LMM": lmm,
            "SAM": sam,
            **_weights(tensors, ("float32",), [file]),
            "fingerprint": sam_fingerprint(path),
        }
    return ModelInfo("heads", str(path), facts)


def _named(name: str, fingerprint: str) -> str:
    if not name and not fingerprint:
        return "not stated"
    return f"{name or 'without a name'}, " + (f"fingerprint {fingerprint}" if fingerprint else "without a fingerprint")


# --- SAM ------------------------------------------------------------------------------------------------------------------


def sam_info(path: Path) -> ModelInfo:
    """Describe a SAM."""
    with explained("SAM", path):
        file = path / WEIGHTS_FILE if path.is_dir() else path
        tensors: Tensors = stored_tensors(file)
        fields = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8")) if path.is_dir() else {}
        if is_sam_model(fields):
            tensors = segment_anything_names(tensors)
        if "format" in fields:
            own = {name: str(value) for name, value in fields.items() if name != "version"}
        elif is_transformers_sam(fields):
            own = {"format": f"transformers' {fields['architectures'][0]}"}
        else:
            own = {"format": "transformers' SamModel" if path.is_dir() else "segment-anything .pth", **_vit(tensors)}
        facts = {
            **own,
            **_weights(tensors, ("float32",), [file]),
            "fingerprint": sam_fingerprint(path),
        }
    return ModelInfo("SAM", str(path), facts)


def _vit(tensors: Tensors) -> dict[str, str]:
    table = tensors["image_encoder.pos_embed"].shape
    side = table[1] * tensors["image_encoder.patch_embed.proj.weight"].shape[-1]
    depth = len({name.split(".")[2] for name in tensors if name.startswith("image_encoder.blocks.")})
    name = _VITS.get((table[-1], depth), "ViT")
    return {
        "image encoder": f"{name}, {depth} layers, hidden size {table[-1]}",
        "frame": f"{side} x {side} pixels, {table[1]} x {table[2]} cells",
    }


# --- sizes ----------------------------------------------------------------------------------------------------------------


def _weights(tensors: Tensors, served: Iterable[str], files: Iterable[Path]) -> dict[str, str]:
    """Size on disk (the Hub's without files), and that of the weights alone in the number formats that they are served in."""
    disk = sum(file.stat().st_size for file in files) or sum(tensor.bytes for tensor in tensors.values())
    numbers = sum(tensor.numbers for tensor in tensors.values())
    formats = Counter[str]()
    for tensor in tensors.values():
        formats[tensor.dtype] += tensor.numbers
    width: Callable[[str], int] = {"float32": 4, "bfloat16": 2}.__getitem__
    return {
        "weights": f"{_short(numbers, '')} numbers, {_short(disk, 'B')} on disk"
        f" ({', '.join(name for name, _ in formats.most_common())})",
        "memory": ", ".join(f"{_short(numbers * width(name), 'B')} in {name}" for name in served) + " (weights alone)",
    }


def _short(amount: int, unit: str) -> str:
    """An amount with three digits and a decimal prefix."""
    value, prefixes = float(amount), ["", "k", "M", "G", "T"]
    while value >= 999.5 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    return f"{value:.3g} {prefixes[0]}{unit}".rstrip()
