"""Compiles a CUDA source to PTX with NVRTC, and the PTX to machine code with ptxas.

scripts/cuda-images calls this.
"""

import ctypes
import pathlib
import re
import subprocess
import sys

import nvidia

# The architecture of the PTX. The drivers of all later devices compile it.
PTX = "compute_70"
# The version that the PTX declares. Drivers refuse PTX that is newer than they are. 7.0 means CUDA
# 11.0; ptxas checks that nothing in it is newer.
PTX_VERSION = "7.0"
# Machine code for each major number: T4 and other devices of 7.5, A100 (and all of 8.x), H100 and
# H200 (9.x), B100 and B200 (10.x), RTX 50 and RTX PRO (12.x).
CUBINS = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]

packages = pathlib.Path(nvidia.__path__[0])
nvrtc = ctypes.CDLL(packages / "cuda_nvrtc/lib/libnvrtc.so.12")


def text_of(program, name):
    """Returns the PTX or the log (`name`) of a program of NVRTC."""
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{name}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{name}")(program, text)
    return text.value.decode()


def ptx_of(source):
    """Compiles to PTX without the comments that name the compiler."""
    program = ctypes.c_void_p()
    text, name = source.read_bytes(), source.name.encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None)
    # No fused multiply-add, even where the source allows one: the bits of results are guaranteed.
    options = [f"--gpu-architecture={PTX}", "-default-device", "-std=c++17", "--fmad=false"]
    options.append(f"-I{source.parent}")
    options = [option.encode() for option in options]
    arguments = (ctypes.c_char_p * len(options))(*options)
    failed = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    if failed:
        sys.exit(f"{source}: NVRTC says\n{text_of(program, 'ProgramLog')}")
    lines = text_of(program, "PTX").splitlines(keepends=True)
    # Hints for tools are removed too, because they need a newer PTX.
    hint = '.pragma "used_bytes_mask'
    lines = [line for line in lines if not line.startswith("//") and hint not in line]
    version = f".version {PTX_VERSION}\n"
    return "".join(version if line.startswith(".version") else line for line in lines).lstrip()


source, into = map(pathlib.Path, sys.argv[1:])
ptx = into / f"{source.stem}.ptx"
ptx.write_text(ptx_of(source))
for architecture in CUBINS:
    cubin = into / f"{source.stem}_{architecture}.cubin"
    command = [packages / "cuda_nvcc/bin/ptxas", "-v", f"-arch={architecture}", ptx, "-o", cubin]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"ptxas refuses {ptx} for {architecture}:\n{done.stderr}")
    registers = max(map(int, re.findall(r"Used (\d+) registers", done.stderr)))
    spilt = sum(map(int, re.findall(r"(\d+) bytes spill stores", done.stderr)))
    print(
        f"{cubin.name}: {cubin.stat().st_size} bytes, {registers} registers, "
        f"{spilt} bytes of them stored to memory in all functions"
    )
