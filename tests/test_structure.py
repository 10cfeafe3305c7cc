"""The structure of the code: imports point one way, files and functions are small, and the root of the core stays as it is.

Imports for typing count, and so do those inside functions.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("flmm_core", "flmm_tabletop", "flmm_ros", "flmm_sim", "flmm_cli", "flmm_bench", "flmm_fleet", "flmm_demo")


def modules(root: Path, packages: tuple[str, ...] = PACKAGES) -> dict[str, Path]:
    paths = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def file_imports(root: Path, packages: tuple[str, ...] = PACKAGES) -> dict[str, set[str]]:
    """Of each module of the packages, the modules of theirs that it imports."""
    known = modules(root, packages)
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        graph[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[module] |= {alias.name for alias in node.names} & known.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[module] |= names & known.keys()
                if not names <= known.keys():
                    graph[module] |= {node.module} & known.keys()
    return graph


def room(module: str) -> str:
    """The folder of a module below its package; files at a package's root stand for themselves."""
    parts = module.split(".")
    return ".".join(parts[:2])


def room_imports(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        others = {room(other) for other in imported} - {room(module)}
        rooms.setdefault(room(module), set()).update(others)
    return rooms


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of a graph; empty if it has none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_files_have_no_cycle():
    assert cycle(file_imports(ROOT)) == []


def test_folders_have_no_cycle():
    assert cycle(room_imports(file_imports(ROOT))) == []


@pytest.mark.parametrize("typing_only", [False, True])
def test_a_cycle_is_found(tmp_path: Path, typing_only: bool):
    """The check itself: two folders whose files do not import each other in a circle, but the folders do."""
    back = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    " if typing_only else ""
    for name, text in {
        "one/a.py": "from pkg.two.b import x\n",
        "one/c.py": "",
        "two/b.py": "x = 1\n",
        "two/d.py": back + "from pkg.one import c\n",
    }.items():
        path = tmp_path / "pkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = file_imports(tmp_path, ("pkg",))
    assert cycle(graph) == []
    assert set(cycle(room_imports(graph))) == {"pkg.one", "pkg.two"}


def sources():
    """All Python files of the project but its tests."""
    return [*modules(ROOT).values(), *sorted((ROOT / "scripts").glob("*.py")), *sorted((ROOT / "launch").glob("*.py"))]


def test_files_and_functions_are_small():
    """At most 300 lines a file and 50 a function; the path from image to masks fits on one screen."""
    long = {path for path in sources() if len(path.read_text(encoding="utf-8").splitlines()) > 300}
    assert not long
    assert len((ROOT / "flmm_core" / "pipeline.py").read_text(encoding="utf-8").splitlines()) <= 200
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def test_the_root_of_the_core_stays_small():
    """Everything else has a folder that names a stage of the method or what it serves."""
    loose = {path.name for path in (ROOT / "flmm_core").glob("*.py")}
    assert loose == {"__init__.py", "config.py", "errors.py", "pipeline.py", "types.py"}
