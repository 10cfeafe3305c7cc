"""README, architecture, CITATION and CHANGELOG against the code, what holds for every document, and the site.

Light on purpose: no model is loaded, except by the test that runs README's examples.
"""

import argparse
import ast
import functools
import importlib.util
import io
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from documents import (
    ARCHITECTURE,
    CHANGELOG,
    DOCUMENTS,
    PACKAGES,
    README,
    REFERENCE,
    ROOT,
    anchors,
    code_blocks,
    commands_in,
    commands_in_docstring,
    document,
    linked,
    links,
    loaded_script,
    names,
    section,
    table,
    tables,
)


@pytest.fixture(scope="module")
def parser():
    from flmm_cli.main import declare

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise ValueError(message)

    parser = Parser(prog="flmm")
    declare(parser.add_subparsers(dest="command", required=True, parser_class=Parser))
    return parser


# --- every document -------------------------------------------------------------------------------------------------------


PROGRAMS = (*sorted((ROOT / "launch").glob("*.py")), *sorted((ROOT / "scripts").glob("*.py")))
"""Files whose docstrings show commands."""


def all_commands():
    """Where it stands, and the words of it: every command of the documents, and of the docstrings of :data:`PROGRAMS`."""
    for name in DOCUMENTS:
        yield from ((name, words) for words in commands_in(name))
    for path in PROGRAMS:
        yield from ((path.name, words) for words in commands_in_docstring(path))


@pytest.mark.parametrize("name", sorted({place for place, _ in all_commands()}))
def test_commands_can_be_typed(parser, name):
    for words in (words for place, words in all_commands() if place == name):
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
    """Parameters and remapped topics of nodes that are started from a shell block, launch files and executables."""
    known = {
        "-p": {names(row[0])[0] for rows in tables(section(document(REFERENCE), "Parameters")) for row in rows},
        "-r": {"image", "depth", "camera_info", "command", "phrase"},
        "--enclave": {"/grounding"},
    }
    for words in commands_in(name):
        if "--ros-args" in words:
            arguments = words[words.index("--ros-args") + 1 :]
            for flag, word in zip(arguments[::2], arguments[1::2], strict=True):
                assert word.split(":=")[0] in known[flag], word
        if words[:3] == ["ros2", "run", "flmm_ros"]:
            assert (ROOT / "scripts" / words[3]).is_file(), words
        if words[:3] == ["ros2", "launch", "flmm_ros"]:
            assert (ROOT / "launch" / words[3]).is_file(), words


def test_programs_of_the_repository_exist():
    """Scripts with their options, modules, files of tests, extras of ``pip install``."""
    for place, words in all_commands():
        if words[0].endswith(("python", "python3")) and words[1].startswith("scripts/"):
            text = (ROOT / words[1]).read_text(encoding="utf-8")
            assert all(f'"{word}"' in text for word in words if word.startswith("--")), (place, words)
        elif words[0].endswith(("python", "torchrun")) and "-m" in words:
            assert is_module(words[words.index("-m") + 1]), (place, words)
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), (place, words)
        if words[:2] == ["pip", "install"]:
            extras = re.findall(r"^optional-dependencies\.(\w+) ", (ROOT / "pyproject.toml").read_text(), re.M)
            assert set(re.search(r"\[(.*)\]", words[2])[1].split(",")) <= set(extras), (place, words)


def test_measured_by_commands_that_can_be_typed(parser):
    """``Measured by `flmm ...` ``, outside shell blocks."""
    said = [text for name in DOCUMENTS for text in re.findall(r"easured by `flmm ([^`]+)`", document(name))]
    assert said
    for text in said:
        parser.parse_args(shlex.split(text))


