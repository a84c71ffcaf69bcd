// A look-alike of libcuda.so.1: devices, contexts, streams, images and launches, on host threads.
//
// A stream is a thread with a queue. There is no default stream: give one. An image is a shared object, compiled by g++ from the
// sources that nvcc compiles for a device.
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <functional>
#include <list>
#include <string>
#include <thread>
#include <vector>

#include "sim.hpp"

struct CUctx_st {
  CUdevice ordinal;
};

struct CUmod_st {
  void* handle;
  std::list<CUfunc_st> functions;
};

struct CUfunc_st {
  const SimKernel* kernel;
};

struct CUstream_st {
  Device& dev;
  std::mutex lock;
  std::condition_variable changed;
  std::deque<std::function<void()>> queue;
  bool busy = false, closing = false;
  std::thread thread;

  explicit CUstream_st(Device& d) : dev(d), thread([this] { work(); }) {}

  void work() {
    std::unique_lock<std::mutex> guard(lock);
    for (;;) {
      changed.wait(guard, [this] { return closing || !queue.empty(); });
      if (queue.empty()) return;
      std::function<void()> operation = std::move(queue.front());
      queue.pop_front();
      busy = true;
      guard.unlock();
      jitter(dev.jitter_us);
      operation();
      guard.lock();
      busy = false;
      changed.notify_all();
    }
  }
  void push(std::function<void()> operation) {
    std::lock_guard<std::mutex> guard(lock);
    queue.push_back(std::move(operation));
    changed.notify_all();
  }
  bool idle() {
    std::lock_guard<std::mutex> guard(lock);
    return queue.empty() && !busy;
  }
  void synchronize() {
    std::unique_lock<std::mutex> guard(lock);
    changed.wait(guard, [this] { return queue.empty() && !busy; });
  }
};

static std::mutex streams_lock;
static std::list<CUstream> streams;
static bool initialized;
static CUctx_st contexts[DEVICES];
static thread_local CUcontext current;

Device& device(CUdevice ordinal) {
  static Device devices[DEVICES];
  return devices[ordinal];
}

Device* current_device() { return current ? &device(current->ordinal) : nullptr; }

void synchronize_all_streams() {
  std::lock_guard<std::mutex> guard(streams_lock);
  for (CUstream s : streams) s->synchronize();
}

static bool known(CUdevice ordinal) { return ordinal >= 0 && ordinal < DEVICES; }

// ---- of the simulator alone

