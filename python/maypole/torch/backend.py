"""The backend: methods of ``torch.distributed.Backend`` for CPU tensors.

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

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions, Backend, ErrorType

from .._library import MaypoleError, UniqueId, check, last_error, library
from .monitored_barrier import monitored_barrier
from .point_to_point import PointToPoint
from .reductions import fold, reduction
from .traces import dump_trace
from .work import Completions, PendingWork, StreamWork, finished_work

__all__ = ["MaypoleBackend", "create"]

_BYTE = 1
_NO_COLOR = -1
_SHRINK_ABORT = 1
# A call with a shorter timeout runs on the stream, where a wait can end at any time.
_WATCHED_SECONDS = 120.0
Finish = Callable[[], None] | None
_held: set[Any] = set()


def create(opts: Any, backend_options: Any) -> "MaypoleBackend":
    """Makes the backend of this rank in a new process group, when all its ranks are there."""
    parent = getattr(opts, "split_from", None)
    if isinstance(parent, MaypoleBackend):
        options = Backend.Options("maypole", timeout=opts.timeout)
        backend = parent.split(opts.store, opts.global_ranks_in_group, options)
    else:
        backend = MaypoleBackend(opts.store, opts.group_rank, opts.group_size, opts.timeout)
    if dist.get_debug_level() == dist.DebugLevel.DETAIL:
        # The wrapper that PyTorch puts around it then keeps its part in C++ alive, and not this.
        _held.add(backend)
    return backend


class MaypoleBackend(Backend):
    """The rank of this process in one process group."""

    def __init__(
        self, store: Any, rank: int, size: int, timeout: timedelta, comm: int | None = None
    ) -> None:
        """Joins the group, or takes the communicator ``comm`` of it."""
        super().__init__(rank, size)
        self._n = library()
        self._options = Backend.Options("maypole", timeout=timeout)
        self._seconds = timeout.total_seconds()
        self._store, self._rank_number, self._size_number = store, rank, size
        self._failure: str | None = None
        self._deadline: float | None = None
        self._sequence = self._barriers = self._shrinks = 0
        self._coalesced: list[Any] | None = None
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

    def end_coalescing(self) -> Any:
        works, self._coalesced = self._coalesced or [], None
        return _JoinedWork(works)

    # ---- other groups ----

    @property
    def supports_splitting(self) -> bool:
        return True

    @property
    def supports_shrinking(self) -> bool:
        return True

    def split(self, store: Any, ranks: list[int], opts: Any) -> Any:
        """The backend of a new group of these ranks; every rank of this one calls it."""
        me = self._rank_number
        if me not in ranks:
            self._split_comm(_NO_COLOR, 0)
            # PyTorch would take None for a backend and crash.
            raise RuntimeError(
                f"rank {me} is in none of the groups of the split. The other ranks have theirs, "
                "but PyTorch cannot return from a backend in Python without a group: make a "
                "group of this rank alone")
        rank = ranks.index(me)
        return self._child(store, rank, len(ranks), opts, self._split_comm(ranks[0], rank))

    def perform_nocolor_split(self, device: Any) -> None:
        """The part in a split of a rank that is in none of the groups."""
        self._split_comm(_NO_COLOR, 0)

    def _split_comm(self, color: int, key: int) -> int | None:
        self._end_calls()
        child = ctypes.c_void_p()
        self._check(self._n.ncclCommSplit(self._comm, color, key, ctypes.byref(child), None))
        return child.value

    def shrink(self, ranks_to_exclude: list[int], shrink_flags: int = 0,
               opts_override: Any = None) -> Any:
        """The backend of a group without these ranks; the others call it."""
        if not shrink_flags & _SHRINK_ABORT:
            self._end_calls()
        out, child = sorted(ranks_to_exclude), ctypes.c_void_p()
        self._check(self._n.ncclCommShrink(
            self._comm, (ctypes.c_int * len(out))(*out), len(out), ctypes.byref(child), None,
            shrink_flags))
        self._shrinks += 1
        prefix = f"shrunk/{self._shrinks}/{'-'.join(map(str, out))}"
        rank = self._rank_number - sum(other < self._rank_number for other in out)
        return self._child(dist.PrefixStore(prefix, self._store), rank,
                           self._size_number - len(out), opts_override, child.value)

    def merge(self, store: Any, opts: Any, rank: int, size: int) -> Any:
        """The backend of a group of ranks that had no common one."""
        return self._child(store, rank, size, opts, None)

    def _child(self, store: Any, rank: int, size: int, opts: Any, comm: int | None) -> Any:
        timeout = timedelta(seconds=self._seconds) if opts is None else opts._timeout
        return MaypoleBackend(store, rank, size, timeout, comm)

    def _end_calls(self) -> None:
        if self._issued:
            self.wait_for_call(self._issued, self._seconds)

    def _check(self, code: int) -> None:
        if self._failure is not None or code:
            raise self._error(code)

    # ---- collectives ----

    def broadcast(self, tensors: list[Any], opts: Any) -> Any:
        root = opts.rootRank

        def issue(tensor: Any, stream: int | None) -> int:
            address, length = tensor.data_ptr(), _length(tensor)
            return self._n.ncclBroadcast(address, address, length, _BYTE, root, self._comm, stream)

        return self._in_place(tensors, opts, issue)

    def allreduce(self, tensors: list[Any], opts: Any) -> Any:
        first = tensors[0]
        if first.layout != torch.strided:
            return self.allreduce_sparse(tensors, opts)
        op = opts.reduceOp
        how = self._reduction(op, first.dtype)
        if how is None:
            return self._gather_and_fold(tensors, opts, op, range(self._size_number))
        if (len(tensors) == 1 and first.is_contiguous() and not how.is_temporary
                and self._begins_here(opts)):
            # The same as below with less of Python, for small tensors.
            address = first.data_ptr()
            self._end_here(self._n.ncclAllReduce(
                address, address, first.numel() * how.parts, how.datatype, how.operator,
                self._comm, None))
            return None

        def issue(tensor: Any, stream: int | None) -> int:
            address = tensor.data_ptr()
            return self._n.ncclAllReduce(address, address, tensor.numel() * how.parts,
                                         how.datatype, how.operator, self._comm, stream)

        return self._released(how, self._in_place(tensors, opts, issue))

    def allreduce_coalesced(self, tensors: list[Any], opts: Any) -> Any:
        return self._joined([self.allreduce([tensor], opts) for tensor in tensors])

    def allreduce_sparse(self, tensors: list[Any], opts: Any) -> Any:
        self._only_sum(opts)
        for tensor in tensors:
            self._reduce_sparse(tensor, opts)
        return finished_work(tensors)

    def reduce(self, tensors: list[Any], opts: Any) -> Any:
        op, root = opts.reduceOp, opts.rootRank
        how = self._reduction(op, tensors[0].dtype)
        if how is None:
            return self._gather_and_fold(tensors, opts, op, (root,))

        def issue(tensor: Any, stream: int | None) -> int:
            address = tensor.data_ptr()
            target = address if root == self._rank_number else None
            return self._n.ncclReduce(address, target, tensor.numel() * how.parts, how.datatype,
                                      how.operator, root, self._comm, stream)

        return self._released(how, self._in_place(tensors, opts, issue))

    def all_gather_single(self, output: Any, input: Any, opts: Any) -> Any:
        self._check_sizes(output, input, self._size_number)
        source = input.contiguous()
        target, finish = _target(output)
        return self._run(opts, [output], (source, target), finish, lambda stream: (
            self._n.ncclAllGather(source.data_ptr(), target.data_ptr(), _length(source), _BYTE,
                                  self._comm, stream)))

    def all_gather_single_coalesced(self, outputs: list[Any], inputs: list[Any], opts: Any) -> Any:
        pairs = zip(outputs, inputs, strict=True)
        return self._joined([self.all_gather_single(o, i, opts) for o, i in pairs])

    def allgather(self, outputs: list[list[Any]], inputs: list[Any], opts: Any) -> Any:
        return self._joined([
            self._gather_to(o, i, opts) for o, i in zip(outputs, inputs, strict=True)])

    def allgather_coalesced(self, outputs: list[list[Any]], inputs: list[Any], opts: Any) -> Any:
        # outputs[rank][number] belongs to inputs[number].
        columns = [list(column) for column in zip(*outputs, strict=True)]
        return self.allgather(columns, inputs, opts)

    def _gather_to(self, outputs: list[Any], input: Any, opts: Any) -> Any:
        source = input.contiguous()
        counts = [_length(output) for output in outputs]
        flat = torch.empty(sum(counts), dtype=torch.uint8)
        sizes = _sizes(counts)

        def issue(stream: int | None) -> int:
            if len(set(counts)) == 1:
                return self._n.ncclAllGather(source.data_ptr(), flat.data_ptr(), _length(source),
                                             _BYTE, self._comm, stream)
            return self._n.maypoleAllGatherV(source.data_ptr(), _length(source), flat.data_ptr(),
                                             sizes, None, _BYTE, self._comm, stream)

        return self._run(opts, outputs, (source, flat, sizes), lambda: _unpack(flat, outputs),
                         issue)

    def gather(self, outputs: list[list[Any]], inputs: list[Any], opts: Any) -> Any:
        root = opts.rootRank
        source = inputs[0].contiguous()
        targets = outputs[0] if root == self._rank_number else []
        counts = [_length(target) for target in targets]
        if targets and set(counts) != {_length(source)}:
            raise ValueError("gather needs tensors of one size on all ranks")
        flat = torch.empty(sum(counts), dtype=torch.uint8)
        return self._run(opts, targets, (source, flat), lambda: _unpack(flat, targets),
                         lambda stream: self._n.ncclGather(
                             source.data_ptr(), flat.data_ptr() or None, _length(source), _BYTE,
                             root, self._comm, stream))

    def scatter(self, outputs: list[Any], inputs: list[list[Any]], opts: Any) -> Any:
        root = opts.rootRank
        sources = inputs[0] if root == self._rank_number else []
        flat = _pack(sources)
        target, finish = _target(outputs[0])
        if sources and {_length(s) for s in sources} != {_length(target)}:
            raise ValueError("scatter needs tensors of one size on all ranks")
        return self._run(opts, outputs, (flat, target), finish, lambda stream: (
            self._n.ncclScatter(flat.data_ptr() or None, target.data_ptr(), _length(target), _BYTE,
                                root, self._comm, stream)))

    def reduce_scatter_single(self, output: Any, input: Any, opts: Any) -> Any:
        self._check_sizes(input, output, self._size_number)
        counts = [output.numel()] * self._size_number
        return self._reduce_scatter(output, input.contiguous().view(-1), counts, opts)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Any], inputs: list[Any], opts: Any
    ) -> Any:
        pairs = zip(outputs, inputs, strict=True)
        return self._joined([self.reduce_scatter_single(o, i, opts) for o, i in pairs])

    def reduce_scatter(self, outputs: list[Any], inputs: list[list[Any]], opts: Any) -> Any:
        works = []
        for output, blocks in zip(outputs, inputs, strict=True):
            counts = [block.numel() for block in blocks]
            flat = torch.cat([block.reshape(-1) for block in blocks])
            works.append(self._reduce_scatter(output, flat, counts, opts))
        return self._joined(works)

    def _reduce_scatter(self, output: Any, flat: Any, counts: list[int], opts: Any) -> Any:
        op = opts.reduceOp
        how = self._reduction(op, flat.dtype)
        if how is None:
            begin = sum(counts[:self._rank_number])
            end = begin + counts[self._rank_number]
            return self._fold_all(flat, opts, op, [output], lambda folded: (
                output.copy_(folded[begin:end].view(output.shape))))
        target, finish = _target(output)
        sizes = _sizes([count * how.parts for count in counts])

        def issue(stream: int | None) -> int:
            count = target.numel() * how.parts
            if len(set(counts)) == 1:
                return self._n.ncclReduceScatter(flat.data_ptr(), target.data_ptr(), count,
                                                 how.datatype, how.operator, self._comm, stream)
            return self._n.maypoleReduceScatterV(flat.data_ptr(), sizes, None, target.data_ptr(),
                                                 count, how.datatype, how.operator, self._comm,
                                                 stream)

        work = self._run(opts, [output], (flat, target, sizes), finish, issue)
        return self._released(how, work)

    def all_to_all_single(
        self, output: Any, input: Any, output_splits: list[int], input_splits: list[int], opts: Any
    ) -> Any:
        send = self._split(input, input_splits)
        receive = self._split(output, output_splits)
        return self._exchange([output], input.contiguous(), send, output, receive, opts)

    def alltoall(self, outputs: list[Any], inputs: list[Any], opts: Any) -> Any:
        send = [_length(tensor) for tensor in inputs]
        receive = [_length(tensor) for tensor in outputs]
        flat = torch.empty(sum(receive), dtype=torch.uint8)
        return self._exchange(outputs, _pack(inputs), send, flat, receive, opts,
                              lambda: _unpack(flat, outputs))

    def _exchange(self, result: list[Any], source: Any, send: list[int], output: Any,
                  receive: list[int], opts: Any, then: Finish = None) -> Any:
        target, finish = _target(output)
        out_sizes, in_sizes = _sizes(send), _sizes(receive)
        return self._run(opts, result, (source, target, out_sizes, in_sizes), then or finish,
                         lambda stream: self._n.maypoleAlltoAllV(
                             source.data_ptr() or None, out_sizes, None,
                             target.data_ptr() or None, in_sizes, None, _BYTE, self._comm, stream))

    def barrier(self, opts: Any) -> Any:
        return self._run(opts, [], (), None,
                         lambda stream: self._n.maypoleBarrier(self._comm, stream))

    def monitored_barrier(self, opts: Any, wait_all_ranks: bool = False) -> None:
        """A barrier whose error names the ranks that did not come."""
        given = opts.timeout.total_seconds()
        self._barriers += 1
        monitored_barrier(
            self._store, f"maypole/barrier/{self._barriers}", self._rank_number,
            self._size_number, given if given >= 0 else self._seconds, wait_all_ranks)

    # ---- sends and receives ----

    def send(self, tensors: list[Any], to: int, tag: int) -> Any:
        work = PendingWork(tensors, self._seconds, self._time_out)
        self._point_to_point.send(tensors[0], to, tag, work)
        return self._collected(work)

    def recv(self, tensors: list[Any], source: int, tag: int) -> Any:
        work = PendingWork(tensors, self._seconds, self._time_out)
        self._point_to_point.receive(tensors[0], source, tag, work)
        return self._collected(work)

    def recv_anysource(self, tensors: list[Any], tag: int) -> Any:
        work = PendingWork(tensors, self._seconds, self._time_out)
        self._point_to_point.receive(tensors[0], None, tag, work)
        return self._collected(work)

    # ---- how calls run ----

    def _begins_here(self, opts: Any) -> bool:
        """Begins a call in the calling thread, unless it must not run there."""
        if opts.asyncOp or self._coalesced is not None:
            return False
        seconds = _seconds(opts.timeout) or self._seconds
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
                finish = _copier(tensor, target)
            works.append(self._run(opts, tensors, target, finish,
                                   lambda stream, target=target: issue(target, stream)))
        return self._joined(works)

    def _joined(self, works: list[Any]) -> Any:
        if len(works) == 1 or (works and works[0] is None):
            return works[0]
        return _JoinedWork(works)

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
                f"The library said last: {last_error(0)}")
        dump_trace()
        self._abort(text)
        return dist.DistBackendError(text)

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

    # ---- reductions that the library does not have ----

    def _reduction(self, op: Any, dtype: torch.dtype) -> Any:
        try:
            return reduction(op, dtype, self._comm)
        except MaypoleError as error:
            raise ValueError(f"the operation {op.op} for {dtype}: {error}") from error

    def _released(self, how: Any, work: Any) -> Any:
        if how.is_temporary:
            self._n.ncclRedOpDestroy(how.operator, self._comm)
        return work

    def _gather_and_fold(self, tensors: list[Any], opts: Any, op: Any, on: Any) -> Any:
        def put(tensor: Any) -> Callable[[Any], None]:
            def copy(folded: Any) -> None:
                if self._rank_number in on:
                    tensor.copy_(folded.view(tensor.shape))
            return copy

        return self._joined([
            self._fold_all(t.contiguous().view(-1), opts, op, tensors, put(t)) for t in tensors])

    def _fold_all(self, flat: Any, opts: Any, op: Any, result: Any, put: Any) -> Any:
        parts = torch.empty((self._size_number, flat.numel()), dtype=flat.dtype)
        return self._run(opts, result, (flat, parts), lambda: put(fold(op, parts)), lambda stream: (
            self._n.ncclAllGather(flat.data_ptr(), parts.data_ptr(), _length(flat), _BYTE,
                                  self._comm, stream)))

    def _only_sum(self, opts: Any) -> None:
        if opts.reduceOp.op != dist.ReduceOp.RedOpType.SUM:
            raise ValueError("sparse tensors are reduced by SUM only")

    def _reduce_sparse(self, tensor: Any, opts: Any) -> None:
        here = tensor.coalesce()
        indices, values = here.indices().contiguous(), here.values().contiguous()
        waiting = AllgatherOptions()
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self._size_number)]
        self._gather_to(lengths, torch.tensor([indices.shape[1]]), waiting).wait()
        all_indices = [indices.new_empty((indices.shape[0], int(n))) for n in lengths]
        all_values = [values.new_empty((int(n), *values.shape[1:])) for n in lengths]
        self._gather_to(all_indices, indices, waiting).wait()
        self._gather_to(all_values, values, waiting).wait()
        total = torch.sparse_coo_tensor(
            torch.cat(all_indices, dim=1), torch.cat(all_values), tensor.shape).coalesce()
        tensor.copy_(total)

    # ---- sizes ----

    def _check_sizes(self, large: Any, small: Any, factor: int) -> None:
        if large.dtype != small.dtype:
            raise ValueError("the input tensor and the output tensor differ in type")
        if large.numel() != small.numel() * factor:
            raise ValueError(
                f"a tensor of {large.numel()} elements where {factor} times {small.numel()} are "
                "needed")

    def _split(self, tensor: Any, splits: list[int]) -> list[int]:
        """The bytes for each rank."""
        rows = tensor.shape[0] if tensor.dim() else 1
        if not splits:
            if rows % self._size_number:
                raise ValueError("Tensor's dim 0 does not divide equally across group size")
            splits = [rows // self._size_number] * self._size_number
        if sum(splits) != rows or len(splits) != self._size_number:
            raise ValueError("Split sizes doesn't match total dim 0 size")
        row = _length(tensor) // rows if rows else 0
        return [split * row for split in splits]


class _JoinedWork(dist.Work):
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


def _length(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


def _sizes(counts: list[int]) -> Any:
    return (ctypes.c_size_t * len(counts))(*counts)


def _copier(tensor: Any, source: Any) -> Callable[[], None]:
    return lambda: tensor.copy_(source)


def _target(output: Any) -> tuple[Any, Finish]:
    """Contiguous memory for a result, and what copies it to the tensor."""
    if output.is_contiguous():
        return output, None
    target = torch.empty(output.shape, dtype=output.dtype)
    return target, _copier(output, target)


def _pack(tensors: list[Any]) -> torch.Tensor:
    if not tensors:
        return torch.empty(0, dtype=torch.uint8)
    return torch.cat([t.contiguous().view(-1).view(torch.uint8) for t in tensors])


def _unpack(flat: torch.Tensor, tensors: list[Any]) -> None:
    begin = 0
    for tensor in tensors:
        end = begin + _length(tensor)
        # A part may begin at an address that its type does not allow.
        part = flat[begin:end] if begin % tensor.element_size() == 0 else flat[begin:end].clone()
        tensor.copy_(part.view(tensor.dtype).view(tensor.shape))
        begin = end