def test_ros_commands_can_be_typed():
    from test_reference import launch_arguments

    seen = set()
    for place, words in all_commands():
        if words[0] != "ros2":
            continue
        seen.add(words[1])
        if words[1:3] == ["launch", "flmm_ros"]:
            known = launch_arguments(words[3]) | launch_arguments("grounding.launch.py")
            assert {word.split(":=")[0] for word in words[4:] if word != "--show-args"} <= known, (place, words)
        if words[1] == "topic":
            assert words[2:4] == ["pub", "--once"] and isinstance(yaml.safe_load(words[6]), dict), (place, words)
    assert {"launch", "topic", "run", "lifecycle", "security"} <= seen


def test_the_parameter_file_names_arguments_that_exist():
    from test_reference import launch_arguments

    comments = re.findall(r"^#.*", (ROOT / "config" / "grounding.yaml").read_text(encoding="utf-8"), re.M)
    said = set(re.findall(r"(\w+):=", " ".join(comments)))
    assert said and said <= launch_arguments("grounding.launch.py")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {words[1] for words in commands_in(name) if words[0] == "make"} <= set(targets)


@pytest.mark.parametrize(("name", "target"), [(name, target) for name in DOCUMENTS for target in links(name)])
def test_link(name, target):
    path, anchor = linked(name, target)
    assert (ROOT / path).exists(), f"no {path}"
    if anchor:
        assert anchor in anchors(path), f"no heading for #{anchor} in {path}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_paths_of_a_machine(name):
    assert not re.findall(r"(?:/home/|/root/|/work/|/tmp/|/Users/)\S*", document(name))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_are_whole(name):
    """Every row of a table has as many cells as its header."""
    header = 0
    for number, line in enumerate(document(name).splitlines(), start=1):
        cells = line.count("|") - 1 if line.startswith("|") else 0
        assert not (header and cells) or cells == header, f"{name}:{number}: expected {header} cells, got {cells}"
        header = cells


