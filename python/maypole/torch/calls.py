"""How the calls of the backend run, end and fail.

A call whose caller waits anyway (``asyncOp`` is False) runs in the calling thread. Any other runs
on a host stream of the library, and its work ends with it. Both keep the order of the calls.
"""

import ctypes
import queue
import threading
import time
import weakref
from collections import deque
from datetime import timedelta
from typing import Any, Callable

import torch.distributed as dist
from torch._C._distributed_c10d import AllreduceOptions, Backend, ErrorType

from .._library import UniqueId, check, last_error, library
from ..status import communicators
from .estimates import begin_estimate, end_estimate
from .point_to_point import PointToPoint
from .tensors import allocate, copier
from .traces import dump_trace
from .work import Completions, JoinedWork, StreamWork, finished_work

__all__ = ["CallBackend", "Finish"]

# A call with a shorter timeout runs on the stream, where a wait can end at any time.
_WATCHED_SECONDS = 120.0
# What the options of a call have unless the caller names a timeout.
_NO_TIMEOUT = AllreduceOptions().timeout
# Backends that PyTorch does not keep alive.
_held: set[Any] = set()
Finish = Callable[[], None] | None


class CallBackend(Backend):
    """The rank of this process in one process group, without the collectives."""

    def __init__(
        self, store: Any, rank: int, size: int, timeout: timedelta, comm: int | None = None
    ) -> None:
        """Joins the group, or takes the communicator ``comm`` of it."""
        super().__init__(rank, size)
        self._n = library()
        self._all_reduce = self._n.ncclAllReduce
        self._options = Backend.Options("maypole", timeout=timeout)
        self._seconds = timeout.total_seconds()
        self._store, self._rank_number, self._size_number = store, rank, size
        self._failure: str | None = None
        self._deadline: float | None = None
        self._sequence = self._barriers = self._shrinks = 0
        self._coalesced: list[Any] | None = None
        # What the calls of an estimate use.
        self._estimated: list[Any] | None = None
        self._comm: int | None = self._join(store, rank, size) if comm is None else comm
        stream, fd = ctypes.c_void_p(), ctypes.c_int()
        check(self._n.maypoleStreamCreate(ctypes.byref(stream)))
        check(self._n.maypoleStreamGetEventFd(stream, ctypes.byref(fd)))
        self._stream = stream.value
        self._completions = Completions(fd.value)
        self._issued = 0
        self._issuing = threading.Lock()
        # What calls on the stream use; the user may drop it before they end.
        self._used: deque[tuple[int, Any]] = deque()
        self._futures: queue.SimpleQueue[Any] | None = None
        self._point_to_point = PointToPoint(store, rank, size)
        self._stopped = threading.Event()
        threading.Thread(target=_watch, args=(weakref.ref(self), self._stopped),
                         daemon=True).start()
        if dist.get_debug_level() == dist.DebugLevel.DETAIL:
            # The wrapper that PyTorch puts around it keeps its part in C++ alive, and not this.
            _held.add(self)

    def _join(self, store: Any, rank: int, size: int) -> int | None:
        id = UniqueId()
        if rank == 0:
            check(self._n.ncclGetUniqueId(ctypes.byref(id)))
            store.set("maypole/id", id.to_bytes())
        else:
            id = UniqueId.parse(bytes(store.get("maypole/id")))
        handle = ctypes.c_void_p()
        check(self._n.ncclCommInitRank(ctypes.byref(handle), size, id, rank))
        return handle.value

    # ---- properties and control ----

    @property
    def options(self) -> Any:
        return self._options

    @property
    def supports_coalescing(self) -> bool:
        return True

    def getBackendName(self) -> str:
        return "maypole"

    def set_timeout(self, timeout: timedelta) -> None:
        self._seconds = timeout.total_seconds()

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self.set_timeout(timeout)

    def _set_sequence_number_for_group(self) -> None:
        pass

    def _get_sequence_number_for_group(self) -> int:
        return self._sequence

    def get_error(self) -> Any:
        if self._failure is not None or self._asynchronous_error():
            return ErrorType.COMM_ERROR
        return ErrorType.SUCCESS

    def abort(self) -> None:
        self._abort("the process group was aborted")

    def shutdown(self) -> None:
        _held.discard(self)
        self._stopped.set()
        self._point_to_point.close()
        if self._futures is not None:
            self._futures.put(None)
        comm = self._comm
        if comm is None:
            return
        if self._completions.has_ended(self._issued):
            self._comm = None
            self._failure = "the process group was shut down"
            self._n.ncclCommDestroy(comm)
            self._n.maypoleStreamDestroy(self._stream)
        else:
            self._abort("the process group was shut down while calls were running")

    def start_coalescing(self) -> None:
        self._coalesced = []

    def supports_tensor_alloc(self, device: Any) -> bool:
        return True

    def allocate_tensor(self, size: int, *, dtype: Any, device: Any) -> Any:
        return allocate(size, dtype)

    @property
    def _supports_time_estimate(self) -> bool:
        return True

    def _start_time_estimate(self) -> None:
        begin_estimate()
        self._estimated = []

    def _end_time_estimate(self) -> float:
        self._estimated = None
        return end_estimate()

    def end_coalescing(self) -> Any:
        works, self._coalesced = self._coalesced or [], None
        return JoinedWork(works)

    # ---- how calls run ----

    def _begins_here(self, opts: Any) -> bool:
        """Begins a call in the calling thread, unless it must not run there."""
        if opts.asyncOp or self._coalesced is not None or self._estimated is not None:
            return False
        timeout = opts.timeout
        seconds = self._seconds if timeout == _NO_TIMEOUT else _seconds(timeout) or self._seconds
        if seconds < _WATCHED_SECONDS:
            return False
        if self._failure is not None:
            raise dist.DistBackendError(self._failure)
        self._sequence += 1
        self._deadline = time.monotonic() + seconds
        return True

    def _end_here(self, code: int) -> None:
        self._deadline = None
        if code:
            raise self._error(code)

    def _run(self, opts: Any, result: Any, uses: Any, finish: Finish, issue: Any) -> Any:
        """Runs a call here, or on the stream if the caller does not wait for it."""
        if self._begins_here(opts):
            self._end_here(issue(None))
            if finish is not None:
                finish()
            # The caller has nothing to wait for; PyTorch takes None for that.
            return None
        if self._failure is not None:
            raise dist.DistBackendError(self._failure)
        if self._estimated is not None:
            self._estimated.append(uses)
            self._end_here(issue(None))
            return finished_work(result)
        self._sequence += 1
        seconds = _seconds(opts.timeout) or self._seconds
        with self._issuing:
            code = issue(self._stream)
            if code:
                raise self._error(code)
            self._issued += 1
            number = self._issued
            self._used.append((number, (uses, result)))
        while self._used and self._completions.has_ended(self._used[0][0]):
            self._used.popleft()
        return self._collected(StreamWork(self, number, result, finish, seconds))

    def _collected(self, work: Any) -> Any:
        if self._coalesced is not None:
            self._coalesced.append(work)
        return work

    def _in_place(self, tensors: list[Any], opts: Any, issue: Any) -> Any:
        works = []
        for tensor in tensors:
            if tensor.is_contiguous():
                target, finish = tensor, None
            else:
                target = tensor.contiguous()
                finish = copier(tensor, target)
            works.append(self._run(opts, tensors, target, finish,
                                   lambda stream, target=target: issue(target, stream)))
        return self._joined(works)

    def _joined(self, works: list[Any]) -> Any:
        if len(works) == 1 or (works and works[0] is None):
            return works[0]
        return JoinedWork(works)

    def wait_for_call(self, number: int, seconds: float) -> None:
        """Waits until a call on the stream has ended; raises its failure."""
        if not self._completions.wait(number, seconds):
            raise self._time_out(f"a collective did not end within {seconds:g} s")
        if self._failure is not None:
            raise dist.DistBackendError(self._failure)
        code = self._asynchronous_error()
        if code:
            raise self._error(code)

    def has_ended(self, number: int) -> bool:
        """Whether a call on the stream has ended."""
        return self._completions.has_ended(number)

    def complete_later(self, work: StreamWork) -> None:
        """Completes the future of the work when its call has ended."""
        if self._futures is None:
            self._futures = queue.SimpleQueue()
            threading.Thread(target=_complete, args=(self._futures,), daemon=True).start()
        self._futures.put(work)

    # ---- failures ----

    def _asynchronous_error(self) -> int:
        code = ctypes.c_int()
        if self._comm is None:
            return 0
        self._n.ncclCommGetAsyncError(self._comm, ctypes.byref(code))
        return code.value

    def _error(self, code: int) -> Exception:
        dump_trace()
        text = self._failure or f"rank {self._rank_number}: {last_error(code)}"
        return dist.DistBackendError(text)

    def _time_out(self, what: str) -> Exception:
        text = (f"Rank {self._rank_number} of {self._size_number}: Timed out waiting: {what}. "
                f"{self._waits() or f'The library said last: {last_error(0)}'}")
        dump_trace()
        self._abort(text)
        return dist.DistBackendError(text)

    def _waits(self) -> str:
        """Which ranks this one waits for, as far as the library has seen a long wait."""
        return "; ".join(dict.fromkeys(
            f"It waits for rank {status.waits_for} in {status.call}"
            for status in communicators()
            if status.in_call and status.waits_for is not None
            and (status.rank, status.nranks) == (self._rank_number, self._size_number)))

    def _abort(self, text: str) -> None:
        comm, self._comm = self._comm, None
        self._failure = self._failure or text
        _held.discard(self)
        self._stopped.set()
        if comm is not None:
            self._n.ncclCommAbort(comm)
        self._completions.cancel()
        self._point_to_point.close()

    def end_if_late(self) -> None:
        """Aborts if the call that runs in its caller's thread has passed its timeout."""
        deadline = self._deadline
        if deadline is not None and time.monotonic() > deadline:
            self._time_out("a collective did not end within its timeout")


def _watch(backend: Any, stopped: threading.Event) -> None:
    while not stopped.wait(2.0):
        living = backend()
        if living is None:
            return
        living.end_if_late()
        del living


def _complete(works: "queue.SimpleQueue[Any]") -> None:
    while (work := works.get()) is not None:
        work.resolve()
        del work


def _seconds(timeout: timedelta) -> float:
    """The timeout of a call in seconds; 0 if it has none of its own."""
    return max(timeout.total_seconds(), 0.0)
