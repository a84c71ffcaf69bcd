"""CuPy's NcclCommunicator with addresses of NumPy arrays: 4 processes, every collective that CuPy has, every type that NumPy has."""

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


def at(array):
    return array.ctypes.data


def same(found, expected, what):
    np.testing.assert_array_equal(found, expected, what)


def one_type(comm, rank, name, code, count):
    mine = [values(r, count, name) for r in range(N)]
    for operator, op in OPERATORS.items():
        expected = getattr(np, operator).reduce(mine, dtype=name)
        out = np.zeros(count, name)
        comm.allReduce(at(mine[rank]), at(out), count, code, op, 0)
        same(out, expected, f"all-reduce {operator} {name}")
        out = mine[rank].copy()
        comm.allReduce(at(out), at(out), count, code, op, 0)
        same(out, expected, f"all-reduce in place {operator} {name}")
        root = 2
        out = np.zeros(count, name)
        comm.reduce(at(mine[rank]), at(out), count, code, op, root, 0)
        same(out, expected if rank == root else np.zeros(count, name), f"reduce {operator} {name}")
        long = [values(r, count * N, name) for r in range(N)]
        out = np.zeros(count, name)
        comm.reduceScatter(at(long[rank]), at(out), count, code, op, 0)
        block = slice(rank * count, (rank + 1) * count)
        same(out, getattr(np, operator).reduce(long, dtype=name)[block], f"reduce-scatter {operator} {name}")
    out = np.zeros(count, name)
    comm.broadcast(at(mine[rank]), at(out), count, code, 1, 0)
    same(out, mine[1], f"broadcast {name}")
    out = mine[rank].copy()
    comm.bcast(at(out), count, code, 3, 0)
    same(out, mine[3], f"bcast {name}")
    out = np.zeros(count * N, name)
    comm.allGather(at(mine[rank]), at(out), count, code, 0)
    same(out, np.concatenate(mine), f"all-gather {name}")
    right, left = (rank + 1) % N, (rank - 1) % N
    out = np.zeros(count, name)
    nccl.groupStart()
    comm.send(at(mine[rank]), count, code, right, 0)
    comm.recv(at(out), count, code, left, 0)
    nccl.groupEnd()
    same(out, mine[left], f"send and receive {name}")


def one_rank(rank, identity):
    comm = nccl.NcclCommunicator(N, identity, rank)
    assert (comm.rank_id(), comm.size()) == (rank, N)
    for name, code in TYPES.items():
        for count in (1, 1003, 40_000):
            one_type(comm, rank, name, code, count)
    # Two halves, with their ranks the other way round.
    half = comm.commSplit(rank % 2, -rank)
    assert (half.size(), half.rank_id()) == (2, 1 - rank // 2)
    out = np.array([10.0**rank])
    half.allReduce(at(out), at(out), 1, nccl.NCCL_FLOAT64, nccl.NCCL_SUM, 0)
    same(out, [10.0 ** (rank % 2) + 10.0 ** (rank % 2 + 2)], "all-reduce in a half")
    half.destroy()
    try:
        comm.send(at(out), 1, nccl.NCCL_FLOAT64, N, 0)
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