def test_files_in_running_text_exist():
    """`flmm_core/config.py` and the like, in all documents but the changelog."""
    said = {
        path
        for name in DOCUMENTS
        if name != CHANGELOG
        for path in re.findall(r"`((?:flmm_\w+|tests|scripts)/[\w/.]+\.py)", document(name))
    }
    assert said
    assert not [path for path in said if not (ROOT / path).is_file()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_snippets_compile(name):
    for block in code_blocks(document(name), "python"):
        for node in ast.walk(compile(block, name, "exec", flags=ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.ImportFrom):
                assert is_module(node.module), node.module
            elif isinstance(node, ast.Import):
                assert all(is_module(alias.name) for alias in node.names), ast.unparse(node)


def is_module(name):
    """One of the repository's or an installed one; of the generated messages there may be the definitions alone."""
    path = ROOT / name.replace(".", "/")
    if path.parent == ROOT / "flmm_ros" and path.name in ("msg", "action"):
        return (ROOT / path.name).is_dir()
    if not (ROOT / name.split(".")[0]).is_dir():
        return importlib.util.find_spec(name.split(".")[0]) is not None
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


# --- commands that are run ------------------------------------------------------------------------------------------------

NOT_RUN = {
    "sets up a shell, or builds": r"(source|export|\w+=|python3 -m venv|make|rosdep|colcon|\.ci/run)",
    "changes the system": "sudo",
    "needs a network": r"(pip|python -m pip|wget|hf|curl)|.*(llava|Qwen|bert-base|\$LMM|path/to/lmm)",
    "needs a ROS 2 distribution": "ros2",
    "takes longer than 20 s": r"torchrun|flmm train|.*(flmm eval tabletop|flmm attention|measure_other_words|pytest)",
    "tests/ros/test_commands.py runs it": r"python -m flmm_ros.grounding_node|flmm (ask|run)",
    "tests/ros/test_voice.py runs it": r"python -m flmm_ros.voice_node",
    "tests/test_chat_page.py opens the page": r"flmm chat .*--web",
    "tests/test_figures.py compares what it writes": r".*write_figures",
    "tests/test_golden.py runs it": r".*verification.verify",
}
"""Commands of shell blocks that are not run here, by the reason."""


@pytest.fixture
def data_sets(monkeypatch, tmp_path):
    """A folder with what the commands read: small data sets in their layouts, an image. One model for all commands."""
    import tiny_public_data as tiny

    from flmm_core.pipeline import GroundingPipeline

    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    for write in (tiny.write_refcoco, tiny.write_grefcoco, tiny.write_png, tiny.write_reasonseg, tiny.write_viscot):
        write(data)
    (data / "viscot/benchmark/gqa.json").rename(data / "viscot/benchmark/docvqa.json")
    tiny.write_image(tmp_path / "picture.png")
    monkeypatch.setattr(GroundingPipeline, "from_config", functools.cache(GroundingPipeline.from_config))
    monkeypatch.setattr("sys.stdin", io.StringIO("what is on the table?\n"))
    return data


@pytest.mark.slow
def test_commands_run(data_sets, capsys, open_renderer):
    """Those that need neither a network nor a GPU nor a ROS 2 distribution, and less than 20 s; of two images each."""
    from flmm_cli.main import main

    open_renderer(32, 32).close()
    waiting = [words for name in DOCUMENTS for words in commands_in(name)]
    for reason in NOT_RUN.values():
        left = [words for words in waiting if not re.match(reason, " ".join(words))]
        assert len(left) < len(waiting), f"no command is {reason}"
        waiting = left
    order = ["convert-data", "scenes", "write_published_layouts"]  # what others read
    waiting.sort(key=lambda words: next((i for i, name in enumerate(order) if name in " ".join(words)), len(order)))
    kinds = set()
    for words in waiting:
        if "--count" in words:
            words[words.index("--count") + 1] = "2"
        if words[0] == "flmm":
            status = main(words[1:])
        else:
            path = str(ROOT / words[1])
            status = subprocess.run([sys.executable, path, *words[2:]], capture_output=True, text=True).returncode
        printed = capsys.readouterr()
        kinds.add(words[1])
        assert status == 0, f"{shlex.join(words)}\n{printed.out}{printed.err}"
    assert kinds == {"convert-data", "scenes", "data", "eval", "chat", "scripts/write_published_layouts.py"}


# --- README ---------------------------------------------------------------------------------------------------------------


def test_families():
    from flmm_core.families import FAMILIES

    assert [name for row in table(document(README), "Use a real LMM") for name in names(row[1])] == list(FAMILIES)


@pytest.mark.slow
def test_library_example_runs(capsys):
    from flmm_sim.offscreen import RenderingUnavailableError

    (library,) = code_blocks(section(document(README), "Library"), "python")
    try:
        exec(compile(library, README, "exec"), {})
    except RenderingUnavailableError as error:
        pytest.skip(str(error))
    *phrases, given = capsys.readouterr().out.splitlines()
    assert len(phrases) >= 2 and re.fullmatch(r"\[[-\d. ]+\]", phrases[1]), phrases
    assert "not there" in given and "(" in given


def test_topics_of_the_diagram():
    """README draws them as Mermaid, the site as SVG; the reference has them all."""
    (diagram,) = code_blocks(document(README), "mermaid")
    drawn = {topic for label in re.findall(r'-- "([^"]+)" -->', diagram) for topic in label.split(", ")}
    known = {names(row[0])[0] for row in table(document(REFERENCE), "Topics", "grounding_node")} | {"action ~/ground"}
    texts = re.findall(r">([^<>]+)</text>", document("docs/images/nodes.svg"))
    assert drawn == {topic for text in texts for topic in text.split(", ")} & known


# --- architecture ---------------------------------------------------------------------------------------------------------


def test_rooms_in_their_order():
    """The page, the file tree and the imports agree."""
    from test_structure import file_imports, room_imports

    rooms = loaded_script("write_file_tree").ROOMS
    core, _ = tables(section(document(ARCHITECTURE), "Layers"))
    assert tuple(names(row[0])[0] for row in core) == rooms
    order = {f"flmm_core.{name.removesuffix('.py')}": number for number, name in enumerate(rooms)}
    graph = room_imports(file_imports(ROOT, ("flmm_core",)))
    graph.pop("flmm_core", None)
    wrong = {(room, other) for room, others in graph.items() for other in others if order[other] > order[room]}
    assert not wrong


def test_structure_point_down_in_the_drawing():
    """Down, or to the right within a row."""
    from test_structure import file_imports, room_imports

    found = re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)"[^>]*font-weight="600"[^>]*>([\w.]+)<', document("docs/images/architecture.svg")
    )
    boxes = re.findall(r'<rect x="(\d+)" y="(\d+)"', document("docs/images/architecture.svg"))
    place = {name.removesuffix(".py"): (int(y), int(x)) for (x, y), (*_, name) in zip(boxes, found, strict=True)}
    graph = file_imports(ROOT)
    rooms = {key: others for key, others in room_imports(graph).items() if key.startswith("flmm_core.")}
    arrows = {(room.split(".")[1], other.split(".")[1]) for room, others in rooms.items() for other in others}
    packages = {(key.split(".")[0], other.split(".")[0]) for key, others in graph.items() for other in others}
    arrows |= {(one, other) for one, other in packages if other not in (one, "flmm_core")}
    assert not {(one, other) for one, other in arrows if place[one] >= place[other]}


