// Streams, and their operations other than kernels, graphs and events: copies, fills, host
// functions and values.
//
// The legacy default stream (handles 0 and 1) waits for all blocking streams of its context and
// they for it; every thread has a default stream of its own (handle 2), which is a blocking one.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <type_traits>

#include "sim.hpp"

std::mutex order;

std::vector<CUstream>& all_streams() {
  static auto* all = new std::vector<CUstream>;
  return *all;
}

// Handles that may be used again.
static std::vector<CUstream>& destroyed() {
  static auto* all = new std::vector<CUstream>;
  return *all;
}

static CUstream create(CUcontext context, unsigned flags) {
  static const unsigned queues = [] {
    const int n = setting("CUDA_DEVICE_MAX_CONNECTIONS", 8);
    return n < 1 ? 1 : (unsigned)n > MAX_QUEUES ? MAX_QUEUES : (unsigned)n;
  }();
  static u64 created = 2;
  Lock guard(order);
  // The handle of the stream that was destroyed last is used again, as by a driver that allocates.
  CUstream stream = nullptr;
  if (destroyed().empty()) {
    stream = new CUstream_st;
  } else {
    stream = destroyed().back();
    destroyed().pop_back();
  }
  *stream = {context, flags, context->device->next_queue++ % queues, false, nullptr, nullptr, {},
             ++created};
  all_streams().push_back(stream);
  return stream;
}

CUstream stream_of(CUstream handle) {
  if (handle != CU_STREAM_PER_THREAD)
    return handle && handle != CU_STREAM_LEGACY ? handle : current_context()->legacy;
  static thread_local std::map<CUcontext, CUstream> mine;
  CUstream& stream = mine[current_context()];
  if (!stream) stream = create(current_context(), 0);
  return stream;
}

CUresult submit(CUstream stream, Operation operation, Done* out) {
  Lock guard(order);
  if (stream->capture) return capture_node(stream, std::move(operation));
  if (stream->is_legacy)
    if (CUresult failed = forbid_on(stream)) return failed;
  std::vector<Done> after;
  if (stream->tail) after.push_back(stream->tail);
  const bool blocking = !(stream->flags & CU_STREAM_NON_BLOCKING);
  if (!stream->is_legacy && blocking && stream->context->legacy->tail)
    after.push_back(stream->context->legacy->tail);
  if (stream->is_legacy)
    for (CUstream other : all_streams())
      if (other->context == stream->context && !(other->flags & CU_STREAM_NON_BLOCKING) &&
          other->tail)
        after.push_back(other->tail);
  Done done = std::make_shared<Completion>();
  stream->tail = done;
  if (out) *out = done;
  issue(*stream->context->device, stream->queue, std::move(after), std::move(operation), done);
  return CUDA_SUCCESS;
}

// The ends of streams that were destroyed before their work had finished. The work goes on, and
// waiting for the device waits for it too.
struct Orphan {
  Device* device;
  Done end;
};
static std::vector<Orphan>& orphans() {
  static auto* all =
      new std::vector<Orphan>;  // never destroyed: threads of the simulator outlive main
  return *all;
}

void synchronize_all() {
  std::vector<Done> tails;
  {
    Lock guard(order);
    for (Orphan& one : orphans()) tails.push_back(one.end);
    for (CUstream s : all_streams())
      if (s->tail) tails.push_back(s->tail);
    for (int i = 0; i < device_count(); i++)
      if (primary(i)->legacy->tail) tails.push_back(primary(i)->legacy->tail);
  }
  for (Done& one : tails) one->wait();
}

static int allocations_wait = -1;  // -1: as SIMCUDA_ALLOCATIONS_WAIT says

// Makes allocations wait, as a driver may, or not.
extern "C" __attribute__((visibility("default"))) void simAllocationsWait(int on) {
  __atomic_store_n(&allocations_wait, on, __ATOMIC_RELEASE);
}

