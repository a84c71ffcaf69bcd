"""A ctypes wrapper in the manner of inference servers: the path from a variable, every function bound with its types as the library is
loaded, the unique id handed over by value. 4 processes and Python's standard library alone."""

import ctypes
import os
from array import array
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p

import ranks

N = ranks.NRANKS


class UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]


SEND_RECV = [c_void_p, c_void_p, c_size_t, c_int]
END = [c_void_p, c_void_p]  # communicator, stream
FUNCTIONS = {
    "ncclGetVersion": [POINTER(c_int)],
    "ncclGetUniqueId": [POINTER(UniqueId)],
    "ncclCommInitRank": [POINTER(c_void_p), c_int, UniqueId, c_int],
    "ncclCommCount": [c_void_p, POINTER(c_int)],
    "ncclCommUserRank": [c_void_p, POINTER(c_int)],
    "ncclCommGetAsyncError": [c_void_p, POINTER(c_int)],
    "ncclCommDestroy": [c_void_p],
    "ncclCommAbort": [c_void_p],
    "ncclAllReduce": [*SEND_RECV, c_int, *END],
    "ncclReduce": [*SEND_RECV, c_int, c_int, *END],
    "ncclReduceScatter": [*SEND_RECV, c_int, *END],
    "ncclAllGather": [*SEND_RECV, *END],
    "ncclBroadcast": [*SEND_RECV, c_int, *END],
    "ncclSend": [c_void_p, c_size_t, c_int, c_int, *END],
    "ncclRecv": [c_void_p, c_size_t, c_int, c_int, *END],
    "ncclGroupStart": [],
    "ncclGroupEnd": [],
    "ncclMemAlloc": [POINTER(c_void_p), c_size_t],
    "ncclMemFree": [c_void_p],
    "ncclCommWindowRegister": [c_void_p, c_void_p, c_size_t, POINTER(c_void_p), c_int],
    "ncclCommWindowDeregister": [c_void_p, c_void_p],
    "ncclCommRegister": [c_void_p, c_void_p, c_size_t, POINTER(c_void_p)],
    "ncclCommDeregister": [c_void_p, c_void_p],
    "ncclCommMemStats": [c_void_p, c_int, POINTER(c_uint64)],
}
INT64, SUM, MAX = 4, 0, 2


class Library:
    def __init__(self, path):
        self.opened = ctypes.CDLL(path)
        self.functions = {}
        for name, arguments in FUNCTIONS.items():
            function = getattr(self.opened, name)
            function.restype, function.argtypes = c_int, arguments
            self.functions[name] = function
        self.text = self.opened.ncclGetErrorString
        self.text.restype, self.text.argtypes = c_char_p, [c_int]

    def __getattr__(self, name):
        function = self.functions[name]

        def checked(*arguments):
            code = function(*arguments)
            if code:
                raise RuntimeError(f"{name}: {self.text(code).decode()}")

        return checked


def at(values):
    return values.buffer_info()[0]


def one_rank(rank, identity):
    nccl = Library(os.environ["MAYPOLE_SO_PATH"])
    comm, number = c_void_p(), c_int()
    nccl.ncclCommInitRank(byref(comm), N, UniqueId.from_buffer_copy(identity), rank)
    nccl.ncclCommCount(comm, byref(number))
    assert number.value == N
    nccl.ncclCommUserRank(comm, byref(number))
    assert number.value == rank

    count = 1003
    value = lambda r, i: 1000 * r + i
    total = [sum(value(r, i) for r in range(N)) for i in range(count * N)]
    mine = array("q", [value(rank, i) for i in range(count * N)])
    out = array("q", bytes(8 * count * N))

    def same(expected, what):
        found = list(out[: len(expected)])
        assert found == expected, (what, found[:8], expected[:8])

    nccl.ncclAllReduce(at(mine), at(out), count * N, INT64, SUM, comm, None)
    same(total, "all-reduce")
    nccl.ncclReduceScatter(at(mine), at(out), count, INT64, SUM, comm, None)
    same(total[rank * count : (rank + 1) * count], "reduce-scatter")
    nccl.ncclAllGather(at(mine), at(out), count, INT64, comm, None)
    same([value(r, i) for r in range(N) for i in range(count)], "all-gather")
    nccl.ncclBroadcast(at(mine), at(out), count, INT64, 3, comm, None)
    same([value(3, i) for i in range(count)], "broadcast")
    nccl.ncclReduce(at(mine), at(out), count, INT64, MAX, 0, comm, None)
    same([value(N - 1 if rank == 0 else 3, i) for i in range(count)], "reduce")
    # All to all, as these servers do it.
    nccl.ncclGroupStart()
    for peer in range(N):
        nccl.ncclSend(at(mine) + 8 * count * peer, count, INT64, peer, comm, None)
        nccl.ncclRecv(at(out) + 8 * count * peer, count, INT64, peer, comm, None)
    nccl.ncclGroupEnd()
    same([value(r, rank * count + i) for r in range(N) for i in range(count)], "all to all by send and receive")

    memory, window = c_void_p(), c_void_p()
    nccl.ncclMemAlloc(byref(memory), 8)
    nccl.ncclCommWindowRegister(comm, memory, 8, byref(window), 1)
    word = c_uint64.from_address(memory.value)
    word.value = 1 << rank
    nccl.ncclAllReduce(memory, memory, 1, INT64, SUM, comm, None)
    assert word.value == (1 << N) - 1, word.value
    nccl.ncclCommWindowDeregister(comm, window)
    nccl.ncclMemFree(memory)

    nccl.ncclCommGetAsyncError(comm, byref(number))
    assert number.value == 0
    try:
        nccl.ncclAllReduce(None, at(out), 1, INT64, SUM, comm, None)
    except RuntimeError as error:
        assert "invalid argument" in str(error), error
    else:
        raise AssertionError("an all-reduce of nothing succeeded")
    nccl.ncclCommDestroy(comm)


def unique_id():
    nccl = Library(os.environ["MAYPOLE_SO_PATH"])
    version, made = c_int(), UniqueId()
    nccl.ncclGetVersion(byref(version))
    assert version.value == 23203, version.value
    nccl.ncclGetUniqueId(byref(made))
    return bytes(made)


if __name__ == "__main__":
    ranks.main(unique_id, one_rank)
    print(f"{N} processes, {len(FUNCTIONS) + 1} functions bound, 5 collectives, all to all by sends, a window")
