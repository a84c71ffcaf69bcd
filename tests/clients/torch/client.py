"""PyTorch's CUDA build with our library preloaded.

All functions that it is linked with bind, and its unique id is one of ours. Without a GPU it
creates no communicators, and its ProcessGroupNCCL takes no host tensors, so nothing is computed
here."""

import os
import subprocess
import sys

import torch

identity = torch.cuda.nccl.unique_id()
assert isinstance(identity, bytes) and identity.startswith(b"MAYPOLE"), identity[:16]
with open("/proc/self/maps") as maps:
    files = {line.split(None, 5)[5].strip() for line in maps if "/libnccl.so" in line}
assert os.environ["MAYPOLE_CLIENTS_LIBRARY"] in files, files

# The functions that it is linked with.
folder = os.path.join(os.path.dirname(torch.__file__), "lib")


def dynamic_symbols(kind, library):
    lines = subprocess.check_output(["nm", "-D", kind, library], text=True).splitlines()
    return {line.split()[-1] for line in lines if line.split()}


undefined = dynamic_symbols("--undefined-only", os.path.join(folder, "libtorch_cuda.so"))
linked = sorted(name for name in undefined if name.startswith("nccl"))
exported = dynamic_symbols("--defined-only", os.environ["MAYPOLE_CLIENTS_LIBRARY"])
missing = [name for name in linked if name not in exported]
assert linked and not missing, (linked, missing)
if len(files) > 1:
    others = sorted(files - {os.environ["MAYPOLE_CLIENTS_LIBRARY"]})
    print("also mapped, by its path:", *others, file=sys.stderr)
print(f"torch {torch.__version__}: {len(linked)} functions bound, unique_id() is ours")