void synchronize_for_allocation() {
  int on = __atomic_load_n(&allocations_wait, __ATOMIC_ACQUIRE);
  if (on < 0) on = setting("SIMCUDA_ALLOCATIONS_WAIT", 0);
  if (on) synchronize_peers();
}

void synchronize_peers() {
  Device& mine = *current_context()->device;
  auto reached = [&](Device& other) {
    return may_access(mine, other.physical) || may_access(other, mine.physical);
  };
  auto concerned = [&](CUstream stream) { return reached(*stream->context->device); };
  std::vector<Done> tails;
  {
    Lock guard(order);
    for (Orphan& one : orphans())
      if (reached(*one.device)) tails.push_back(one.end);
    for (CUstream s : all_streams())
      if (s->tail && concerned(s)) tails.push_back(s->tail);
    for (int i = 0; i < device_count(); i++)
      if (primary(i)->legacy->tail && concerned(primary(i)->legacy))
        tails.push_back(primary(i)->legacy->tail);
  }
  for (Done& one : tails) one->wait();
}

#define STREAM(name)   \
  ENTER_CONTEXT(name); \
  CUstream stream = stream_of(handle)
#define ALLOWED(check)                            \
  {                                               \
    Lock guard_(order);                           \
    if (CUresult failed_ = check) return failed_; \
  }

