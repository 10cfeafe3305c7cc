"""Files of chosen attention heads: what `flmm calibrate` found out about an LMM, as one small JSON.

::

    {"format": "flmm-attention-heads", "version": 1, "written_by": "flmm calibrate",
     "lmm": name, "lmm_fingerprint": SHA-256, "lmm_channels": c,
     "criterion": "contrast", "images": 50, "phrases": 180,
     "heads": [{"channel": 18, "layer": 3, "head": 0, "votes": 171, "attention": 0.41, "score": 0.38}, ...],
     "presence": {"bands": [[9, 21]], "slope": 1.9, "offset": 4.2, "threshold": 0.11, "auroc": 0.93,
                  "present": 180, "absent": 180}}

``presence`` may be null. The user's cache keeps one file for each LMM, by its fingerprint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flmm_core.common.output_files import write_text
from flmm_core.errors import LoadError
from flmm_core.heads.attention_presence import AttentionPresence
from flmm_core.heads.head_choice import CRITERIA
from flmm_core.loading.checkpoints import fingerprints
from flmm_core.weights import sources
from flmm_core.weights.folders import read_json

FORMAT = "flmm-attention-heads"
VERSION = 1
SUFFIX = ".json"
"""Of the files, by which they are told from trained heads."""


@dataclass(frozen=True)
class ChosenHead:
    """An attention head that points."""

    channel: int
    """Of the maps."""
    layer: int
    """Decoder layer, from 0."""
    head: int
    """Query head of the layer, from 0."""
    votes: int
    """Phrases for which it was among the best."""
    attention: float
    """Mean share of a token's attention that goes to the image."""
    score: float
    """Of the criterion: mean spatial entropy, or mean attention beyond that of other phrases."""


@dataclass(frozen=True)
class PresenceFigures:
    """The presence score and how well it tells phrases apart."""

    score: AttentionPresence
    auroc: float
    present: int
    """Phrases of the image's own description."""
    absent: int
    """Phrases of other images' descriptions."""


@dataclass(frozen=True)
class HeadChoice:
    """The attention heads of an LMM that point."""

    lmm: str
    lmm_fingerprint: str
    lmm_channels: int
    """Attention channels of the LMM."""
    criterion: str
    images: int
    phrases: int
    heads: tuple[ChosenHead, ...]
    presence: PresenceFigures | None

    def record(self) -> dict[str, Any]:
        """The object in the file."""
        found = asdict(self)
        if self.presence is not None:
            presence = found.pop("presence")
            score = presence.pop("score")
            found["presence"] = {**score, "threshold": self.presence.score.threshold, **presence}
        return {"format": FORMAT, "version": VERSION, "written_by": "flmm calibrate", **found}

    def facts(self) -> dict[str, str]:
        """Properties by name, for people."""
        presence = "no"
        if self.presence is not None:
            presence = (
                f"AUROC {self.presence.auroc:.3f} of {self.presence.present} own phrases against {self.presence.absent} of"
                f" other images, threshold {self.presence.score.threshold:.3g}"
            )
        return {
            "format": "attention heads, not trained",
            "channels": f"{self.lmm_channels}",
            "heads": ", ".join(f"layer {one.layer} head {one.head} ({one.votes} votes)" for one in self.heads),
            "chosen by": f"{self.criterion}, on {self.phrases} phrases of {self.images} images",
            "keyword selector": "no",
            "presence score": presence,
            "LMM": f"{self.lmm}, fingerprint {self.lmm_fingerprint}",
            "SAM": "any",
        }


def is_choice(heads: str | Path) -> bool:
    """Whether a source of heads is a file of chosen attention heads."""
    return str(heads).endswith(SUFFIX)


def write_choice(path: Path, choice: HeadChoice) -> None:
    """Write a file, whole or not at all."""
    write_text(path, json.dumps(choice.record(), indent=1) + "\n")


