"""Trains a small model with DistributedDataParallel and draws its losses and step times.

    torchrun --nproc-per-node 4 train.py [--backend maypole] [--steps 200] [--picture train.svg]

``--backend gloo`` trains with the same data, for a comparison.
"""

import argparse
import time

import torch
import torch.distributed as dist
from torch import nn


def train(steps: int) -> tuple[list[float], list[float]]:
    """The mean loss over the ranks and the milliseconds of each step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(),
                        nn.Linear(256, 1))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(dist.get_rank())
    losses, times = [], []
    for _ in range(steps):
        begin = time.perf_counter()
        values = torch.randn(32, 64, generator=generator)
        optimizer.zero_grad()
        loss = (model(values) - values[:, :8].sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        times.append((time.perf_counter() - begin) * 1e3)
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    return losses, times


def curve(values: list[float], top: int, title: str) -> str:
    """An SVG group with the values, from 0 to their maximum."""
    width, height, largest = 640, 180, max(values)
    points = " ".join(
        f"{40 + width * i / max(len(values) - 1, 1):.1f},{top + height * (1 - v / largest):.1f}"
        for i, v in enumerate(values))
    return (
        f'<text x="40" y="{top - 8}">{title}, 0 to {largest:.3g}</text>'
        f'<rect x="40" y="{top}" width="{width}" height="{height}" fill="none" stroke="#aaa"/>'
        f'<polyline points="{points}" fill="none" stroke="#07c" stroke-width="1.5"/>')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="maypole")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--picture", default="train.svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group(options.backend)
    losses, times = train(options.steps)
    if dist.get_rank() == 0:
        text = (f"{options.steps} steps, {dist.get_world_size()} ranks, {options.backend}: loss "
                f"{losses[0]:.4f} to {losses[-1]:.4f}, median step "
                f"{sorted(times)[len(times) // 2]:.2f} ms")
        print(text)
        with open(options.picture, "w") as file:
            file.write(
                '<svg xmlns="http://www.w3.org/2000/svg" width="720" height="500" '
                'font-family="sans-serif" font-size="14"><rect width="720" height="500" '
                f'fill="white"/><text x="40" y="24">{text}</text>'
                + curve(losses, 60, "loss") + curve(times, 290, "milliseconds of a step")
                + "</svg>\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
