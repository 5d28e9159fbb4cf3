"""Threads that work on items, and the one that hands on what they made: real threads, and whatever may go wrong."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from abo_pipeline import stages
from abo_pipeline.stages import Collector, in_parallel
from abo_pipeline_tests.threads import at_work


@pytest.fixture(autouse=True)
def no_thread_is_left_at_work():
    yield
    assert at_work() == []


# --- Work in parallel ---


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_item_is_worked_on_once(threads):
    assert sorted(in_parallel(lambda item: item * item, range(100), threads)) == [item * item for item in range(100)]


def test_nothing_to_do_is_done_at_once():
    assert list(in_parallel(str, [], 3)) == []


def test_items_are_worked_on_at_the_same_time():
    together = threading.Barrier(3, timeout=10)

    assert sorted(in_parallel(lambda item: (together.wait(), item)[1], range(9), 3)) == list(range(9))


def test_each_thread_is_entered_once_before_its_first_item():
    entered: list[int] = []
    worked: set[int] = set()
    all_entered = threading.Barrier(3, timeout=10)

    def enter() -> None:
        entered.append(threading.get_ident())
        all_entered.wait()

    list(in_parallel(lambda _: worked.add(threading.get_ident()), range(50), 3, enter_thread=enter))

    assert len(entered) == len(set(entered)) == 3
    assert worked <= set(entered)


def test_threads_that_are_free_work_again():
    def threads_of(items: int) -> set[int]:
        return set(in_parallel(lambda _: threading.get_ident(), range(items), 2))

    first = threads_of(10)
    before = threading.active_count()
    for _ in range(20):
        threads_of(10)

    assert first
    assert threading.active_count() <= before + 1


def test_no_more_is_taken_than_is_wanted():
    """Two results wait, two threads have one more each that does not fit, and none of them takes another item."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    results = in_parallel(lambda item: item, items(), 2)
    first = next(results)
    time.sleep(0.3)
    results.close()

    assert first in (0, 1)
    assert len(taken) <= 5


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_ends_the_work_and_is_raised_where_results_are_fetched(threads):
    def work(item: int) -> int:
        if item == 20:
            raise ValueError("item 20")
        return item

    found: list[int] = []
    with pytest.raises(ValueError, match="item 20"):
        # Without end: how far other threads get before the error is fetched is up to the machine.
        found.extend(in_parallel(work, itertools.count(), threads))

    assert 20 not in found
    assert len(set(found)) == len(found)
    assert at_work() == []


def test_an_error_of_the_source_and_one_on_entering_are_raised_too():
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the source")

    with pytest.raises(OSError, match="the source"):
        list(in_parallel(str, broken(), 2))
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(str, range(5), 2, enter_thread=lambda: 1 // 0))


def test_an_interruption_in_a_thread_is_one_where_results_are_fetched():
    def work(item: int) -> int:
        if item == 3:
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        list(in_parallel(work, range(100), 2))


def test_who_stops_fetching_leaves_no_thread_behind():
    results = in_parallel(lambda item: item, range(1000), 3)
    next(results)

    results.close()

    assert at_work() == []


# --- Handing on ---


def test_items_that_come_while_others_are_handed_on_go_together():
    handed: list[list[int]] = []
    busy, may_go_on = threading.Event(), threading.Event()

    def hand_on(items: Sequence[int]) -> None:
        handed.append(list(items))
        busy.set()
        may_go_on.wait(10)

    with Collector(hand_on, most=10) as collector:
        collector.put([0])
        busy.wait(10)
        for start in range(1, 25, 4):
            collector.put(range(start, start + 4))
        may_go_on.set()

    assert handed == [[0], list(range(1, 13)), list(range(13, 25))]
    assert collector.seconds_busy > 0


def test_nothing_is_handed_on_if_nothing_came():
    with Collector(lambda items: pytest.fail(f"handed on {items}"), most=10):
        pass


def test_who_puts_waits_while_too_many_items_wait():
    may_go_on = threading.Event()
    put: list[int] = []
    handed: list[int] = []

    def hand_on(items: Sequence[int]) -> None:
        may_go_on.wait(10)
        handed.extend(items)

    collector = Collector(hand_on, most=1, waiting=2)

    def fill() -> None:
        with collector:
            for number in range(10):
                collector.put([number])
                put.append(number)

    filling = threading.Thread(target=fill)
    filling.start()
    while len(put) < 3:
        time.sleep(0.01)
    # As long as a fourth would take, and more.
    time.sleep(0.4)
    waiting = len(put)
    may_go_on.set()
    filling.join(timeout=10)

    assert waiting == 3
    assert put == handed == list(range(10))


def test_an_error_in_handing_on_is_raised_where_items_are_put_and_ends_it():
    calls: list[int] = []

    def fail(items: Sequence[int]) -> None:
        calls.append(len(items))
        raise OSError("the disk is full")

    def fill() -> None:
        with Collector(fail, most=1) as collector:
            for number in range(1000):
                collector.put([number])

    with pytest.raises(OSError, match="the disk is full"):
        fill()
    assert calls == [1]


def test_an_interruption_while_the_rest_is_waited_for_leaves_no_thread_behind(monkeypatch):
    """As a second Ctrl-C, at a database that takes its time."""
    may_go_on = threading.Event()
    collector = Collector(lambda _: may_go_on.wait(10), most=1, waiting=2)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    def fill_and_wait() -> None:
        with monkeypatch.context() as patched, collector:
            for number in range(3):
                collector.put([number])
            patched.setattr(stages, "wait", interrupted)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fill_and_wait()
    # The queue is full, and stays so: to leave word in it would have taken until now.
    assert time.monotonic() - started < 5
    may_go_on.set()

    collector._collecting.result(timeout=5)


def test_an_error_in_handing_on_the_rest_is_raised_at_the_end():
    with pytest.raises(ZeroDivisionError), Collector(lambda _: 1 // 0, most=100) as collector:
        collector.put([1])


def test_what_was_finished_before_an_error_is_handed_on_and_the_error_stays_the_one():
    handed: list[int] = []

    def fill() -> None:
        with Collector(handed.extend, most=100) as collector:
            collector.put([1, 2])
            raise ValueError("somewhere else")

    with pytest.raises(ValueError, match="somewhere else"):
        fill()
    assert handed == [1, 2]