DRIVER_API cuStreamCreateWithPriority(CUstream* out, unsigned flags, int) {
  ENTER_CONTEXT(cuStreamCreateWithPriority);
  if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
  *out = create(current_context(), flags);
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamCreate(CUstream* out, unsigned flags) {
  ENTER_CONTEXT(cuStreamCreate);
  if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
  *out = create(current_context(), flags);
  return CUDA_SUCCESS;
}
// Queued work still runs.
DRIVER_API cuStreamDestroy_v2(CUstream stream) {
  ENTER(cuStreamDestroy_v2);
  if ((uintptr_t)stream <= 2) return CUDA_ERROR_INVALID_VALUE;
  Lock guard(order);
  auto& all = all_streams();
  for (size_t i = 0; i < all.size(); i++)
    if (all[i] == stream) {
      if (stream->capture) stream->capture->invalid = true;
      all.erase(all.begin() + (long)i);
      auto& left = orphans();
      left.erase(
          std::remove_if(left.begin(), left.end(), [](Orphan& one) { return one.end->is_done(); }),
          left.end());
      if (stream->tail && !stream->tail->is_done())
        left.push_back({stream->context->device, stream->tail});
      destroyed().push_back(stream);
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_HANDLE;
}
DRIVER_API cuStreamSynchronize(CUstream handle) {
  STREAM(cuStreamSynchronize);
  Done tail;
  std::vector<Done> others;
  {
    Lock guard(order);
    if (CUresult failed = forbid_on(stream)) return failed;
    tail = stream->tail;
    if (stream->is_legacy)
      for (CUstream other : all_streams())
        if (other->context == stream->context && !(other->flags & CU_STREAM_NON_BLOCKING) &&
            other->tail)
          others.push_back(other->tail);
  }
  if (tail) tail->wait();
  for (Done& one : others) one->wait();
  return context_state();
}
DRIVER_API cuStreamQuery(CUstream handle) {
  STREAM(cuStreamQuery);
  Lock guard(order);
  if (CUresult failed = forbid_on(stream)) return failed;
  if (stream->tail && !stream->tail->is_done()) return CUDA_ERROR_NOT_READY;
  return context_state();
}
DRIVER_API cuStreamGetCtx(CUstream handle, CUcontext* out) {
  STREAM(cuStreamGetCtx);
  *out = stream->context;
  return CUDA_SUCCESS;
}
// The identifier of a stream, which no other stream of the process ever has.
DRIVER_API cuStreamGetId(CUstream handle, u64* out) {
  STREAM(cuStreamGetId);
  *out = stream->id;
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamGetFlags(CUstream handle, unsigned* out) {
  STREAM(cuStreamGetFlags);
  *out = stream->flags;
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamGetPriority(CUstream handle, int* out) {
  STREAM(cuStreamGetPriority);
  (void)stream;
  *out = 0;
  return CUDA_SUCCESS;
}
DRIVER_API cuCtxSynchronize() {
  ENTER_CONTEXT(cuCtxSynchronize);
  ALLOWED(forbid_unsafe());
  std::vector<Done> tails;
  {
    Lock guard(order);
    for (CUstream s : all_streams())
      if (s->context == current_context() && s->tail) tails.push_back(s->tail);
    if (current_context()->legacy->tail) tails.push_back(current_context()->legacy->tail);
  }
  for (Done& one : tails) one->wait();
  return context_state();
}

// ---- copies

// A copy may access all memory of the device, of other devices and of the host, without peer
// access.
static CUresult known(CUdeviceptr address, size_t bytes) {
  if (address - DEVICE_BASE >= DEVICE_SPAN) return CUDA_SUCCESS;
  Region r;
  return find_region(address, &r) && address - r.start + bytes <= r.bytes
             ? CUDA_SUCCESS
             : CUDA_ERROR_INVALID_VALUE;
}
static bool pageable(CUdeviceptr address, size_t bytes) {
  return address - DEVICE_BASE >= DEVICE_SPAN && !is_pinned((const void*)address, bytes);
}
// Pageable memory is staged: read before the call returns, and written before it returns.
static CUresult copy(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  if (bytes == 0) return CUDA_SUCCESS;
  if (known(to, bytes) || known(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
  Device* device = stream->context->device;
  bool captured;
  {
    Lock guard(order);
    captured = stream->capture != nullptr;
  }
  if (pageable(from, bytes) && !captured) {
    auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    from = (CUdeviceptr)staged->data();
    Done done;
    if (CUresult failed = submit(
            stream, simple(Kind::SHORT, device, [=] { memcpy(reach(to), staged->data(), bytes); }),
            &done))
      return failed;
    if (pageable(to, bytes)) done->wait();
    return CUDA_SUCCESS;
  }
  Done done;
  if (CUresult failed = submit(
          stream, simple(Kind::SHORT, device, [=] { memmove(reach(to), reach(from), bytes); }),
          &done))
    return failed;
  if (done && pageable(to, bytes)) done->wait();
  return CUDA_SUCCESS;
}
DRIVER_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
  STREAM(cuMemcpyHtoDAsync_v2);
  return copy(to, (CUdeviceptr)from, bytes, stream);
}
DRIVER_API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream handle) {
  STREAM(cuMemcpyDtoHAsync_v2);
  return copy((CUdeviceptr)to, from, bytes, stream);
}
DRIVER_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
  STREAM(cuMemcpyDtoDAsync_v2);
  return copy(to, from, bytes, stream);
}
DRIVER_API cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
  STREAM(cuMemcpyAsync);
  return copy(to, from, bytes, stream);
}
DRIVER_API cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes,
                             CUstream handle) {
  STREAM(cuMemcpyPeerAsync);
  return copy(to, from, bytes, stream);
}
// Runs in the legacy default stream and has finished on return.
static CUresult copy_now(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  CUstream stream = stream_of(nullptr);
  if (CUresult failed = copy(to, from, bytes, stream)) return failed;
  Done tail;
  {
    Lock guard(order);
    tail = stream->tail;
  }
  if (tail) tail->wait();
  return context_state();
}
DRIVER_API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  ENTER_CONTEXT(cuMemcpyHtoD_v2);
  return copy_now(to, (CUdeviceptr)from, bytes);
}
DRIVER_API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  ENTER_CONTEXT(cuMemcpyDtoH_v2);
  return copy_now((CUdeviceptr)to, from, bytes);
}
DRIVER_API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  ENTER_CONTEXT(cuMemcpyDtoD_v2);
  return copy_now(to, from, bytes);
}
DRIVER_API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream handle) {
  STREAM(cuMemsetD8Async);
  if (known(to, n)) return CUDA_ERROR_INVALID_VALUE;
  return submit(stream,
                simple(Kind::SHORT, stream->context->device, [=] { memset(reach(to), value, n); }));
}
DRIVER_API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t n, CUstream handle) {
  STREAM(cuMemsetD32Async);
  if (to % 4 || known(to, 4 * n)) return CUDA_ERROR_INVALID_VALUE;
  return submit(stream, simple(Kind::SHORT, stream->context->device, [=] {
                  for (size_t i = 0; i < n; i++) ((u32*)reach(to))[i] = value;
                }));
}

