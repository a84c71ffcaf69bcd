"""The backend ``maypole`` of ``torch.distributed``, and its use in place of Gloo.

PyTorch 2.14 and newer calls ``register`` by an entry point when the name is first used.
"""

import os

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

    PyTorch calls it at import. Gloo itself is then ``gloo-legacy``.
    """
    if os.environ.get("MAYPOLE_AS_GLOO") != "1":
        return
    import torch.distributed as dist

    if not dist.is_available() or "GLOO-LEGACY" in dist.Backend._plugins:
        return
    from torch.distributed import distributed_c10d

    from .backend import create
    from .queries import install

    install()
    # CUSTOM, because DistributedDataParallel casts a backend of the type GLOO to Gloo's class.
    custom = dist.ProcessGroup.BackendType.CUSTOM
    legacy = distributed_c10d._create_gloo_process_group
    register_backend = dist.Backend.register_backend
    register_backend(
        "gloo-legacy", legacy, extended_api=True, devices=["cpu", "cuda"], _backend_type=custom
    )
    register_backend(
        "gloo", create, extended_api=True, devices=["cpu"], _backend_type=custom
    )
    # Otherwise PyTorch leaves its flight recorder to Gloo.
    recording = getattr(distributed_c10d, "_FR_SELF_RECORDING_BACKENDS", set())
    recording.discard("gloo")
    recording.add("gloo-legacy")
