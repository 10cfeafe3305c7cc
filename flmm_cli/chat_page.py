"""The page of `flmm chat --web`: a conversation about one image, whose masks appear while the text is generated.

It stands beside chat.py because it is the other user interface of that command. The only file that knows Gradio.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from html import escape
from typing import Any

import numpy as np
from torch.nn import functional as F

from flmm_cli.shared.answer_lines import label_marks
from flmm_core.chat.conversation import Conversation, LabelledAnswer
from flmm_core.common.plain_text import one_line
from flmm_core.drawing.overlay import draw_overlay
from flmm_core.errors import CommandCancelledError, CommandError, MemoryFullError
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import Callbacks
from flmm_core.types import CoarseMasks, GroundedAnswer, GroundedPhrase, KeywordSpan

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio

TITLE = "flmm chat"
_VISITORS = 100
"""Conversations that are kept; when there are more, the one ends that was silent longest."""

HEAD = """<script>
(() => {
    const look = () => fetch(location.href).then((page) => page.ok ? location.reload() : again(), again);
    const again = () => setTimeout(look, 500);
    const errors = new MutationObserver(() => {
        if (document.querySelector('[data-testid="status-tracker"] .error')) {
            errors.disconnect();
            again();
        }
    });
    errors.observe(document, {subtree: true, childList: true});
})();
</script>"""
"""Loads the page again, when the server is there, after the connection broke in the middle of an answer: Gradio's own code
shows "Error" on every panel from then on, and reads no further answer."""

Messages = list[dict[str, str]]
"""The conversation so far: ``role`` (user or assistant) and ``content``, plain text as HTML."""


def serve_page(pipeline: GroundingPipeline, image: np.ndarray, *, remember: int, port: int) -> None:
    """Serve the page to browsers of this machine, until Ctrl-C.

    Args:
        pipeline: answers, one question at a time.
        image: ``[H, W, 3]`` uint8 RGB.
        remember: as for :class:`~flmm_core.chat.conversation.Conversation`.
        port: of the page.
    """
    visitors = Visitors(pipeline, image, remember=remember)
    try:
        make_page(visitors).launch(server_name="127.0.0.1", server_port=port, head=HEAD)
    finally:
        visitors.close()


class Visitors:
    """The conversations of the page's visitors, and the one thread that runs the pipeline for all of them.

    Args:
        pipeline: answers, one question at a time.
        image: ``[H, W, 3]`` uint8 RGB.
        remember: as for :class:`~flmm_core.chat.conversation.Conversation`.
    """

    def __init__(self, pipeline: GroundingPipeline, image: np.ndarray, *, remember: int) -> None:
        self.image = image
        self._pipeline, self._remember = pipeline, remember
        self._handle = pipeline.encode(image)
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        """Those that were used last stand last."""
        self._running: dict[str, _Steps] = {}
        self._lock = threading.RLock()
        """For both; Gradio calls from many threads."""
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="answer")

    def begin(self, visitor: str) -> Conversation:
        """Begin a new conversation with a visitor; an answer to an earlier question is cancelled."""
        with self._lock:
            self.leave(visitor)
            conversation = Conversation(self._pipeline, self._handle, remember=self._remember)
            idle = [other for other in self._conversations if other not in self._running]
            for other in idle[: max(0, len(self._conversations) + 1 - _VISITORS)]:
                self.leave(other)
            self._conversations[visitor] = conversation
            return conversation

    def knows(self, visitor: str) -> bool:
        """Whether there is a conversation with this visitor: none after a broken connection or a restart of the server."""
        return visitor in self._conversations

    def leave(self, visitor: str) -> None:
        """End the conversation with a visitor; its answer in progress is cancelled."""
        with self._lock:
            self._conversations.pop(visitor, None)
            self._replace_steps(visitor, None)

    def close(self) -> None:
        """End all conversations and the thread; an answer in progress ends within one token."""
        with self._lock:
            for visitor in [*self._conversations, *self._running]:
                self.leave(visitor)
        self._owner.shutdown(cancel_futures=True)

    def ask(self, visitor: str, words: str) -> Generator[tuple[str, np.ndarray | None], None, None]:
        """The steps of an answer: its text so far, and the overlay ``[H, W, 3]`` uint8 RGB whenever it changes.

        The last step has the refined masks and their labels, or the reason why there is no answer. Whoever closes the iterator
        cancels the answer, and so does the next question of the same visitor.
        """
        steps = _Steps(self.image)
        with self._lock:
            conversation = self._conversations.get(visitor) or self.begin(visitor)
            self._conversations.move_to_end(visitor)
            self._replace_steps(visitor, steps)
            self._owner.submit(_answer, conversation, self.image, words, steps)
        try:
            while (step := steps.waiting.get()) is not None:
                yield step
        finally:
            steps.cancel()
            with self._lock:
                if self._running.get(visitor) is steps:
                    del self._running[visitor]

    def _replace_steps(self, visitor: str, steps: _Steps | None) -> None:
        """Cancel the answer in progress to a visitor; another one may begin in its place."""
        if (earlier := self._running.pop(visitor, None)) is not None:
            earlier.cancel()
        if steps is not None:
            self._running[visitor] = steps


def make_page(visitors: Visitors) -> gradio.Blocks:
    """The page. Each browser tab is a visitor with a conversation of its own."""
    image = visitors.image

    def begin(request: gradio.Request) -> tuple[Messages, np.ndarray]:
        visitors.begin(str(request.session_hash))
        return [], image

    def end(request: gradio.Request) -> None:
        visitors.leave(str(request.session_hash))

    def ask(words: str, said: Messages, request: gradio.Request) -> Iterator[tuple[Any, Messages, Any]]:
        if not words.strip():
            return
        visitor = str(request.session_hash)
        earlier = said if visitors.knows(visitor) else []
        said = [*earlier, {"role": "user", "content": escape(words)}, {"role": "assistant", "content": ""}]
        with closing(visitors.ask(visitor, words)) as steps:
            for text, picture in steps:
                said[-1] = {"role": "assistant", "content": escape(text)}
                yield "", said, gradio.skip() if picture is None else picture

    with gradio.Blocks(title=TITLE) as page:
        gradio.Markdown("Ask about the image. Objects keep their labels: *what is left of [2]?*")
        with gradio.Row():
            picture = gradio.Image(value=image, label="masks", type="numpy", format="png", interactive=False, elem_id="masks")
            with gradio.Column():
                talk = gradio.Chatbot(label="conversation", elem_id="talk", render_markdown=False)
                words = gradio.Textbox(label="question", placeholder="what is on the table?", autofocus=True, elem_id="words")
                new = gradio.Button("New conversation")
        words.submit(ask, [words, talk], [words, talk, picture], concurrency_limit=1)
        new.click(begin, None, [talk, picture])
        page.load(begin, None, [talk, picture])
        page.unload(end)
    return page


def _answer(conversation: Conversation, image: np.ndarray, words: str, steps: _Steps) -> None:
    """Answer a question, in the thread that owns the pipeline."""
    try:
        if not steps.cancelled():
            said = conversation.ask(words, callbacks=steps)
            steps.waiting.put((_with_labels(said), draw_overlay(image, said.answer, details=label_marks(said.labels))))
    except CommandCancelledError:
        pass
    except (CommandError, MemoryFullError) as error:
        steps.waiting.put((f"no answer: {error}", image))
    except Exception as error:  # the page stays usable
        steps.waiting.put((f"no answer, the model failed: {one_line(error)}", image))
    finally:
        steps.waiting.put(None)


class _Steps(Callbacks):
    """Text and coarse masks, as steps of the answer."""

    def __init__(self, image: np.ndarray) -> None:
        self.waiting: queue.SimpleQueue[tuple[str, np.ndarray | None] | None] = queue.SimpleQueue()
        """Steps to be shown; None after the last one."""
        self._image = image
        self._text = ""
        self._phrases: list[GroundedPhrase] = []

    def on_text(self, text: str) -> None:
        self._text = text
        self.waiting.put((text, None))

    def on_phrases(self, spans: Sequence[KeywordSpan], coarse: CoarseMasks) -> None:
        height, width = self._image.shape[:2]
        logits = F.interpolate(coarse.logits[None], (height, width), mode="bilinear")[0]
        for span, mask in zip(spans, logits > 0, strict=True):
            self._phrases.append(GroundedPhrase(span.text, span.start, span.end, mask, (0, 0, 0, 0), float("nan")))
        so_far = GroundedAnswer(self._text, tuple(self._phrases), height, width)
        self.waiting.put((self._text, draw_overlay(self._image, so_far)))


def _with_labels(said: LabelledAnswer) -> str:
    """The answer with the label of each object after its phrase, and why it has none."""
    text = said.answer.text
    for phrase, label in sorted(zip(said.answer.phrases, said.labels, strict=True), key=lambda one: -one[0].end):
        text = f"{text[: phrase.end]} [{label}]{text[phrase.end :]}" if label else text
    return f"{text}\n\n({said.answer.reason})" if said.answer.reason else text