def choice_path(lmm_fingerprint: str) -> Path:
    """Where the user's cache (XDG) keeps the choice of an LMM."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "flmm_ros" / "attention_heads" / f"{lmm_fingerprint[:24]}{SUFFIX}"


def kept_choice(lmm: str) -> Path | None:
    """The file in the user's cache for an LMM; None if there is none.

    Args:
        lmm: as for the loaders; its weights are downloaded if the cache has any file.

    Raises:
        LoadError: there is no such LMM.
    """
    if not any(choice_path("").parent.glob(f"*{SUFFIX}")):
        return None
    path = choice_path(fingerprints(lmm=lmm)["lmm"])
    return path if path.is_file() else None


def read_choice(source: str | Path) -> HeadChoice:
    """Read a file, strictly.

    Args:
        source: the file, also on the Hub (``owner/name/file.json``).

    Raises:
        LoadError: it is missing, of another kind, or an entry is missing, unknown or of the wrong type.
    """
    path = sources.local("heads", source)
    fields = read_json(path, "heads")
    kind, version, _ = (fields.pop(name, None) for name in ("format", "version", "written_by"))
    if kind != FORMAT or version != VERSION:
        raise LoadError(f"heads {path}: expected format {FORMAT} version {VERSION}, got {kind} version {version}")
    try:
        return _choice(fields)
    except (TypeError, ValueError, KeyError) as error:
        raise LoadError(f"heads {path}: {error.args[0] if error.args else error}") from error


def check_fits(choice: HeadChoice, source: str | Path, *, lmm: str, channels: int) -> None:
    """Refuse a choice that was made for another LMM.

    Raises:
        LoadError: names both LMMs.
    """
    got = fingerprints(lmm=lmm)["lmm"] if channels == choice.lmm_channels else ""
    if got != choice.lmm_fingerprint:
        raise LoadError(
            f"heads {source}: expected the LMM that they were chosen for, {choice.lmm} with {choice.lmm_channels} attention"
            f" channels and fingerprint {choice.lmm_fingerprint[:12]}, got {lmm} with {channels}"
            + (f" and fingerprint {got[:12]}" if got else "")
        )


_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}


def _choice(fields: Mapping[str, Any]) -> HeadChoice:
    _require(fields, HeadChoice, "the file")
    channels = fields["lmm_channels"]
    if fields["criterion"] not in CRITERIA:
        raise ValueError(f"expected a criterion of {', '.join(CRITERIA)}, got {fields['criterion']!r}")
    heads = []
    for entry in _list(fields["heads"], "heads"):
        _require(entry, ChosenHead, "heads")
        heads.append(ChosenHead(**entry))
    if not heads or len({head.channel for head in heads}) < len(heads) or not all(0 <= h.channel < channels for h in heads):
        found = [head.channel for head in heads]
        raise ValueError(f"expected different channels of 0 to {channels - 1}, at least one, got {found}")
    presence = None if fields["presence"] is None else _presence(fields["presence"], channels)
    return HeadChoice(**{**fields, "heads": tuple(heads), "presence": presence})


def _presence(fields: Any, channels: int) -> PresenceFigures:
    names = ("bands", "slope", "offset", "threshold", "auroc", "present", "absent")
    if not isinstance(fields, dict) or set(fields) != set(names):
        raise ValueError(f"expected presence with {', '.join(names)}, got {fields!r:.200}")
    for name in names[1:]:
        _require_type(fields[name], "int" if name in ("present", "absent") else "float", f"presence: {name}")
    bands = []
    for band in _list(fields["bands"], "presence: bands"):
        if not (isinstance(band, list) and len(band) == 2 and all(type(end) is int for end in band)):
            raise ValueError(f"presence: expected bands of two whole numbers, got {band!r:.80}")
        if not 0 <= band[0] < band[1] <= channels:
            raise ValueError(f"presence: expected bands of the {channels} channels, got {band}")
        bands.append((band[0], band[1]))
    if not bands or not fields["slope"] > 0:
        raise ValueError(f"presence: expected a band and a slope above 0, got {bands} and {fields['slope']}")
    score = AttentionPresence(tuple(bands), float(fields["slope"]), float(fields["offset"]))
    return PresenceFigures(score, float(fields["auroc"]), fields["present"], fields["absent"])


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name}: expected a list, got {value!r:.80}")
    return value


def _require(fields: Any, kind: Any, name: str) -> None:
    """Refuse anything but an object with exactly the fields of a dataclass, those of plain types with values of them."""
    types = {entry: str(spec.type) for entry, spec in kind.__dataclass_fields__.items()}
    if not isinstance(fields, dict) or set(fields) != set(types):
        got = ", ".join(fields) if isinstance(fields, dict) else f"{fields!r:.80}"
        raise ValueError(f"{name}: expected {', '.join(types)}, got {got}")
    for entry, wanted in types.items():
        if wanted in _TYPES:
            _require_type(fields[entry], wanted, f"{name}: {entry}")


def _require_type(value: Any, wanted: str, name: str) -> None:
    if not isinstance(value, _TYPES[wanted]) or isinstance(value, bool):
        raise ValueError(f"{name}: expected {wanted}, got {value!r:.80}")
