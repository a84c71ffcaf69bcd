"""CuPy's NcclCommunicator with plain addresses of host memory or of a device.

4 processes, every collective that CuPy has, every type that NumPy has."""

import memory
import numpy as np
import ranks
from cupy.cuda import nccl

N = ranks.NRANKS
TYPES = {
    "int8": nccl.NCCL_INT8,
    "uint8": nccl.NCCL_UINT8,
    "int32": nccl.NCCL_INT32,
    "uint32": nccl.NCCL_UINT32,
    "int64": nccl.NCCL_INT64,
    "uint64": nccl.NCCL_UINT64,
    "float16": nccl.NCCL_FLOAT16,
    "float32": nccl.NCCL_FLOAT32,
    "float64": nccl.NCCL_FLOAT64,
}
OPERATORS = {
    "add": nccl.NCCL_SUM,
    "multiply": nccl.NCCL_PROD,
    "maximum": nccl.NCCL_MAX,
    "minimum": nccl.NCCL_MIN,
}


def values(rank, count, dtype):
    """The input of a rank: 1 to 3, so that sums and products are exact in every type and order."""
    return ((np.arange(count) * 7 + rank * 5) % 3 + 1).astype(dtype)


def expect_equal(found, expected, what):
    np.testing.assert_array_equal(np.frombuffer(found.bytes(), expected.dtype), expected, what)


def one_type(comm, rank_memory, rank, name, code, count):
    mine = [values(r, count, name) for r in range(N)]
    zeros, stream = np.zeros(count, name), rank_memory.stream
    send = rank_memory.buffer(mine[rank])
    for operator, op in OPERATORS.items():
        expected = getattr(np, operator).reduce(mine, dtype=name)
        out = rank_memory.buffer(zeros)
        comm.allReduce(send.address, out.address, count, code, op, stream)
        expect_equal(out, expected, f"all-reduce {operator} {name}")
        out = rank_memory.buffer(mine[rank])
        comm.allReduce(out.address, out.address, count, code, op, stream)
        expect_equal(out, expected, f"all-reduce in rank_memory {operator} {name}")
        root = 2
        out = rank_memory.buffer(zeros)
        comm.reduce(send.address, out.address, count, code, op, root, stream)
        expect_equal(out, expected if rank == root else zeros, f"reduce {operator} {name}")
        long = [values(r, count * N, name) for r in range(N)]
        out, all_of_mine = rank_memory.buffer(zeros), rank_memory.buffer(long[rank])
        comm.reduceScatter(all_of_mine.address, out.address, count, code, op, stream)
        block = slice(rank * count, (rank + 1) * count)
        expected = getattr(np, operator).reduce(long, dtype=name)[block]
        expect_equal(out, expected, f"reduce-scatter {operator} {name}")
    out = rank_memory.buffer(zeros)
    comm.broadcast(send.address, out.address, count, code, 1, stream)
    expect_equal(out, mine[1], f"broadcast {name}")
    out = rank_memory.buffer(mine[rank])
    comm.bcast(out.address, count, code, 3, stream)
    expect_equal(out, mine[3], f"bcast {name}")
    out = rank_memory.buffer(np.zeros(count * N, name))
    comm.allGather(send.address, out.address, count, code, stream)
    expect_equal(out, np.concatenate(mine), f"all-gather {name}")
    right, left = (rank + 1) % N, (rank - 1) % N
    out = rank_memory.buffer(zeros)

    def exchange():
        nccl.groupStart()
        comm.send(send.address, count, code, right, stream)
        comm.recv(out.address, count, code, left, stream)
        nccl.groupEnd()

    rank_memory.check_asynchronous(exchange)
    expect_equal(out, mine[left], f"send and receive {name}")


def one_rank(rank, identity):
    rank_memory = memory.for_rank(rank)
    comm = nccl.NcclCommunicator(N, identity, rank)
    assert (comm.rank_id(), comm.size(), comm.device_id()) == (rank, N, rank_memory.device)
    for name, code in TYPES.items():
        for count in (1, 1003, 40_000):
            one_type(comm, rank_memory, rank, name, code, count)
    # Two halves, with their ranks in reverse order.
    half = comm.commSplit(rank % 2, -rank)
    assert (half.size(), half.rank_id()) == (2, 1 - rank // 2)
    out = rank_memory.buffer(np.array([10.0**rank]))
    stream = rank_memory.stream
    half.allReduce(out.address, out.address, 1, nccl.NCCL_FLOAT64, nccl.NCCL_SUM, stream)
    expected = np.array([10.0 ** (rank % 2) + 10.0 ** (rank % 2 + 2)])
    expect_equal(out, expected, "all-reduce in a half")
    half.destroy()
    try:
        comm.send(out.address, 1, nccl.NCCL_FLOAT64, N, rank_memory.stream)
    except nccl.NcclError as error:
        assert error.status == 4, error.status
    else:
        raise AssertionError("a send to a rank that does not exist succeeded")
    comm.check_async_error()  # raises if there is one
    comm.destroy()


def unique_id():
    assert nccl.available and nccl.get_version() == 23203, nccl.get_version()
    return nccl.get_unique_id()


if __name__ == "__main__":
    ranks.main(unique_id, one_rank)
    print(f"{N} processes, {len(TYPES)} types, {len(OPERATORS)} operators, 3 sizes, split")
