"""The backend of PyTorch, against Gloo or against the values that follow from the inputs."""

import os
import re
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from maypole.status import communicators
from ranks import run


def collectives(rank: int, size: int) -> dict[str, Any]:
    torch.manual_seed(rank)
    out: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.int8):
        for name in ("SUM", "PRODUCT", "MAX", "MIN"):
            tensor = torch.randint(1, 4, (7,)).to(dtype)
            dist.all_reduce(tensor, op=getattr(dist.ReduceOp, name))
            out[f"{name} {dtype}"] = tensor
    for name in ("BAND", "BOR", "BXOR"):
        tensor = torch.randint(0, 100, (7,))
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, name))
        out[name] = tensor
    for dtype in (torch.complex64, torch.bool):
        tensor = torch.randint(0, 2, (5,)).to(dtype)
        dist.all_reduce(tensor)
        out[str(dtype)] = tensor
    tensor = torch.arange(6.0).view(2, 3).t() + rank
    dist.all_reduce(tensor, async_op=True).wait()
    out["not contiguous"] = tensor
    mine = torch.full((3,), float(rank))
    out["all_gather"] = [torch.empty(3) for _ in range(size)]
    dist.all_gather(out["all_gather"], mine)
    gathered = torch.empty(3 * size)
    dist.all_gather_single(gathered, mine) if hasattr(dist, "all_gather_single") else (
        dist.all_gather_into_tensor(gathered, mine))
    out["all_gather_single"] = gathered
    out["broadcast"] = mine.clone()
    dist.broadcast(out["broadcast"], 1)
    out["reduce"] = torch.ones(2)
    dist.reduce(out["reduce"], 0)
    if rank != 0:
        del out["reduce"]
    if rank == 0:
        out["gather"] = [torch.empty(3) for _ in range(size)]
    dist.gather(mine, out.get("gather"), 0)
    out["scatter"] = torch.empty(1)
    dist.scatter(out["scatter"], [torch.tensor([k * 2.0]) for k in range(size)] if not rank else
                 None, 0)
    out["reduce_scatter"] = torch.empty(2)
    dist.reduce_scatter(out["reduce_scatter"], [torch.full((2,), k + 1.0) for k in range(size)])
    rows = [k + 1 for k in range(size)]
    source = torch.arange(float(sum(rows))) + 100 * rank
    out["uneven"] = torch.empty(size * (rank + 1))
    dist.all_to_all_single(out["uneven"], source, [rank + 1] * size, rows)
    indices = torch.tensor([[rank, rank + 1]])
    sparse = torch.sparse_coo_tensor(indices, torch.ones(2), (size + 1,))
    dist.all_reduce(sparse)
    out["sparse"] = sparse.to_dense()
    objects: list[Any] = [None] * size
    dist.all_gather_object(objects, {"rank": rank})
    out["objects"] = [o["rank"] for o in objects]
    group = dist.new_group([0, 1])
    if rank < 2:
        out["subgroup"] = torch.ones(1)
        dist.all_reduce(out["subgroup"], group=group)
    dist.barrier()
    return out


def messages(rank: int, size: int) -> list[float]:
    following, previous = (rank + 1) % size, (rank - 1) % size
    values = [torch.zeros(4) for _ in range(3)]
    # All ranks post the receives first, in another order than the messages come.
    works = [dist.irecv(values[tag], previous, tag=tag) for tag in (2, 0, 1)]
    works += [dist.isend(torch.full((4,), 10.0 * rank + tag), following, tag=tag)
              for tag in range(3)]
    for work in works:
        work.wait()
    anyone = torch.zeros(1)
    if rank == 0:
        seen = []
        for _ in range(size - 1):
            dist.irecv(anyone, tag=9).wait()
            seen.append(anyone.item())
        assert sorted(seen) == list(map(float, range(1, size))), seen
    else:
        dist.send(torch.tensor([float(rank)]), 0, tag=9)
    dist.barrier()
    return [value[0].item() for value in values]


