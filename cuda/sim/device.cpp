// Devices and their primary contexts. SIMCUDA_DEVICES says how many there are, CUDA_VISIBLE_DEVICES
// (a list of numbers) which of them this process sees; SIMCUDA_PEERS=0 disables peer access.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>

#include "sim.hpp"

static bool initialized;
static thread_local std::vector<CUcontext> stack;

static std::vector<int>& visible() {
  static std::vector<int>* list = [] {
    auto* seen = new std::vector<int>;
    int n = setting("SIMCUDA_DEVICES", 2);
    n = n < 0 ? 0 : n > MAX_DEVICES ? MAX_DEVICES : n;
    const char* text = getenv("CUDA_VISIBLE_DEVICES");
    if (!text)
      for (int i = 0; i < n; i++) seen->push_back(i);
    else  // a number out of range ends the list
      for (char* end; *text; text = *end ? end + 1 : end) {
        const long i = strtol(text, &end, 10);
        if (end == text || i < 0 || i >= n) break;
        seen->push_back((int)i);
      }
    return seen;
  }();
  return *list;
}

static Device& physical(int i) {
  static Device* devices = [] {
    auto* all = new Device[MAX_DEVICES];
    for (int d = 0; d < MAX_DEVICES; d++) {
      all[d].physical = d;
      all[d].capacity = (unsigned)setting("SIMCUDA_BLOCKS", 128);
      all[d].jitter_us = (unsigned)setting("SIMCUDA_JITTER_US", 0);
    }
    return all;
  }();
  return devices[i];
}

int device_count() { return (int)visible().size(); }
Device& device_of(CUdevice ordinal) { return physical(visible()[ordinal]); }
CUdevice ordinal_of(const Device& device) {
  for (int i = 0; i < device_count(); i++)
    if (visible()[i] == device.physical) return i;
  return -1;
}

static CUcontext new_context(CUdevice ordinal) {
  CUcontext context = new CUctx_st{&device_of(ordinal), nullptr};
  context->legacy = new CUstream_st{context, 0,       MAX_QUEUES, true,  // a queue of its own
                                    nullptr, nullptr, {}};
  return context;
}

CUcontext primary(CUdevice ordinal) {
  static std::mutex lock;
  static auto* contexts = new std::map<int, CUcontext>;
  Lock guard(lock);
  CUcontext& context = (*contexts)[ordinal];
  if (!context) context = new_context(ordinal);
  return context;
}

CUcontext current_context() { return stack.empty() ? nullptr : stack.back(); }

CUresult context_state() {
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
  if (!current_context()) return CUDA_ERROR_INVALID_CONTEXT;
  return __atomic_load_n(&current_context()->device->broken, __ATOMIC_ACQUIRE);
}

bool may_access(const Device& from, int to) {
  if (from.physical == to) return true;
  const int ordinal = ordinal_of(from);
  return ordinal >= 0 && primary(ordinal)->peers[to];
}

static bool known(CUdevice ordinal) { return ordinal >= 0 && ordinal < device_count(); }
#define DEVICE(ordinal)                                \
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED; \
  if (!known(ordinal)) return CUDA_ERROR_INVALID_DEVICE

