"""The blocks of measured figures in the documents: of which file each is made, and its lines.

``write_figures.py`` puts them into the documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flmm_bench.stress.report import table

EVALUATION, ATTENTION, OTHER_WORDS = "docs/eval_tabletop.json", "docs/attention.json", "docs/other_words.json"
RELIABILITY, PICKING, PAIRING = "docs/reliability.json", "docs/picking.json", "docs/pairing.json"
DELIVERY = "docs/delivery.json"
BASELINE, FLEET, ABLATIONS = "docs/field/baseline.json", "docs/fleet.json", "docs/ablations.json"
TRAINING_FREE = "docs/training_free.json"
FIELD = {
    "res_together": "res data/field/refcoco@val --protocol together",
    "res_apart": "res data/field/refcoco@val --protocol apart",
    "gres": "res data/field/grefcoco@val --protocol apart",
    "png": "png data/field/panoptic_narrative_grounding@val",
    "reasonseg": "reasonseg data/field/ReasonSeg@val",
    "gcg": "gcg data/field/GranDf@val",
    "viscot": "viscot data/field/viscot@val --limit 60",
}
"""Arguments of the evaluations on published layouts; scripts/write_published_layouts.py writes the data."""
ATTENTION_IMAGE = "docs/images/attention.png"
SUMMARY = (
    "answers: ",
    "right chat answers and refer names: cIoU, U-Net",
    "chat: cIoU, SAM",
    "chat, right answers: cIoU, SAM",
    "refer: cIoU, SAM",
    "absence without mask: ",
    "selector: F1 of phrases",
)
"""The rows of the evaluation that the README shows; a name that ends in a blank is a prefix."""
HEADS_SHOWN = 8
"""Count of the best attention heads that the model card shows."""

Report = Mapping[str, Any]


def summary(report: Report) -> list[str]:
    """The rows of the evaluation that the README shows.

    Raises:
        ValueError: the evaluation lacks one of them.
    """
    chosen = []
    for name in SUMMARY:
        found = [row for row in report["rows"] if row["figure"] == name or (name[-1] == " " and row["figure"].startswith(name))]
        if not found:
            raise ValueError(f"{EVALUATION}: expected a row {name!r}, got none")
        chosen += found
    return _evaluation(report, chosen)


def evaluation(report: Report) -> list[str]:
    """All rows of the evaluation."""
    return _evaluation(report, report["rows"])


def attention(report: Report) -> list[str]:
    """The attention heads that point best, and a figure of their maps."""
    random = report["random"]
    rows = [
        (
            f"layer {head['layer']}, head {head['head']}",
            f"{head['pointing']:.3f}",
            f"{head['low']:.3f} to {head['high']:.3f}",
            f"{head['attention']:.3f}",
        )
        for head in report["heads"][:HEADS_SHOWN]
    ]
    rows.append(("a random point; attention spread evenly", f"{random['pointing']:.3f}", "", f"{random['attention']:.3f}"))
    return [
        f"Measured by `{report['command']}` on {report['names']:,} names in {report['images']} images;"
        f" the best {len(rows) - 1} of {len(report['heads'])} heads.",
        "",
        *_table(("Head", "Peak on the object", "95 % interval", "Share of its attention on the object"), rows),
        "",
        f"![Attention maps of the heads that point best, beside the masks that come of them]({ATTENTION_IMAGE})",
    ]


def other_words(report: Report) -> list[str]:
    """How the LMM answers texts that are not questions about its scenes."""
    rows = [
        (
            name,
            f"{group['texts']:,}",
            *(f"{group[count] / group['texts']:.3f}" for count in ("ended", "cut", "declined")),
            str(group["longest_answer_tokens"]),
        )
        for name, group in report["groups"].items()
    ]
    header = ("Texts", "n", "Ended by itself", "Cut", "Said that it does not know or understand", "Longest answer, tokens")
    upper = report["upper_case"]
    return [
        f"Measured by `{report['command']}` on scenes of `{report['images']}`.",
        "",
        *_table(header, rows),
        "",
        f"Of {upper['pairs']} questions about the table, {upper['same'] / upper['pairs']:.3f} got the same answer in upper case"
        " as in lower case.",
    ]


def reliability(report: Report) -> list[str]:
    """Results of the stress program."""
    return [f"Measured by `{report['command']}` on {_machine(report)}.", "", table(report)]


def picking(report: Report) -> list[str]:
    """Outcomes of picking objects with a simulated gripper."""
    return [f"Measured by `{report['command']}`.", "", *_table(("Result", "Attempts", "Share"), report["rows"])]


def pairing(report: Report) -> list[str]:
    """Time that pairing with depth adds to an image."""
    columns = ("received", "without", "with", "ratio", "located")
    rows = [(size, *(f"{figures[name]:g}" for name in columns)) for size, figures in report["milliseconds"].items()]
    header = (
        "Image",
        "a depth image received, ms",
        "image read without depth, ms",
        "with depth, ms",
        "ratio",
        "an object located, ms",
    )
    return [f"Medians, measured by `{report['command']}` side by side in one process.", "", *_table(header, rows)]


def delivery(report: Report) -> list[str]:
    """Share of a camera's images that reaches the node."""
    rows = [
        (
            f"{camera['width']}x{camera['height']}, {camera['rate']:g} Hz",
            *(f"{camera[way][topic]:.3f}" for way in ("default", "file") for topic in ("image", "depth")),
        )
        for camera in report["cameras"]
    ]
    header = ("Camera", "images, by default", "depth, by default", "images, with the file", "depth, with the file")
    measured = f"Shares of what was sent, measured by `{report['command']}`, either way in turn, on {_machine(report)}."
    return [measured, "", *_table(header, rows)]


