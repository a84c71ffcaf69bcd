"""The backend: methods of ``torch.distributed.Backend`` for CPU tensors."""

from typing import Any, Callable

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions, Backend

from .._library import MaypoleError
from .calls import Finish
from .groups import GroupBackend
from .monitored_barrier import monitored_barrier
from .reductions import fold, known_reduction, reduction
from .tensors import nbytes, pack, result_memory, size_array, unpack
from .work import PendingWork, finished_work

__all__ = ["MaypoleBackend", "create"]

_BYTE = 1
_STRIDED = torch.strided


def create(opts: Any, backend_options: Any) -> "MaypoleBackend":
    """Makes the backend of this rank in a new process group, when all its ranks are there."""
    parent = getattr(opts, "split_from", None)
    if isinstance(parent, MaypoleBackend):
        options = Backend.Options("maypole", timeout=opts.timeout)
        return parent.split(opts.store, opts.global_ranks_in_group, options)
    return MaypoleBackend(opts.store, opts.group_rank, opts.group_size, opts.timeout)


class MaypoleBackend(GroupBackend):
    """The rank of this process in one process group."""

    # ---- collectives ----

    def broadcast(self, tensors: list[Any], opts: Any) -> Any:
        root = opts.rootRank

        def issue(tensor: Any, stream: int | None) -> int:
            address, length = tensor.data_ptr(), nbytes(tensor)
            return self._n.ncclBroadcast(address, address, length, _BYTE, root, self._comm, stream)

        return self._in_place(tensors, opts, issue)

    def allreduce(self, tensors: list[Any], opts: Any) -> Any:
        first = tensors[0]
        if first.layout is not _STRIDED:
            return self.allreduce_sparse(tensors, opts)
        op = opts.reduceOp
        how = self._reduction(op, first.dtype)
        if how is None:
            return self._gather_and_fold(tensors, opts, op, range(self._size_number))
        if (len(tensors) == 1 and first.is_contiguous() and not how.is_temporary
                and self._begins_here(opts)):
            # The same as below with less of Python, for small tensors.
            address = first.data_ptr()
            self._end_here(self._all_reduce(
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
        target, finish = result_memory(output)
        return self._run(opts, [output], (source, target), finish, lambda stream: (
            self._n.ncclAllGather(source.data_ptr(), target.data_ptr(), nbytes(source), _BYTE,
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
        counts = [nbytes(output) for output in outputs]
        flat = torch.empty(sum(counts), dtype=torch.uint8)
        sizes = size_array(counts)

        def issue(stream: int | None) -> int:
            if len(set(counts)) == 1:
                return self._n.ncclAllGather(source.data_ptr(), flat.data_ptr(), nbytes(source),
                                             _BYTE, self._comm, stream)
            return self._n.maypoleAllGatherV(source.data_ptr(), nbytes(source), flat.data_ptr(),
                                             sizes, None, _BYTE, self._comm, stream)

        return self._run(opts, outputs, (source, flat, sizes), lambda: unpack(flat, outputs),
                         issue)

    def gather(self, outputs: list[list[Any]], inputs: list[Any], opts: Any) -> Any:
        root = opts.rootRank
        source = inputs[0].contiguous()
        targets = outputs[0] if root == self._rank_number else []
        counts = [nbytes(target) for target in targets]
        if targets and set(counts) != {nbytes(source)}:
            raise ValueError("gather needs tensors of one size on all ranks")
        flat = torch.empty(sum(counts), dtype=torch.uint8)
        return self._run(opts, targets, (source, flat), lambda: unpack(flat, targets),
                         lambda stream: self._n.ncclGather(
                             source.data_ptr(), flat.data_ptr() or None, nbytes(source), _BYTE,
                             root, self._comm, stream))

    def scatter(self, outputs: list[Any], inputs: list[list[Any]], opts: Any) -> Any:
        root = opts.rootRank
        sources = inputs[0] if root == self._rank_number else []
        flat = pack(sources)
        target, finish = result_memory(outputs[0])
        if sources and {nbytes(s) for s in sources} != {nbytes(target)}:
            raise ValueError("scatter needs tensors of one size on all ranks")
        return self._run(opts, outputs, (flat, target), finish, lambda stream: (
            self._n.ncclScatter(flat.data_ptr() or None, target.data_ptr(), nbytes(target), _BYTE,
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
        target, finish = result_memory(output)
        sizes = size_array([count * how.parts for count in counts])

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
        send = [nbytes(tensor) for tensor in inputs]
        receive = [nbytes(tensor) for tensor in outputs]
        flat = torch.empty(sum(receive), dtype=torch.uint8)
        return self._exchange(outputs, pack(inputs), send, flat, receive, opts,
                              lambda: unpack(flat, outputs))

    def _exchange(self, result: list[Any], source: Any, send: list[int], output: Any,
                  receive: list[int], opts: Any, then: Finish = None) -> Any:
        target, finish = result_memory(output)
        out_sizes, in_sizes = size_array(send), size_array(receive)
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

    # ---- reductions that the library does not have ----

    def _reduction(self, op: Any, dtype: torch.dtype) -> Any:
        how = known_reduction(op, dtype)
        if how is not None:
            return how
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
            self._n.ncclAllGather(flat.data_ptr(), parts.data_ptr(), nbytes(flat), _BYTE,
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
        row = nbytes(tensor) // rows if rows else 0
        return [split * row for split in splits]
