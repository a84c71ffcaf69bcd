"""The backend ``maypole`` of ``torch.distributed``, and its use in place of Gloo.

PyTorch 2.14 and newer calls ``register`` by an entry point when the name is first used.
"""

import os
from typing import Any

__all__ = ["register", "replace_gloo"]


def register() -> None:
    """Registers the backend ``maypole`` for CPU tensors."""
    import torch.distributed as dist

    from .backend import create
    from .queries import install

    install()
    if "MAYPOLE" not in dist.Backend._plugins:
        dist.Backend.register_backend("maypole", create, extended_api=True, devices=["cpu"])


def replace_gloo() -> None:
    """If MAYPOLE_AS_GLOO is 1, registers the backend under the name ``gloo`` for CPU tensors.

    PyTorch calls it at import. Gloo itself is then ``gloo-legacy``, and is still used for the
    tensors of an accelerator.
    """
    if os.environ.get("MAYPOLE_AS_GLOO") != "1":
        return
    import torch.distributed as dist

    if not dist.is_available() or "GLOO-LEGACY" in dist.Backend._plugins:
        return
    from torch.distributed import distributed_c10d

    from .queries import install

    install()
    kinds, legacy = dist.ProcessGroup.BackendType, distributed_c10d._create_gloo_process_group
    dist.Backend.register_backend(
        "gloo-legacy", legacy, extended_api=True, devices=["cpu", "cuda"], _backend_type=kinds.GLOO
    )
    # CUSTOM, because DistributedDataParallel casts a backend of the type GLOO to Gloo's class.
    dist.Backend.register_backend(
        "gloo", _create_beside_gloo, extended_api=True, devices=["cpu"], _backend_type=kinds.CUSTOM
    )
    # Otherwise PyTorch leaves its flight recorder to Gloo.
    recording = getattr(distributed_c10d, "_FR_SELF_RECORDING_BACKENDS", set())
    recording.discard("gloo")
    recording.add("gloo-legacy")


def _create_beside_gloo(opts: Any, backend_options: Any) -> Any:
    import torch
    import torch.distributed as dist

    from .backend import create

    accelerator = torch.accelerator.current_accelerator()
    group = opts.process_group
    # Another backend that the user names for the accelerator was or will be registered there.
    if accelerator is not None and all(d.type == "cpu" for d in group._device_types):
        gloo = dist.ProcessGroupGloo(
            dist.PrefixStore("gloo-legacy", opts.store), opts.group_rank, opts.group_size,
            timeout=opts.timeout)
        kind = dist.ProcessGroup.BackendType.GLOO
        group._register_backend(torch.device(accelerator.type), kind, gloo)
    return create(opts, backend_options)
