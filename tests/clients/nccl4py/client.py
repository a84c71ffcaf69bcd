"""nccl4py's nccl.bindings.nccl with addresses of NumPy arrays: 4 processes; every collective, also with a configuration; communicators
made from others; memory and windows; settings; and what there is no device for."""

import ctypes

import nccl.bindings.nccl as nccl
import numpy as np
import ranks

N = ranks.NRANKS
FLOAT, DOUBLE, INT64 = nccl.DataType.Float32, nccl.DataType.Float64, nccl.DataType.Int64
COUNT = 1003


def at(array):
    return array.ctypes.data


def values(rank, count=COUNT):
    return (np.arange(count) + 1000 * rank).astype(np.int64)


def same(found, expected, what):
    np.testing.assert_array_equal(found, expected, what)


def collectives(comm, rank):
    mine = [values(r) for r in range(N)]
    long = [values(r, COUNT * N) for r in range(N)]
    block = slice(rank * COUNT, (rank + 1) * COUNT)
    every = np.concatenate(mine)
    to_me = np.concatenate([long[r][block] for r in range(N)])
    none, root, add = np.zeros(COUNT, np.int64), 2, nccl.RedOp.Sum
    at_root = lambda expected: expected if rank == root else np.zeros_like(expected)
    config = nccl.CollConfig()
    # name, what is sent, the arguments between count and communicator, what is expected
    cases = [
        ("all_reduce", mine[rank], (INT64, add), sum(mine)),
        ("reduce", mine[rank], (INT64, add, root), at_root(sum(mine))),
        ("broadcast", mine[rank], (INT64, root), mine[root]),
        ("reduce_scatter", long[rank], (INT64, add), sum(long)[block]),
        ("all_gather", mine[rank], (INT64,), every),
        ("allto_all", long[rank], (INT64,), to_me),
        ("gather", mine[rank], (INT64, root), at_root(every)),
        ("scatter", long[rank], (INT64, root), long[root][block]),
    ]
    for name, send, words, expected in cases:
        for suffix, last in (("", ()), ("_config", (config,))):
            out = np.zeros_like(expected)
            getattr(nccl, name + suffix)(at(send), at(out), COUNT, *words, comm, 0, *last)
            same(out, expected, name + suffix)
    out = mine[rank].copy()
    nccl.bcast(at(out), COUNT, INT64, 1, comm, 0)
    same(out, mine[1], "bcast")
    out = none.copy()
    nccl.group_start()
    nccl.send(at(mine[rank]), COUNT, INT64, (rank + 1) % N, comm, 0)
    nccl.recv(at(out), COUNT, INT64, (rank - 1) % N, comm, 0)
    nccl.group_end()
    same(out, mine[rank - 1], "send and receive")
    factor = np.array([0.5])
    op = nccl.red_op_create_pre_mul_sum(at(factor), DOUBLE, nccl.ScalarResidence.HostImmediate, comm)
    out = np.array([float(2 << rank)])
    nccl.all_reduce(at(out), at(out), 1, DOUBLE, op, comm, 0)
    nccl.red_op_destroy(op, comm)
    same(out, [(1 << N) - 1], "sum of halves")


def sum_of_ranks(comm, expected, what):
    out = np.array([float(nccl.comm_user_rank(comm) + 1)], np.float32)
    nccl.all_reduce(at(out), at(out), 1, FLOAT, nccl.RedOp.Sum, comm, 0)
    same(out, [expected], what)


def refused(code, call, *arguments):
    try:
        call(*arguments)
    except nccl.NCCLError as error:
        assert error.status == code, (error.status, error)
    else:
        raise AssertionError(f"{call} {arguments} succeeded")


def one_rank(rank, identity):
    unique_id = nccl.UniqueId.from_buffer(bytearray(identity))
    config = nccl.Config()
    comm = nccl.comm_init_rank_config(N, unique_id, rank, config)
    assert (nccl.comm_user_rank(comm), nccl.comm_count(comm)) == (rank, N)
    collectives(comm, rank)

    half = nccl.comm_split(comm, rank % 2, rank, config)
    sum_of_ranks(half, 3, "a half")
    nccl.comm_destroy(half)
    if rank != 1:
        fewer = nccl.comm_shrink(comm, [1], 1, config, 0)
        sum_of_ranks(fewer, 6, "without rank 1")
        nccl.comm_destroy(fewer)

    memory = nccl.mem_alloc(1 << 20)
    window = nccl.comm_window_register(comm, memory, 1 << 20, 1)
    assert nccl.win_get_user_ptr(comm, window) == memory
    nccl.comm_window_deregister(comm, window)
    handle = nccl.comm_register(comm, memory, 1 << 20)
    nccl.comm_deregister(comm, handle)
    nccl.mem_free(memory)

    world = nccl.team_world(comm)
    assert (world.n_ranks, world.rank, world.stride) == (N, rank, 1)
    properties = nccl.comm_query_properties(comm)
    assert (properties.rank, properties.n_ranks) == (rank, N)
    refused(nccl.Result.InvalidUsage, nccl.dev_comm_create, comm, nccl.DevCommRequirements())
    refused(nccl.Result.InvalidArgument, nccl.all_reduce, 0, 0, 1, FLOAT, nccl.RedOp.Sum, comm, 0)
    assert nccl.get_last_error(comm) and nccl.get_error_string(4)
    assert nccl.comm_get_async_error(comm) == nccl.Result.Success
    assert nccl.comm_mem_stats(comm, nccl.CommMemStat.GpuMemTotal) > 0
    assert "NCCL_ALGO" in nccl.param_get_all_keys(), nccl.param_get_all_keys()
    assert nccl.param_get_parameter("NCCL_DEBUG") is not None
    nccl.comm_finalize(comm)
    nccl.comm_destroy(comm)


def unique_id():
    assert nccl.get_version() == 23203, nccl.get_version()
    made = nccl.get_unique_id()
    return ctypes.string_at(made.ptr, 128)


if __name__ == "__main__":
    ranks.main(unique_id, one_rank)
    print(f"{N} processes, 8 collectives with and without a configuration, split, shrink, window, settings")
