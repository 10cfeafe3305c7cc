"""Strict loading and saving of heads and SAM. Foreign key names and file layouts are known here only.

Every failure is a :class:`~flmm_core.errors.LoadError` of one line that names the file, what was expected and what was found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from flmm_core import frozen_lmm
from flmm_core.devices import check_device
from flmm_core.errors import LoadError, explained
from flmm_core.families import LmmShape, LoadedLmm
from flmm_core.fingerprints import lmm_fingerprint, sam_fingerprint
from flmm_core.frozen_lmm import FrozenLmm
from flmm_core.heads import GroundingHeads, HeadsConfig
from flmm_core.mask_head import UNetConfig, UNetHead
from flmm_core.sam_huggingface import check_sam_config, is_sam_model, segment_anything_names
from flmm_core.sam_refiner import SamRefiner
from flmm_core.sam_vit import sam_vit_like
from flmm_core.weight_files import pickled_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
HEADS_FORMAT = "flmm-heads"
FORMAT_VERSION = 1

_FROM_SAM = ("sam.model.prompt_encoder.pe_layer.",)
"""Fixed buffers that published heads leave out; SAM's own are used."""
_IGNORED = ("sam.model.image_encoder.",)
"""Frozen parts that some published heads carry; SAM's own are used."""

_FIRST_CONV = "encoder.0.0.convs.0.conv.weight"
"""Entry of a U-Net that shows its size."""

_PUBLISHED = {
    1024: "LLaVA-1.5-7B, MGM-7B or HPT",
    2048: "LLaVA-NeXT-7B or MGM-HD-7B",
    384: "DeepSeek-VL-1.3B",
    960: "DeepSeek-VL-7B",
    144: "MGM-2B",
}
"""Which published LMMs have so many attention channels."""

_MODELS: dict[str, Path] = {}
"""Folders of models that have a name; see :func:`register_model`."""

_SAM_FORMATS: dict[str, Callable[..., Sam]] = {}
"""Builders of the SAMs that folders may hold, by format; see :func:`register_sam_format`."""


@dataclass(frozen=True)
class HeadsOrigin:
    """Which LMM and SAM heads were trained on; written next to the weights, names for people and fingerprints to check."""

    lmm: str = ""
    sam: str = ""
    lmm_fingerprint: str = ""
    """Of :func:`~flmm_core.fingerprints.lmm_fingerprint`; empty if unknown, and then not checked."""
    sam_fingerprint: str = ""

    @classmethod
    def of(cls, *, lmm: str | Path, sam: str | Path) -> HeadsOrigin:
        """From the sources of both, as for :func:`load_lmm` and :func:`load_sam`."""
        lmm, sam = _located("lmm", lmm), _located("sam", sam)
        return cls(
            lmm=Path(lmm).name, sam=Path(sam).name, lmm_fingerprint=lmm_fingerprint(lmm), sam_fingerprint=sam_fingerprint(sam)
        )


def registered_parts(source: str | Path) -> dict[str, str]:
    """Folders of the parts of a registered model; none if ``source`` is no such name."""
    folder = _MODELS.get(str(source))
    return {part: str(folder / part) for part in ("lmm", "heads", "sam")} if folder else {}


def published_lmms(channels: int) -> str:
    """Which published LMMs have so many attention channels; empty if none has."""
    return _PUBLISHED.get(channels, "")


def fingerprints(**sources: str | Path) -> dict[str, str]:
    """Fingerprint of the weights of parts of a model.

    Args:
        sources: of ``lmm``, ``heads`` and ``sam``, or some of them, as for the loaders.
    """
    return {
        part: (lmm_fingerprint if part == "lmm" else sam_fingerprint)(_located(part, source))
        for part, source in sources.items()
    }


def _require(path: Path, what: str) -> None:
    if not path.exists():
        raise LoadError(f"{what} {path}: expected an existing file or folder, got nothing there")


def register_model(name: str, folder: Path) -> None:
    """Give a model a name by which its parts can be loaded.

    Args:
        name: stands for the parts wherever one is asked for; a folder of the same name is reached as ``./name``.
        folder: holds the folders ``lmm``, ``heads`` and ``sam``.
    """
    _MODELS[name] = folder


