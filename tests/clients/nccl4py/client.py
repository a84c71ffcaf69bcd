"""nccl4py's nccl.bindings.nccl with plain addresses of host memory or of a device.

4 processes: every collective, also with a configuration; split and shrink; memory and windows;
settings; and functions that are not supported."""

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


def expect_equal(found, expected, what):
    np.testing.assert_array_equal(np.frombuffer(found.bytes(), expected.dtype), expected, what)


def collectives(comm, rank_memory, rank):
    mine = [values(r) for r in range(N)]
    long = [values(r, COUNT * N) for r in range(N)]
    block = slice(rank * COUNT, (rank + 1) * COUNT)
    every = np.concatenate(mine)
    to_this_rank = np.concatenate([long[r][block] for r in range(N)])
    zeros, root, add, stream = np.zeros(COUNT, np.int64), 2, nccl.RedOp.Sum, rank_memory.stream
    at_root = lambda expected: expected if rank == root else np.zeros_like(expected)
    config = nccl.CollConfig()
    # name, input, the arguments between count and communicator, expected output
    cases = [
        ("all_reduce", mine[rank], (INT64, add), sum(mine)),
        ("reduce", mine[rank], (INT64, add, root), at_root(sum(mine))),
        ("broadcast", mine[rank], (INT64, root), mine[root]),
        ("reduce_scatter", long[rank], (INT64, add), sum(long)[block]),
        ("all_gather", mine[rank], (INT64,), every),
        ("allto_all", long[rank], (INT64,), to_this_rank),
        ("gather", mine[rank], (INT64, root), at_root(every)),
        ("scatter", long[rank], (INT64, root), long[root][block]),
    ]
    for name, send, arguments, expected in cases:
        for suffix, last in (("", ()), ("_config", (config,))):
            sent, out = rank_memory.buffer(send), rank_memory.buffer(np.zeros_like(expected))
            function = getattr(nccl, name + suffix)
            call_arguments = (sent.address, out.address, COUNT, *arguments, comm, stream, *last)
            call = lambda: function(*call_arguments)
            rank_memory.check_asynchronous(call) if suffix else call()
            expect_equal(out, expected, name + suffix)
    out = rank_memory.buffer(mine[rank])
    nccl.bcast(out.address, COUNT, INT64, 1, comm, stream)
    expect_equal(out, mine[1], "bcast")
    sent, out = rank_memory.buffer(mine[rank]), rank_memory.buffer(zeros)
    nccl.group_start()
    nccl.send(sent.address, COUNT, INT64, (rank + 1) % N, comm, stream)
    nccl.recv(out.address, COUNT, INT64, (rank - 1) % N, comm, stream)
    nccl.group_end()
    expect_equal(out, mine[rank - 1], "send and receive")
    # A factor that is read at once, and one that is read when the call runs.
    factor = np.array([0.5])
    sent, out = rank_memory.buffer(np.array([float(2 << rank)])), rank_memory.buffer(np.zeros(1))
    later = rank_memory.buffer(np.array([0.25]))
    create, residence = nccl.red_op_create_pre_mul_sum, nccl.ScalarResidence
    half = create(factor.ctypes.data, DOUBLE, residence.HostImmediate, comm)
    quarter = create(later.address, DOUBLE, residence.Device, comm)
    for op, expected in (half, (1 << N) - 1), (quarter, ((1 << N) - 1) / 2):
        nccl.all_reduce(sent.address, out.address, 1, DOUBLE, op, comm, stream)
        nccl.red_op_destroy(op, comm)
        expect_equal(out, np.array([float(expected)]), "premultiplied sum")


def sum_of_ranks(comm, rank_memory, expected, what):
    out = rank_memory.buffer(np.array([float(nccl.comm_user_rank(comm) + 1)], np.float32))
    nccl.all_reduce(out.address, out.address, 1, FLOAT, nccl.RedOp.Sum, comm, rank_memory.stream)
    expect_equal(out, np.array([expected], np.float32), what)


def expect_error(code, call, *arguments):
    try:
        call(*arguments)
    except nccl.NCCLError as error:
        assert error.status == code, (error.status, error)
    else:
        raise AssertionError(f"{call} {arguments} succeeded")


def one_rank(rank, identity):
    unique_id = nccl.UniqueId.from_buffer(bytearray(identity))
    rank_memory = memory.for_rank(rank)
    config = nccl.Config()
    comm = nccl.comm_init_rank_config(N, unique_id, rank, config)
    assert (nccl.comm_user_rank(comm), nccl.comm_count(comm)) == (rank, N)
    assert nccl.comm_cu_device(comm) == rank_memory.device
    collectives(comm, rank_memory, rank)

    half = nccl.comm_split(comm, rank % 2, rank, config)
    sum_of_ranks(half, rank_memory, 3, "a half")
    nccl.comm_destroy(half)
    if rank != 1:
        fewer = nccl.comm_shrink(comm, [1], 1, config, 0)
        sum_of_ranks(fewer, rank_memory, 6, "a shrink without rank 1")
        nccl.comm_destroy(fewer)

    mine = nccl.mem_alloc(1 << 20)
    window = nccl.comm_window_register(comm, mine, 1 << 20, 1)
    # As in NCCL there is no window if memory is not symmetric.
    assert bool(window) != memory.ON_DEVICE
    assert nccl.win_get_user_ptr(comm, window) == (0 if memory.ON_DEVICE else mine)
    nccl.comm_window_deregister(comm, window)
    handle = nccl.comm_register(comm, mine, 1 << 20)
    nccl.comm_deregister(comm, handle)
    nccl.mem_free(mine)

    world = nccl.team_world(comm)
    assert (world.n_ranks, world.rank, world.stride) == (N, rank, 1)
    properties = nccl.comm_query_properties(comm)
    assert (properties.rank, properties.n_ranks) == (rank, N)
    assert properties.cuda_dev == rank_memory.device
    expect_error(nccl.Result.InvalidUsage, nccl.dev_comm_create, comm, nccl.DevCommRequirements())
    null_call = (nccl.all_reduce, 0, 0, 1, FLOAT, nccl.RedOp.Sum, comm, 0)
    expect_error(nccl.Result.InvalidArgument, *null_call)
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
    collectives = "8 collectives with and without a configuration"
    print(f"{N} processes, {collectives}, split, shrink, window, settings")
