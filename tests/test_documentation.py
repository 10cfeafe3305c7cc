"""The documents against the code: tables, file tree, links, commands, snippets and figures.

Light on purpose: no model is loaded, except where the shipped one is there to run README's library example.
"""

import argparse
import ast
import importlib
import json
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from flmm_core.config import tunables

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "MODEL_CARD.md", "CONTRIBUTING.md", "CHANGELOG.md")
PACKAGES = ("flmm_core", "flmm_ros", "flmm_sim", "flmm_cli")
REPORT = ROOT / "docs" / "eval_tabletop.json"
"""Written by ``flmm eval tabletop --out``; the figures in the documents are its figures."""

PENDING = {
    "docs/images/demo_overlay.png": "drawn by the demo of the shipped model",
    "docs/images/attention.png": "drawn by `flmm attention` with the shipped model",
    "flmm_core/models": "the weights come from training",
    "docs": "holds what the two pictures above and the evaluation leave",
}
"""What the documents name before it is there. Remove an entry once its file is committed: a missing file then fails."""


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


def tracked():
    """Files of the repository; without git, those on disk."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]
    return [str(path.relative_to(ROOT)) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def must_exist(path):
    if not (ROOT / path).exists() and path in PENDING:
        pytest.skip(f"{path} is not there yet: {PENDING[path]}")
    assert (ROOT / path).exists(), f"no {path}"


# --- topics ---------------------------------------------------------------------------------------------------------------


def topics(module):
    """``{(name, direction, type)}`` of every publisher and subscription that a node makes, read from its source."""
    tree = ast.parse((ROOT / "flmm_ros" / f"{module}.py").read_text(encoding="utf-8"))
    types = {
        alias.asname or alias.name: f"{node.module.split('.')[0]}/{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.endswith(".msg")
        for alias in node.names
    }
    found = set()
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or len(call.args) < 2:
            continue
        method, (kind, topic) = call.func.attr, call.args[:2]
        direction = {"create_publisher": "out", "create_subscription": "in", "_subscribe": "in"}.get(method)
        if direction and isinstance(kind, ast.Name) and isinstance(topic, ast.Constant):
            found.add((topic.value, direction, types[kind.id]))
    return found


@pytest.mark.parametrize("node", ["grounding", "camera"])
def test_topics(node):
    rows = table(document("README.md"), "Topics", f"{node}_node")
    documented = {(names(name)[0], direction, names(kind)[0]) for name, direction, kind, _ in rows}
    assert topics(node)
    assert documented == topics(node)


def test_encodings():
    conversions = pytest.importorskip("flmm_ros.conversions")
    sentence = re.search(r"Encodings that `image` may have:(.*?)\.\n", document("README.md"), re.S)
    assert tuple(names(sentence[1])) == conversions.SUPPORTED_ENCODINGS


# --- parameters -----------------------------------------------------------------------------------------------------------


def parameter_row(entry, live):
    if entry.type is bool:
        default = str(entry.default).lower()
    else:
        default = f"{entry.default:g}" if entry.type is float else str(entry.default) or "''"
    allowed = ", ".join(entry.choices)
    if entry.minimum is not None:
        number = "{:g}" if entry.type is float else "{}"
        allowed = f"{number.format(entry.minimum)} to {number.format(entry.maximum)} {entry.unit}".strip()
    return [f"`{entry.name}`", entry.type.__name__, f"`{default}`", allowed, "yes" if live else "no"]


def test_parameters_of_the_grounding_node():
    parameters = pytest.importorskip("flmm_ros.parameters")
    entries = (*tunables(), *parameters.NODE_TUNABLES)
    rows = table(document("README.md"), "Parameters", "grounding_node")
    assert [row[:5] for row in rows] == [parameter_row(entry, entry.name in parameters.CHANGEABLE) for entry in entries]
    assert all(row[5] for row in rows)


def test_parameters_of_the_camera():
    camera = pytest.importorskip("flmm_ros.camera")
    rows = table(document("README.md"), "Parameters", "camera_node")
    assert [row[:5] for row in rows] == [parameter_row(entry, entry.name == "seed") for entry in camera.CAMERA_TUNABLES]


def test_launch_arguments():
    rows = {names(row[0])[0]: set(names(row[2])) for row in table(document("README.md"), "Quick tour", "ROS", "Launch files")}
    assert set(rows) == {path.name for path in (ROOT / "launch").glob("*.launch.py")}
    own = {name: launch_arguments(name) for name in rows}
    assert rows["grounding.launch.py"] == own["grounding.launch.py"]
    assert rows["demo.launch.py"] == own["demo.launch.py"] | {"grounding.launch.py", "image"}


def launch_arguments(name):
    """Arguments that a launch file declares: literal names, and the keys of its tables of arguments."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "launch" / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DeclareLaunchArgument":
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").endswith("_ARGUMENTS"):
            found |= set(ast.literal_eval(node.value))
    return found


# --- messages -------------------------------------------------------------------------------------------------------------