// How many blocks the device holds at once, and up to how many microseconds a block or a stream falls behind, by chance.
extern "C" __attribute__((visibility("default"))) CUresult simDeviceConfigure(CUdevice ordinal, unsigned capacity, unsigned jitter_us) {
  if (!known(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  std::lock_guard<std::mutex> guard(device(ordinal).lock);
  device(ordinal).capacity = capacity;
  device(ordinal).jitter_us = jitter_us;
  return CUDA_SUCCESS;
}

// ---- devices and contexts

DRIVER_API cuInit(unsigned) {
  initialized = true;
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetCount(int* count) {
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
  *count = DEVICES;
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGet(CUdevice* out, int ordinal) {
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
  if (!known(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  *out = ordinal;
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetAttribute(int* value, int attribute, CUdevice ordinal) {
  if (!known(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  if (attribute != CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) return CUDA_ERROR_INVALID_VALUE;
  *value = (int)device(ordinal).capacity;
  return CUDA_SUCCESS;
}
DRIVER_API cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice ordinal) {
  if (!known(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  contexts[ordinal].ordinal = ordinal;
  *out = &contexts[ordinal];
  return CUDA_SUCCESS;
}
DRIVER_API cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
DRIVER_API cuCtxSetCurrent(CUcontext context) {
  current = context;
  return CUDA_SUCCESS;
}
DRIVER_API cuGetErrorName(CUresult error, const char** name) {
  thread_local char text[32];
  snprintf(text, sizeof text, "CUDA_ERROR_%d", error);
  *name = text;
  return CUDA_SUCCESS;
}

// ---- streams and copies

DRIVER_API cuStreamCreate(CUstream* out, unsigned) {
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  *out = new CUstream_st(*current_device());
  std::lock_guard<std::mutex> guard(streams_lock);
  streams.push_back(*out);
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamDestroy_v2(CUstream stream) {
  {
    std::lock_guard<std::mutex> guard(streams_lock);
    streams.remove(stream);
  }
  {
    std::lock_guard<std::mutex> guard(stream->lock);
    stream->closing = true;
    stream->changed.notify_all();
  }
  stream->thread.join();
  delete stream;
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamSynchronize(CUstream stream) {
  if (!stream) return CUDA_ERROR_INVALID_VALUE;
  stream->synchronize();
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamQuery(CUstream stream) {
  if (!stream) return CUDA_ERROR_INVALID_VALUE;
  return stream->idle() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
// Pageable host memory is staged before the call returns.
DRIVER_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  if (!stream) return CUDA_ERROR_INVALID_VALUE;
  std::vector<char> staged((const char*)from, (const char*)from + bytes);
  stream->push([=] { memcpy(reach(to), staged.data(), bytes); });
  return CUDA_SUCCESS;
}
// Into pageable host memory: returns when done.
DRIVER_API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  if (!stream) return CUDA_ERROR_INVALID_VALUE;
  stream->push([=] { memcpy(to, reach(from), bytes); });
  stream->synchronize();
  return CUDA_SUCCESS;
}

// ---- images and launches

DRIVER_API cuModuleLoadData(CUmodule* out, const void* image) {
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  if (memcmp(image, ELFMAG, SELFMAG) != 0) return CUDA_ERROR_INVALID_IMAGE;
  const Elf64_Ehdr* head = (const Elf64_Ehdr*)image;  // its section headers are at its end
  const size_t bytes = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize;
  const int file = memfd_create("kernels", MFD_CLOEXEC);
  if (file < 0 || write(file, image, bytes) != (ssize_t)bytes) return CUDA_ERROR_OUT_OF_MEMORY;
  void* handle = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  close(file);
  if (!handle) {
    fprintf(stderr, "simulated device: %s\n", dlerror());
    return CUDA_ERROR_INVALID_IMAGE;
  }
  *out = new CUmod_st{handle, {}};
  return CUDA_SUCCESS;
}
DRIVER_API cuModuleUnload(CUmodule module) {
  synchronize_all_streams();
  dlclose(module->handle);
  delete module;
  return CUDA_SUCCESS;
}
DRIVER_API cuModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
  const void* kernel = dlsym(module->handle, (std::string("sim_kernel_") + name).c_str());
  if (!kernel) return CUDA_ERROR_NOT_FOUND;
  module->functions.push_back({(const SimKernel*)kernel});
  *out = &module->functions.back();
  return CUDA_SUCCESS;
}

// All blocks of the grid are resident together, from the first to the last.
static void run_grid(Device& dev, const SimKernel& kernel, const void* argument, unsigned blocks, unsigned threads) {
  std::unique_lock<std::mutex> guard(dev.lock);
  dev.freed.wait(guard, [&] { return dev.resident + blocks <= dev.capacity; });
  dev.resident += blocks;
  const unsigned jitter_us = dev.jitter_us;
  guard.unlock();
  std::vector<std::thread> running;
  for (unsigned b = 0; b < blocks; b++)
    running.emplace_back([=, &kernel] { run_block(kernel, argument, {blocks, 1, 1}, {threads, 1, 1}, {b, 0, 0}, jitter_us); });
  for (std::thread& t : running) t.join();
  guard.lock();
  dev.resident -= blocks;
  dev.freed.notify_all();
}

DRIVER_API cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                     unsigned block_y, unsigned block_z, unsigned, CUstream stream, void** arguments) {
  if (!stream || grid_y * grid_z * block_y * block_z != 1 || grid_x * block_x == 0) return CUDA_ERROR_INVALID_VALUE;
  if (grid_x > stream->dev.capacity) return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
  const SimKernel* kernel = function->kernel;
  const char* bytes = (const char*)arguments[0];
  std::vector<char> argument(bytes, bytes + kernel->argument_bytes);
  stream->push([=] { run_grid(stream->dev, *kernel, argument.data(), grid_x, block_x); });
  return CUDA_SUCCESS;
}
