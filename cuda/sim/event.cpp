// Events, including those shared with other processes. A shared event is a page with the number of
// its records and the number of the last record that has finished.
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sim.hpp"

namespace {

struct Shared {
  u32 recorded, done;
};
struct Handle {
  u64 magic;
  int pid, fd;
  u64 inode;
};
constexpr u64 MAGIC = 0x746e657665;

void futex(u32* word, int operation, u32 value) {
  syscall(SYS_futex, word, operation, value, nullptr, nullptr, 0);
}

bool reached(const Shared* s, u32 n) {
  return (int)(__atomic_load_n(&s->done, __ATOMIC_ACQUIRE) - n) >= 0;
}
void wait_for(Shared* s, u32 n) {
  for (u32 seen; (int)((seen = __atomic_load_n(&s->done, __ATOMIC_ACQUIRE)) - n) < 0;)
    futex(&s->done, FUTEX_WAIT, seen);
}

}  // namespace

struct CUevent_st {
  unsigned flags;
  Done last;
  // The record belongs to a capture: other threads must not query it.
  std::weak_ptr<Capture> capture;
  bool captured;
  std::vector<int> front;
  int fd;
  Shared* shared;
  bool imported;
};

DRIVER_API cuEventCreate(CUevent* out, unsigned flags) {
  ENTER_CONTEXT(cuEventCreate);
  const bool shared = flags & CU_EVENT_INTERPROCESS;
  if (flags > 7 || (shared && !(flags & CU_EVENT_DISABLE_TIMING))) return CUDA_ERROR_INVALID_VALUE;
  auto* event = new CUevent_st{flags, nullptr, {}, false, {}, -1, nullptr, false};
  if (shared) {
    event->fd = memfd_create("simulated event", MFD_CLOEXEC);
    if (event->fd < 0 || ftruncate(event->fd, sizeof(Shared)) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    void* at = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, event->fd, 0);
    if (at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    event->shared = (Shared*)at;
  }
  *out = event;
  return CUDA_SUCCESS;
}
DRIVER_API cuEventDestroy_v2(CUevent event) {
  ENTER(cuEventDestroy_v2);
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  if (event->fd >= 0) close(event->fd);  // the page stays: a record may be queued
  delete event;
  return CUDA_SUCCESS;
}
Done& last_record(CUevent event) { return event->last; }

static CUresult record(CUevent event, CUstream stream) {
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  {
    Lock guard(order);
    event->captured = stream->capture != nullptr;
    if (stream->capture) {
      if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
      event->capture = stream->capture;
      event->front = stream->front;
      return CUDA_SUCCESS;
    }
  }
  Shared* shared = event->shared;
  const u32 n = shared ? __atomic_add_fetch(&shared->recorded, 1, __ATOMIC_ACQ_REL) : 0;
  Done done;
  if (CUresult failed = submit(stream,
                               simple(Kind::SHORT, stream->context->device,
                                      [=] {
                                        if (!shared) return;
                                        __atomic_store_n(&shared->done, n, __ATOMIC_RELEASE);
                                        futex(&shared->done, FUTEX_WAKE, 0x7fffffff);
                                      }),
                               &done))
    return failed;
  Lock guard(order);
  event->last = done;
  return CUDA_SUCCESS;
}
DRIVER_API cuEventRecord(CUevent event, CUstream handle) {
  ENTER_CONTEXT(cuEventRecord);
  return record(event, stream_of(handle));
}
// CU_EVENT_RECORD_EXTERNAL makes a node of the capture that records the event at each launch.
DRIVER_API cuEventRecordWithFlags(CUevent event, CUstream handle, unsigned flags) {
  ENTER_CONTEXT(cuEventRecordWithFlags);
  CUstream stream = stream_of(handle);
  if (!(flags & 1)) return record(event, stream);
  Lock guard(order);
  if (!event || event->shared || !stream->capture) return CUDA_ERROR_INVALID_VALUE;
  return capture_node(stream, simple(Kind::SHORT, stream->context->device, nullptr), event);
}
// What the event currently waits for. Querying a captured event is forbidden and invalidates its
// capture.
static CUresult last_of(CUevent event, Done* last, u32* n) {
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  Lock guard(order);
  if (event->captured) {
    if (auto capture = event->capture.lock()) capture->invalid = true;
    return CUDA_ERROR_CAPTURED_EVENT;
  }
  if (CUresult failed = forbid_unsafe()) return failed;
  *last = event->last;
  *n = event->shared ? __atomic_load_n(&event->shared->recorded, __ATOMIC_ACQUIRE) : 0;
  return CUDA_SUCCESS;
}
DRIVER_API cuEventQuery(CUevent event) {
  ENTER_CONTEXT(cuEventQuery);
  Done last;
  u32 n;
  if (CUresult failed = last_of(event, &last, &n)) return failed;
  if (event->shared) return reached(event->shared, n) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
  return !last || last->is_done() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
DRIVER_API cuEventSynchronize(CUevent event) {
  ENTER_CONTEXT(cuEventSynchronize);
  Done last;
  u32 n;
  if (CUresult failed = last_of(event, &last, &n)) return failed;
  if (event->shared)
    wait_for(event->shared, n);
  else if (last)
    last->wait();
  return context_state();
}
// CU_EVENT_WAIT_EXTERNAL makes a node of the capture that waits for the event at each launch.
DRIVER_API cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
  ENTER_CONTEXT(cuStreamWaitEvent);
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  CUstream stream = stream_of(handle);
  if (flags & 1) {
    Lock guard(order);
    if (event->shared || !stream->capture) return CUDA_ERROR_INVALID_VALUE;
    return capture_node(stream, simple(Kind::WAIT, stream->context->device, nullptr), nullptr,
                        event);
  }
  {
    Lock guard(order);
    CapturePtr other = event->captured ? event->capture.lock() : nullptr;
    if (event->captured && !other)
      return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;  // its capture has ended
    if (stream->capture && stream->capture != other) {
      stream->capture->invalid = true;
      if (other) other->invalid = true;
      return other ? CUDA_ERROR_STREAM_CAPTURE_MERGE : CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (other) {
      if (stream->is_legacy) return other->invalid = true, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      if (other->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
      if (!stream->capture) stream->front.clear();
      stream->capture = other;
      for (int node : event->front) {
        bool there = false;
        for (int mine : stream->front) there |= mine == node;
        if (!there) stream->front.push_back(node);
      }
      return CUDA_SUCCESS;
    }
  }
  Done last;
  {
    Lock guard(order);
    last = event->last;
  }
  Shared* shared = event->shared;
  if (!shared && !last) return CUDA_SUCCESS;
  const u32 n = shared ? __atomic_load_n(&shared->recorded, __ATOMIC_ACQUIRE) : 0;
  return submit(stream, simple(Kind::WAIT, stream->context->device, [=] {
                  if (shared)
                    wait_for(shared, n);
                  else
                    last->wait();
                }));
}
static CUresult elapsed(float* milliseconds, CUevent from, CUevent to) {
  if (!from || !to || ((from->flags | to->flags) & CU_EVENT_DISABLE_TIMING))
    return CUDA_ERROR_INVALID_HANDLE;
  Done a, b;
  u32 n;
  if (CUresult failed = last_of(from, &a, &n)) return failed;
  if (CUresult failed = last_of(to, &b, &n)) return failed;
  if (!a || !b) return CUDA_ERROR_INVALID_HANDLE;
  if (!a->is_done() || !b->is_done()) return CUDA_ERROR_NOT_READY;
  *milliseconds = (float)((double)(b->nanoseconds - a->nanoseconds) * 1e-6);
  return CUDA_SUCCESS;
}
DRIVER_API cuEventElapsedTime(float* milliseconds, CUevent from, CUevent to) {
  ENTER_CONTEXT(cuEventElapsedTime);
  return elapsed(milliseconds, from, to);
}
DRIVER_API cuEventElapsedTime_v2(float* milliseconds, CUevent from, CUevent to) {
  ENTER_CONTEXT(cuEventElapsedTime_v2);
  return elapsed(milliseconds, from, to);
}

DRIVER_API cuIpcGetEventHandle(CUipcEventHandle* out, CUevent event) {
  ENTER_CONTEXT(cuIpcGetEventHandle);
  struct stat file;
  if (!event || !event->shared || event->imported || fstat(event->fd, &file) != 0)
    return CUDA_ERROR_INVALID_HANDLE;
  const Handle h = {MAGIC, getpid(), event->fd, file.st_ino};
  memset(out, 0, sizeof *out);
  memcpy(out, &h, sizeof h);
  return CUDA_SUCCESS;
}
DRIVER_API cuIpcOpenEventHandle(CUevent* out, CUipcEventHandle handle) {
  ENTER_CONTEXT(cuIpcOpenEventHandle);
  Handle h;
  memcpy(&h, &handle, sizeof h);
  if (h.magic != MAGIC) return CUDA_ERROR_INVALID_HANDLE;
  if (h.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", h.pid, h.fd);
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  struct stat file;
  if (fd < 0) return CUDA_ERROR_INVALID_HANDLE;
  if (fstat(fd, &file) != 0 || file.st_ino != h.inode) return close(fd), CUDA_ERROR_INVALID_HANDLE;
  void* at = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return close(fd), CUDA_ERROR_MAP_FAILED;
  *out = new CUevent_st{CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING,
                        nullptr,
                        {},
                        false,
                        {},
                        fd,
                        (Shared*)at,
                        true};
  return CUDA_SUCCESS;
}