def message_entries(path):
    """Fields and constants of a message file."""
    fields, constants = [], {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split("#")[0].split()
        if len(words) == 2 and "=" in words[1]:
            name, value = words[1].split("=")
            constants[name] = int(value)
        elif len(words) == 2:
            fields.append(words[1])
    return fields, constants


def test_messages():
    fields, statuses = tables(section(document("README.md"), "Messages"))
    documented = {re.search(r"\(msg/(\w+)\.msg\)", row[0])[1]: names(row[1]) for row in fields}
    assert documented == {path.stem: message_entries(path)[0] for path in sorted((ROOT / "msg").glob("*.msg"))}
    constants = message_entries(ROOT / "msg" / "GroundedAnswer.msg")[1]
    expected = {name: value for name, value in constants.items() if name.startswith("STATUS_")}
    assert {names(name)[0]: int(value) for name, value, _ in statuses} == expected


# --- commands -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parser():
    from flmm_cli.main import COMMANDS

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise ValueError(message)

    parser = Parser(prog="flmm")
    subparsers = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name in COMMANDS:
        importlib.import_module(f"flmm_cli.{name}").add_parser(subparsers)
    return parser


def commands_in(name):
    """Lines of the shell blocks of a document, with continued lines joined and comments cut."""
    for block in code_blocks(document(name), "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def test_command_table(parser):
    from flmm_cli.main import COMMANDS

    rows = table(document("README.md"), "Quick tour", "Command line")
    assert [names(row[0])[0] for row in rows] == [f"flmm {name.replace('_', '-')}" for name in COMMANDS]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_can_be_typed(parser, name):
    for words in commands_in(name):
        if words[0].removeprefix(".venv/bin/") == "flmm":
            try:
                parser.parse_args(words[1:])
            except ValueError as error:
                pytest.fail(f"{shlex.join(words)}: {error}")


def test_options_in_the_text(parser):
    """Options that are named in running text exist in some command."""
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    waiting, known = list(subparsers.choices.values()), {"--traceback", "--params-file"}
    while waiting:
        for action in waiting.pop()._actions:
            known |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
    said = {option for name in DOCUMENTS for option in re.findall(r"`(?:flmm [\w -]*)?(--[\w-]+)", document(name))}
    assert said and said <= known, said - known


@pytest.mark.parametrize("name", DOCUMENTS)
def test_ros_commands_name_what_exists(name):
    """Parameters and remapped topics of nodes that are started from a shell block."""
    parameters = {entry.name for entry in tunables()}
    inputs = {topic for topic, direction, _ in topics("grounding") if direction == "in"}
    for words in commands_in(name):
        ros_arguments = words[words.index("--ros-args") :] if "--ros-args" in words else []
        for flag, word in pairwise(ros_arguments):
            if flag == "-p":
                assert word.split(":=")[0] in parameters, word
            if flag == "-r":
                assert word.split(":=")[0] in inputs, word
        if "flmm_ros" in words and words[:2] == ["ros2", "run"]:
            assert (ROOT / "scripts" / words[3]).is_file(), words
        if "flmm_ros" in words and words[:2] == ["ros2", "launch"]:
            assert (ROOT / "launch" / words[3]).is_file(), words


def test_make_targets():
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    documented = [names(row[0])[0].removeprefix("make ") for row in table(document("README.md"), "Two commands")]
    assert sorted(documented) == sorted(targets)
    used = {words[1] for name in DOCUMENTS for words in commands_in(name) if words[0] == "make"}
    assert used <= set(targets)


# --- files ----------------------------------------------------------------------------------------------------------------


def tree_entries():
    """Paths of README's file tree, in its order."""
    parents, paths = [], []
    for line in code_blocks(section(document("README.md"), "File tree"), "text")[0].splitlines():
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        parents = [*parents[:depth], entry]
        paths.append("".join(parents))
    return paths


@pytest.mark.parametrize("path", tree_entries())
def test_tree_entry_exists(path):
    must_exist(path.rstrip("/"))
    assert (ROOT / path).is_dir() == path.endswith("/"), path


def test_tree_is_complete():
    entries = tree_entries()
    assert len(set(entries)) == len(entries)
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked()}
    assert not sorted(top - set(entries)), "top-level entries missing in README's file tree"
    modules = {path for path in tracked() if path.split("/")[0] in PACKAGES and path.endswith(".py")}
    missing = {path for path in modules if Path(path).name != "__init__.py"} - set(entries)
    assert not sorted(missing), "modules missing in README's file tree"


def test_tree_has_notes():
    lines = code_blocks(section(document("README.md"), "File tree"), "text")[0].splitlines()
    assert not [line for line in lines if len(line.split()) < 2]


def links(name):
    return [
        (name, target)
        for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(document(name)))
        if not re.match(r"\w+://|mailto:", target)
    ]