// Sets the number of blocks that the device holds at once, and the longest random delay of a block
// or a stream in microseconds.
extern "C" __attribute__((visibility("default"))) CUresult simDeviceConfigure(CUdevice ordinal,
                                                                              unsigned capacity,
                                                                              unsigned jitter_us) {
  if (!known(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  Device& device = device_of(ordinal);
  Lock guard(device.lock);
  device.capacity = capacity;
  device.jitter_us = jitter_us;
  return CUDA_SUCCESS;
}

int memory_domains() { return setting("SIMCUDA_CAPABILITY", 90) >= 90 ? 4 : 1; }

static int block_threads;  // 0: as SIMCUDA_THREADS says

// Sets the most threads of a block that devices tell; 0 for what SIMCUDA_THREADS says.
extern "C" __attribute__((visibility("default"))) void simThreads(int threads) {
  __atomic_store_n(&block_threads, threads, __ATOMIC_RELEASE);
}
static int threads_of_block() {
  const int set = __atomic_load_n(&block_threads, __ATOMIC_ACQUIRE);
  return set ? set : setting("SIMCUDA_THREADS", 32);
}

DRIVER_API cuInit(unsigned flags) {
  ENTER(cuInit);
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  if (!device_count()) return CUDA_ERROR_NO_DEVICE;
  initialized = true;
  return CUDA_SUCCESS;
}
DRIVER_API cuDriverGetVersion(int* version) {
  ENTER(cuDriverGetVersion);
  *version = setting("SIMCUDA_DRIVER_VERSION", 12090);
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetCount(int* count) {
  ENTER(cuDeviceGetCount);
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
  *count = device_count();
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGet(CUdevice* out, int ordinal) {
  ENTER(cuDeviceGet);
  DEVICE(ordinal);
  *out = ordinal;
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetName(char* name, int bytes, CUdevice ordinal) {
  ENTER(cuDeviceGetName);
  DEVICE(ordinal);
  if (bytes <= 0) return CUDA_ERROR_INVALID_VALUE;
  snprintf(name, (size_t)bytes, "Simulated GPU %d", device_of(ordinal).physical);
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceTotalMem_v2(size_t* bytes, CUdevice ordinal) {
  ENTER(cuDeviceTotalMem_v2);
  DEVICE(ordinal);
  *bytes = DEVICE_BYTES;
  return CUDA_SUCCESS;
}
static CUresult uuid(CUuuid* out, CUdevice ordinal) {
  DEVICE(ordinal);
  memcpy(out->bytes, "simulated GPU   ", 16);
  out->bytes[15] = (char)device_of(ordinal).physical;
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetUuid(CUuuid* out, CUdevice ordinal) {
  ENTER(cuDeviceGetUuid);
  return uuid(out, ordinal);
}
DRIVER_API cuDeviceGetUuid_v2(CUuuid* out, CUdevice ordinal) {
  ENTER(cuDeviceGetUuid_v2);
  return uuid(out, ordinal);
}
DRIVER_API cuDeviceGetPCIBusId(char* text, int bytes, CUdevice ordinal) {
  ENTER(cuDeviceGetPCIBusId);
  DEVICE(ordinal);
  if (bytes < 13) return CUDA_ERROR_INVALID_VALUE;
  snprintf(text, (size_t)bytes, "0000:%02x:00.0", 16 + device_of(ordinal).physical);
  return CUDA_SUCCESS;
}
DRIVER_API cuDeviceGetAttribute(int* value, int attribute, CUdevice ordinal) {
  ENTER(cuDeviceGetAttribute);
  DEVICE(ordinal);
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = threads_of_block(); break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = (int)device_of(ordinal).capacity; break;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: *value = 16 + device_of(ordinal).physical; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: *value = 2; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = setting("SIMCUDA_CAPABILITY", 90) / 10;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = setting("SIMCUDA_CAPABILITY", 90) % 10;
      break;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS:
      *value = setting("SIMCUDA_STREAM_VALUES", 1);
      break;
    case CU_DEVICE_ATTRIBUTE_MEM_SYNC_DOMAIN_COUNT: *value = memory_domains(); break;
    default:
      if (attribute < 1 || attribute > 150) return CUDA_ERROR_INVALID_VALUE;
      *value = 0;
  }
  return CUDA_SUCCESS;
}

static std::mutex retaining;
static int retained[MAX_DEVICES];

// How often the primary context of the device is retained.
extern "C" __attribute__((visibility("default"))) int simRetained(CUdevice ordinal) {
  Lock guard(retaining);
  return known(ordinal) ? retained[device_of(ordinal).physical] : 0;
}

// The first retain takes memory of the device. SIMCUDA_BUSY is the number of a device that another
// process has for itself.
DRIVER_API cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice ordinal) {
  ENTER(cuDevicePrimaryCtxRetain);
  DEVICE(ordinal);
  const int number = device_of(ordinal).physical;
  if (setting("SIMCUDA_BUSY", -1) == number) return CUDA_ERROR_DEVICE_UNAVAILABLE;
  *out = primary(ordinal);
  Lock guard(retaining);
  if (retained[number]++ == 0) use_memory(number, (long)CONTEXT_BYTES);
  return CUDA_SUCCESS;
}
// The context is not destroyed, so programs must not depend on its end.
DRIVER_API cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
  ENTER(cuDevicePrimaryCtxRelease_v2);
  DEVICE(ordinal);
  const int number = device_of(ordinal).physical;
  Lock guard(retaining);
  if (retained[number] == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (--retained[number] == 0) use_memory(number, -(long)CONTEXT_BYTES);
  return CUDA_SUCCESS;
}
// A context beside the primary one, for its own streams and modules.
DRIVER_API cuCtxCreate_v2(CUcontext* out, unsigned, CUdevice ordinal) {
  ENTER(cuCtxCreate_v2);
  DEVICE(ordinal);
  *out = new_context(ordinal);
  stack.push_back(*out);
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxSetCurrent(CUcontext context) {
  ENTER(cuCtxSetCurrent);
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
  if (!stack.empty()) stack.pop_back();
  if (context) stack.push_back(context);
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxGetCurrent(CUcontext* out) {
  ENTER(cuCtxGetCurrent);
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
  *out = current_context();
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxPushCurrent_v2(CUcontext context) {
  ENTER(cuCtxPushCurrent_v2);
  if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
  if (!context) return CUDA_ERROR_INVALID_CONTEXT;
  stack.push_back(context);
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxPopCurrent_v2(CUcontext* out) {
  ENTER(cuCtxPopCurrent_v2);
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (out) *out = stack.back();
  stack.pop_back();
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxGetDevice(CUdevice* out) {
  ENTER(cuCtxGetDevice);
  if (!current_context()) return CUDA_ERROR_INVALID_CONTEXT;
  *out = ordinal_of(*current_context()->device);
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceCanAccessPeer(int* can, CUdevice from, CUdevice to) {
  ENTER(cuDeviceCanAccessPeer);
  DEVICE(from);
  DEVICE(to);
  *can = from != to && setting("SIMCUDA_PEERS", 1);
  return CUDA_SUCCESS;
}
// Held until the memory is mapped: what is already enabled for one thread can be used by another.
static std::mutex peering;

DRIVER_API cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
  ENTER_CONTEXT(cuCtxEnablePeerAccess);
  if (!peer || peer == current_context()) return CUDA_ERROR_INVALID_DEVICE;
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  if (!setting("SIMCUDA_PEERS", 1)) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  Lock guard(peering);
  bool& on = current_context()->peers[peer->device->physical];
  if (on) return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
  on = true;
  map_peer(*current_context()->device, peer->device->physical, true);
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxDisablePeerAccess(CUcontext peer) {
  ENTER_CONTEXT(cuCtxDisablePeerAccess);
  if (!peer) return CUDA_ERROR_INVALID_CONTEXT;
  Lock guard(peering);
  bool& on = current_context()->peers[peer->device->physical];
  if (!on) return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
  on = false;
  map_peer(*current_context()->device, peer->device->physical, false);
  return CUDA_SUCCESS;
}

static const struct {
  CUresult code;
  const char *name, *text;
} ERRORS[] = {
#define ERROR(name, text) {name, #name, text}
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR(CUDA_ERROR_DEVICE_UNAVAILABLE, "CUDA-capable device(s) is/are busy or unavailable"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_MAP_FAILED, "mapping of buffer object failed"),
    ERROR(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED,
          "peer access is not supported between these two devices"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is already enabled"),
    ERROR(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "peer access has not been enabled"),
    ERROR(CUDA_ERROR_ASSERT, "device-side assert triggered"),
    ERROR(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
          "part or all of the memory is already registered"),
    ERROR(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer is not that of registered memory"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "too many blocks in cooperative launch"),
    ERROR(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
          "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
          "operation failed due to a previous error during capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_MERGE,
          "operation would result in a merge of separate capture sequences"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
          "capture was not ended in the same stream as it began"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
          "dependency created on uncaptured work in another stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
          "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT,
          "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
          "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};

DRIVER_API cuGetErrorName(CUresult error, const char** name) {
  for (auto& one : ERRORS)
    if (one.code == error) return *name = one.name, CUDA_SUCCESS;
  *name = nullptr;
  return CUDA_ERROR_INVALID_VALUE;
}
DRIVER_API cuGetErrorString(CUresult error, const char** text) {
  for (auto& one : ERRORS)
    if (one.code == error) return *text = one.text, CUDA_SUCCESS;
  *text = nullptr;
  return CUDA_ERROR_INVALID_VALUE;
}