def _located(part: str, source: str | Path) -> str:
    """The folder, file or Hugging Face name that ``source`` means.

    Args:
        part: ``lmm``, ``heads`` or ``sam``.
        source: what the user gave: one of these, or the name of a registered model.

    Raises:
        LoadError: ``source`` is a bare word that no model is registered under and no file or folder has.
    """
    name = str(source)
    if name in _MODELS:
        return str(_MODELS[name] / part)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise LoadError(f"{part} {name}: expected the home directory of a user, got none of that name") from error
    if not name or (path.name == name and not path.exists()):
        known = ", ".join(sorted(_MODELS)) or "none"
        other = "Hugging Face name (owner/name)" if part == "lmm" else "file"
        raise LoadError(f"{part}: expected a folder, a {other} or a registered model (known: {known}), got {name!r}")
    return str(path) if path.exists() else name


def load_lmm(source: str | Path, *, device: torch.device, dtype: torch.dtype, **options: Any) -> FrozenLmm:
    """Load an LMM from a folder, a Hugging Face name or a registered model, without progress bars or advice.

    See :meth:`FrozenLmm.from_pretrained`.

    Raises:
        LoadError: of the type that the cause has.
        DeviceError: this machine has no such device.
    """
    check_device(device)
    source = _lmm_source(source)
    with explained("LMM", source), _quiet():
        return FrozenLmm.from_pretrained(source, device=device, dtype=dtype, **options)


