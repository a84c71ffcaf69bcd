// Images and launches. An image is a shared object that g++ compiled from the same sources that
// nvcc compiles for a device. PTX and cubins cannot be run here, so the kernels.so in the folder of
// the library is used instead.
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <list>
#include <string>
#include <thread>

#include "sim.hpp"

struct CUfunc_st {
  const SimKernel* kernel;
  CUcontext context;
  std::atomic<bool> loaded{false};
};
struct CUmod_st {
  void* handle;
  CUcontext context;
  std::list<CUfunc_st> functions;
};

static CUresult open_module(CUmodule* out, const std::string& path, int flags) {
  void* handle = dlopen(path.c_str(), flags);
  if (!handle) {
    fprintf(stderr, "simcuda: %s\n", dlerror());
    return CUDA_ERROR_INVALID_IMAGE;
  }
  *out = new CUmod_st{handle, current_context(), {}};
  return CUDA_SUCCESS;
}

static CUresult load(CUmodule* out, const void* image) {
  if (!image) return CUDA_ERROR_INVALID_VALUE;
  {
    Lock guard(order);
    if (CUresult failed = forbid_unsafe()) return failed;
  }
  const char* text = (const char*)image;
  const Elf64_Ehdr* head = (const Elf64_Ehdr*)image;
  const bool elf = memcmp(image, ELFMAG, SELFMAG) == 0;
  if (elf && head->e_machine == EM_X86_64) {
    const size_t bytes =
        head->e_shoff +
        (size_t)head->e_shnum * head->e_shentsize;  // its section headers are at its end
    const int file = memfd_create("kernels", MFD_CLOEXEC);
    if (file < 0 || write(file, image, bytes) != (ssize_t)bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result =
        open_module(out, "/proc/self/fd/" + std::to_string(file), RTLD_NOW | RTLD_LOCAL);
    close(file);
    return result;
  }
  const u32 fatbin = 0xba55ed50;
  const bool known = elf || memcmp(image, &fatbin, 4) == 0 || strncmp(text, "//", 2) == 0 ||
                     strncmp(text, ".version", 8) == 0;
  Dl_info self;
  if (!known || !dladdr((const void*)&load, &self)) return CUDA_ERROR_INVALID_IMAGE;
  const std::string library = self.dli_fname;
  const size_t slash = library.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : library.substr(0, slash + 1);
  return open_module(out, folder + "kernels.so", RTLD_NOW | RTLD_LOCAL);
}

DRIVER_API cuModuleLoadData(CUmodule* out, const void* image) {
  ENTER_CONTEXT(cuModuleLoadData);
  return load(out, image);
}
DRIVER_API cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned, int*, void**) {
  ENTER_CONTEXT(cuModuleLoadDataEx);
  return load(out, image);
}
DRIVER_API cuModuleLoadFatBinary(CUmodule* out, const void* image) {
  ENTER_CONTEXT(cuModuleLoadFatBinary);
  return load(out, image);
}
DRIVER_API cuModuleUnload(CUmodule module) {
  ENTER(cuModuleUnload);
  synchronize_all();
  dlclose(module->handle);
  delete module;
  return CUDA_SUCCESS;
}
DRIVER_API cuModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
  ENTER_CONTEXT(cuModuleGetFunction);
  const void* kernel = dlsym(module->handle, (std::string("sim_kernel_") + name).c_str());
  if (!kernel) return CUDA_ERROR_NOT_FOUND;
  Lock guard(order);
  for (CUfunc_st& known : module->functions)
    if (known.kernel == kernel) return *out = &known, CUDA_SUCCESS;
  module->functions.emplace_back();
  module->functions.back().kernel = (const SimKernel*)kernel;
  module->functions.back().context = module->context;
  *out = &module->functions.back();
  return CUDA_SUCCESS;
}

static int lazy_loading = -1;  // -1: as SIMCUDA_LAZY_LOADING says

// Makes the first launch of a kernel load it, or not.
extern "C" __attribute__((visibility("default"))) void simLazyLoading(int on) {
  __atomic_store_n(&lazy_loading, on, __ATOMIC_RELEASE);
}

// Loads a kernel that is used for the first time, which may wait as an allocation does: with lazy
// loading, a kernel is not on the device before.
static void load_kernel(CUfunction function) {
  int lazy = __atomic_load_n(&lazy_loading, __ATOMIC_ACQUIRE);
  if (lazy < 0) lazy = setting("SIMCUDA_LAZY_LOADING", 0);
  if (lazy && !function->loaded) synchronize_peers();
  function->loaded = true;
}

DRIVER_API cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
  ENTER_CONTEXT(cuFuncGetAttribute);
  if (!function || attribute < 0 || attribute > 15) return CUDA_ERROR_INVALID_VALUE;
  load_kernel(function);
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
DRIVER_API cuFuncSetAttribute(CUfunction, int, int) {
  ENTER_CONTEXT(cuFuncSetAttribute);
  return CUDA_SUCCESS;
}
// One block per multiprocessor, whatever its size: more is never certain on a device.
DRIVER_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  ENTER_CONTEXT(cuOccupancyMaxActiveBlocksPerMultiprocessor);
  *blocks = 1;
  return CUDA_SUCCESS;
}

static int serial_cooperative = -1;  // -1: as SIMCUDA_SERIAL_COOPERATIVE says

