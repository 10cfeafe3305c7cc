"""Thoughts that an LMM writes before its answer: their marks, and prompts that leave no room for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ThoughtMarks:
    """What stands before and behind a thought."""

    begin: str
    end: str


THOUGHTS = (
    ThoughtMarks("<think>", "</think>"),
    ThoughtMarks("[THINK]", "[/THINK]"),
    ThoughtMarks("<|channel>thought", "<channel|>"),
)
"""Marks of Qwen, GLM and most others; of Mistral; and of Gemma 4."""


def begun_thought(prompt: str) -> ThoughtMarks | None:
    """Marks of the thought that a prompt ends with and leaves open; None if it leaves none open."""
    return next((marks for marks in THOUGHTS if prompt.rstrip().endswith(marks.begin)), None)


def without_thought(prompt: str) -> str:
    """A prompt whose open thought is closed, empty as the templates write it where thinking can be switched off."""
    marks = begun_thought(prompt)
    return prompt if marks is None else f"{prompt.rstrip()}\n\n{marks.end}\n\n"
