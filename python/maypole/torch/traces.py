"""Writes PyTorch's flight recorder to a file when a call fails.

PyTorch records the calls of every group. ``torchfrtrace`` reads the files of all ranks and says
where they differ. TORCH_FR_DUMP_TEMP_FILE is the beginning of the names of the files.
"""

import os
import threading

import torch.distributed as dist

__all__ = ["dump_trace"]

_NAMES = ("TORCH_FR_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT")
_lock = threading.Lock()
_is_dumped = False


def dump_trace() -> None:
    """Writes the file of this process at the first failure, if TORCH_FR_DUMP_ON_TIMEOUT is set."""
    global _is_dumped
    setting = next((os.environ[name] for name in _NAMES if name in os.environ), "0")
    if setting.lower() not in ("1", "true", "yes", "y", "on"):
        return
    with _lock:
        if _is_dumped or not dist.is_initialized():
            return
        _is_dumped = True
    from torch._C import _distributed_c10d as c10d

    if hasattr(c10d, "_dump_fr_trace_file"):
        c10d._dump_fr_trace_file(dist.get_rank(), backend="maypole")