// Makes cooperative grids of a device run one after the other, or not.
extern "C" __attribute__((visibility("default"))) void simSerialCooperative(int on) {
  __atomic_store_n(&serial_cooperative, on, __ATOMIC_RELEASE);
}

// Places blocks one after the other as there is room, or all at once for a cooperative launch.
// Returns when the last block has been placed.
static void run_grid(Device& device, const SimKernel& kernel,
                     std::shared_ptr<std::vector<char>> argument, unsigned blocks, unsigned threads,
                     bool together, const Done& done) {
  if (__atomic_load_n(&device.broken, __ATOMIC_ACQUIRE)) return done->finish();
  if (CUresult error = enter("kernel")) {
    break_device(device, error);
    return done->finish();
  }
  int serial = __atomic_load_n(&serial_cooperative, __ATOMIC_ACQUIRE);
  if (serial < 0) serial = setting("SIMCUDA_SERIAL_COOPERATIVE", 0);
  auto left = std::make_shared<std::atomic<unsigned>>(blocks);
  for (unsigned b = 0; b < blocks; b++) {
    unsigned jitter_us;
    {
      Lock guard(device.lock);
      if (!together || b == 0) {
        const unsigned wanted = together ? blocks : 1;
        device.freed.wait(guard, [&] {
          return device.resident + wanted <= device.capacity &&
                 !(together && serial && device.cooperative);
        });
        device.resident += wanted;
        if (together) device.cooperative += wanted;
      }
      jitter_us = device.jitter_us;
    }
    std::thread([=, &device, &kernel] {
      run_block(device, kernel, argument->data(), {blocks, 1, 1}, {threads, 1, 1}, {b, 0, 0},
                jitter_us);
      {
        Lock guard(device.lock);
        device.resident--;
        if (together) device.cooperative--;
        device.freed.notify_all();
      }
      if (--*left == 0) done->finish();
    }).detach();
  }
}

// With CUDA_LAUNCH_BLOCKING=1 a launch returns when the kernel has ended.
static CUresult launch(CUfunction function, unsigned grid, unsigned rest, unsigned threads,
                       bool together, CUstream stream, void** arguments) {
  if (!function || rest != 1 || grid * threads == 0 || threads > 1024 || !arguments)
    return CUDA_ERROR_INVALID_VALUE;
  if (function->context != stream->context) return CUDA_ERROR_INVALID_HANDLE;
  Device& device = *stream->context->device;
  if (together) {
    Lock guard(device.lock);
    if (grid > device.capacity) return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
  }
  load_kernel(function);
  const SimKernel* kernel = function->kernel;
  const char* bytes = (const char*)arguments[0];
  auto argument = std::make_shared<std::vector<char>>(bytes, bytes + kernel->argument_bytes);
  Done done;
  if (CUresult failed =
          submit(stream,
                 {Kind::WAIT, &device,
                  [=, &device](const Done& done) {
                    run_grid(device, *kernel, argument, grid, threads, together, done);
                  }},
                 &done))
    return failed;
  if (done && setting("CUDA_LAUNCH_BLOCKING", 0)) done->wait();
  return CUDA_SUCCESS;
}

DRIVER_API cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned,
                          CUstream handle, void** arguments, void** extra) {
  ENTER_CONTEXT(cuLaunchKernel);
  if (extra) return CUDA_ERROR_NOT_SUPPORTED;
  return launch(function, grid_x, grid_y * grid_z * block_y * block_z, block_x, false,
                stream_of(handle), arguments);
}
DRIVER_API cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                     unsigned grid_z, unsigned block_x, unsigned block_y,
                                     unsigned block_z, unsigned, CUstream handle,
                                     void** arguments) {
  ENTER_CONTEXT(cuLaunchCooperativeKernel);
  return launch(function, grid_x, grid_y * grid_z * block_y * block_z, block_x, true,
                stream_of(handle), arguments);
}
DRIVER_API cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction function, void** arguments,
                            void** extra) {
  ENTER_CONTEXT(cuLaunchKernelEx);
  if (extra) return CUDA_ERROR_NOT_SUPPORTED;
  bool together = false;
  for (unsigned i = 0; i < c->numAttrs; i++) {
    const CUlaunchAttribute& one = c->attrs[i];
    if (one.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) together = one.value.cooperative;
    if (one.id == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN) {
      if (one.value.domain < 0 || one.value.domain > 1 || memory_domains() < 2)
        return CUDA_ERROR_INVALID_VALUE;
      if (one.value.domain == 1) enter("kernel-in-remote-domain");
    }
  }
  return launch(function, c->gridDimX, c->gridDimY * c->gridDimZ * c->blockDimY * c->blockDimZ,
                c->blockDimX, together, stream_of(c->hStream), arguments);
}

// The newest version of a name that this library has.
DRIVER_API cuGetProcAddress_v2(const char* name, void** out, int, uint64_t, int* result) {
  ENTER(cuGetProcAddress_v2);
  Dl_info self;
  *out = nullptr;
  void* library =
      dladdr((const void*)&load, &self) ? dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD) : nullptr;
  for (const char* suffix : {"_v3", "_v2", ""})
    if (library && !*out) *out = dlsym(library, (std::string(name) + suffix).c_str());
  if (library) dlclose(library);
  if (result) *result = *out ? 0 : 1;
  return *out ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
