"""Strict loading and saving of LMMs and heads.

Every failure is a :class:`~flmm_core.errors.LoadError` of one line that names the file, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from transformers.utils import logging as transformers_logging

from flmm_core.common.devices import check_device
from flmm_core.errors import LoadError, explained
from flmm_core.families import LmmShape, LoadedLmm
from flmm_core.heads.grounding_heads import GroundingHeads, HeadsConfig
from flmm_core.heads.unet import UNetConfig
from flmm_core.lmm import loading as lmm_loading
from flmm_core.lmm.acceptance import accept
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading.published_heads import published_config, published_lmms
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.weights import sources
from flmm_core.weights.files import pickled_tensors
from flmm_core.weights.fingerprints import lmm_fingerprint, sam_fingerprint
from flmm_core.weights.folders import (
    WEIGHTS_FILE,
    load_strictly,
    read_config,
    read_pth,
    read_safetensors,
    require,
    write_folder,
)

HEADS_FORMAT = "flmm-heads"

_FROM_SAM = ("sam.model.prompt_encoder.pe_layer.",)
"""Fixed buffers that published heads omit; SAM's own are used."""
_IGNORED = ("sam.model.image_encoder.",)
"""Frozen parts that some published heads contain; SAM's own are used."""


@dataclass(frozen=True)
class HeadsOrigin:
    """The LMM and the SAM that heads were trained on, stored with the weights: names for messages, fingerprints for checks."""

    lmm: str = ""
    sam: str = ""
    lmm_fingerprint: str = ""
    """Of :func:`~flmm_core.weights.fingerprints.lmm_fingerprint`; empty if unknown, and then not checked."""
    sam_fingerprint: str = ""
    image_tokens: int = 0
    """Limit of an image's tokens in training; 0 for none, as in the training of the published heads."""

    @classmethod
    def of(cls, *, lmm: str | Path, sam: str | Path, image_tokens: int = 0) -> HeadsOrigin:
        """From the sources of both, as for :func:`load_lmm` and :func:`load_sam`."""
        prints = fingerprints(lmm=lmm, sam=sam)
        return cls(
            lmm=Path(sources.located("lmm", lmm)).name,
            sam=Path(sources.located("sam", sam)).name,
            lmm_fingerprint=prints["lmm"],
            sam_fingerprint=prints["sam"],
            image_tokens=image_tokens,
        )


def fingerprints(**parts: str | Path) -> dict[str, str]:
    """Fingerprint of the weights of parts of a model.

    Args:
        parts: sources of ``lmm``, ``heads`` and ``sam``, or some of them, as for the loaders.
    """
    return {
        part: lmm_fingerprint(sources.located(part, source)) if part == "lmm" else sam_fingerprint(sources.local(part, source))
        for part, source in parts.items()
    }


def load_lmm(source: str | Path, *, device: torch.device, dtype: torch.dtype, **options: Any) -> FrozenLmm:
    """Load an LMM from a folder, a Hugging Face name or a registered model, without progress bars or warnings.

    See :meth:`FrozenLmm.from_pretrained`. A model whose family is measured is proven when it is loaded first.

    Raises:
        LoadError: it cannot be loaded, or a proof failed; the message names the cause.
        DeviceError: this machine has no such device.
    """
    check_device(device)
    source = sources.located("lmm", source)
    with explained("LMM", source), _quiet():
        lmm = FrozenLmm.from_pretrained(source, device=device, dtype=dtype, **options)
        accept(lmm, source)
        return lmm