def field(report: Report) -> list[str]:
    """An evaluation of a published benchmark, on data in its layout."""
    cells = [(row["figure"], *_figure(row), f"{row['count']:,}") for row in report["rows"]]
    table_ = _table(("Figure", "Value", "95 % interval", "n"), cells)
    return [f"Measured by `{report['command']}` on {report['images']} images.", "", *table_]


def baseline(report: Report) -> list[str]:
    """Grounding compared with boxes that the LMM writes."""
    ways = {
        "ours": "Ours",
        "second": "A box for each phrase",
        "together": "Answer and boxes at once",
        "oracle": "True boxes",
    }
    rows = [
        (row["figure"], *("-" if row[way] is None else _figure(row[way])[0] for way in ways), row["better"])
        for row in report["rows"]
    ]
    table_ = _table(("Figure", *ways.values(), "Better"), rows)
    return [f"Measured by `{report['command']}` on {report['images']} images.", "", *table_]


def fleet(report: Report) -> list[str]:
    """Runs of fleets of several sizes, and of one in which a replica is killed."""
    robots, cpus = report["robots"], report["machine"]["cores"]
    measured = f"Measured by `{report['command']}`: {robots} robots, on {cpus} CPUs that run robots, Ray and replicas together."
    runs = [
        (f"{name}, round {number}", run)
        for number, each in enumerate(zip(*report["rounds"].values(), strict=True), 1)
        for name, run in zip(report["rounds"], each, strict=True)
    ]
    runs.append(("2 replicas, one killed", report["killed"]))
    names = ("commands", "answered", "lost", "duplicates", "answers a second", "wait p50, s", "wait p95, s")
    cells = [(title, *(str(run[name]) for name in names)) for title, run in runs]
    ratios = [(name, ", ".join(f"{ratio:.2f}" for ratio in each)) for name, each in report["ratios"].items()]
    return [
        measured,
        "",
        *_table(("Run", *names), cells),
        "",
        *_table((f"Batches of up to {report['batch']}", "times the answers of one by one, round by round"), ratios),
    ]


def ablations(report: Report) -> list[str]:
    """Variants of the heads and of the refiner, and thresholds of the presence score."""
    measured = f"Measured by `{report['command']}`: {report['epochs']} epochs of training each, {report['images']} test scenes."
    figures = list(next(iter(report["heads"].values())))
    heads = [
        (name, *(" (".join(_figure(row[figure])) + ")" for figure in figures), f"{report['unet_share_of_time'][name]:.2f}")
        for name, row in report["heads"].items()
    ]
    refined = list(next(iter(report["refiners"].values())))
    refiners = [
        (name, *(" (".join(_figure(row[figure])) + ")" for figure in refined), f"{report['encoder_share_of_time'][name]:.2f}")
        for name, row in report["refiners"].items()
    ]
    names = list(next(iter(report["presence"].values())))
    presence = [
        ("off" if float(threshold) == 0 else threshold, *(" (".join(_figure(row[name])) + ")" for name in names))
        for threshold, row in report["presence"].items()
    ]
    return [
        measured,
        "",
        *_table(("The U-Net sees", *figures, "time of the U-Net"), heads),
        "",
        *_table(("Refiner", *refined, "time of the image encoder"), refiners),
        "",
        *_table(("Presence threshold", *names), presence),
    ]


def training_free(report: Report) -> list[str]:
    """Ways to point with the same LMM, and what the parts of heads without training are worth."""
    measured = (
        f"Measured by `{report['command']}` on {report['images']} test scenes, calibrated on others ({_machine(report)})."
    )

    def cells(name: str, row: Report, figures: Sequence[str]) -> tuple[str, ...]:
        values = (row.get(figure, "-") for figure in figures)
        return (name, *(" (".join(_figure(value)) + ")" if isinstance(value, Mapping) else str(value) for value in values))

    ways, changes = (list(dict.fromkeys(f for row in report[part].values() for f in row)) for part in ("ways", "ablations"))
    ways.remove("presence: phrases")
    return [
        measured,
        "",
        *_table(("Way", *ways), [cells(name, row, ways) for name, row in report["ways"].items()]),
        "",
        *_table(("Change", *changes), [cells(name, row, changes) for name, row in report["ablations"].items()]),
    ]


def _evaluation(report: Report, rows: Sequence[Report]) -> list[str]:
    measured = f"Measured by `{report['command']}` on {report['images']} scenes (`{report['data']}`)."
    cells = [(row["figure"], *_figure(row), f"{row['count']:,}") for row in rows]
    return [measured, "", *_table(("Figure", "Value", "95 % interval", "n"), cells)]


def _machine(report: Report) -> str:
    return ", ".join(f"{name}: {value}" for name, value in report["machine"].items())


def _figure(row: Report) -> tuple[str, str]:
    """A value and its 95 % interval as text."""
    if row["value"] is None:
        return "-", "-"
    return f"{row['value']:.3f}", "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows)]


BLOCKS: dict[str, tuple[str, Callable[[Report], list[str]]]] = {
    "summary": (EVALUATION, summary),
    "evaluation": (EVALUATION, evaluation),
    "attention": (ATTENTION, attention),
    "other_words": (OTHER_WORDS, other_words),
    "reliability": (RELIABILITY, reliability),
    "picking": (PICKING, picking),
    "pairing": (PAIRING, pairing),
    "delivery": (DELIVERY, delivery),
    **{name: (f"docs/field/{name}.json", field) for name in FIELD},
    "baseline": (BASELINE, baseline),
    "fleet": (FLEET, fleet),
    "ablations": (ABLATIONS, ablations),
    "training_free": (TRAINING_FREE, training_free),
}
"""For each block its file and the function that makes its lines."""
