"""PyTorch's CUDA build with our library preloaded: all that it is linked with binds, and its unique id is one of ours. Without a GPU it
makes no communicators, and its ProcessGroupNCCL takes no host tensors; so no more is computed here."""

import os
import subprocess
import sys

import torch

identity = torch.cuda.nccl.unique_id()
assert isinstance(identity, bytes) and identity.startswith(b"MAYPOLE"), identity[:16]
with open("/proc/self/maps") as maps:
    files = {line.split(None, 5)[5].strip() for line in maps if "/libnccl.so" in line}
assert os.environ["MAYPOLE_CLIENTS_LIBRARY"] in files, files

# What it asks of the library by name.
folder = os.path.join(os.path.dirname(torch.__file__), "lib")
symbols = subprocess.check_output(["nm", "-D", "--undefined-only", os.path.join(folder, "libtorch_cuda.so")], text=True)
asked = sorted({word for line in symbols.splitlines() for word in line.split()[-1:] if word.startswith("nccl")})
exported = subprocess.check_output(["nm", "-D", "--defined-only", os.environ["MAYPOLE_CLIENTS_LIBRARY"]], text=True)
exported = {line.split()[-1] for line in exported.splitlines()}
missing = [name for name in asked if name not in exported]
assert asked and not missing, (asked, missing)
if len(files) > 1:
    print("mapped as well, by its path:", *sorted(files - {os.environ["MAYPOLE_CLIENTS_LIBRARY"]}), file=sys.stderr)
print(f"torch {torch.__version__}: {len(asked)} functions bound, unique_id() is ours")
