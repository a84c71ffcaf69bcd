"""Maypole: collective communication between processes.

``Communicator`` works on NumPy arrays and everything with the buffer protocol, and ``launch.run``
starts ranks. With PyTorch, ``torch.distributed.init_process_group("maypole")`` needs no import
from torch 2.14 on. docs/pytorch.md has both.
"""

from ._library import MaypoleError
from .communicator import OPERATIONS, Communicator, unique_id

__all__ = ["OPERATIONS", "Communicator", "MaypoleError", "unique_id"]
