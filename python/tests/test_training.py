"""Training with DistributedDataParallel, FSDP2 and DTensor over Maypole and over Gloo."""

import os
import signal
import unittest
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ranks import run


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4))
    return nn.Sequential(*layers).double()


def batch(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(16, 8, generator=generator, dtype=torch.float64)


def losses_of(net: Any, data: list[torch.Tensor]) -> list[float]:
    """The losses of a step for each batch, with the loss averaged over the ranks."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for values in data:
        optimizer.zero_grad()
        loss = (net(values) - values[:, :4]).square().mean()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    return losses


def ddp(rank: int, size: int) -> list[float]:
    # The loader forks a process while the group has its threads and its shared memory.
    loader = torch.utils.data.DataLoader([batch(rank + size * step) for step in range(4)],
                                         batch_size=None, num_workers=1,
                                         multiprocessing_context="fork")
    net = nn.parallel.DistributedDataParallel(model(), bucket_cap_mb=0.001)
    return losses_of(net, list(loader))


def ddp_with_hook(rank: int, size: int) -> list[float]:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    net = nn.parallel.DistributedDataParallel(model())
    net.register_comm_hook(None, default_hooks.allreduce_hook)
    return losses_of(net, [batch(rank + size * step) for step in range(4)])


def fsdp(rank: int, size: int) -> list[float]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (size,))
    net = model()
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return losses_of(net, [batch(rank + size * step) for step in range(4)])


def tensor_parallel(rank: int, size: int) -> list[float]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel, RowwiseParallel, parallelize_module)

    mesh = init_device_mesh("cpu", (size,))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    net = parallelize_module(model(), mesh, plan)
    return losses_of(net, [batch(step) for step in range(4)])


def alone(rank: int, size: int) -> list[float]:
    return losses_of(model(), [batch(step) for step in range(4)])


def all_batches(rank: int, size: int, ranks: int = 4) -> list[float]:
    """What data parallel training of four ranks computes, in one."""
    return losses_of(model(), [torch.cat([batch(r + ranks * step) for r in range(ranks)])
                               for step in range(4)])


def all_batches_of_eight(rank: int, size: int) -> list[float]:
    return all_batches(rank, size, 8)


def redistribute(rank: int, size: int) -> bool:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, size // 2))
    whole = torch.arange(7 * 6, dtype=torch.float32).view(7, 6)
    tensor = distribute_tensor(whole, mesh, [Shard(0), Shard(1)])
    turned = tensor.redistribute(mesh, [Shard(1), Replicate()])
    product = (turned @ turned.t()).full_tensor()
    return torch.equal(turned.full_tensor(), whole) and torch.equal(product, whole @ whole.t())


def killed(rank: int, size: int) -> str:
    dist.all_reduce(torch.ones(4))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        dist.all_reduce(torch.ones(4))
    except dist.DistBackendError as error:
        return str(error)
    return "no error"


class TrainingTest(unittest.TestCase):
    def close(self, ours: list[list[float]], theirs: list[list[float]]) -> None:
        for one, other in zip(ours, theirs, strict=True):
            for a, b in zip(one, other, strict=True):
                self.assertLess(abs(a - b), 1e-12 * abs(b))

    def test_two_ranks_give_the_bits_of_gloo(self) -> None:
        # A sum of two has one order.
        for body in (ddp, ddp_with_hook, fsdp, tensor_parallel):
            self.assertEqual(run(body, 2), run(body, 2, "gloo"), body.__name__)

    @unittest.skipUnless(os.environ.get("MAYPOLE_PYTORCH_SUITE") == "all", "only with all tests")
    def test_eight_ranks_give_the_losses_of_one(self) -> None:
        for body in (ddp, ddp_with_hook, fsdp):
            self.close(run(body, 8), 8 * run(all_batches_of_eight, 1))
        self.close(run(tensor_parallel, 8), 8 * run(alone, 1))

    def test_four_ranks_give_the_losses_of_one(self) -> None:
        expected = 4 * run(all_batches, 1)
        for body in (ddp, ddp_with_hook, fsdp):
            self.close(run(body, 4), expected)
        self.close(run(tensor_parallel, 4), 4 * run(alone, 1))

    def test_dtensors_are_redistributed(self) -> None:
        self.assertEqual(run(redistribute, 4), [True] * 4)

    def test_a_killed_rank_is_named(self) -> None:
        texts = run(killed, 3, killed=1)
        for text in (texts[0], texts[2]):
            self.assertRegex(text, "rank 1")


if __name__ == "__main__":
    unittest.main()
