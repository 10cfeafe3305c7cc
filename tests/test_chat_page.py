"""The page of `flmm chat --web`, in a real browser, with the shipped model."""

from __future__ import annotations

import base64
import io
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from flmm_core.chat.conversation import Conversation, LabelledAnswer
from flmm_core.drawing.overlay import draw_overlay
from flmm_core.errors import CommandCancelledError
from flmm_core.pipeline import GroundingPipeline
from flmm_core.types import GroundedAnswer

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
PATIENCE = 30_000
"""Milliseconds."""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: `apt-get install chromium`")


def launched(visitors, port=None):
    """The page on this machine, and its address."""
    from flmm_cli.chat_page import HEAD, make_page

    page = make_page(visitors)
    _, url, _ = page.launch(server_name="127.0.0.1", server_port=port, head=HEAD, prevent_thread_lock=True, quiet=True)
    return page, url


@pytest.fixture(scope="module")
def scene(renderer):
    return renderer.sample(7)


@pytest.fixture(scope="module")
def pipeline():
    return GroundingPipeline.from_pretrained()


@pytest.fixture(scope="module")
def visitors(pipeline, scene):
    from flmm_cli.chat_page import Visitors

    made = Visitors(pipeline, scene.image, remember=0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(visitors):
    page, url = launched(visitors)
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, address):
    """A new tab with the page."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(address)
    page.locator("#masks img").wait_for(timeout=PATIENCE)
    page.locator("#words textarea").wait_for(timeout=PATIENCE)
    return page


@pytest.fixture
def tab(browser, address):
    page = opened(browser, address)
    yield page
    page.close()


def ask(tab, words):
    tab.locator("#words textarea").fill(words)
    tab.locator("#words textarea").press("Enter")


def last_answer(tab):
    said = tab.locator("#talk .bot.message")
    return said.last.inner_text().strip() if said.count() else ""


def picture(tab):
    """The picture as the browser has it, ``[H, W, 3]``."""
    source = tab.locator("#masks img").get_attribute("src")
    content = base64.b64decode(source.split(",")[1]) if source.startswith("data:") else tab.request.get(source).body()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def finished(tab, wanted):
    limit = time.monotonic() + PATIENCE / 1000
    while wanted not in last_answer(tab):
        assert time.monotonic() < limit, f"expected {wanted!r} in the answer, got {last_answer(tab)!r}"
        time.sleep(0.02)


def test_masks_appear_while_the_words_arrive_and_keep_their_labels(tab, pipeline, scene, tmp_path):
    answer = pipeline.chat(pipeline.encode(scene.image), "what is on the table?")
    assert len(answer.phrases) > 1, "a scene with several things"
    first = picture(tab)
    assert (first == scene.image).all(), "before the first question: the image itself"
    tab.evaluate(
        """() => {
            window.seen = [];
            const look = () => {
                const said = document.querySelectorAll('#talk .bot.message');
                const words = said.length ? said[said.length - 1].innerText.trim() : '';
                const shown = document.querySelector('#masks img')?.src;
                const before = window.seen[window.seen.length - 1];
                if (!before || before[0] !== words || before[1] !== shown) window.seen.push([words, shown]);
            };
            const all = {subtree: true, childList: true, characterData: true, attributes: true};
            new MutationObserver(look).observe(document.body, all);
            look();
        }"""
    )
    ask(tab, "what is on the table?")
    finished(tab, f"[{len(answer.phrases)}]")
    time.sleep(1)
    seen = tab.evaluate("window.seen")
    whole = answer.text
    partial = [words for words, _ in seen if words and whole.startswith(words) and len(words) < len(whole)]
    assert len(set(partial)) > 2, f"words one by one, got {seen}"
    early = {shown for words, shown in seen if words in partial and shown != seen[0][1]}
    assert early, "a mask before the answer was complete"
    labels = [f"[{label}]" for label in range(1, len(answer.phrases) + 1)]
    assert np.array_equal(picture(tab), draw_overlay(scene.image, answer, details=labels)), "the refined masks"
    ask(tab, "where is [2]?")
    finished(tab, answer.phrases[1].text)
    finished(tab, "[2]")
    tab.screenshot(path=tmp_path / "page.png")


def test_what_cannot_be_answered_is_said_and_the_page_goes_on(tab):
    ask(tab, "?!")
    finished(tab, "no answer: text: expected at least one letter or digit, got '?!'")
    ask(tab, "where is [5]?")
    finished(tab, "no answer: label: expected one of those given (none yet), got 5")
    ask(tab, "what is on the table?")
    finished(tab, "[1]")


def test_each_tab_has_a_conversation_of_its_own(tab, address):
    ask(tab, "what is on the table?")
    finished(tab, "[1]")
    other = opened(tab.context.browser, address)
    time.sleep(1)
    ask(other, "where is [1]?")
    finished(other, "none yet")
    tab.get_by_text("New conversation").click()
    tab.wait_for_function("!document.querySelector('#talk .bot.message')", timeout=PATIENCE)
    ask(tab, "where is [1]?")
    finished(tab, "none yet")


def test_a_visitor_who_leaves_takes_nothing_from_the_next(tab, browser, address, pipeline, scene):
    truth = pipeline.chat(pipeline.encode(scene.image), "what is on the table?").phrases
    leaving = opened(browser, address)
    ask(leaving, "what is on the table?")
    finished(leaving, " ")
    leaving.close()
    ask(tab, "what is on the table?")
    finished(tab, f"{truth[-1].text} [{len(truth)}]")


def test_an_answer_ends_when_its_visitor_leaves(visitors, monkeypatch):
    began, ended = threading.Event(), threading.Event()

    def slow(self, words, *, callbacks):
        callbacks.on_text("a word")
        began.set()
        while not callbacks.cancelled():
            time.sleep(0.01)
        ended.set()
        raise CommandCancelledError("cancelled")

    with monkeypatch.context() as patched:
        patched.setattr(Conversation, "ask", slow)
        steps = visitors.ask("one", "what?")
        assert next(steps) == ("a word", None)
        visitors.leave("one")
        assert ended.wait(10) and list(steps) == []
        ended.clear()
        steps = visitors.ask("two", "what?")
        next(steps)
        steps.close()
        assert ended.wait(10), "whoever closes the steps cancels, too"
    assert "no answer: text" in list(visitors.ask("three", "?!"))[-1][0]


class Encoder:
    """A pipeline without a model, for conversations that are scripted."""

    lmm = SimpleNamespace(family=SimpleNamespace(turn_end=None))

    def encode(self, image):
        return image


@pytest.fixture
def scripted(monkeypatch):
    """Visitors whose answers begin with one word and end when they are cancelled."""
    from flmm_cli import chat_page

    def endless(self, words, *, callbacks):
        callbacks.on_text(words)
        while not callbacks.cancelled():
            time.sleep(0.01)
        raise CommandCancelledError("cancelled")

    monkeypatch.setattr(Conversation, "ask", endless)
    monkeypatch.setattr(chat_page, "_VISITORS", 3)
    made = chat_page.Visitors(Encoder(), np.zeros((8, 8, 3), np.uint8), remember=0)
    yield made
    made.close()


def test_the_next_question_of_a_visitor_ends_the_answer_to_the_one_before(scripted):
    first = scripted.ask("one", "first")
    assert next(first) == ("first", None)
    second = scripted.ask("one", "second")
    assert next(second) == ("second", None), "it does not wait for the end of the first"
    assert list(first) == [] and scripted.knows("one")
    scripted.leave("one")
    assert list(second) == [], "the second is the one that runs"


def test_the_conversation_that_was_silent_longest_ends_first(scripted):
    for visitor in ("one", "two", "three"):
        scripted.begin(visitor)
    for visitor in ("one", "two"):
        steps = scripted.ask(visitor, "what?")
        next(steps)
        steps.close()
    scripted.begin("four")
    assert [visitor for visitor in ("one", "two", "three", "four") if scripted.knows(visitor)] == ["one", "two", "four"]
    answering = scripted.ask("one", "what?")
    next(answering)
    for number in range(5):
        scripted.begin(f"tab {number}")
    assert scripted.knows("one") and not scripted.knows("two"), "a visitor who gets an answer stays"


def test_what_is_said_is_shown_as_plain_text(tab, monkeypatch, scene):
    hostile = "<img src=x onerror='window.hit = 1'> <b>b</b> ![a](/a.png) **c** $d$ [e](javascript:f) \u202eg"

    def echo(self, words, *, callbacks):
        callbacks.on_text(words)
        return LabelledAnswer(GroundedAnswer(words, (), *scene.image.shape[:2]), ())

    monkeypatch.setattr(Conversation, "ask", echo)
    ask(tab, hostile)
    finished(tab, hostile)
    assert tab.locator("#talk .user.message").last.inner_text().strip() == hostile
    assert not tab.locator("#talk .message :is(img, b, strong, a)").count() and not tab.evaluate("window.hit")


def test_a_tab_that_lost_its_conversation_begins_another(tab, visitors):
    ask(tab, "what is on the table?")
    finished(tab, "[1]")
    for visitor in list(visitors._conversations):
        visitors.leave(visitor)  # as when the connection to a tab breaks
    ask(tab, "where is [1]?")
    finished(tab, "none yet")
    assert tab.locator("#talk .bot.message").count() == 1, "the earlier questions are of a conversation that ended"


def test_a_tab_stays_usable_when_the_server_is_started_again(browser, pipeline, scene, free_port):
    from flmm_cli.chat_page import Visitors

    port = free_port()
    first, second = (Visitors(pipeline, scene.image, remember=0) for _ in range(2))
    page, url = launched(first, port)
    try:
        tab = opened(browser, url)
        ask(tab, "what is on the table?")
        finished(tab, " ")  # in the middle of the answer
        page.close()
        page, _ = launched(second, port)
        tab.wait_for_function("!document.querySelector('#talk .bot.message')", timeout=PATIENCE)
        tab.locator("#masks img").wait_for(timeout=PATIENCE)
        ask(tab, "where is [1]?")
        finished(tab, "none yet")
        assert not tab.get_by_text("Error").count()
        tab.close()
    finally:
        page.close()
        first.close()
        second.close()
