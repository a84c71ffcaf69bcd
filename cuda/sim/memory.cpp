// Device memory, whose addresses cannot be read. The bytes are a memfd per allocation, which is
// mapped elsewhere for each device that may access them, and once for the simulator. So these
// accesses trap: by host code to device memory, by a kernel to another device without peer access,
// and past the end of an allocation.
//
// Pinned host memory has one address everywhere, as with unified addressing.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>

#include "sim.hpp"

namespace {

constexpr size_t ALIGNMENT = 256, GAP = 64 << 10;
struct Pinned {
  size_t bytes;
  bool allocated;
};
std::mutex lock;
uintptr_t next_mapping = DEVICE_BASE;
u64 next_id = 1;
size_t used[MAX_DEVICES];
auto& regions = *new std::map<CUdeviceptr, Region>;
auto& pinned = *new std::map<uintptr_t, Pinned>;

size_t page() { return (size_t)sysconf(_SC_PAGESIZE); }

uintptr_t alias_of(int physical) { return ALIAS + (uintptr_t)physical * DEVICE_SPAN; }

bool map_at(const Region& r, uintptr_t alias) {
  void* at = (void*)(r.mapping + alias);
  // SIMCUDA_DROP_PEER_WRITES: what a kernel writes to memory of another device never arrives there.
  const bool owner = alias == alias_of(r.physical) || alias == alias_of(MAX_DEVICES);
  const int sharing =
      !owner && setting("SIMCUDA_DROP_PEER_WRITES", 0) ? MAP_PRIVATE : MAP_SHARED;
  return mmap(at, r.mapped, PROT_READ | PROT_WRITE, sharing | MAP_FIXED, r.fd, 0) == at;
}
void unmap_at(const Region& r, uintptr_t alias) { munmap((void*)(r.mapping + alias), r.mapped); }

Region* find(CUdeviceptr address) {
  auto after = regions.upper_bound(address);
  if (after == regions.begin()) return nullptr;
  Region& r = std::prev(after)->second;
  return address - r.start < r.bytes ? &r : nullptr;
}
std::map<uintptr_t, Pinned>::iterator find_pinned(uintptr_t address) {
  auto after = pinned.upper_bound(address);
  if (after == pinned.begin()) return pinned.end();
  auto it = std::prev(after);
  return address - it->first < it->second.bytes ? it : pinned.end();
}

// ---- the message of a trap

struct sigaction previous;

void trapped(int number, siginfo_t* info, void*) {
  const uintptr_t at = (uintptr_t)info->si_addr;
  char text[200];
  int n = 0;
  if (at - DEVICE_BASE < DEVICE_SPAN)
    n = snprintf(
        text, sizeof text,
        "simcuda: host code, or a raw pointer in a kernel, touched device memory at %#lx\n", at);
  else if (at - DEVICE_BASE - ALIAS < (MAX_DEVICES + 1) * DEVICE_SPAN) {
    const uintptr_t which = (at - DEVICE_BASE - ALIAS) / DEVICE_SPAN;
    n = snprintf(text, sizeof text,
                 "simcuda: device %lu has no access to memory at %#lx: past an allocation, freed, "
                 "or a peer's\n",
                 which, at - ALIAS - which * DEVICE_SPAN);
  }
  if (n > 0 && write(2, text, (size_t)n) < 0) {
  }
  sigaction(number, &previous,
            nullptr);  // the access is tried again, and the process dies or its own handler runs
}

}  // namespace

static void catch_traps() {
  static const bool once = [] {
    struct sigaction action = {};
    action.sa_sigaction = trapped;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    return sigaction(SIGSEGV, &action, &previous) == 0;
  }();
  (void)once;
}

void* reach(u64 address) {
  return (void*)(address - DEVICE_BASE < DEVICE_SPAN ? address + alias_of(MAX_DEVICES) : address);
}

