"""A ctypes wrapper in the manner of inference servers: the path from a variable, every function bound with its types as the library is
loaded, the unique id handed over by value. 4 processes and Python's standard library alone; on host memory or on devices."""

import ctypes
import os
from array import array
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p

import memory
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
    "ncclCommCuDevice": [c_void_p, POINTER(c_int)],
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


def numbers(values):
    return array("q", values).tobytes()


def one_rank(rank, identity):
    nccl = Library(os.environ["MAYPOLE_SO_PATH"])
    place = memory.of(rank)
    stream = place.stream
    comm, number = c_void_p(), c_int()
    nccl.ncclCommInitRank(byref(comm), N, UniqueId.from_buffer_copy(identity), rank)
    nccl.ncclCommCount(comm, byref(number))
    assert number.value == N
    nccl.ncclCommUserRank(comm, byref(number))
    assert number.value == rank
    nccl.ncclCommCuDevice(comm, byref(number))
    assert number.value == place.device, number.value

    count = 1003
    value = lambda r, i: 1000 * r + i
    total = [sum(value(r, i) for r in range(N)) for i in range(count * N)]
    mine = place.buffer(numbers(value(rank, i) for i in range(count * N)))
    out = place.buffer(bytes(8 * count * N))

    def same(expected, what):
        found = list(array("q", out.bytes()))[: len(expected)]
        assert found == expected, (what, found[:8], expected[:8])

    nccl.ncclAllReduce(mine.at, out.at, count * N, INT64, SUM, comm, stream)
    same(total, "all-reduce")
    nccl.ncclReduceScatter(mine.at, out.at, count, INT64, SUM, comm, stream)
    same(total[rank * count : (rank + 1) * count], "reduce-scatter")
    nccl.ncclAllGather(mine.at, out.at, count, INT64, comm, stream)
    same([value(r, i) for r in range(N) for i in range(count)], "all-gather")
    nccl.ncclBroadcast(mine.at, out.at, count, INT64, 3, comm, stream)
    same([value(3, i) for i in range(count)], "broadcast")
    nccl.ncclReduce(mine.at, out.at, count, INT64, MAX, 0, comm, stream)
    same([value(N - 1 if rank == 0 else 3, i) for i in range(count)], "reduce")

    # All to all, as these servers do it.
    def exchange():
        nccl.ncclGroupStart()
        for peer in range(N):
            nccl.ncclSend(mine.at + 8 * count * peer, count, INT64, peer, comm, stream)
            nccl.ncclRecv(out.at + 8 * count * peer, count, INT64, peer, comm, stream)
        nccl.ncclGroupEnd()

    place.asynchronous(exchange)
    same([value(r, rank * count + i) for r in range(N) for i in range(count)], "all to all by send and receive")

    mine, window = c_void_p(), c_void_p()
    nccl.ncclMemAlloc(byref(mine), 8)
    nccl.ncclCommWindowRegister(comm, mine, 8, byref(window), 1)
    # As with NCCL there is none where memory is not symmetric.
    assert bool(window) != memory.ON_DEVICE
    place.write(mine.value, numbers([1 << rank]))
    nccl.ncclAllReduce(mine, out.at, 1, INT64, SUM, comm, stream)
    same([(1 << N) - 1], "all-reduce of the library's memory")
    nccl.ncclCommWindowDeregister(comm, window)
    nccl.ncclMemFree(mine)

    nccl.ncclCommGetAsyncError(comm, byref(number))
    assert number.value == 0
    try:
        nccl.ncclAllReduce(None, out.at, 1, INT64, SUM, comm, stream)
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
