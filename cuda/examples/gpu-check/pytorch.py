"""Runs PyTorch on this library, which is preloaded.

`look` prints the version of PyTorch; `run N` runs N ranks, each a process, all on GPU 0.
"""

import os
import subprocess
import sys
import tempfile

import torch

if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU")


def look():
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}")


def run(nranks):
    with tempfile.TemporaryDirectory() as folder:
        here = [sys.executable, "-c", SOURCE, "rank", nranks]
        commands = [[*here, str(rank), f"{folder}/meet"] for rank in range(int(nranks))]
        ranks = [subprocess.Popen(command) for command in commands]
        codes = [rank.wait() for rank in ranks]
    if any(codes):
        sys.exit(f"ranks ended with {codes}")
    print(f"{nranks} ranks: all_reduce, all_gather, broadcast, reduce_scatter, barrier are right")


def rank(nranks, me, meeting):
    import torch.distributed as dist

    nranks, me = int(nranks), int(me)
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{meeting}", rank=me, world_size=nranks)
    total = nranks * (nranks + 1) // 2
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        for count in (1, 1000, 1 << 20):
            mine = torch.full((count,), me + 1, dtype=dtype, device="cuda")
            dist.all_reduce(mine)
            assert torch.equal(mine, torch.full_like(mine, total)), (dtype, count)
    mine = torch.full((1000,), float(me), device="cuda")
    parts = [torch.empty_like(mine) for _ in range(nranks)]
    dist.all_gather(parts, mine)
    assert all(bool((part == r).all()) for r, part in enumerate(parts))
    dist.broadcast(mine, 0)
    assert bool((mine == 0).all())
    scattered = torch.empty(10, device="cuda")
    dist.reduce_scatter_tensor(scattered, torch.arange(10.0 * nranks, device="cuda"))
    assert torch.equal(scattered, nranks * torch.arange(10.0 * me, 10.0 * me + 10, device="cuda"))
    dist.barrier()
    torch.cuda.synchronize()
    with open("/proc/self/maps") as maps:
        files = {line.split(None, 5)[5].strip() for line in maps if "/libnccl.so" in line}
    assert os.path.realpath(os.environ["LD_PRELOAD"]) in files, files
    identity = torch.cuda.nccl.unique_id()
    assert identity.startswith(b"MAYPOLE"), identity[:16]
    dist.destroy_process_group()


# The arguments of this process, with which the ranks are started too.
with open("/proc/self/cmdline", "rb") as line:
    SOURCE = line.read().split(b"\0")[2].decode()
{"look": look, "run": run, "rank": rank}[sys.argv[1]](*sys.argv[2:])
