"""The page of `flmm chat --web`: a conversation about one image, whose masks appear while the text is generated.

It stands beside chat.py because it is the other user interface of that command. The only file that knows Gradio.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.nn import functional as F

from flmm_cli.shared.answer_lines import label_marks
from flmm_core.chat.conversation import Conversation, LabelledAnswer
from flmm_core.common.plain_text import one_line
from flmm_core.drawing.overlay import draw_overlay
from flmm_core.errors import CommandError, MemoryFullError
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import Callbacks
from flmm_core.types import CoarseMasks, GroundedAnswer, GroundedPhrase, KeywordSpan

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio

TITLE = "flmm chat"

Messages = list[dict[str, str]]
"""The conversation so far: ``role`` (user or assistant) and ``content``."""


def serve_page(pipeline: GroundingPipeline, image: np.ndarray, *, remember: int, port: int) -> None:
    """Serve the page to browsers of this machine, until Ctrl-C.

    Args:
        pipeline: answers, one question at a time.
        image: ``[H, W, 3]`` uint8 RGB.
        remember: as for :class:`~flmm_core.chat.conversation.Conversation`.
        port: of the page.
    """
    make_page(pipeline, image, remember=remember).launch(server_name="127.0.0.1", server_port=port)


def make_page(pipeline: GroundingPipeline, image: np.ndarray, *, remember: int) -> gradio.Blocks:
    """The page; arguments as of :func:`serve_page`. Each browser tab has a conversation of its own."""
    conversations: dict[str, Conversation] = {}

    def begin(request: gradio.Request) -> tuple[Messages, np.ndarray]:
        conversations[str(request.session_hash)] = Conversation(pipeline, pipeline.encode(image), remember=remember)
        return [], image

    def end(request: gradio.Request) -> None:
        conversations.pop(str(request.session_hash), None)

    def ask(words: str, said: Messages, request: gradio.Request) -> Iterator[tuple[Any, Messages, Any]]:
        said = [*said, {"role": "user", "content": words}, {"role": "assistant", "content": ""}]
        for text, picture in answer_steps(conversations[str(request.session_hash)], image, words):
            said[-1] = {"role": "assistant", "content": text}
            yield "", said, gradio.skip() if picture is None else picture

    with gradio.Blocks(title=TITLE) as page:
        gradio.Markdown("Ask about the image. Objects keep their labels: *what is left of [2]?*")
        with gradio.Row():
            picture = gradio.Image(value=image, label="masks", type="numpy", format="png", interactive=False, elem_id="masks")
            with gradio.Column():
                talk = gradio.Chatbot(label="conversation", elem_id="talk")
                words = gradio.Textbox(label="question", placeholder="what is on the table?", autofocus=True, elem_id="words")
                new = gradio.Button("New conversation")
        words.submit(ask, [words, talk], [words, talk, picture], concurrency_limit=1)
        new.click(begin, None, [talk, picture])
        page.load(begin, None, [talk, picture])
        page.unload(end)
    return page


def answer_steps(conversation: Conversation, image: np.ndarray, words: str) -> Iterator[tuple[str, np.ndarray | None]]:
    """The steps of an answer: its text so far, and the overlay ``[H, W, 3]`` uint8 RGB whenever it changes.

    The last step has the refined masks and their labels, or the reason why there is no answer.
    """
    steps: queue.SimpleQueue[tuple[str, np.ndarray | None] | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            said = conversation.ask(words, callbacks=_Steps(image, steps))
            steps.put((_with_labels(said), draw_overlay(image, said.answer, details=label_marks(said.labels))))
        except (CommandError, MemoryFullError) as error:
            steps.put((f"no answer: {error}", image))
        except Exception as error:  # the page stays usable
            steps.put((f"no answer, the model failed: {one_line(error)}", image))
        finally:
            steps.put(None)

    threading.Thread(target=work, name="answer", daemon=True).start()
    while (step := steps.get()) is not None:
        yield step


class _Steps(Callbacks):
    """Forwards text and coarse masks."""

    def __init__(self, image: np.ndarray, steps: queue.SimpleQueue[tuple[str, np.ndarray | None] | None]) -> None:
        self._image = image
        self._steps = steps
        self._text = ""
        self._phrases: list[GroundedPhrase] = []

    def on_text(self, text: str) -> None:
        self._text = text
        self._steps.put((text, None))

    def on_phrases(self, spans: Sequence[KeywordSpan], coarse: CoarseMasks) -> None:
        height, width = self._image.shape[:2]
        logits = F.interpolate(coarse.logits[None], (height, width), mode="bilinear")[0]
        for span, mask in zip(spans, logits > 0, strict=True):
            self._phrases.append(GroundedPhrase(span.text, span.start, span.end, mask, (0, 0, 0, 0), float("nan")))
        so_far = GroundedAnswer(self._text, tuple(self._phrases), height, width)
        self._steps.put((self._text, draw_overlay(self._image, so_far)))


def _with_labels(said: LabelledAnswer) -> str:
    """The answer with the label of each object after its phrase."""
    text = said.answer.text
    for phrase, label in sorted(zip(said.answer.phrases, said.labels, strict=True), key=lambda one: -one[0].end):
        text = f"{text[: phrase.end]} [{label}]{text[phrase.end :]}" if label else text
    return text
