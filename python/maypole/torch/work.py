"""Works: what asynchronous calls return."""

import os
import select
import threading
import time
from datetime import timedelta
from typing import Any, Callable

import torch
from torch._C._distributed_c10d import Work

__all__ = ["Completions", "JoinedWork", "PendingWork", "StreamWork", "finished_work"]

# More calls than there will be.
_ALL = 1 << 62


class Completions:
    """Counts the calls of one host stream that have ended, which they do in their order.

    Threads that wait share the stream's file descriptor: one polls it and tells the others.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._wake = os.eventfd(0)
        self._poll.register(self._wake, select.POLLIN)
        self._changed = threading.Condition()
        self._is_polled = False
        self._ended = 0

    def wait(self, number: int, seconds: float | None) -> bool:
        """Waits until ``number`` calls have ended. Returns False if the seconds pass before."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while self._ended < number:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left < 0:
                    # One look without waiting, so that a call that has ended is never too late.
                    left = 0
                if self._is_polled:
                    self._changed.wait(left)
                elif not self._poll_once(left):
                    return False
                if left == 0 and self._ended < number:
                    return False
        return True

    def _poll_once(self, seconds: float | None) -> bool:
        self._is_polled = True
        self._changed.release()
        ended = 0
        try:
            for fd, _ in self._poll.poll(None if seconds is None else seconds * 1000):
                ended += int.from_bytes(os.read(fd, 8), "little") if fd == self._fd else 0
        finally:
            self._changed.acquire()
            self._is_polled = False
            self._ended += ended
            self._changed.notify_all()
        return ended > 0 or self._ended >= _ALL

    def has_ended(self, number: int) -> bool:
        """Whether ``number`` calls have ended."""
        return self._ended >= number or self.wait(number, 0)

    def cancel(self) -> None:
        """Ends all waits, those of the future too: the communicator was aborted."""
        with self._changed:
            self._ended = _ALL
            self._changed.notify_all()
        os.eventfd_write(self._wake, 1)


class PendingWork(Work):
    """A work that another thread completes, by ``complete``."""

    def __init__(self, tensors: list[Any], seconds: float, abort: Callable[[str], Exception]):
        super().__init__()
        self._tensors = tensors
        self._seconds = seconds
        self._abort = abort
        self._done = threading.Event()
        self._error: Exception | None = None
        self._future: Any = None
        self._lock = threading.Lock()
        self.source = -1

    def complete(self, error: Exception | None) -> None:
        """Ends the work, once."""
        with self._lock:
            if self._done.is_set():
                return
            self._error = error
            self._done.set()
            future = self._future
        if future is not None:
            _resolve(future, error, self._tensors)

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        seconds = timeout.total_seconds() or self._seconds
        if not self._done.wait(seconds):
            raise self._abort(f"a send or receive did not end within {seconds:g} s")
        _settle(self._future)
        if self._error is not None:
            raise self._error
        return True

    def is_completed(self) -> bool:
        return self._done.is_set()

    def is_success(self) -> bool:
        return self._done.is_set() and self._error is None

    def result(self) -> list[Any]:
        return self._tensors

    def source_rank(self) -> int:
        return self.source

    def get_future(self) -> Any:
        with self._lock:
            if self._future is None:
                self._future = torch.futures.Future()
                if self._done.is_set():
                    _resolve(self._future, self._error, self._tensors)
            return self._future


class StreamWork(Work):
    """A call on the host stream of a backend."""

    def __init__(self, backend: Any, number: int, tensors: Any, finish: Any, seconds: float):
        super().__init__()
        self._backend = backend
        self._number = number
        self._tensors = tensors
        self._finish = finish
        self._seconds = seconds
        self._lock = threading.Lock()
        self._is_done = self._is_resolved = False
        self._future: Any = None

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        self.end(timeout.total_seconds() or self._seconds)
        if self._future is not None:
            self.resolve()
        return True

    def end(self, seconds: float) -> None:
        """Waits for the call, then does what has to follow it, once."""
        if self._is_done:
            return
        self._backend.wait_for_call(self._number, seconds)
        with self._lock:
            if not self._is_done:
                if self._finish is not None:
                    self._finish()
                self._is_done = True

    def is_completed(self) -> bool:
        return self._is_done or self._backend.has_ended(self._number)

    def result(self) -> Any:
        return self._tensors

    def get_future(self) -> Any:
        with self._lock:
            if self._future is not None:
                return self._future
            self._future = torch.futures.Future()
        if self.is_completed():
            self.resolve()
        else:
            self._backend.complete_later(self)
        return self._future

    def resolve(self) -> None:
        """Waits for the call and completes the future, which is complete when this returns."""
        error = None
        try:
            self.end(self._seconds)
        except Exception as raised:
            error = raised
        with self._lock:
            is_first, self._is_resolved = not self._is_resolved, True
        if is_first:
            _resolve(self._future, error, self._tensors)
        else:
            _settle(self._future)


def _resolve(future: Any, error: Exception | None, tensors: Any) -> None:
    if error is None:
        future.set_result(tensors)
    else:
        future.set_exception(error)


def _settle(future: Any) -> None:
    """Waits until the thread that completes the future has done so, which it is about to do."""
    while future is not None and not future.done():
        time.sleep(0)


class JoinedWork(Work):
    """Several works as one."""

    def __init__(self, works: list[Any]) -> None:
        super().__init__()
        self._works = works

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        for work in self._works:
            work.wait(timeout)
        return True

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def result(self) -> list[Any]:
        return [tensor for work in self._works for tensor in work.result()]

    def get_future(self) -> Any:
        futures = [work.get_future() for work in self._works]
        joined = torch.futures.collect_all(futures)
        return joined.then(lambda all: [t for f in all.value() for t in f.value()])


class _FinishedWork(Work):
    """A call that returned with its result."""

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self._tensors = tensors

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def result(self) -> Any:
        return self._tensors

    def get_future(self) -> Any:
        future: Any = torch.futures.Future()
        future.set_result(self._tensors)
        return future


def finished_work(tensors: Any) -> Work:
    """A work that has ended."""
    return _FinishedWork(tensors)
