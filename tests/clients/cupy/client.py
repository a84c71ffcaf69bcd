"""CuPy's NcclCommunicator with plain addresses, of host memory or of a device's: 4 processes, every collective that CuPy has, every type that NumPy has."""

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
OPERATORS = {"add": nccl.NCCL_SUM, "multiply": nccl.NCCL_PROD, "maximum": nccl.NCCL_MAX, "minimum": nccl.NCCL_MIN}


def values(rank, count, dtype):
    """What a rank contributes: 1 to 3, so that sums and products are exact in every type, whatever the order."""
    return ((np.arange(count) * 7 + rank * 5) % 3 + 1).astype(dtype)


def same(found, expected, what):
    np.testing.assert_array_equal(np.frombuffer(found.bytes(), expected.dtype), expected, what)


def one_type(comm, place, rank, name, code, count):
    mine = [values(r, count, name) for r in range(N)]
    zeros, stream = np.zeros(count, name), place.stream
    send = place.buffer(mine[rank])
    for operator, op in OPERATORS.items():
        expected = getattr(np, operator).reduce(mine, dtype=name)
        out = place.buffer(zeros)
        comm.allReduce(send.at, out.at, count, code, op, stream)
        same(out, expected, f"all-reduce {operator} {name}")
        out = place.buffer(mine[rank])
        comm.allReduce(out.at, out.at, count, code, op, stream)
        same(out, expected, f"all-reduce in place {operator} {name}")
        root = 2
        out = place.buffer(zeros)
        comm.reduce(send.at, out.at, count, code, op, root, stream)
        same(out, expected if rank == root else zeros, f"reduce {operator} {name}")
        long = [values(r, count * N, name) for r in range(N)]
        out, all_of_mine = place.buffer(zeros), place.buffer(long[rank])
        comm.reduceScatter(all_of_mine.at, out.at, count, code, op, stream)
        block = slice(rank * count, (rank + 1) * count)
        same(out, getattr(np, operator).reduce(long, dtype=name)[block], f"reduce-scatter {operator} {name}")
    out = place.buffer(zeros)
    comm.broadcast(send.at, out.at, count, code, 1, stream)
    same(out, mine[1], f"broadcast {name}")
    out = place.buffer(mine[rank])
    comm.bcast(out.at, count, code, 3, stream)
    same(out, mine[3], f"bcast {name}")
    out = place.buffer(np.zeros(count * N, name))
    comm.allGather(send.at, out.at, count, code, stream)
    same(out, np.concatenate(mine), f"all-gather {name}")
    right, left = (rank + 1) % N, (rank - 1) % N
    out = place.buffer(zeros)

    def exchange():
        nccl.groupStart()
        comm.send(send.at, count, code, right, stream)
        comm.recv(out.at, count, code, left, stream)
        nccl.groupEnd()

    place.asynchronous(exchange)
    same(out, mine[left], f"send and receive {name}")


def one_rank(rank, identity):
    place = memory.of(rank)
    comm = nccl.NcclCommunicator(N, identity, rank)
    assert (comm.rank_id(), comm.size(), comm.device_id()) == (rank, N, place.device)
    for name, code in TYPES.items():
        for count in (1, 1003, 40_000):
            one_type(comm, place, rank, name, code, count)
    # Two halves, with their ranks the other way round.
    half = comm.commSplit(rank % 2, -rank)
    assert (half.size(), half.rank_id()) == (2, 1 - rank // 2)
    out = place.buffer(np.array([10.0**rank]))
    half.allReduce(out.at, out.at, 1, nccl.NCCL_FLOAT64, nccl.NCCL_SUM, place.stream)
    same(out, np.array([10.0 ** (rank % 2) + 10.0 ** (rank % 2 + 2)]), "all-reduce in a half")
    half.destroy()
    try:
        comm.send(out.at, 1, nccl.NCCL_FLOAT64, N, place.stream)
    except nccl.NcclError as error:
        assert error.status == 4, error.status
    else:
        raise AssertionError("a send to no rank succeeded")
    comm.check_async_error()  # raises if there is one
    comm.destroy()


def unique_id():
    assert nccl.available and nccl.get_version() == 23203, nccl.get_version()
    return nccl.get_unique_id()


if __name__ == "__main__":
    ranks.main(unique_id, one_rank)
    print(f"{N} processes, {len(TYPES)} types, {len(OPERATORS)} operators, 3 sizes, split")