def anchors(name):
    headings = re.findall(r"^#+ (.+)$", outside_code(document(name)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("name", "target"), [link for name in DOCUMENTS for link in links(name)])
def test_link(name, target):
    path, _, anchor = target.partition("#")
    must_exist(path or name)
    if anchor:
        assert anchor in anchors(path or name), f"no heading for #{anchor} in {path or name}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_paths_of_a_machine(name):
    assert not re.findall(r"(?:/home/|/root/|/work/|/tmp/|/Users/)\S*", document(name))


def test_files_in_running_text_exist():
    """`flmm_core/config.py` and the like, in all documents but the changelog."""
    said = {path for name in DOCUMENTS[:-1] for path in re.findall(r"`((?:flmm_\w+|tests)/[\w/.]+\.py)", document(name))}
    assert said
    assert not [path for path in said if not (ROOT / path).is_file()]


# --- python, figures, data, licence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_snippets_compile(name):
    for block in code_blocks(document(name), "python"):
        for node in ast.walk(compile(block, name, "exec", flags=ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.ImportFrom):
                assert (ROOT / node.module.replace(".", "/")).with_suffix(".py").is_file(), node.module


@pytest.mark.slow
def test_library_example_runs(capsys):
    if not (ROOT / "flmm_core" / "models" / "flmm-tabletop").is_dir():
        pytest.skip("the shipped model is not there yet")
    from flmm_sim.offscreen import RenderingUnavailableError

    block = code_blocks(section(document("README.md"), "Quick tour", "Library"), "python")[0]
    try:
        exec(compile(block, "README.md", "exec"), {})
    except RenderingUnavailableError as error:
        pytest.skip(str(error))
    assert capsys.readouterr().out.strip()


def figures(name):
    blocks = re.findall(r"<!-- figures:begin -->(.*?)<!-- figures:end -->", document(name), re.S)
    assert len(blocks) == 1, f"expected one block of figures in {name}"
    return {label: cells for label, *cells in tables(blocks[0])[0]}


def test_figures_agree_between_the_documents():
    card, readme = figures("MODEL_CARD.md"), figures("README.md")
    assert {label: card.get(label) for label in readme} == readme


def test_figures_are_those_of_the_evaluation():
    language = pytest.importorskip("flmm_sim.language")
    card = figures("MODEL_CARD.md")
    kinds = [label.removeprefix("right answers: ") for label in card if label.startswith("right answers: ")]
    assert kinds == [*language.QUESTION_KINDS, "all"]
    if not REPORT.exists():
        assert not [label for label, cells in card.items() if cells != ["…"] * 3], f"figures without {REPORT.name}"
        pytest.skip(f"no {REPORT.name} yet: `flmm eval tabletop --out docs/{REPORT.name}` writes it")
    assert card == report_figures(json.loads(REPORT.read_text(encoding="utf-8")))


def report_figures(report):
    """Rows as `flmm eval tabletop` prints them, from the JSON file that it writes."""
    rows = {f"right answers: {kind}": figure for kind, figure in report["answers"].items()}
    rows["absence: no mask"] = report["absence_without_phrase"]
    masks = {"chat, all answers": report["chat_masks"], "chat, right answers": report["chat_masks_right"]}
    masks |= {f"refer, {name}": own for name, own in report["refer_masks"].items()}
    for name, own in masks.items():
        for measure in ("cIoU", "mIoU"):
            for stage, title in (("coarse", "U-Net"), ("refined", "SAM")):
                rows[f"{name}: {measure}, {title}"] = own[f"{stage}_{measure.lower()}"]
    for name, own in (("selector", report["selector"]), ("noun chunks", report["chunks"])):
        rows |= {f"{name}: F1 of {unit}": own[unit] for unit in ("phrases", "words")}
    return {
        label: [f"{figure['value']:.3f}", f"{figure['low']:.3f} to {figure['high']:.3f}", str(figure["count"])]
        for label, figure in rows.items()
    }


def test_the_card_knows_the_simulated_world():
    scene = importlib.import_module("flmm_sim.scene")
    rows = {row[0]: row[1] for row in table(document("MODEL_CARD.md"), "Data")}
    assert rows[f"Kinds ({len(scene.KINDS)})"] == ", ".join(scene.KINDS)
    assert rows[f"Colours ({len(scene.COLORS)})"].split(";")[0] == ", ".join(scene.COLORS)
    language = pytest.importorskip("flmm_sim.language")
    assert rows["Questions"].split(";")[0] == ", ".join(language.QUESTION_KINDS)


def test_the_card_knows_the_defaults_of_training():
    rows = tables(section(document("MODEL_CARD.md"), "Training"))[1]
    for row, stage in zip(rows, ("tower", "lmm", "sam", "heads"), strict=True):
        defaults = importlib.import_module(f"flmm_cli.train_{stage}").STAGE
        batch = next(option.default for option in defaults.options if option.name == "batch")
        assert int(row[1]) == defaults.steps
        assert row[2] == f"{batch} pictures"
        assert (float(row[3]), float(row[4])) == (defaults.learning_rate, defaults.weight_decay), stage


def test_changelog_has_the_version():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    assert f"## [{version}] - " in document("CHANGELOG.md")
    assert f"<version>{version}</version>" in (ROOT / "package.xml").read_text(encoding="utf-8")


def test_licence():
    text = document("LICENSE")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "Copyright 2026 flmm_ros contributors" in text
