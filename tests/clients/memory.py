"""Where the Python clients have their buffers: in memory of the host, or, where MAYPOLE_DEVICE is cuda, in that of a device, by the driver alone
(libcuda.so.1, through ctypes). A rank's device is its number, counted round; each rank has a stream of its own."""

import ctypes
import os
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

ON_DEVICE = os.environ.get("MAYPOLE_DEVICE") == "cuda"
NOT_READY = 600
NON_BLOCKING = 1


class Host:
    """The stream is NULL: a call returns when its result is there."""

    stream = 0
    device = -1

    def buffer(self, data):
        return HostBuffer(data)

    def wait(self):
        pass

    def write(self, address, data):
        ctypes.memmove(address, data, len(data))

    def asynchronous(self, call):
        call()


class HostBuffer:
    def __init__(self, data):
        self.data = bytearray(data)
        self.alias = (ctypes.c_char * len(self.data)).from_buffer(self.data)
        self.at = ctypes.addressof(self.alias)

    def bytes(self):
        return bytes(self.data)


class Device:
    def __init__(self, rank):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        count, context, stream = c_int(), c_void_p(), c_void_p()
        self.call("cuInit", c_uint(0))
        self.call("cuDeviceGetCount", byref(count))
        self.device = rank % count.value
        self.call("cuDevicePrimaryCtxRetain", byref(context), c_int(self.device))
        self.call("cuCtxSetCurrent", context)
        self.stream = self.new_stream()
        # For what must not wait for the rank's stream. Of many streams some share a queue of the device, and would.
        self.other = c_void_p(self.new_stream())

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
        self.call("cuMemcpyHtoDAsync_v2", c_uint64(address), data, c_size_t(len(data)), self.other)
        self.call("cuStreamSynchronize", self.other)

    def asynchronous(self, call):
        """What `call` puts on the stream while that is held: it returns, and nothing is done before the stream is let go."""
        gate = self.buffer(bytes(8))
        self.call("cuStreamWaitValue64_v2", c_void_p(self.stream), c_uint64(gate.at), c_uint64(1), c_uint(0))
        call()
        assert self.cuda.cuStreamQuery(c_void_p(self.stream)) == NOT_READY
        self.write(gate.at, (1).to_bytes(8, "little"))
        self.wait()


class DeviceBuffer:
    def __init__(self, memory, data):
        self.memory, self.size = memory, len(data)
        address = c_uint64()
        memory.call("cuMemAlloc_v2", byref(address), c_size_t(max(self.size, 1)))
        self.at = address.value
        memory.write(self.at, data)

    def bytes(self):
        """When all that the rank has on its stream is done."""
        self.memory.wait()
        data = ctypes.create_string_buffer(self.size)
        self.memory.call("cuMemcpyDtoH_v2", data, c_uint64(self.at), c_size_t(self.size))
        return data.raw

    def __del__(self):
        # Of a rank that failed the stream may never be done.
        if self.memory.cuda.cuStreamQuery(c_void_p(self.memory.stream)) == 0:
            self.memory.cuda.cuMemFree_v2(c_uint64(self.at))


def of(rank):
    """The memory of that rank; to be asked for before its communicator is made."""
    return Device(rank) if ON_DEVICE else Host()
