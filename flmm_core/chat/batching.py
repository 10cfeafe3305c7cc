"""Several questions in one batch of the LMM: the answers are those that each question gets alone, but for rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from flmm_core.errors import MemoryFullError
from flmm_core.lmm.generation import Question
from flmm_core.lmm.trace import LmmTrace
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.chat_command import ChatCommand
from flmm_core.requests.running import RunningChat
from flmm_core.types import GroundedAnswer

T = TypeVar("T")


def chat_batch(pipeline: GroundingPipeline, commands: Sequence[ChatCommand]) -> Iterator[GroundedAnswer | Exception]:
    """Answer commands as :meth:`GroundingPipeline.chat` does, the LMM generating all answers in one batch if it can.

    ``seconds.lmm`` of each answer is that of the whole batch; second turns of :mod:`~flmm_core.requests.named_things` are
    generated one by one. If the batch finds too little memory, its commands are answered one by one.

    Args:
        pipeline: answers.
        commands: about any of its images.

    Yields:
        The outcome of each command, in their order and as soon as it is known: an answer, or what ``chat`` raises.
    """
    begun = [_outcome(partial(_begin, pipeline, command)) for command in commands]
    begun = [_outcome(partial(_begin_lmm, pipeline, chat)) if isinstance(chat, RunningChat) else chat for chat in begun]
    chats = [chat for chat in begun if isinstance(chat, RunningChat)]
    traces = _generate(pipeline, chats)
    if len(chats) > 1 and isinstance(traces[0], MemoryFullError):
        errors = [chat if isinstance(chat, Exception) else None for chat in begun]
        del begun, chats, traces  # they hold what was cached of the images
        for command, error in zip(commands, errors, strict=True):
            yield from chat_batch(pipeline, [command]) if error is None else [error]
        return
    found = iter(traces)
    for chat in begun:
        if isinstance(chat, Exception):
            yield chat
            continue
        trace = next(found)
        yield trace if isinstance(trace, Exception) else _outcome(partial(_finish, pipeline, chat, trace))


def _begin(pipeline: GroundingPipeline, command: ChatCommand) -> RunningChat:
    with pipeline.images.guard(command.image):
        chat = pipeline.begin_chat(command)
    chat.run.pause()
    return chat


def _begin_lmm(pipeline: GroundingPipeline, chat: RunningChat) -> RunningChat:
    """Begin the stage that all share, once the images of all are encoded."""
    with pipeline.images.guard(chat.command.image):
        chat.run.begin("lmm")
    return chat


def _generate(pipeline: GroundingPipeline, chats: Sequence[RunningChat]) -> Sequence[LmmTrace | Exception]:
    """What the LMM answers to each."""
    ends = [_OwnEnd(chat.question) for chat in chats]
    try:
        with pipeline.images.guard(*(chat.command.image for chat in chats)):
            questions = [end.applied(chat.question) for chat, end in zip(chats, ends, strict=True)]
            traces = pipeline.lmm.generate_batch(questions, layer_weights=pipeline.layer_weights)
            return [end.error or trace for end, trace in zip(ends, traces, strict=True)]
    except Exception as error:
        return [error] * len(chats)
    finally:
        for chat in chats:
            chat.run.pause()


class _OwnEnd:
    """Lets a callback that raises end the answer to its own question, and to no other of the batch."""

    def __init__(self, question: Question) -> None:
        self.error: Exception | None = None
        """What a callback raised."""
        self._cancelled = question.cancelled

    def applied(self, question: Question) -> Question:
        """The question with callbacks that do not raise."""
        return replace(
            question,
            on_text=question.on_text and partial(self._call, question.on_text),
            on_trace=question.on_trace and partial(self._call, question.on_trace),
            cancelled=self._ended,
        )

    def _ended(self) -> bool:
        ended = self._call(self._cancelled) if self._cancelled else False
        return self.error is not None or bool(ended)

    def _call(self, callback: Callable[..., Any], *values: Any) -> Any:
        if self.error is not None:
            return None
        try:
            return callback(*values)
        except (MemoryError, torch.OutOfMemoryError):  # the batch is too large
            raise
        except Exception as error:
            self.error = error
            return None


def _finish(pipeline: GroundingPipeline, chat: RunningChat, trace: LmmTrace) -> GroundedAnswer:
    with pipeline.images.guard(chat.command.image):
        return pipeline.finish_chat(chat, trace)


def _outcome(run: Callable[[], T]) -> T | Exception:
    """What ``run`` returns or raises: the error of one command does not end the others."""
    try:
        return run()
    except Exception as error:
        return error
