"""The benchmark's figures for people and programs: a table, JSON, and a chart."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from flmm_bench.rows import Row

_INK, _FAINT, _GOOD, _BAD, _PAPER = (24, 26, 32), (150, 156, 166), (0, 128, 60), (190, 40, 30), (255, 255, 255)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": cpu,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory": f"{memory:.0f} GiB",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("transformers", "onnxruntime")},
    }


def speed() -> dict[str, float]:
    """What the machine can do at most, measured: floors of times are counted from it.

    Returns:
        ``flops``: float32 operations a second in a large matrix product; ``bytes``: bytes a second that a matrix-vector
        product reads.
    """
    size = 2048
    matrix, other = torch.randn(size, size), torch.randn(size, size)
    big, vector = torch.randn(11008, 4096), torch.randn(4096)
    return {
        "flops": 2 * size**3 / _best(lambda: matrix @ other),
        "bytes": big.nbytes / _best(lambda: big @ vector),
    }


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| What | Model | Figure | Quartiles | n | Target | Met | Medians |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        figure, sign = row.figure, "<=" if row.at_most else ">="
        medians = ", ".join(f"{name} {_number(value)}{'' if 'MB' in name else ' s'}" for name, value in row.seconds.items())
        lines.append(
            f"| {row.what} | {row.subject} | {_number(figure.median)} | {_number(figure.low)} to {_number(figure.high)}"
            f" | {figure.count} | {sign} {row.target:g} | {'yes' if row.met else 'no'} | {medians} |"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 or 0.99 < value < 1 else f"{value:.3g}"


def write(folder: Path, name: str, rows: Sequence[Row], floors: dict[str, str], rates: dict[str, float]) -> None:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.png`` into a folder.

    Args:
        folder: made if need be.
        name: of the run.
        rows: of the benchmark.
        floors: what each time could be at least, in words.
        rates: of :func:`speed`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "rates": rates, "floors": floors, "rows": [{**asdict(row), "met": row.met} for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    where = "\n".join(f"- {what}: {value}" for what, value in machine().items())
    least = "\n".join(f"- {what}: {value}" for what, value in floors.items())
    text = (
        f"# Benchmark: {name}\n\nWritten by `flmm bench --name {name}`. Ratios are medians over rounds in which all variants"
        f" ran in turn.\n\n{table(rows)}\n\n![Each figure against its target]({name}.png)\n\n## Floors\n\nThe machine"
        f" computes {rates['flops'] / 1e9:.0f} GFLOP/s in a matrix product and reads {rates['bytes'] / 1e9:.1f} GB/s in a"
        f" matrix-vector product (float32, measured in the same run).\n\n{least}\n\n## Machine\n\n{where}\n"
    )
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    chart(rows).save(folder / f"{name}.png")


def chart(rows: Sequence[Row]) -> Image.Image:
    """One bar for each row, as a share of its target: what is to be small ends left of the line, what is to be large right."""
    height, left, width = 34, 560, 1160
    sheet = Image.new("RGB", (width, 60 + height * len(rows)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    line = left + 240
    draw.text((line - 22, 12), "target", fill=_FAINT, font=font)
    for i, row in enumerate(rows):
        top = 44 + i * height
        label = f"{row.what} [{row.subject}]"
        draw.text((10, top), label if len(label) < 76 else label[:73] + "...", fill=_INK, font=font)
        share = min(row.figure.median / row.target, 2.2)
        color = _GOOD if row.met else _BAD
        draw.rectangle((left, top + 2, left + max(2, int(240 * share)), top + 18), fill=color)
        sign = "<=" if row.at_most else ">="
        words = f"{_number(row.figure.median)} ({sign} {row.target:g})"
        draw.text((left + max(2, int(240 * share)) + 8, top), words, fill=_INK, font=font)
    draw.line((line, 36, line, sheet.height - 8), fill=_FAINT, width=2)
    return sheet
