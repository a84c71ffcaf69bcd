"""Communicators over host memory, for NumPy arrays and everything with the buffer protocol."""

import ctypes
from types import TracebackType
from typing import Any

from ._arrays import readable, writable
from ._library import UniqueId, check, library

__all__ = ["OPERATIONS", "Communicator", "unique_id"]

#: The reductions and their ncclRedOp_t.
OPERATIONS = {"sum": 0, "prod": 1, "max": 2, "min": 3, "avg": 4}


def unique_id() -> bytes:
    """Makes the unique id of a new communicator. One rank calls it and gives the bytes to all."""
    made = UniqueId()
    check(library().ncclGetUniqueId(ctypes.byref(made)))
    return made.to_bytes()


class Communicator:
    """A group of ranks that call collectives together.

    Each call returns when its result is there, and other Python threads run meanwhile. Arrays are
    contiguous and all ranks pass the same number of elements of the same type. A failure, also
    that of another rank, is a ``MaypoleError`` that names the rank.

    ``with Communicator(...) as comm:`` destroys it at the end.
    """

    def __init__(self, rank: int, nranks: int, id: bytes) -> None:
        """Joins the communicator with this unique id and waits for the other ranks."""
        handle = ctypes.c_void_p()
        code = library().ncclCommInitRank(ctypes.byref(handle), nranks, UniqueId.parse(id), rank)
        check(code)
        self._handle: int | None = handle.value
        self.rank = rank
        self.nranks = nranks

    def all_reduce(self, send: Any, receive: Any, operation: str = "sum") -> None:
        """Reduces ``send`` of all ranks to ``receive`` on all. They may be the same array."""
        source, target = readable(send), writable(receive)
        _same(target, source.count, source.datatype)
        op = _operation(operation)
        check(library().ncclAllReduce(source.address, target.address, source.count,
                                      source.datatype, op, self._live(), None))

    def reduce(self, send: Any, receive: Any, root: int = 0, operation: str = "sum") -> None:
        """Reduces ``send`` of all ranks to ``receive`` on ``root``; elsewhere it may be None."""
        source, address = readable(send), None
        if self.rank == root:
            target = writable(receive)
            _same(target, source.count, source.datatype)
            address = target.address
        check(library().ncclReduce(source.address, address, source.count, source.datatype,
                                   _operation(operation), root, self._live(), None))

    def broadcast(self, array: Any, root: int = 0) -> None:
        """Copies ``array`` of ``root`` to that of all ranks."""
        target = readable(array) if self.rank == root else writable(array)
        check(library().ncclBroadcast(target.address, target.address, target.count,
                                      target.datatype, root, self._live(), None))

    def all_gather(self, send: Any, receive: Any) -> None:
        """Puts ``send`` of all ranks one after the other into ``receive`` of all."""
        source, target = readable(send), writable(receive)
        _same(target, source.count * self.nranks, source.datatype)
        check(library().ncclAllGather(source.address, target.address, source.count,
                                      source.datatype, self._live(), None))

    def reduce_scatter(self, send: Any, receive: Any, operation: str = "sum") -> None:
        """Reduces ``send`` of all ranks; each rank receives the block of its number."""
        source, target = readable(send), writable(receive)
        _same(source, target.count * self.nranks, target.datatype)
        check(library().ncclReduceScatter(source.address, target.address, target.count,
                                          target.datatype, _operation(operation), self._live(),
                                          None))

    def all_to_all(self, send: Any, receive: Any) -> None:
        """Sends block i of ``send`` to rank i, which receives it at the place of this rank."""
        source, target = readable(send), writable(receive)
        _same(target, source.count, source.datatype)
        if source.count % self.nranks:
            raise ValueError(f"{source.count} elements are not {self.nranks} equal blocks")
        check(library().ncclAlltoAll(source.address, target.address, source.count // self.nranks,
                                     source.datatype, self._live(), None))

    def send(self, array: Any, peer: int) -> None:
        """Sends ``array`` to the rank ``peer``, which calls ``receive``."""
        source = readable(array)
        check(library().ncclSend(source.address, source.count, source.datatype, peer,
                                 self._live(), None))

    def receive(self, array: Any, peer: int) -> None:
        """Receives into ``array`` what the rank ``peer`` sends."""
        target = writable(array)
        check(library().ncclRecv(target.address, target.count, target.datatype, peer,
                                 self._live(), None))

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        check(library().maypoleBarrier(self._live(), None))

    def destroy(self) -> None:
        """Ends the use of the communicator. It waits for no other rank."""
        handle, self._handle = self._handle, None
        if handle is not None:
            check(library().ncclCommDestroy(handle))

    def abort(self) -> None:
        """Ends calls that run, on this and the other ranks, with an error."""
        handle, self._handle = self._handle, None
        if handle is not None:
            check(library().ncclCommAbort(handle))

    def __enter__(self) -> "Communicator":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.destroy()
        else:
            self.abort()

    def _live(self) -> int:
        if self._handle is None:
            raise ValueError("the communicator was destroyed")
        return self._handle


def _operation(name: str) -> int:
    if name not in OPERATIONS:
        raise ValueError(f"the operation {name!r} is none of {', '.join(OPERATIONS)}")
    return OPERATIONS[name]


def _same(array: Any, count: int, datatype: int) -> None:
    if array.count != count or array.datatype != datatype:
        raise ValueError(
            f"{array.count} elements of type {array.datatype} where {count} of type {datatype} "
            "are needed (types are numbers of ncclDataType_t)"
        )
