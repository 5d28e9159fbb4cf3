"""Work in several threads, with bounded queues between them, and one way out for what goes wrong.

Whatever fails, the first error ends the work: every thread stops after what it has in hand, and the error is raised
where the results are wanted. The same when the one who wants them is interrupted. Nothing here knows what the work is.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_THREADS = 10_000
_LOOK_SECONDS = 0.1
"""How often a thread that waits looks whether there is anything left to wait for."""


@cache
def _threads(process_id: int) -> ThreadPoolExecutor:
    """As many as are asked for at once, of which those that are free are used again.

    A new thread gets memory of its own from the system, and what it leaves behind is not given back: a few hundred MB
    until the C library begins to share it. A process that was forked has none of the threads of the one before.
    """
    del process_id
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="work")


@dataclass(frozen=True)
class _Done(Generic[Result]):
    result: Result


@dataclass(frozen=True)
class _Failed:
    error: BaseException


@dataclass(frozen=True)
class _Ended:
    pass


def in_parallel(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    *,
    enter_thread: Callable[[], None] = lambda: None,
) -> Generator[Result, None, None]:
    """Do work on items in several threads, of which each takes the next item when it is done with one.

    At most as many results as there are threads wait to be fetched; then the threads wait too. To be exhausted or
    closed: after either, the threads are free.

    Args:
        work: called with one item, in any of the threads.
        items: iterated over in the threads, by one at a time.
        threads: how many.
        enter_thread: called in each, before its first item.

    Yields:
        Results as they are ready, in any order.

    Raises:
        BaseException: the first that ``work``, ``items`` or ``enter_thread`` raised.
    """
    source, turn, stop = iter(items), threading.Lock(), threading.Event()
    outcomes: queue.Queue[_Done[Result] | _Failed | _Ended] = queue.Queue(threads)

    def hand_over(outcome: _Done[Result] | _Failed | _Ended) -> None:
        while not stop.is_set():
            try:
                outcomes.put(outcome, timeout=_LOOK_SECONDS)
                return
            except queue.Full:
                continue

    def take() -> Iterator[Item]:
        while not stop.is_set():
            with turn:
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def keep_working() -> None:
        try:
            enter_thread()
            for item in take():
                hand_over(_Done(work(item)))
        except BaseException as error:  # noqa: BLE001 - raised again where the results are fetched
            hand_over(_Failed(error))
        else:
            hand_over(_Ended())

    running: list[Future[None]] = []
    try:
        running.extend(_threads(os.getpid()).submit(keep_working) for _ in range(threads))
        left = threads
        while left:
            match outcomes.get():
                case _Done(result):
                    yield result
                case _Failed(error):
                    raise error
                case _Ended():
                    left -= 1
    finally:
        stop.set()
        wait(running)


class Collector(Generic[Item]):
    """Hands on items in a thread of its own: those that are there, and so the more the longer handing on takes.

    As a context manager it hands on the rest at the end of the block, also if the block raises, so that what was
    finished by then is kept.

    Args:
        hand_on: called with at least one item.
        most: items that are handed on at once, or a few more: whatever was put together stays so.
        waiting: puts that may wait before the next one does.

    Attributes:
        seconds_busy: spent in ``hand_on``.
    """

    def __init__(self, hand_on: Callable[[Sequence[Item]], None], most: int, waiting: int = 8) -> None:
        self.seconds_busy = 0.0
        self._hand_on = hand_on
        self._most = most
        self._queue: queue.Queue[Sequence[Item]] = queue.Queue(waiting)
        self._is_closed = threading.Event()
        self._error: BaseException | None = None
        self._collecting: Future[None] | None = None

    def __enter__(self) -> Self:
        self._collecting = _threads(os.getpid()).submit(self._collect)
        return self

    def put(self, items: Sequence[Item]) -> None:
        """Leave items to be handed on; waits while too many are.

        Raises:
            BaseException: what ``hand_on`` raised, which is not called again after that.
        """
        while self._error is None:
            try:
                self._queue.put(items, timeout=_LOOK_SECONDS)
                return
            except queue.Full:
                continue
        raise self._error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First of all: whoever interrupts what follows must not leave a thread behind that waits for ever.
        self._is_closed.set()
        with suppress(queue.Full):
            # It need not look for itself then.
            self._queue.put_nowait(())
        if self._collecting:
            wait([self._collecting])
        if self._error and error is None:
            raise self._error

    def _collect(self) -> None:
        try:
            while self._hand_on_some():
                pass
        except BaseException as error:  # noqa: BLE001 - raised again where items are put
            self._error = error

    def _hand_on_some(self) -> bool:
        """Wait for items and hand them on; False if there are none and none will come."""
        was_closed = self._is_closed.is_set()
        together: list[Item] = []
        while len(together) < self._most:
            try:
                together += self._queue.get(timeout=0 if together or self._is_closed.is_set() else _LOOK_SECONDS)
            except queue.Empty:
                break
        if together:
            started = time.perf_counter()
            self._hand_on(together)
            self.seconds_busy += time.perf_counter() - started
        return bool(together) or not was_closed
