"""Compiles one CUDA source to PTX with NVRTC and the PTX to machine code with ptxas: see cuda-images, which calls this."""

import ctypes
import pathlib
import re
import subprocess
import sys

import nvidia

# What the PTX is made for; any later device takes it, compiled by its driver.
PTX = "compute_70"
# What the PTX says that it needs: drivers refuse PTX that is newer than they are. 7.0 is CUDA 11.0; nothing in it is newer, as ptxas checks.
PTX_VERSION = "7.0"
# Machine code for the devices that most people have: A100 (and all of 8.x), H100 and H200 (9.x), B100 and B200 (10.x).
CUBINS = ["sm_80", "sm_90", "sm_100"]

packages = pathlib.Path(nvidia.__path__[0])
nvrtc = ctypes.CDLL(packages / "cuda_nvrtc/lib/libnvrtc.so.12")


def text_of(program, name):
    """What NVRTC has to say of a program under `name`: its PTX or its log."""
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{name}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{name}")(program, text)
    return text.value.decode()


def ptx_of(source):
    """PTX without the comments that name the compiler."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    # No fused multiply-add, whatever the source forgets: the bits are part of the contract.
    options = [f"--gpu-architecture={PTX}", "-default-device", "-std=c++17", "--fmad=false", f"-I{source.parent}"]
    options = [option.encode() for option in options]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if failed:
        sys.exit(f"{source}: NVRTC says\n{text_of(program, 'ProgramLog')}")
    lines = text_of(program, "PTX").splitlines(keepends=True)
    # Nor the hints for tools, which need a newer PTX.
    lines = [line for line in lines if not line.startswith("//") and '.pragma "used_bytes_mask' not in line]
    return "".join(f".version {PTX_VERSION}\n" if line.startswith(".version") else line for line in lines).lstrip()


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
    print(f"{cubin.name}: {cubin.stat().st_size} bytes, {registers} registers, {spilt} bytes of them stored to memory in all functions")