CUresult map_region(int fd, size_t bytes, size_t mapped, int physical, bool imported,
                    CUdeviceptr* start) {
  catch_traps();
  Lock guard(lock);
  Region r = {0, bytes, next_mapping, mapped, fd, physical, imported, 1, next_id};
  if (mapped + GAP > DEVICE_BASE + DEVICE_SPAN - next_mapping)
    return close(fd), CUDA_ERROR_OUT_OF_MEMORY;
  // An imported region is mapped for the device that imports it.
  const int owner = imported ? current_context()->device->physical : physical;
  if (!map_at(r, alias_of(MAX_DEVICES)) || !map_at(r, alias_of(owner)))
    return close(fd), CUDA_ERROR_OUT_OF_MEMORY;
  if (!imported)
    for (int i = 0; i < device_count(); i++)
      if (device_of(i).physical != physical && may_access(device_of(i), physical))
        map_at(r, alias_of(device_of(i).physical));
  next_mapping += mapped + GAP;
  next_id++;
  // Ends where the mapping does, so that the byte past it traps.
  r.start = *start = r.mapping + (mapped - (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  if (!imported) used[physical] += mapped;
  regions[r.start] = r;
  return CUDA_SUCCESS;
}

CUresult release_region(CUdeviceptr start, bool imported) {
  Lock guard(lock);
  auto found = regions.find(start);
  if (found == regions.end() || found->second.imported != imported) return CUDA_ERROR_INVALID_VALUE;
  Region& r = found->second;
  if (--r.references) return CUDA_SUCCESS;
  for (int i = 0; i <= MAX_DEVICES; i++) unmap_at(r, alias_of(i));
  if (!imported) used[r.physical] -= r.mapped;
  close(r.fd);
  regions.erase(found);
  return CUDA_SUCCESS;
}

bool find_region(CUdeviceptr address, Region* found) {
  Lock guard(lock);
  Region* r = find(address);
  if (r) *found = *r;
  return r;
}

void with_regions(const std::function<void(std::vector<Region*>&)>& change) {
  Lock guard(lock);
  std::vector<Region*> all;
  for (auto& one : regions) all.push_back(&one.second);
  change(all);
}

void map_peer(Device& from, int to, bool on) {
  with_regions([&](std::vector<Region*>& all) {
    for (Region* r : all) {
      if (r->physical != to || r->imported) continue;
      if (on)
        map_at(*r, alias_of(from.physical));
      else
        unmap_at(*r, alias_of(from.physical));
    }
  });
}

bool is_pinned(const void* address, size_t bytes) {
  Lock guard(lock);
  auto it = find_pinned((uintptr_t)address);
  return it != pinned.end() && (uintptr_t)address + bytes <= it->first + it->second.bytes;
}

void use_memory(int physical, long bytes) {
  Lock guard(lock);
  used[physical] += (size_t)bytes;
}

static CUresult allocate(CUdeviceptr* address, size_t bytes) {
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const int physical = current_context()->device->physical;
  const size_t mapped = (bytes + page() - 1) / page() * page();
  if (mapped < bytes || mapped + used[physical] > DEVICE_BYTES) return CUDA_ERROR_OUT_OF_MEMORY;
  const int fd = memfd_create("simulated device memory", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, (off_t)mapped) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
  if (CUresult failed = map_region(fd, bytes, mapped, physical, false, address)) return failed;
  if (setting("SIMCUDA_FILL", 1))
    memset(reach(*address), 0xa5, bytes);  // fresh device memory holds anything
  return CUDA_SUCCESS;
}

DRIVER_API cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  ENTER_CONTEXT(cuMemAlloc_v2);
  {
    Lock guard(order);
    if (CUresult failed = forbid_unsafe()) return failed;
  }
  synchronize_for_allocation();
  return allocate(address, bytes);
}
// Waits for all work of the device, as the driver does.
DRIVER_API cuMemFree_v2(CUdeviceptr address) {
  ENTER(cuMemFree_v2);
  if (!current_context()) return CUDA_ERROR_INVALID_CONTEXT;
  {
    Lock guard(order);
    if (CUresult failed = forbid_unsafe()) return failed;
  }
  Region r;
  if (!find_region(address, &r) || r.start != address || r.imported)
    return CUDA_ERROR_INVALID_VALUE;
  synchronize_all();
  return release_region(address, false);
}
// The memory is available at once. It is not checked that it is used only behind this call in the
// stream.
DRIVER_API cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream handle) {
  ENTER_CONTEXT(cuMemAllocAsync);
  CUstream stream = stream_of(handle);
  {
    Lock guard(order);
    if (CUresult failed = forbid_on(stream)) return failed;  // a node for it is not simulated
  }
  return allocate(address, bytes);
}
DRIVER_API cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  ENTER_CONTEXT(cuMemFreeAsync);
  Region r;
  if (!find_region(address, &r) || r.start != address || r.imported)
    return CUDA_ERROR_INVALID_VALUE;
  CUstream stream = stream_of(handle);
  return submit(stream, simple(Kind::SHORT, stream->context->device,
                               [=] { release_region(address, false); }));
}
DRIVER_API cuMemGetInfo_v2(size_t* left, size_t* total) {
  ENTER_CONTEXT(cuMemGetInfo_v2);
  Lock guard(lock);
  *left = DEVICE_BYTES - used[current_context()->device->physical];
  *total = DEVICE_BYTES;
  return CUDA_SUCCESS;
}
DRIVER_API cuMemGetAddressRange_v2(CUdeviceptr* start, size_t* bytes, CUdeviceptr address) {
  ENTER_CONTEXT(cuMemGetAddressRange_v2);
  Region r;
  if (!find_region(address, &r)) return CUDA_ERROR_NOT_FOUND;
  if (start) *start = r.start;
  if (bytes) *bytes = r.bytes;
  return CUDA_SUCCESS;
}

