"""Hook of mkdocs.yml: adds to the site of `make docs` what lies outside docs/, and points links there.

- README.md becomes the home page; MODEL_CARD.md, CONTRIBUTING.md and CHANGELOG.md become pages.
- Each entry ``api/MODULE.md`` of the navigation becomes a page with the docstrings of that module.
- Other files that a document links to, such as message definitions, are copied as text.

The diagram of README.md is Mermaid, which code hosts draw; browsers would have to load a program for it, so the site shows the
drawing ``docs/images/nodes.svg`` in its place.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "MODEL_CARD.md": "model_card.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Documents outside docs/, and their pages."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
"""Target of a Markdown link to a file, without its anchor."""
MERMAID = re.compile(r"^```mermaid\n.*?^```$", re.M | re.S)
ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
"""Sphinx's notation for a name in a docstring."""


class PlainRoles(griffe.Extension):
    """Shows names that docstrings write as ``:class:`~package.module.Name``` as plain code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value).replace("``", "`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/ and the files that documents link to."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for page in re.findall(r"api/[\w.]+\.md", Path(config.config_file_path).read_text(encoding="utf-8")):
        files.append(File.generated(config, page, content=_api_page(page.removeprefix("api/").removesuffix(".md"))))
    documents = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages() if file.generated_by is None)]
    for name in documents:
        for target in LINK.findall((ROOT / name).read_text(encoding="utf-8")):
            path = _in_repository(name, target)
            if not path.startswith("docs/") and path not in PAGES and (ROOT / path).is_file():
                copy = _copy_of(path)
                if copy not in files.src_uris:
                    files.append(File.generated(config, copy, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the pages and files of the site."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    document = next((name for name, uri in PAGES.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")

    def on_site(link: re.Match[str]) -> str:
        path = _in_repository(document, link[1])
        uri = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else _copy_of(path))
        return os.path.relpath(uri, Path(page.file.src_uri).parent)

    markdown = MERMAID.sub("![Nodes and topics](docs/images/nodes.svg)", markdown)
    return LINK.sub(on_site, markdown)


def _in_repository(document: str, target: str) -> str:
    return os.path.normpath(Path(document).parent / target)


def _copy_of(path: str) -> str:
    return f"source/{path}.txt"


def _api_page(module: str) -> str:
    """The docstrings of a module; of a package of flmm_core, those of its modules too."""
    whole = "" if "." in module else "\n    options:\n      show_submodules: false"
    return f"# {module}\n\n::: {module}{whole}\n"
