"""Copies the library under another soname of the same length: OLD NEW.

The dynamic linker takes a loaded library for every other one with its soname. If the package
loaded a library called libnccl.so.2, a CUDA build of PyTorch that is imported later would get it
in place of its own.
"""

import sys
from pathlib import Path

old, new = map(Path, sys.argv[1:])
name, other = old.name.encode() + b"\0", new.name.encode() + b"\0"
if len(name) != len(other):
    sys.exit(f"{old.name} and {new.name} differ in length")
content = old.read_bytes()
# The string table for the dynamic linker precedes all others, as it is loaded.
place = content.index(b"\0" + name) + 1
new.write_bytes(content[:place] + other + content[place + len(name):])
