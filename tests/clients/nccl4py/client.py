"""nccl4py's nccl.bindings.nccl with plain addresses, of host memory or of a device's: 4 processes; every collective, also with a configuration; communicators
made from others; memory and windows; settings; and what is not there."""

import ctypes

import memory
import nccl.bindings.nccl as nccl
import numpy as np
import ranks

N = ranks.NRANKS
FLOAT, DOUBLE, INT64 = nccl.DataType.Float32, nccl.DataType.Float64, nccl.DataType.Int64
COUNT = 1003


def values(rank, count=COUNT):
    return (np.arange(count) + 1000 * rank).astype(np.int64)


def same(found, expected, what):
    np.testing.assert_array_equal(np.frombuffer(found.bytes(), expected.dtype), expected, what)


def collectives(comm, place, rank):
    mine = [values(r) for r in range(N)]
    long = [values(r, COUNT * N) for r in range(N)]
    block = slice(rank * COUNT, (rank + 1) * COUNT)
    every = np.concatenate(mine)
    to_me = np.concatenate([long[r][block] for r in range(N)])
    none, root, add, stream = np.zeros(COUNT, np.int64), 2, nccl.RedOp.Sum, place.stream
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
            sent, out = place.buffer(send), place.buffer(np.zeros_like(expected))
            call = lambda: getattr(nccl, name + suffix)(sent.at, out.at, COUNT, *words, comm, stream, *last)
            place.asynchronous(call) if suffix else call()
            same(out, expected, name + suffix)
    out = place.buffer(mine[rank])
    nccl.bcast(out.at, COUNT, INT64, 1, comm, stream)
    same(out, mine[1], "bcast")
    sent, out = place.buffer(mine[rank]), place.buffer(none)
    nccl.group_start()
    nccl.send(sent.at, COUNT, INT64, (rank + 1) % N, comm, stream)
    nccl.recv(out.at, COUNT, INT64, (rank - 1) % N, comm, stream)
    nccl.group_end()
    same(out, mine[rank - 1], "send and receive")
    # A factor that is read at once, and one that is read where the call runs.
    factor = np.array([0.5])
    sent, out, later = place.buffer(np.array([float(2 << rank)])), place.buffer(np.zeros(1)), place.buffer(np.array([0.25]))
    half = nccl.red_op_create_pre_mul_sum(factor.ctypes.data, DOUBLE, nccl.ScalarResidence.HostImmediate, comm)
    quarter = nccl.red_op_create_pre_mul_sum(later.at, DOUBLE, nccl.ScalarResidence.Device, comm)
    for op, expected in (half, (1 << N) - 1), (quarter, ((1 << N) - 1) / 2):
        nccl.all_reduce(sent.at, out.at, 1, DOUBLE, op, comm, stream)
        nccl.red_op_destroy(op, comm)
        same(out, np.array([float(expected)]), "sum of parts")


def sum_of_ranks(comm, place, expected, what):
    out = place.buffer(np.array([float(nccl.comm_user_rank(comm) + 1)], np.float32))
    nccl.all_reduce(out.at, out.at, 1, FLOAT, nccl.RedOp.Sum, comm, place.stream)
    same(out, np.array([expected], np.float32), what)


def refused(code, call, *arguments):
    try:
        call(*arguments)
    except nccl.NCCLError as error:
        assert error.status == code, (error.status, error)
    else:
        raise AssertionError(f"{call} {arguments} succeeded")


def one_rank(rank, identity):
    unique_id = nccl.UniqueId.from_buffer(bytearray(identity))
    place = memory.of(rank)
    config = nccl.Config()
    comm = nccl.comm_init_rank_config(N, unique_id, rank, config)
    assert (nccl.comm_user_rank(comm), nccl.comm_count(comm)) == (rank, N)
    assert nccl.comm_cu_device(comm) == place.device
    collectives(comm, place, rank)

    half = nccl.comm_split(comm, rank % 2, rank, config)
    sum_of_ranks(half, place, 3, "a half")
    nccl.comm_destroy(half)
    if rank != 1:
        fewer = nccl.comm_shrink(comm, [1], 1, config, 0)
        sum_of_ranks(fewer, place, 6, "without rank 1")
        nccl.comm_destroy(fewer)

    mine = nccl.mem_alloc(1 << 20)
    window = nccl.comm_window_register(comm, mine, 1 << 20, 1)
    # As with NCCL there is none where memory is not symmetric.
    assert bool(window) != memory.ON_DEVICE
    assert nccl.win_get_user_ptr(comm, window) == (0 if memory.ON_DEVICE else mine)
    nccl.comm_window_deregister(comm, window)
    handle = nccl.comm_register(comm, mine, 1 << 20)
    nccl.comm_deregister(comm, handle)
    nccl.mem_free(mine)

    world = nccl.team_world(comm)
    assert (world.n_ranks, world.rank, world.stride) == (N, rank, 1)
    properties = nccl.comm_query_properties(comm)
    assert (properties.rank, properties.n_ranks, properties.cuda_dev) == (rank, N, place.device)
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