def load_plain_lmm(source: str | Path, *, device: torch.device, dtype: torch.dtype) -> LoadedLmm:
    """Load an LMM as :func:`load_lmm` does, but neither frozen nor tapped."""
    check_device(device)
    source = _lmm_source(source)
    with explained("LMM", source), _quiet():
        return frozen_lmm.load_plain(source, device=device, dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers neither draw progress bars nor warn while it loads: what matters is raised."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def lmm_shape(source: str | Path) -> LmmShape:
    """Numbers of an LMM from its config alone, so that unfit heads are refused before gigabytes are read."""
    source = _lmm_source(source)
    with explained("LMM", source):
        return frozen_lmm.lmm_shape(source)


def _lmm_source(source: str | Path) -> str:
    """The folder, or a name ``owner/name`` that may be on the Hub."""
    source = _located("lmm", source)
    path = Path(source)
    looks_like_name = source.count("/") == 1 and not source.startswith((".", "~", "/"))
    if not path.exists() and not looks_like_name:
        raise LoadError(f"LMM {source}: expected an existing folder or a Hugging Face name (owner/name), got nothing there")
    return str(path)


def load_sam(source: str | Path) -> Sam:
    """Load a SAM, in evaluation mode.

    Args:
        source: a folder written by :func:`save_sam` in a registered format, a ``.pth`` file of ``segment_anything``
            (ViT-B, -L, -H or any other size: sizes are read from the weights), a folder of transformers' ``SamModel``,
            or a registered model.

    Raises:
        LoadError: the file is damaged, of another kind, or of a format that is not registered.
    """
    path = Path(_located("sam", source))
    _require(path, "SAM")
    with explained("SAM", path):
        if path.is_dir() and not is_sam_model(config := _read_json(path / CONFIG_FILE, "SAM")):
            kind, fields = _read_config(path, _SAM_FORMATS, "SAM")
            sam, state = _SAM_FORMATS[kind](**fields), _read_safetensors(path / WEIGHTS_FILE, "SAM")
        else:
            if path.is_dir():
                check_sam_config(config)
                state = segment_anything_names(_read_safetensors(path / WEIGHTS_FILE, "SAM"))
            else:
                state = _read_pth(path, "SAM")
            if "image_encoder.pos_embed" not in state:
                raise LoadError(f"SAM {path}: expected segment-anything weights with image_encoder.pos_embed, got none")
            sam = sam_vit_like(state)
        _load_strictly(sam, state, what="SAM", source=path)
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
    _write(Path(folder), kind, fields, sam.state_dict(), dtype)


def load_heads(source: str | Path, *, shape: LmmShape, sam: Sam) -> GroundingHeads:
    """Load grounding heads, in evaluation mode and float32.

    Args:
        source: a folder written by :func:`save_heads`, a published ``.pth`` file, or a registered model.
        shape: of the LMM that the heads are to run on.
        sam: loaded SAM; its prompt encoder and mask decoder are overwritten by the heads'.

    Raises:
        LoadError: if the heads belong to another LMM or SAM, or the file is damaged.
    """
    path = Path(_located("heads", source))
    _require(path, "heads")
    with explained("heads", path):
        config = read_heads_config(path)
        state = _read_safetensors(path / WEIGHTS_FILE, "heads") if path.is_dir() else _read_pth(path, "heads")
        _check_fit(config, shape, path)
        heads = GroundingHeads(config=config, sam=SamRefiner(sam=sam))
        state = {key: value for key, value in state.items() if not key.startswith(_IGNORED)}
        _load_strictly(heads, state, what="heads", source=path, may_miss=_FROM_SAM + _IGNORED)
    return heads.float().eval()


def read_heads_config(path: Path) -> HeadsConfig:
    """Which LMM heads fit, and their size, without reading their weights.

    Args:
        path: a folder written by :func:`save_heads`, or a published ``.pth`` file.

    Raises:
        LoadError: it holds no heads.
    """
    _require(path, "heads")
    with explained("heads", path):
        if not path.is_dir():
            return _published_config(pickled_tensors(path), path)
        fields = _read_config(path, (HEADS_FORMAT,), "heads")[1]
        return HeadsConfig(
            unet=UNetConfig(**fields["unet"]),
            layers=fields["layers"],
            hidden_size=fields["hidden_size"],
            keyword_selector=fields["keyword_selector"],
            presence=fields["presence"],
        )


def read_origin(path: Path) -> HeadsOrigin:
    """Which LMM and SAM heads were trained on, as they say themselves; published ``.pth`` files do not."""
    _require(path, "heads")
    if not path.is_dir():
        return HeadsOrigin()
    with explained("heads", path):
        return HeadsOrigin(**_read_config(path, (HEADS_FORMAT,), "heads")[1].get("origin", {}))


def load_mask_head(source: str | Path) -> UNetHead:
    """Load a U-Net alone, in evaluation mode.

    Args:
        source: a ``.pth`` file with the entries of published heads, their ``mask_head.`` left out.

    Raises:
        LoadError: the file is damaged or of another kind.
    """
    path = Path(source)
    _require(path, "mask head")
    state = _read_pth(path, "mask head")
    if _FIRST_CONV not in state:
        raise LoadError(f"mask head {path}: expected a U-Net with {_FIRST_CONV}, got a file with other entries")
    head = UNetHead(_unet_config(state[_FIRST_CONV]))
    _load_strictly(head, state, what="mask head", source=path)
    return head.eval()


def check_origin(heads: str | Path, *, lmm: str | Path, sam: str | Path) -> None:
    """Refuse heads that were trained on another LMM or with another SAM of the same sizes.

    Published ``.pth`` heads do not say what they were trained on, and are not checked.

    Args:
        heads: as for :func:`load_heads`.
        lmm: as for :func:`load_lmm`. The weights of a Hugging Face name are downloaded here if need be.
        sam: as for :func:`load_sam`.

    Raises:
        LoadError: names what the heads were trained on and what was given.
    """
    path, lmm, sam = Path(_located("heads", heads)), _located("lmm", lmm), _located("sam", sam)
    origin = read_origin(path)
    _require(Path(sam), "SAM")
    parts: tuple[tuple[str, str, str, str | Path, Callable[[str | Path], str]], ...] = (
        ("LMM", origin.lmm, origin.lmm_fingerprint, lmm, lmm_fingerprint),
        ("SAM", origin.sam, origin.sam_fingerprint, sam, sam_fingerprint),
    )
    for what, name, expected, source, fingerprint in parts:
        with explained(what, source):
            got = fingerprint(source) if expected else ""
        if got != expected:
            raise LoadError(
                f"heads {path}: expected the {what} that they were trained on, {name} with fingerprint {expected[:12]}, got"
                f" {source} with fingerprint {got[:12]}"
            )


def save_heads(
    heads: GroundingHeads, folder: str | Path, *, origin: HeadsOrigin | None = None, dtype: torch.dtype = torch.float16
) -> None:
    """Write heads for :func:`load_heads`, without SAM's frozen image encoder."""
    config = {**asdict(heads.config), "origin": asdict(origin or HeadsOrigin())}
    _write(Path(folder), HEADS_FORMAT, config, heads.trained_state(), dtype)


def convert_heads(source: Path, folder: Path, *, lmm: str | Path, sam: str | Path) -> HeadsOrigin:
    """Write published heads for :func:`load_heads` in float32, with what they belong to.

    Args:
        source: published ``.pth`` file.
        folder: made if need be.
        lmm: as for :func:`load_lmm`; only its config and, for the fingerprint, its files of weights are looked at.
        sam: as for :func:`load_sam`.

    Returns:
        What was written of LMM and SAM.

    Raises:
        LoadError: the file holds no published heads, or those of another LMM or SAM.
    """
    if source.is_dir():
        raise LoadError(f"heads {source}: expected a published .pth file, got a folder")
    heads = load_heads(source, shape=lmm_shape(lmm), sam=load_sam(sam))
    origin = HeadsOrigin.of(lmm=lmm, sam=sam)
    save_heads(heads, folder, origin=origin, dtype=torch.float32)
    return origin


def _check_fit(config: HeadsConfig, shape: LmmShape, path: Path) -> None:
    given = (shape.channels, shape.layers, shape.hidden_size)
    wanted = (config.unet.in_channels, config.layers, config.hidden_size)
    if given != wanted:
        known = published_lmms(wanted[0])
        belongs = f", which belong to {known}" if known else ""
        raise LoadError(
            f"heads {path}: expected heads for the given LMM's {given[0]} attention channels ({given[1]} layers, hidden size"
            f" {given[2]}), got heads for {wanted[0]} ({wanted[1]} layers, hidden size {wanted[2]}){belongs}"
        )


def _published_config(state: Mapping[str, Tensor], path: Path) -> HeadsConfig:
    """Sizes of published heads from the shapes of their weights."""
    names = (f"mask_head.{_FIRST_CONV}", "text_layer_weights", "text_proj.weight")
    missing = [name for name in names if name not in state]
    if missing:
        raise LoadError(f"heads {path}: expected F-LMM heads with {missing[0]}, got a file with other entries")
    first, weights, projection = (state[name] for name in names)
    return HeadsConfig(
        unet=_unet_config(first),
        layers=weights.shape[0],
        hidden_size=projection.shape[1],
        keyword_selector=False,
        presence=False,
    )


def _unet_config(first: Tensor) -> UNetConfig:
    """Size of a U-Net from the weight of its first convolution."""
    return UNetConfig(in_channels=first.shape[1], base_channels=first.shape[0])


def _load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    what: str,
    source: Path,
    may_miss: tuple[str, ...] = (),
) -> None:
    """Copy weights of any float dtype; every entry must be known, of the right shape, and none may miss without leave."""
    expected = module.state_dict()
    unknown = sorted(key for key in state if key not in expected)
    missing = sorted(key for key in expected if key not in state and not key.startswith(may_miss or ("\0",)))
    if unknown or missing:
        some = ", ".join((missing or unknown)[:3])
        kind = f"{len(missing)} entries are missing" if missing else f"{len(unknown)} entries are unknown"
        raise LoadError(f"{what} {source}: expected exactly the entries of this model, but {kind} ({some} ...)")
    for key, value in state.items():
        if expected[key].shape != value.shape:
            raise LoadError(f"{what} {source}: {key}: expected shape {list(expected[key].shape)}, got {list(value.shape)}")
    module.load_state_dict(dict(state), strict=False)


def _read_pth(path: Path, what: str) -> dict[str, Tensor]:
    with explained(what, path):
        return pickled_tensors(path)


def _read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    _require(path, what)
    with explained(what, path):
        return load_file(path)


def _read_config(folder: Path, kinds: Collection[str], what: str) -> tuple[str, dict[str, Any]]:
    """Format and other fields of a folder's ``config.json``."""
    path = folder / CONFIG_FILE
    fields = _read_json(path, what)
    kind, version = fields.pop("format", None), fields.pop("version", None)
    if kind not in kinds or version != FORMAT_VERSION:
        known = " or ".join(sorted(kinds)) or "(none is registered)"
        raise LoadError(f"{what} {path}: expected format {known} version {FORMAT_VERSION}, got {kind} version {version}")
    return kind, fields


def _read_json(path: Path, what: str) -> dict[str, Any]:
    _require(path, what)
    with explained(what, path):
        fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise LoadError(f"{what} {path}: expected an object, got {type(fields).__name__}")
    return fields


def _write(folder: Path, kind: str, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"format": kind, "version": FORMAT_VERSION, **config}
    (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    save_file({key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}, folder / WEIGHTS_FILE)
