// Device memory: addresses that nobody can read, and the same bytes ALIAS higher. Every allocation ends at a page that traps.
#include <sys/mman.h>
#include <unistd.h>

#include <map>

#include "sim.hpp"

namespace {

struct Region {
  uintptr_t start;  // of the mapping
  size_t bytes;
};
std::mutex lock;
std::map<CUdeviceptr, Region> regions;
uintptr_t next_start = DEVICE_BASE;
constexpr size_t ALIGNMENT = 256;

}  // namespace

DRIVER_API cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  if (!current_device()) return CUDA_ERROR_INVALID_CONTEXT;
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), mapped = (bytes + page - 1) / page * page;
  std::lock_guard<std::mutex> guard(lock);
  if (mapped + page > DEVICE_BASE + DEVICE_SPAN - next_start) return CUDA_ERROR_OUT_OF_MEMORY;
  const uintptr_t start = next_start;
  void* alias = (void*)(start + ALIAS);
  if (mmap(alias, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != alias)
    return CUDA_ERROR_OUT_OF_MEMORY;
  memset(alias, 0xa5, mapped);  // fresh device memory holds anything
  next_start += mapped + page;
  *address = start + (mapped - (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  regions[*address] = {start, mapped};
  return CUDA_SUCCESS;
}

// Waits for all work, as the driver does.
DRIVER_API cuMemFree_v2(CUdeviceptr address) {
  synchronize_all_streams();
  std::lock_guard<std::mutex> guard(lock);
  auto found = regions.find(address);
  if (found == regions.end()) return CUDA_ERROR_INVALID_VALUE;
  munmap((void*)(found->second.start + ALIAS), found->second.bytes);
  regions.erase(found);
  return CUDA_SUCCESS;
}