// ---- host functions and values

DRIVER_API cuLaunchHostFunc(CUstream handle, CUhostFn function, void* argument) {
  STREAM(cuLaunchHostFunc);
  if (!function) return CUDA_ERROR_INVALID_VALUE;
  return submit(stream, simple(Kind::ASIDE, stream->context->device, [=] { function(argument); }));
}

template <class T>
static CUresult wait_value(CUstream stream, CUdeviceptr at, T value, unsigned flags) {
  if (!setting("SIMCUDA_STREAM_VALUES", 1)) return CUDA_ERROR_NOT_SUPPORTED;
  if (at % sizeof(T) || known(at, sizeof(T)) || pageable(at, sizeof(T)))
    return CUDA_ERROR_INVALID_VALUE;
  Device* device = stream->context->device;
  return submit(stream, simple(Kind::WAIT, device, [=] {
                  for (unsigned turns = 0;; turns++) {
                    const T seen = __atomic_load_n((T*)reach(at), __ATOMIC_ACQUIRE);
                    bool holds;
                    switch (flags & 3) {
                      case CU_STREAM_WAIT_VALUE_GEQ:
                        holds = (std::make_signed_t<T>)(seen - value) >= 0;
                        break;
                      case CU_STREAM_WAIT_VALUE_EQ: holds = seen == value; break;
                      case CU_STREAM_WAIT_VALUE_AND: holds = (seen & value) != 0; break;
                      default: holds = (T) ~(seen | value) != 0;
                    }
                    if (holds || __atomic_load_n(&device->broken, __ATOMIC_ACQUIRE)) return;
                    sim_wait(turns);
                  }
                }));
}
template <class T>
static CUresult write_value(CUstream stream, CUdeviceptr at, T value) {
  if (!setting("SIMCUDA_STREAM_VALUES", 1)) return CUDA_ERROR_NOT_SUPPORTED;
  if (at % sizeof(T) || known(at, sizeof(T)) || pageable(at, sizeof(T)))
    return CUDA_ERROR_INVALID_VALUE;
  return submit(stream, simple(Kind::SHORT, stream->context->device,
                               [=] { __atomic_store_n((T*)reach(at), value, __ATOMIC_RELEASE); }));
}
DRIVER_API cuStreamWaitValue32_v2(CUstream handle, CUdeviceptr at, u32 value, unsigned flags) {
  STREAM(cuStreamWaitValue32_v2);
  return wait_value<u32>(stream, at, value, flags);
}
DRIVER_API cuStreamWaitValue64_v2(CUstream handle, CUdeviceptr at, uint64_t value, unsigned flags) {
  STREAM(cuStreamWaitValue64_v2);
  return wait_value<uint64_t>(stream, at, value, flags);
}
DRIVER_API cuStreamWriteValue32_v2(CUstream handle, CUdeviceptr at, u32 value, unsigned) {
  STREAM(cuStreamWriteValue32_v2);
  return write_value<u32>(stream, at, value);
}
DRIVER_API cuStreamWriteValue64_v2(CUstream handle, CUdeviceptr at, uint64_t value, unsigned) {
  STREAM(cuStreamWriteValue64_v2);
  return write_value<uint64_t>(stream, at, value);
}