def test_packages_of_the_page():
    _, above = tables(section(document(ARCHITECTURE), "Layers"))
    assert {"flmm_core", *(names(row[0])[0] for row in above)} == set(PACKAGES)


# --- the site -------------------------------------------------------------------------------------------------------------


def navigation():
    """Pages in the order of mkdocs.yml."""
    waiting, pages = [yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]], []
    while waiting:
        entry = waiting.pop(0)
        if isinstance(entry, str):
            pages.append(entry)
        else:
            waiting = [*(entry.values() if isinstance(entry, dict) else entry), *waiting]
    return pages


def test_navigation_has_every_document():
    inside = {name.removeprefix("docs/") for name in DOCUMENTS if name.startswith("docs/")}
    outside = {"index.md" if name == README else name.lower() for name in DOCUMENTS if not name.startswith("docs/")}
    assert {page for page in navigation() if not page.startswith("api/")} == inside | outside


def test_navigation_has_every_room():
    rooms = [f"flmm_core.{name.removesuffix('.py')}" for name in loaded_script("write_file_tree").ROOMS]
    modules = {page.removeprefix("api/").removesuffix(".md") for page in navigation() if page.startswith("api/")}
    assert modules == {*rooms, "flmm_tabletop", "flmm_ros.client"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="no mkdocs: run `make docs` once, which installs it")
def test_site_opens_without_a_network(tmp_path):
    """Built strictly: a link to nothing ends it. No page loads anything from elsewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(pages) > len(navigation())
    loaded = re.compile(r"<(?:script|link|img|iframe|source|video)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    assert not [(path.name, found) for path, text in pages.items() for found in loaded.findall(text)]
    styles = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css")]
    assert styles and not [style for style in styles if re.search(r"url\([\"']?(?:https?:)?//|@import", style)]
    assert 'class="mermaid"' not in "".join(pages.values()), "the theme would load Mermaid from elsewhere to draw this"


# --- CHANGELOG, citation, licence -----------------------------------------------------------------------------------------


def test_changelog_has_the_version():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    assert f"## [{version}] - " in document(CHANGELOG)
    assert f"<version>{version}</version>" in (ROOT / "package.xml").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == version
    assert f"## [{version}] - {citation['date-released']}" in document(CHANGELOG)
    assert citation["references"][0]["url"].endswith("2406.05821")


def test_licence():
    text = document("LICENSE")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "Copyright 2026 flmm_ros contributors" in text
