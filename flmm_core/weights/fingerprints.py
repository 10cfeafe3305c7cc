"""Fingerprints of weights, files and settings: SHA-256 digests that change with the contents.

Those of weights are computed from files, not from loaded models, so they do not depend on the number format in which a model is
loaded. Large tensors and files are sampled, so that 15 GB take a moment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from flmm_core.weights.files import pickled_tensors, safetensors_header
from flmm_core.weights.sam_names import is_sam_model, segment_anything_names

BLOCKS = 4
BLOCK_BYTES = 1024
"""Number and size of the blocks that are read of larger tensors and files, evenly spread from the first byte to the last."""

_LMM_WEIGHTS = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip
"""In the order of transformers' search."""
_TORCH_NAMES = {"F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}
"""PyTorch's names of the number formats, to give a safetensors file the fingerprint of a ``.pth`` file."""
_PARTS = ("projector", "llm", "visual_encoder")
"""Folders of an LMM that is stored in parts; the first one occurs only there."""


def lmm_fingerprint(source: str | Path) -> str:
    """Fingerprint of the weights of an LMM.

    Args:
        source: a folder, or a Hugging Face name; its weights are downloaded, to where the LMM is loaded from later.

    Raises:
        ValueError: the folder has no weights, or a file is damaged.
    """
    parts = lmm_weight_files(source)
    if list(parts) == [""]:
        return _weights_fingerprint(parts[""])
    return settings_fingerprint({part: _weights_fingerprint(files) for part, files in parts.items()})


def lmm_weight_files(source: str | Path) -> dict[str, list[Path]]:
    """Files of the weights of an LMM by the folders of its parts; of a whole by an empty name. See :func:`lmm_fingerprint`."""
    folder = Path(source).expanduser()

    def find(name: str) -> Path | None:
        if not folder.is_dir():
            return _from_hub(str(source), name)
        return folder / name if (folder / name).is_file() else None

    if not find(f"{_PARTS[0]}/config.json"):
        return {"": _lmm_files(source, find)}
    return {part: _lmm_files(source, find, f"{part}/") for part in _PARTS}


def sam_fingerprint(source: str | Path) -> str:
    """Fingerprint of the weights of a SAM, or of heads: a folder with ``model.safetensors``, or a ``.pth`` file.

    A SAM has the same one as ``.pth`` file of ``segment_anything`` and as folder of transformers' ``SamModel``.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        return _weights_fingerprint([path])
    config, weights = path / "config.json", path / "model.safetensors"
    if config.is_file() and is_sam_model(json.loads(config.read_text(encoding="utf-8"))):
        return settings_fingerprint(segment_anything_names(dict(_safetensors_entries(weights, _TORCH_NAMES))))
    return _weights_fingerprint([weights])


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """Fingerprint of settings that JSON can hold, of any nesting; the order of the keys does not count."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Fingerprint of names, sizes and samples of many files, in the given order; copies of them have the same.

    The last bytes are always among the samples, as PNG stores the checksum of the pixels there.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(json.dumps([path.name, size]).encode())
            _sample(digest, file, 0, size)
    return digest.hexdigest()


def _from_hub(name: str, file: str) -> Path | None:
    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:
        if file.endswith(_LMM_WEIGHTS[-1]):
            raise  # its message distinguishes a missing network from a missing file
        return None


def _lmm_files(source: str | Path, find: Callable[[str], Path | None], folder: str = "") -> list[Path]:
    for name in _LMM_WEIGHTS:
        path = find(folder + name)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return [path]
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        found = [find(folder + shard) for shard in shards]
        if None in found:
            raise ValueError(f"{source}: expected the weights {shards[found.index(None)]} that {name} lists, got no such file")
        return [shard for shard in found if shard is not None]
    raise ValueError(f"{source}: expected weights ({folder}{', '.join(_LMM_WEIGHTS)}), got none of them")


def _weights_fingerprint(files: Iterable[Path]) -> str:
    """Fingerprint of all tensors by name, independent of their distribution over files."""
    tensors: dict[str, str] = {}
    for path in files:
        tensors.update(_safetensors_entries(path) if path.suffix == ".safetensors" else _pickled_entries(path))
    return settings_fingerprint(tensors)


def _safetensors_entries(path: Path, dtypes: Mapping[str, str] | None = None) -> Iterator[tuple[str, str]]:
    """Name and digest of each tensor; ``dtypes`` renames number formats.

    The samples are read at their offsets: safetensors' own tensors make the system read the whole file ahead.
    """
    header, begin = safetensors_header(path)
    with path.open("rb") as file:
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            dtype = (dtypes or {}).get(entry["dtype"], entry["dtype"])
            digest = hashlib.sha256(json.dumps([dtype, entry["shape"]]).encode())
            _sample(digest, file, begin + start, end - start)
            yield name, digest.hexdigest()


def _pickled_entries(path: Path) -> Iterator[tuple[str, str]]:
    for name, tensor in pickled_tensors(path).items():
        yield name, _tensor_digest(tensor, str(tensor.dtype))


def _tensor_digest(tensor: torch.Tensor, dtype: str) -> str:
    """Digest of number format, shape and sampled bytes of a tensor that is mapped from its file."""
    digest = hashlib.sha256(json.dumps([dtype, list(tensor.shape)]).encode())
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    for start, end in _blocks(len(flat)):
        digest.update(flat[start:end].numpy().tobytes())
    return digest.hexdigest()


def _sample(digest: hashlib._Hash, file: BinaryIO, start: int, size: int) -> None:
    """Add the sampled bytes of ``size`` bytes from ``start`` on."""
    for first, last in _blocks(size):
        file.seek(start + first)
        digest.update(file.read(last - first))


def _blocks(size: int) -> list[tuple[int, int]]:
    """Byte ranges to read of ``size`` bytes."""
    if size <= BLOCKS * BLOCK_BYTES:
        return [(0, size)]
    starts = [i * (size - BLOCK_BYTES) // (BLOCKS - 1) for i in range(BLOCKS)]
    return [(start, start + BLOCK_BYTES) for start in starts]
