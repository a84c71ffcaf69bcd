"""Buffers of the Python clients, in host memory, or of a device if MAYPOLE_DEVICE is cuda.

The driver (libcuda.so.1, by ctypes) allocates memory of devices. Rank r uses device r modulo the
number of devices. Each rank has its own stream."""

import ctypes
import os
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

ON_DEVICE = os.environ.get("MAYPOLE_DEVICE") == "cuda"
NOT_READY = 600
NON_BLOCKING = 1


class HostMemory:
    """Memory of the host. The stream is NULL: a call returns when its result is there."""

    stream = 0
    device = -1

    def buffer(self, data):
        return HostBuffer(data)

    def wait(self):
        pass

    def write(self, address, data):
        ctypes.memmove(address, data, len(data))

    def check_asynchronous(self, call):
        call()


class HostBuffer:
    def __init__(self, data):
        self.data = bytearray(data)
        self.alias = (ctypes.c_char * len(self.data)).from_buffer(self.data)
        self.address = ctypes.addressof(self.alias)

    def bytes(self):
        return bytes(self.data)


class DeviceMemory:
    """Memory of a rank's device."""

    def __init__(self, rank):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        count, context, stream = c_int(), c_void_p(), c_void_p()
        self.call("cuInit", c_uint(0))
        self.call("cuDeviceGetCount", byref(count))
        self.device = rank % count.value
        self.call("cuDevicePrimaryCtxRetain", byref(context), c_int(self.device))
        self.call("cuCtxSetCurrent", context)
        self.stream = self.new_stream()
        # For copies that must not wait for the rank's stream. It is created once, because of many
        # streams some share a queue of the device and so wait for each other.
        self.copy_stream = c_void_p(self.new_stream())

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        assert code == 0, (name, code)

    def new_stream(self):
        stream = c_void_p()
        self.call("cuStreamCreate", byref(stream), c_uint(NON_BLOCKING))
        return stream.value

    def buffer(self, data):
        return DeviceBuffer(self, bytes(data))

    def wait(self):
        self.call("cuStreamSynchronize", c_void_p(self.stream))

    def write(self, address, data):
        size = c_size_t(len(data))
        self.call("cuMemcpyHtoDAsync_v2", c_uint64(address), data, size, self.copy_stream)
        self.call("cuStreamSynchronize", self.copy_stream)

    def check_asynchronous(self, call):
        """Makes the call while the stream is held: it must return, and do nothing until the stream
        continues."""
        gate = self.buffer(bytes(8))
        stream = c_void_p(self.stream)
        self.call("cuStreamWaitValue64_v2", stream, c_uint64(gate.address), c_uint64(1), c_uint(0))
        call()
        assert self.cuda.cuStreamQuery(stream) == NOT_READY
        self.write(gate.address, (1).to_bytes(8, "little"))
        self.wait()


class DeviceBuffer:
    def __init__(self, memory, data):
        self.memory, self.size = memory, len(data)
        address = c_uint64()
        memory.call("cuMemAlloc_v2", byref(address), c_size_t(max(self.size, 1)))
        self.address = address.value
        memory.write(self.address, data)

    def bytes(self):
        """The content after all work on the stream of the rank."""
        self.memory.wait()
        data = ctypes.create_string_buffer(self.size)
        self.memory.call("cuMemcpyDtoH_v2", data, c_uint64(self.address), c_size_t(self.size))
        return data.raw

    def __del__(self):
        # The stream of a rank that failed may never end its work.
        if self.memory.cuda.cuStreamQuery(c_void_p(self.memory.stream)) == 0:
            self.memory.cuda.cuMemFree_v2(c_uint64(self.address))


def for_rank(rank):
    """The memory of a rank. To be called before the rank creates its communicator, as it chooses
    the device."""
    return DeviceMemory(rank) if ON_DEVICE else HostMemory()
