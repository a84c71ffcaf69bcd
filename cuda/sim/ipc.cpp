// Sharing of device memory between processes: a handle names the memfd in the exporting process,
// which is opened through /proc. As on a real device, a process cannot open its own handles, memory
// that was opened twice has to be closed twice, and each device of a process has a mapping of its
// own.
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>

#include "sim.hpp"

namespace {

struct Handle {
  u64 magic;
  int pid, fd, physical;
  u64 inode, bytes, mapped;
};
static_assert(sizeof(Handle) <= sizeof(CUipcMemHandle), "a handle has 64 bytes");
constexpr u64 MAGIC = 0x79726f6d656d;

std::mutex lock;
auto& opened = *new std::map<std::pair<u64, int>, CUdeviceptr>;  // by inode and device

}  // namespace

DRIVER_API cuIpcGetMemHandle(CUipcMemHandle* out, CUdeviceptr address) {
  ENTER_CONTEXT(cuIpcGetMemHandle);
  Region r;
  struct stat file;
  if (!find_region(address, &r) || r.imported || fstat(r.fd, &file) != 0)
    return CUDA_ERROR_INVALID_VALUE;
  const Handle h = {MAGIC, getpid(), r.fd, r.physical, file.st_ino, r.bytes, r.mapped};
  memset(out, 0, sizeof *out);
  memcpy(out, &h, sizeof h);
  return CUDA_SUCCESS;
}
DRIVER_API cuIpcOpenMemHandle_v2(CUdeviceptr* out, CUipcMemHandle handle, unsigned flags) {
  ENTER_CONTEXT(cuIpcOpenMemHandle_v2);
  if (flags != 1)
    return CUDA_ERROR_INVALID_VALUE;  // CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS is the only one there is
  Handle h;
  memcpy(&h, &handle, sizeof h);
  if (h.magic != MAGIC) return CUDA_ERROR_INVALID_HANDLE;
  if (h.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
  if (h.physical != current_context()->device->physical && !setting("SIMCUDA_PEERS", 1))
    return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  Lock guard(lock);
  const std::pair<u64, int> key(h.inode, current_context()->device->physical);
  auto found = opened.find(key);
  if (found != opened.end()) {
    with_regions([&](std::vector<Region*>& all) {
      for (Region* r : all)
        if (r->start == found->second) r->references++;
    });
    *out = found->second;
    return CUDA_SUCCESS;
  }
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", h.pid, h.fd);
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  struct stat file;
  if (fd < 0) return CUDA_ERROR_INVALID_HANDLE;
  if (fstat(fd, &file) != 0 || file.st_ino != h.inode) return close(fd), CUDA_ERROR_INVALID_HANDLE;
  CUresult failed = map_region(fd, h.bytes, h.mapped, h.physical, true, out);
  if (!failed) opened[key] = *out;
  return failed;
}
DRIVER_API cuIpcCloseMemHandle(CUdeviceptr address) {
  ENTER_CONTEXT(cuIpcCloseMemHandle);
  synchronize_all();
  Lock guard(lock);
  if (CUresult failed = release_region(address, true)) return failed;
  Region r;
  if (!find_region(address, &r))
    for (auto it = opened.begin(); it != opened.end();)
      it = it->second == address ? opened.erase(it) : std::next(it);
  return CUDA_SUCCESS;
}
