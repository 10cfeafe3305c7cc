"""Writes the file tree of docs/reference.md: what each file is for, in the first sentence of its own docstring."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "reference.md"
BEGIN, END = "<!-- file tree -->\n", "<!-- end of file tree -->"
WIDTH = 30
"""Columns of the names."""

PACKAGES = ("flmm_core", "flmm_tabletop", "flmm_sim", "flmm_ros", "flmm_fleet", "flmm_bench", "flmm_demo", "flmm_cli")
"""From the bottom up: each imports only those before it."""
ROOMS = (
    "errors.py", "types.py", "config.py", "common", "images", "weights", "sam", "families", "lmm", "keywords", "heads",
    "engines", "loading", "requests", "pipeline.py", "chat", "spatial", "verification", "data", "drawing", "evaluation",
    "training", "serving",
)  # fmt: skip
"""The folders of flmm_core in the order of the method, from the bottom up."""
OTHERS = {
    "flmm_ros/fastdds.xml": "Shared memory for large images in Fast DDS.",
    "flmm_tabletop/model/": "The shipped weights.",
    "launch/": "grounding.launch.py, demo.launch.py",
    "foxglove/": "grounding.json: a layout of Foxglove for the node and for bags",
    "security/": "policy.xml: what each node may do under SROS 2",
    "config/": "grounding.yaml: every parameter with its default",
    "rviz/": "grounding.rviz: overlay, label mask, points and markers",
    "action/": "Ground",
    "msg/": "GroundedAnswer and what is in it; Watch, NodeStatus",
    "scripts/": "Set-up, measurements and figures of the documents, and the executables that colcon installs",
    "cmake/": "A repair of imported targets of message packages",
    "docs/": "The documents, their images and measured figures",
    "tests/": "Tests of everything, and of these documents; tests/ros: over a real ROS graph",
    ".ci/": "run: lint and tests, as one command",
    "CMakeLists.txt": "The ament_cmake package: messages, Python packages, executables",
    "package.xml": "Its dependencies",
    "pyproject.toml": "The Python packages and their extras, ruff, mypy, pytest",
    "setup.py": "For tools that still call it",
    "requirements.txt": "What a robot needs; requirements-NAME.txt: what the extra NAME adds",
    "requirements-dev.txt": "What tests and lint need",
    "requirements-ros.txt": "ROS 2 and cv_bridge from wheels",
    "requirements-docs.txt": "What the site of `make docs` needs",
    "Makefile": "The make targets",
    "mkdocs.yml": "The site of `make docs`: its pages and their order",
    "CITATION.cff": "How to cite the project and the paper of the method",
    "MODEL_CARD.md": "flmm-tabletop: what it is, how it was trained, what it can do",
    "CONTRIBUTING.md": "Set-up, checks, rules",
    "CHANGELOG.md": "What changed",
    "LICENSE": "Apache-2.0",
    "README.md": "What the project is for, and how to begin",
    ".gitignore": "What is not tracked",
}
"""What has no docstring."""


def main() -> None:
    """Write the tree into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(with_tree(text), encoding="utf-8")


def with_tree(text: str) -> str:
    """The document with the tree as it is to be."""
    before, _, rest = text.partition(BEGIN)
    if not rest or END not in rest:
        sys.exit(f"{DOCUMENT}: expected {BEGIN.strip()!r} and {END!r}, got a document without them")
    return before + BEGIN + "\n```text\n" + "\n".join(lines()) + "\n```\n\n" + END + rest.partition(END)[2]


def lines() -> Iterator[str]:
    """Lines of the tree."""
    for package in PACKAGES:
        yield from _folder(ROOT / package, 0)
    for name, note in OTHERS.items():
        if "/" not in name.rstrip("/"):
            yield _line(0, name, note)


def _folder(folder: Path, depth: int) -> Iterator[str]:
    yield _line(depth, folder.name + "/", _note(folder / "__init__.py"))
    entries = [path for path in folder.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"]
    entries = [path for path in entries if path.name != "__init__.py"]
    for path in sorted(entries, key=lambda path: (_place(path), path.is_dir(), path.name)):
        if path.is_dir():
            yield from _folder(path, depth + 1)
        else:
            yield _line(depth + 1, path.name, _note(path))
    for name, note in OTHERS.items():
        if name.startswith(f"{folder.relative_to(ROOT)}/"):
            yield _line(depth + 1, name.removeprefix(f"{folder.relative_to(ROOT)}/"), note)


def _place(path: Path) -> int:
    return ROOMS.index(path.name) if path.parent.name == "flmm_core" else 0


def _line(depth: int, name: str, note: str) -> str:
    return f"{'  ' * depth + name:<{WIDTH}}{note}"


def _note(path: Path) -> str:
    """First sentence of a module's docstring, without what it is to the method behind a colon."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        sys.exit(f"{path}: expected a docstring, got none")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0].rstrip(".")


if __name__ == "__main__":
    main()