def train(rank: int, size: int) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05)
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(rank))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (parallel(data) - data.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def missing_rank(rank: int, size: int) -> str:
    if rank == 1:
        return ""
    from datetime import timedelta

    try:
        dist.distributed_c10d._get_default_group()._get_backend(
            torch.device("cpu")).monitored_barrier(_barrier_options(timedelta(seconds=1)), True)
    except RuntimeError as error:
        return str(error)
    return "no error"


def _barrier_options(timeout: Any) -> Any:
    options = dist.distributed_c10d.BarrierOptions()
    options.timeout = timeout
    return options


def timeout(rank: int, size: int) -> str:
    from datetime import timedelta

    store = dist.distributed_c10d._get_default_store()
    # The ranks are connected after it, so that the next call waits for nothing else.
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        # It must not end before: that would be another error.
        store.wait(["rank 0 has seen the timeout"])
        return ""
    work = dist.all_reduce(torch.ones(1), async_op=True)
    # Until the library has noticed that the wait is long.
    while not any(status.waits_for == 1 and status.call.startswith("call 2,")
                  for status in communicators()):
        time.sleep(0.01)
    try:
        work.wait(timedelta(milliseconds=1))
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        store.set("rank 0 has seen the timeout", "yes")
    return "no error"


def questions(rank: int, size: int) -> list[Any]:
    """What PyTorch's wrapper of a work does not pass on."""
    tensor = torch.ones(2)
    work = dist.all_reduce(tensor, async_op=True)
    work.wait()
    answers: list[Any] = [work.is_completed(), work.result()[0] is tensor]
    if rank == 0:
        late = dist.irecv(tensor, 1)
        # Rank 1 sends when it has heard that this was false.
        answers.append(late.is_completed())
        dist.send(tensor, 1)
        late.wait()
        answers.append(late.is_completed())
    else:
        dist.recv(tensor, 0)
        dist.send(tensor, 0)
        answers += [False, True]
    if rank == 0:
        return answers + [dist.recv(tensor)]
    dist.send(tensor, 0)
    return answers + [1]


AS_GLOO = """
import faulthandler, sys, torch
import torch.distributed as dist
faulthandler.dump_traceback_later(250, exit=True)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]),
                        world_size=2)
group = dist.group.WORLD._get_backend(torch.device("cpu"))
legacy = dist.new_group(backend="gloo-legacy")
ones = torch.ones(2)
dist.all_reduce(ones)
dist.all_reduce(ones, group=legacy)
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
net(ones).sum().backward()
trace = torch._C._distributed_c10d._dump_fr_trace_json(backend="maypole")
print(dist.get_backend(), type(group).__module__,
      type(legacy._get_backend(torch.device("cpu"))).__name__, ones.tolist(),
      "all_reduce" in str(trace) or "allreduce" in str(trace))
# A group on a machine that has an accelerator.
torch.accelerator.current_accelerator = lambda: torch.device("cuda")
mixed = dist.new_group(backend="gloo")
print(*(type(mixed._get_backend(torch.device(d))).__name__ for d in ("cpu", "cuda")))
dist.all_reduce(ones, group=mixed)
dist.destroy_process_group()
"""


def entry_points(folder: str) -> None:
    """Makes the entry points of the package those of an installed one."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    groups = re.findall(r'^\[project\.entry-points\."(.+)"\]\n((?:.+\n)+)', project, re.MULTILINE)
    made = Path(folder, "maypole-0.dist-info")
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: maypole\nVersion: 0\n")
    (made / "entry_points.txt").write_text("".join(
        f"[{group}]\n" + points.replace('"', "") for group, points in groups))


class BackendTest(unittest.TestCase):
    def test_collectives_are_those_of_gloo(self) -> None:
        ours, gloo = run(collectives, 3), run(collectives, 3, "gloo")
        for rank in range(3):
            self.assertEqual(ours[rank].keys(), gloo[rank].keys())
            for name, value in gloo[rank].items():
                self.assertTrue(_same(ours[rank][name], value), f"{name}: {ours[rank][name]}")

    def test_messages(self) -> None:
        self.assertEqual(run(messages, 3), [
            [20.0, 21.0, 22.0], [0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])

    def test_training_gives_the_losses_of_gloo(self) -> None:
        # With two ranks there is one order of the sum, so the bits are the same.
        self.assertEqual(run(train, 2), run(train, 2, "gloo"))

    def test_monitored_barrier_names_the_missing_rank(self) -> None:
        self.assertIn("Ranks 1 failed to pass monitoredBarrier", run(missing_rank, 2)[0])

    def test_a_timeout_names_the_missing_rank(self) -> None:
        text = run(timeout, 2)[0]
        self.assertIn("Rank 0 of 2: Timed out waiting: a collective did not end", text)
        self.assertRegex(text, "It waits for rank 1 in call .*all_reduce")

    def test_works_answer(self) -> None:
        self.assertEqual(run(questions, 2), [[True, True, False, True, 1]] * 2)

    def test_as_gloo(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            entry_points(folder)
            path = os.pathsep.join([folder, *sys.path])
            environment = {**os.environ, "PYTHONPATH": path}
            ranks = [subprocess.Popen(
                [sys.executable, "-m", "maypole", "run", "--", sys.executable, "-c", AS_GLOO,
                 f"{folder}/store", str(rank)],
                env=environment, stdout=subprocess.PIPE, text=True) for rank in range(2)]
            for rank in ranks:
                self.assertEqual(rank.communicate()[0].strip(), (
                    "gloo maypole.torch.backend ProcessGroupGloo [4.0, 4.0] True\n"
                    "MaypoleBackend ProcessGroupGloo"))


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    unittest.main()