def load_plain_lmm(source: str | Path, *, device: torch.device, dtype: torch.dtype, **options: Any) -> LoadedLmm:
    """Load an LMM as :func:`load_lmm` does, but without freezing it and without the attention recorder."""
    check_device(device)
    source = sources.located("lmm", source)
    with explained("LMM", source), _quiet():
        return lmm_loading.load_plain(source, device=device, dtype=dtype, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and warnings of transformers while it loads; errors are raised."""
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
    """Layers, heads and sizes of an LMM, from its config alone: unfit heads are refused before its weights are read."""
    source = sources.located("lmm", source)
    with explained("LMM", source):
        return lmm_loading.lmm_shape(source)


def load_heads(source: str | Path, *, shape: LmmShape, sam: Sam) -> GroundingHeads:
    """Load grounding heads, in evaluation mode and float32.

    Args:
        source: a folder written by :func:`save_heads`, a published ``.pth`` file, a registered model, or a name of the
            Hub: ``owner/name`` for a folder, ``owner/name/file.pth`` for a file.
        shape: of the LMM that the heads are to run on.
        sam: loaded SAM; its prompt encoder and mask decoder are overwritten by the heads'.

    Raises:
        LoadError: if the heads belong to another LMM or SAM, or the file is damaged.
    """
    path = sources.local("heads", source)
    with explained("heads", path):
        config = read_heads_config(path)
        state = read_safetensors(path / WEIGHTS_FILE, "heads") if path.is_dir() else read_pth(path, "heads")
        _check_fit(config, shape, path)
        heads = GroundingHeads(config=config, sam=SamRefiner(sam=sam))
        state = {key: value for key, value in state.items() if not key.startswith(_IGNORED)}
        load_strictly(heads, state, what="heads", source=path, may_miss=_FROM_SAM + _IGNORED)
    return heads.float().eval()


def read_heads_config(path: Path) -> HeadsConfig:
    """Sizes of heads, and of the LMM that they fit, without reading their weights.

    Args:
        path: a folder written by :func:`save_heads`, or a published ``.pth`` file.

    Raises:
        LoadError: it holds no heads.
    """
    require(path, "heads")
    with explained("heads", path):
        if not path.is_dir():
            return published_config(pickled_tensors(path), path)
        fields = read_config(path, (HEADS_FORMAT,), "heads")[1]
        return HeadsConfig(
            unet=UNetConfig(**fields["unet"]),
            layers=fields["layers"],
            hidden_size=fields["hidden_size"],
            keyword_selector=fields["keyword_selector"],
            presence=fields["presence"],
        )


def read_origin(path: Path) -> HeadsOrigin:
    """The LMM and SAM that heads state as their origin; published ``.pth`` files state none."""
    require(path, "heads")
    if not path.is_dir():
        return HeadsOrigin()
    with explained("heads", path):
        return HeadsOrigin(**read_config(path, (HEADS_FORMAT,), "heads")[1].get("origin", {}))


def check_origin(heads: str | Path, *, lmm: str | Path, sam: str | Path, image_tokens: int = 0) -> None:
    """Refuse heads that were trained on another LMM, with another SAM of the same sizes, or on images of other sizes.

    Published ``.pth`` heads do not state LMM and SAM, which are then not checked.

    Args:
        heads: as for :func:`load_heads`.
        lmm: as for :func:`load_lmm`. The weights of a Hugging Face name are downloaded if necessary.
        sam: as for :func:`load_sam`.
        image_tokens: most tokens of an image; 0 for those of the LMM's own processor.

    Raises:
        LoadError: names what the heads were trained on and what was given.
    """
    path = sources.local("heads", heads)
    origin = read_origin(path)
    if image_tokens != origin.image_tokens:
        limit = f"{origin.image_tokens}" if origin.image_tokens else "0, the sizes of the LMM's own processor,"
        raise LoadError(f"heads {path}: expected image_tokens {limit} as in their training, got {image_tokens}")
    parts = (
        ("LMM", "lmm", origin.lmm, origin.lmm_fingerprint, lmm),
        ("SAM", "sam", origin.sam, origin.sam_fingerprint, sam),
    )
    for what, part, name, expected, source in parts:
        place = sources.located(part, source)
        with explained(what, place):
            got = fingerprints(**{part: source})[part] if expected else ""
        if got != expected:
            raise LoadError(
                f"heads {path}: expected the {what} that they were trained on, {name} with fingerprint {expected[:12]}, got"
                f" {place} with fingerprint {got[:12]}"
            )


def save_heads(
    heads: GroundingHeads, folder: str | Path, *, origin: HeadsOrigin | None = None, dtype: torch.dtype = torch.float16
) -> None:
    """Write heads for :func:`load_heads`, without SAM's frozen image encoder."""
    config = {**asdict(heads.config), "origin": asdict(origin or HeadsOrigin())}
    write_folder(Path(folder), HEADS_FORMAT, config, heads.trained_state(), dtype)


def convert_heads(source: str | Path, folder: Path, *, lmm: str | Path, sam: str | Path) -> HeadsOrigin:
    """Write published heads for :func:`load_heads` in float32, with their origin.

    Args:
        source: published ``.pth`` file, perhaps on the Hub (``owner/name/file.pth``).
        folder: created if it does not exist.
        lmm: as for :func:`load_lmm`; only its config and, for the fingerprint, its weight files are read.
        sam: as for :func:`load_sam`.

    Returns:
        The origin as written.

    Raises:
        LoadError: the file holds no published heads, or those of another LMM or SAM.
    """
    if Path(source).is_dir():
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
