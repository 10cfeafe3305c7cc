"""Writes the measured figures into README.md, MODEL_CARD.md and documents of docs/.

A block of figures is enclosed by the comments ``<!-- figures: NAME -->`` and ``<!-- end of figures -->``. It is made only of
the files that the commands in ``COMMANDS`` write; where a file is missing, the block says that its figures are not measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from figure_blocks import (
    ABLATIONS,
    ATTENTION,
    ATTENTION_IMAGE,
    BASELINE,
    BLOCKS,
    DELIVERY,
    EVALUATION,
    FIELD,
    FLEET,
    OTHER_WORDS,
    PAIRING,
    PICKING,
    RELIABILITY,
    TRAINING_FREE,
    Report,
)

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md",
    "MODEL_CARD.md",
    *(f"docs/{name}.md" for name in ("reliability", "reference", "data", "fleet", "ablations", "training_free")),
)
COMMANDS = {
    EVALUATION: f"flmm eval tabletop --json {EVALUATION}",
    ATTENTION: f"flmm attention --out {ATTENTION_IMAGE} --json {ATTENTION}",
    RELIABILITY: f"flmm soak --minutes 10 --out {RELIABILITY}",
    PICKING: f"flmm eval picking --count 100 --json {PICKING}",
    PAIRING: f"python scripts/measure_pairing.py --json {PAIRING}",
    DELIVERY: f"python scripts/measure_delivery.py --json {DELIVERY}",
    OTHER_WORDS: f"python scripts/measure_other_words.py --json {OTHER_WORDS}",
    ABLATIONS: f"python scripts/measure_ablations.py --json {ABLATIONS}",
    TRAINING_FREE: f"python scripts/measure_training_free.py --json {TRAINING_FREE}",
    FLEET: f"python scripts/measure_fleet.py --json {FLEET}",
    BASELINE: f"flmm eval baseline data/test --limit 20 --json {BASELINE}",
    **{f"docs/field/{name}.json": f"flmm eval {words} --json docs/field/{name}.json" for name, words in FIELD.items()},
}
"""The command that writes each file."""

_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.S)


def written(text: str, reports: Mapping[str, Report]) -> str:
    """A document with its blocks of figures rewritten.

    Args:
        text: the document.
        reports: contents of the files of ``COMMANDS`` that exist.

    Raises:
        ValueError: the document has a block of another name.
    """

    def block(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in BLOCKS:
            raise ValueError(f"block of figures: expected one of {', '.join(BLOCKS)}, got {name!r}")
        source, lines = BLOCKS[name]
        made = lines(reports[source]) if source in reports else [f"Not measured yet. `{COMMANDS[source]}` measures it."]
        return "\n".join([begin, *made, "", end])

    return _BLOCK.sub(block, text)


def read_reports(root: Path) -> dict[str, Report]:
    """Contents of the files of measured figures that exist, by their paths."""
    return {name: json.loads((root / name).read_text(encoding="utf-8")) for name in COMMANDS if (root / name).is_file()}


def main() -> None:
    """Rewrite the blocks of all documents."""
    reports = read_reports(ROOT)
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(written(path.read_text(encoding="utf-8"), reports), encoding="utf-8")
        print(f"{name}: made of {', '.join(reports) or 'nothing, as nothing was measured'}")


if __name__ == "__main__":
    main()