DRIVER_API cuMemHostAlloc(void** address, size_t bytes, unsigned) {
  ENTER_CONTEXT(cuMemHostAlloc);
  {
    Lock guard(order);
    if (CUresult failed = forbid_unsafe()) return failed;
  }
  synchronize_for_allocation();
  if (!bytes) return CUDA_ERROR_INVALID_VALUE;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  Lock guard(lock);
  pinned[(uintptr_t)at] = {bytes, true};
  *address = at;
  return CUDA_SUCCESS;
}
DRIVER_API cuMemFreeHost(void* address) {
  ENTER(cuMemFreeHost);
  synchronize_all();
  Lock guard(lock);
  auto it = pinned.find((uintptr_t)address);
  if (it == pinned.end() || !it->second.allocated) return CUDA_ERROR_INVALID_VALUE;
  munmap(address, it->second.bytes);
  pinned.erase(it);
  return CUDA_SUCCESS;
}
DRIVER_API cuMemHostRegister_v2(void* address, size_t bytes, unsigned) {
  ENTER_CONTEXT(cuMemHostRegister_v2);
  const uintptr_t at = (uintptr_t)address;
  if (!address || !bytes || at - DEVICE_BASE < DEVICE_SPAN) return CUDA_ERROR_INVALID_VALUE;
  Lock guard(lock);
  auto next = pinned.lower_bound(at);
  if (find_pinned(at) != pinned.end() || (next != pinned.end() && next->first < at + bytes))
    return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  pinned[at] = {bytes, false};
  return CUDA_SUCCESS;
}
DRIVER_API cuMemHostUnregister(void* address) {
  ENTER(cuMemHostUnregister);
  Lock guard(lock);
  auto it = pinned.find((uintptr_t)address);
  if (it == pinned.end() || it->second.allocated) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  pinned.erase(it);
  return CUDA_SUCCESS;
}
DRIVER_API cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* address, unsigned flags) {
  ENTER_CONTEXT(cuMemHostGetDevicePointer_v2);
  if (flags || !is_pinned(address, 1)) return CUDA_ERROR_INVALID_VALUE;
  *out = (CUdeviceptr)address;
  return CUDA_SUCCESS;
}

DRIVER_API cuPointerGetAttribute(void* out, int attribute, CUdeviceptr address) {
  ENTER(cuPointerGetAttribute);
  Lock guard(lock);
  const Region* r = find(address);
  auto host = find_pinned(address);
  if (!r && host == pinned.end()) return CUDA_ERROR_INVALID_VALUE;  // pageable memory, or none
  int ordinal = 0;
  for (int i = 0; r && i < device_count(); i++)
    if (device_of(i).physical == r->physical) ordinal = i;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext*)out = primary(ordinal); break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *(unsigned*)out = r ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr*)out = address; break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (r) return CUDA_ERROR_INVALID_VALUE;
      *(void**)out = (void*)address;
      break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(u64*)out = r ? r->id : host->first; break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(bool*)out = false; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int*)out = ordinal; break;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: *(bool*)out = r && !r->imported; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      *(CUdeviceptr*)out = r ? r->start : host->first;
      break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t*)out = r ? r->bytes : host->second.bytes; break;
    case CU_POINTER_ATTRIBUTE_MAPPED: *(bool*)out = true; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}
