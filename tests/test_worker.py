"""Whatever happens, each command that is offered is given back, and none is handled and abandoned but the one in work."""

import threading
import time

import pytest

from flmm_ros.worker import Worker


class Log:
    """A worker and what it did; ``gate`` holds it inside the command "wait"."""

    def __init__(self, capacity=3, prepare=lambda: None):
        self.gate, self.entered, self.failures = threading.Event(), threading.Event(), []
        self.handled, self.abandoned = [], []
        self.worker = Worker(capacity, self.handle, self.abandoned.append, prepare=prepare, failed=self.failures.append)
        self.worker.start()

    def handle(self, command):
        if command == "wait":
            self.entered.set()
            assert self.gate.wait(10)
        if command == "raise":
            raise RuntimeError("raised")
        self.handled.append(command)


def test_in_order_and_no_more_than_the_queue_holds():
    log = Log()
    assert log.worker.offer("wait") and log.entered.wait(10)
    assert [log.worker.offer(number) for number in range(5)] == [True, True, True, False, False]
    log.gate.set()
    while len(log.handled) < 4:
        time.sleep(0.01)
    assert log.worker.close(10)
    assert log.handled == ["wait", 0, 1, 2] and not log.abandoned and not log.failures


def test_close_abandons_what_waits_and_lets_the_one_in_work_finish():
    log = Log()
    log.worker.offer("wait")
    assert log.entered.wait(10)
    log.worker.offer("a")
    threading.Timer(0.2, log.gate.set).start()
    assert log.worker.close(10)
    assert (log.handled, log.abandoned) == (["wait"], ["a"]) and not log.worker.offer("b")


def test_close_abandons_the_one_in_work_when_it_takes_too_long():
    log = Log()
    log.worker.offer("wait")
    assert log.entered.wait(10)
    log.worker.offer("a")
    assert not log.worker.close(0.05)  # the thread still runs
    assert log.abandoned == ["a", "wait"]
    log.gate.set()
    assert log.worker.close(10)
    assert (log.handled, log.abandoned) == (["wait"], ["a", "wait"])


def test_close_does_not_wait_for_the_preparation():
    gate = threading.Event()
    log = Log(prepare=lambda: gate.wait(10))
    log.worker.offer("a")
    began = time.monotonic()
    assert not log.worker.close(10)
    assert time.monotonic() - began < 5
    assert log.abandoned == ["a"]
    gate.set()
    assert log.worker.close(10) and not log.handled


@pytest.mark.parametrize("where", ["prepare", "handle"])
def test_a_failure_stops_the_worker_and_abandons_what_waits(where):
    ready = threading.Event()

    def prepare():
        assert ready.wait(10)
        if where == "prepare":
            raise RuntimeError("raised")

    log = Log(prepare=prepare)
    for command in ("raise", "a", "b"):
        assert log.worker.offer(command)
    ready.set()
    while not log.worker.closed:
        time.sleep(0.01)
    assert log.worker.close(10)
    assert [str(error) for error in log.failures] == ["raised"]
    assert log.abandoned == ["raise", "a", "b"]
    assert log.worker.closed and not log.worker.offer("c")


def test_many_threads_offer():
    log = Log(capacity=50)
    taken = []

    def offer(start):
        taken.extend(number for number in range(start, start + 500) if log.worker.offer(number))

    threads = [threading.Thread(target=offer, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.worker.close(10)
    assert sorted(log.handled + log.abandoned) == sorted(taken)
