"""Reads the documents: sections, tables, code blocks, links, commands, the file tree."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README, REFERENCE, CARD, CHANGELOG = "README.md", "docs/reference.md", "MODEL_CARD.md", "CHANGELOG.md"
REAL_MODELS, ARCHITECTURE = "docs/real_models.md", "docs/architecture.md"
DOCUMENTS = (
    README,
    CARD,
    "CONTRIBUTING.md",
    CHANGELOG,
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
)
PACKAGES = (
    "flmm_core",
    "flmm_tabletop",
    "flmm_ros",
    "flmm_sim",
    "flmm_fleet",
    "flmm_bench",
    "flmm_demo",
    "flmm_cli",
)


def document(name):
    return (ROOT / name).read_text(encoding="utf-8")


def section(text, *titles):
    """The lines under a heading, and under a heading below that one, up to the next of the same or a higher level."""
    for title in titles:
        found = re.search(rf"^(#+) {re.escape(title)}$", text, re.M)
        assert found, f"no heading {title!r}"
        text = text[found.end() :]
        end = re.search(rf"^#{{1,{len(found[1])}}} ", outside_code(text), re.M)
        text = text[: end.start()] if end else text
    return text


def outside_code(text):
    """The text with the insides of code blocks blanked, character for character."""
    return re.sub(r"^```.*?^```$", lambda block: re.sub(r"[^\n]", " ", block[0]), text, flags=re.M | re.S)


def tables(text):
    """Tables as lists of rows of cells, without their headers."""
    rows, found = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|\n").split("|")])
        elif rows:
            found.append(rows[2:])
            rows = []
    return found


def table(text, *titles):
    return tables(section(text, *titles))[0]


def code_blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def commands_in(name):
    """Lines of the shell blocks of a document as words, with continued lines joined and comments cut."""
    return commands(document(name))


def commands(text):
    """Those of a text; see :func:`commands_in`."""
    for block in code_blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def commands_in_docstring(path):
    """Indented lines of the docstring of a launch file or a script that begin with a program, as words."""
    for line in ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines():
        if re.match(r"    (ros2|flmm|python) ", line):
            yield shlex.split(line)


def links(name):
    """Targets of a document's links and images inside the repository, relative to the document."""
    targets = re.findall(r"\]\(([^)\s]+)\)", outside_code(document(name)))
    return [target for target in targets if not re.match(r"\w+://|mailto:", target)]


def linked(name, target):
    """The file that a link of a document leads to, as a path inside the repository, and the anchor there."""
    path, _, anchor = target.partition("#")
    file = (ROOT / name).parent / path if path else ROOT / name
    return file.resolve().relative_to(ROOT).as_posix(), anchor


def anchors(name):
    headings = re.findall(r"^#+ (.+)$", outside_code(document(name)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tracked():
    """Files of the repository; without git, those on disk."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]
    return [str(path.relative_to(ROOT)) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def loaded_script(name):
    """A module of scripts/, which is no package; it may import its neighbours."""
    if (folder := str(ROOT / "scripts")) not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
