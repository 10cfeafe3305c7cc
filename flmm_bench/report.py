"""The benchmark's figures for people and programs: a table, JSON, and a chart."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from flmm_bench.findings import Findings, Rates
from flmm_bench.machine import machine
from flmm_bench.rows import Row, finish
from flmm_core.common.output_files import write_text
from flmm_core.images.files import write_image

_INK, _FAINT, _GOOD, _BAD, _PAPER = (24, 26, 32), (150, 156, 166), (0, 128, 60), (190, 40, 30), (255, 255, 255)
_MET = {True: "yes", False: "no", None: ""}


def environment() -> dict[str, str | int]:
    """The machine and the versions that the figures were measured with."""
    return {
        **machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        **{name: version(name) for name in ("transformers", "onnxruntime")},
    }


def rates_of(device: str, dtype: torch.dtype) -> Rates:
    """Measure them on a device, in the number format of the models."""
    size = 8192 if device == "cuda" else 2048
    matrix, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    big, vector = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((4 * 11008, 4096), (4096,)))
    product, read = _best(lambda: matrix @ other), _best(lambda: big @ vector)
    return Rates(2 * size**3 / product, big.nbytes / read, str(dtype).removeprefix("torch."))


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        finish()
        began = time.perf_counter()
        work()
        finish()
        times.append(time.perf_counter() - began)
    return min(times)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| What | Model | Figure | Quartiles | n | Target | Met | Medians |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        figure = row.figure
        medians = ", ".join(f"{name} {_number(value)}{'' if 'MB' in name else ' s'}" for name, value in row.seconds.items())
        lines.append(
            f"| {row.what} | {row.subject} | {_number(figure.median)} | {_number(figure.low)} to {_number(figure.high)}"
            f" | {figure.count} | {_target(row)} | {_MET[row.met]} | {medians} |"
        )
    return "\n".join(lines)


def _target(row: Row) -> str:
    return "" if row.target is None else f"{'<=' if row.at_most else '>='} {row.target:g}"


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 or 0.99 < value < 1 else f"{value:.3g}"


def write(folder: Path, name: str, found: Findings) -> None:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.png`` into a folder.

    Args:
        folder: made if need be.
        name: of the run.
        found: by the benchmark.
    """
    record = {"written_by": "flmm bench", "machine": environment(), **asdict(found)}
    record["rows"] = [{**asdict(row), "met": row.met} for row in found.rows]
    write_text(folder / f"{name}.json", json.dumps(record, indent=2) + "\n")
    rates = found.rates
    parts = [
        f"# Benchmark: {name}",
        f"Written by `flmm bench --name {name}`. Ratios are medians over rounds in which all variants ran in turn."
        " Models that are described by their layers have random weights, which affect neither time nor memory.",
        table(found.rows),
        f"![Each figure against its target]({name}.png)",
        "## Floors",
        f"The machine computes {rates.flops / 1e12:.3g} TFLOP/s in a matrix product and reads {rates.bytes / 1e9:.3g} GB/s in a"
        f" matrix-vector product ({rates.dtype}, measured in the same run).",
        _listed(found.floors.items()),
        *(["## Not measured", "\n".join(f"- {line}" for line in found.missing)] if found.missing else []),
        "## Machine",
        _listed(environment().items()),
    ]
    write_text(folder / f"{name}.md", "\n\n".join(part for part in parts if part) + "\n")
    write_image(folder / f"{name}.png", np.asarray(chart([row for row in found.rows if row.target is not None])), "bench")


def _listed(pairs: Iterable[tuple[str, str | int]]) -> str:
    return "\n".join(f"- {what}: {value}" for what, value in pairs)


def chart(rows: Sequence[Row]) -> Image.Image:
    """One bar for each row with a target: how often it is met. What ends right of the line is met, whichever way it counts."""
    height, left, unit, width = 30, 720, 160, 1240
    sheet = Image.new("RGB", (width, 60 + height * len(rows)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    line = left + unit
    draw.text((line - 22, 12), "target", fill=_FAINT, font=font)
    for i, row in enumerate(rows):
        assert row.target is not None
        top, value = 44 + i * height, max(row.figure.median, 1e-9)
        label = f"{row.what} [{row.subject}]"
        while draw.textlength(label, font=font) > left - 20:
            label = label.removesuffix("...")[:-1] + "..."
        draw.text((10, top), label, fill=_INK, font=font)
        share = min(row.target / value if row.at_most else value / row.target, 2.0)
        end = left + max(2, int(unit * share))
        draw.rectangle((left, top + 2, end, top + 18), fill=_GOOD if row.met else _BAD)
        draw.text((end + 8, top), f"{_number(row.figure.median)} ({_target(row)})", fill=_INK, font=font)
    draw.line((line, 36, line, sheet.height - 8), fill=_FAINT, width=2)
    return sheet
