"""A ctypes wrapper as in inference servers, on host memory or on devices.

The path comes from a variable, every function is bound with its types when the library is loaded,
and the unique id is passed by value. 4 processes; only Python's standard library."""

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
    rank_memory = memory.for_rank(rank)
    stream = rank_memory.stream
    comm, number = c_void_p(), c_int()
    nccl.ncclCommInitRank(byref(comm), N, UniqueId.from_buffer_copy(identity), rank)
    nccl.ncclCommCount(comm, byref(number))
    assert number.value == N
    nccl.ncclCommUserRank(comm, byref(number))
    assert number.value == rank
    nccl.ncclCommCuDevice(comm, byref(number))
    assert number.value == rank_memory.device, number.value

    count = 1003
    value = lambda r, i: 1000 * r + i
    total = [sum(value(r, i) for r in range(N)) for i in range(count * N)]
    mine = rank_memory.buffer(numbers(value(rank, i) for i in range(count * N)))
    out = rank_memory.buffer(bytes(8 * count * N))

    def expect_equal(expected, what):
        found = list(array("q", out.bytes()))[: len(expected)]
        assert found == expected, (what, found[:8], expected[:8])

    nccl.ncclAllReduce(mine.address, out.address, count * N, INT64, SUM, comm, stream)
    expect_equal(total, "all-reduce")
    nccl.ncclReduceScatter(mine.address, out.address, count, INT64, SUM, comm, stream)
    expect_equal(total[rank * count : (rank + 1) * count], "reduce-scatter")
    nccl.ncclAllGather(mine.address, out.address, count, INT64, comm, stream)
    expect_equal([value(r, i) for r in range(N) for i in range(count)], "all-gather")
    nccl.ncclBroadcast(mine.address, out.address, count, INT64, 3, comm, stream)
    expect_equal([value(3, i) for i in range(count)], "broadcast")
    nccl.ncclReduce(mine.address, out.address, count, INT64, MAX, 0, comm, stream)
    expect_equal([value(N - 1 if rank == 0 else 3, i) for i in range(count)], "reduce")

    # All-to-all, as inference servers do it.
    def exchange():
        nccl.ncclGroupStart()
        for peer in range(N):
            nccl.ncclSend(mine.address + 8 * count * peer, count, INT64, peer, comm, stream)
            nccl.ncclRecv(out.address + 8 * count * peer, count, INT64, peer, comm, stream)
        nccl.ncclGroupEnd()

    rank_memory.check_asynchronous(exchange)
    expected = [value(r, rank * count + i) for r in range(N) for i in range(count)]
    expect_equal(expected, "all-to-all by send and receive")

    mine, window = c_void_p(), c_void_p()
    nccl.ncclMemAlloc(byref(mine), 8)
    nccl.ncclCommWindowRegister(comm, mine, 8, byref(window), 1)
    # As in NCCL there is no window if memory is not symmetric.
    assert bool(window) != memory.ON_DEVICE
    rank_memory.write(mine.value, numbers([1 << rank]))
    nccl.ncclAllReduce(mine, out.address, 1, INT64, SUM, comm, stream)
    expect_equal([(1 << N) - 1], "all-reduce of the library's memory")
    nccl.ncclCommWindowDeregister(comm, window)
    nccl.ncclMemFree(mine)

    nccl.ncclCommGetAsyncError(comm, byref(number))
    assert number.value == 0
    try:
        nccl.ncclAllReduce(None, out.address, 1, INT64, SUM, comm, stream)
    except RuntimeError as error:
        assert "invalid argument" in str(error), error
    else:
        raise AssertionError("an all-reduce of NULL succeeded")
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
    bound = len(FUNCTIONS) + 1
    print(f"{N} processes, {bound} functions bound, 5 collectives, all-to-all by sends, a window")
