"""Groups that are made from other groups, and what failures leave behind."""

import contextlib
import io
import os
import signal
import tempfile
import unittest

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions

from ranks import run


def total(group: dist.ProcessGroup) -> float:
    tensor = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(tensor, group=group)
    return tensor.item()


def split(rank: int, size: int) -> list[float]:
    dist.all_reduce(torch.ones(1), async_op=True)
    # Rank 0 comes last in its new group, and rank 2 is in none.
    try:
        group = dist.split_group(split_ranks=[[1, 0], [3, 4]])
    except RuntimeError as error:
        assert rank == 2 and "in none of the groups" in str(error), error
        return []
    peer = torch.zeros(1)
    if dist.get_rank(group) == 0:
        dist.send(torch.full((1,), float(rank)), group=group, group_dst=1)
    else:
        dist.recv(peer, group=group, group_src=0)
    return [float(dist.get_rank(group)), total(group), peer.item()]


def merge(rank: int, size: int) -> list[float]:
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    store = dist.PrefixStore("merged", dist.distributed_c10d._get_default_store())
    merged = backend.merge(store, backend.options, size - 1 - rank, size)
    tensor = torch.tensor([float(rank)])
    merged.allreduce([tensor], dist.AllreduceOptions()).wait()
    gathered = torch.empty(size)
    merged.all_gather_single(gathered, torch.tensor([float(rank)]),
                             AllgatherOptions()).wait()
    merged.shutdown()
    return [tensor.item(), *gathered.tolist()]


def shrink(rank: int, size: int) -> list[float]:
    if rank == 1:
        return []
    group = dist.shrink_group([1])
    return [float(dist.get_rank(group)), float(dist.get_world_size(group)), total(group)]


def shrink_after_death(rank: int, size: int) -> list[float]:
    dist.all_reduce(torch.ones(4))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        dist.all_reduce(torch.ones(4))
    except dist.DistBackendError:
        group = dist.shrink_group([1], shrink_flags=dist.distributed_c10d.SHRINK_ABORT)
        return [float(dist.get_rank(group)), float(dist.get_world_size(group)), total(group)]
    return []


def estimate(rank: int, size: int) -> list[bool]:
    times = []
    for count in (2, 1 << 22):
        ones = torch.ones(count)
        with dist._time_estimator() as estimated:
            dist.all_reduce(ones)
            dist.all_reduce(ones, async_op=True).wait()
        times.append(estimated.estimated_time)
        assert ones.eq(1).all()
    dist.all_reduce(ones)
    return [0 < times[0] < times[1], bool(ones.eq(size).all())]


def allocated(rank: int, size: int) -> list[bool]:
    cpu = torch.device("cpu")
    backend = dist.group.WORLD._get_backend(cpu)
    tensor = backend.allocate_tensor(1 << 20, dtype=torch.float32, device=cpu)
    empty = backend.allocate_tensor(0, dtype=torch.int8, device=cpu)
    part = tensor.fill_(rank + 1.0).view(4, -1)[1]
    # The memory lives as long as a view of it.
    del tensor
    dist.all_reduce(part)
    return [backend.supports_tensor_alloc(cpu), empty.numel() == 0, bool(part.eq(3.0).all())]


def differ(rank: int, size: int) -> str:
    dist.all_reduce(torch.ones(2))
    try:
        dist.all_reduce(torch.ones(4 + rank))
    except dist.DistBackendError as error:
        return str(error)
    return "no error"


class GroupsTest(unittest.TestCase):
    def test_split(self) -> None:
        self.assertEqual(run(split, 5), [
            [1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [], [0.0, 7.0, 0.0], [1.0, 7.0, 3.0]])

    def test_merge(self) -> None:
        self.assertEqual(run(merge, 3), [[3.0, 2.0, 1.0, 0.0]] * 3)

    def test_shrink(self) -> None:
        # The ranks of the world are numbered anew.
        self.assertEqual(run(shrink, 3), [[0.0, 2.0, 1.0], [], [1.0, 2.0, 1.0]])

    def test_shrink_after_a_death(self) -> None:
        self.assertEqual(run(shrink_after_death, 3, killed=1), [
            [0.0, 2.0, 1.0], None, [1.0, 2.0, 1.0]])

    def test_an_estimate_runs_nothing(self) -> None:
        self.assertEqual(run(estimate, 2), [[True, True]] * 2)

    def test_tensors_in_memory_of_the_library(self) -> None:
        self.assertEqual(run(allocated, 2), [[True] * 3] * 2)

    def test_torchfrtrace_reads_the_dumps_of_a_failure(self) -> None:
        from torch.distributed.flight_recorder import fr_trace

        with tempfile.TemporaryDirectory() as folder:
            os.environ.update(TORCH_FR_DUMP_ON_TIMEOUT="1", TORCH_FR_BUFFER_SIZE="100",
                              TORCH_FR_DUMP_TEMP_FILE=f"{folder}/trace_")
            try:
                texts = run(differ, 2)
            finally:
                for name in ("ON_TIMEOUT", "TEMP_FILE"):
                    del os.environ[f"TORCH_FR_DUMP_{name}"]
                del os.environ["TORCH_FR_BUFFER_SIZE"]
            for text in texts:
                self.assertNotEqual(text, "no error")
            self.assertEqual(sorted(os.listdir(folder)), ["trace_0", "trace_1"])
            with contextlib.redirect_stdout(io.StringIO()), self.assertLogs(level="INFO") as logs:
                fr_trace.main([folder])
            self.assertIn("Culprit rank 1; Error type: SIZE_OR_SYNTAX_MISMATCH",
                          "\n".join(logs.output))


if __name__ == "__main__":
    unittest.main()
