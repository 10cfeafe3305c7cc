"""The small files of an LMM's checkpoint: config, chat template and the like, read before any weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.utils import cached_file
from transformers.utils.chat_template_utils import render_jinja_template

from flmm_core.errors import LoadError
from flmm_core.families.thoughts import without_thought


class Checkpoint:
    """A folder or a Hugging Face name. No code of it is run; not every kind has every file."""

    def __init__(self, source: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        self.source = str(Path(source).expanduser()) if Path(source).expanduser().exists() else str(source)
        self.settings = dict(settings or {})
        """Values that replace those of the family's ``settings``, by the same names."""

    def file(self, name: str) -> Path | None:
        """Path of one of its files, downloaded if necessary; None if it has no such file."""
        if Path(self.source).exists():
            path = Path(self.source) / name
            return path if path.is_file() else None
        found = cached_file(self.source, name, _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None

    def require(self, name: str) -> Path:
        """Path of one of its files.

        Raises:
            LoadError: the folder has no such file.
            OSError: the Hub has no such file, or cannot be reached.
        """
        if (path := self.file(name)) is not None:
            return path
        if Path(self.source).is_dir():
            raise LoadError(f"LMM {self.source}: expected a {name} in the folder, got none")
        return Path(str(cached_file(self.source, name)))

    def json(self, name: str) -> dict[str, Any]:
        """Fields of a JSON file; none if it has no such file, or an empty one."""
        path = self.file(name)
        try:
            text = path.read_text(encoding="utf-8") if path else ""
            fields = json.loads(text) if text else {}
        except ValueError as error:  # of JSON, or of an encoding that is not UTF-8
            raise ValueError(f"{self.source}: {name}: expected JSON, got {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{self.source}: {name}: expected an object, got {type(fields).__name__}")
        return fields

    @cached_property
    def config(self) -> dict[str, Any]:
        """The raw ``config.json``, of a kind that transformers need not support. Empty if it has none."""
        return self.json("config.json")

    @cached_property
    def chat_template(self) -> str:
        """The Jinja text, from any of the files that may contain it; empty if it has none."""
        path = self.file("chat_template.jinja")
        if path:
            return path.read_text(encoding="utf-8")
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            template = self.json(name).get("chat_template")
            if isinstance(template, list):  # several by name, an old layout
                template = next((one["template"] for one in template if one["name"] == "default"), None)
            if template:
                return str(template)
        return ""

    @cached_property
    def prompt(self) -> str:
        """The chat template with one user's turn of an image and the words ``{text}``; empty without a template.

        A template that cannot be rendered is returned unchanged. Thinking is switched off, if the template allows it; else a
        thought that it begins is closed.
        """
        rendered = self._rendered("{text}", add_generation_prompt=True, eos_token="")
        return without_thought(rendered) or self.chat_template

    def turn_end(self, eos_token: str) -> str:
        """What the chat template writes behind an assistant's message, the next turn included; empty if that is not known.

        Args:
            eos_token: the tokenizer's end token, which some templates write.
        """
        whole = self._rendered("{text}", "{answer}", "{text}", add_generation_prompt=False, eos_token=eos_token)
        return whole.partition("{answer}")[2]

    def _rendered(self, *texts: str, **options: Any) -> str:
        """The chat template with a conversation, the first turn of which has an image; empty if it cannot be rendered."""
        if not self.chat_template:
            return ""
        for parts in (True, False):
            try:
                rendered: Any = render_jinja_template(
                    conversations=[_conversation(texts, parts)],
                    chat_template=self.chat_template,
                    enable_thinking=False,
                    bos_token="",
                    **options,
                )
            except Exception:  # templates raise errors of any type
                continue
            return str(rendered[0][0])
        return ""


def _conversation(texts: Sequence[str], parts: bool) -> list[dict[str, Any]]:
    """Turns of user and assistant, with an image in the first; contents are typed parts, or plain text for older templates."""
    turns: list[dict[str, Any]] = []
    for i, text in enumerate(texts):
        content: Any = [*([{"type": "image"}] if i == 0 else []), {"type": "text", "text": text}]
        if not parts:
            content = f"<image>\n{text}" if i == 0 else text
        turns.append({"role": "assistant" if i % 2 else "user", "content": content})
    return turns
