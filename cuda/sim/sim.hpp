// Types and functions that the files of the simulated driver share: devices, memory, operations,
// streams and captures.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "driver_api.h"
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct LlPair {
  u64 a, b;
};
#include "shim.hpp"

#define DRIVER_API extern "C" __attribute__((visibility("default"))) CUresult
using Lock = std::unique_lock<std::mutex>;

// ---- calls.cpp: counting, requested failures, random delays

// Counts the call. Returns the error that SIMCUDA_FAIL requests, or zero.
CUresult enter(const char* name);
// To be used at the start of every function of the driver.
#define ENTER(name) \
  if (CUresult failed_ = enter(#name)) return failed_
// Like ENTER, for functions that need a current context whose device has not failed.
#define ENTER_CONTEXT(name) \
  ENTER(name);              \
  if (CUresult failed_ = context_state()) return failed_

int setting(const char* name, int otherwise);
// Sleeps for a random time up to `jitter_us`. The seed is SIMCUDA_SEED.
void jitter(unsigned jitter_us);

// ---- device.cpp

constexpr size_t DEVICE_BYTES = (size_t)16 << 30;
constexpr int MAX_DEVICES = 16;
constexpr unsigned MAX_QUEUES = 32;

struct Queue;
// Ordinals are physical: those that CUDA_VISIBLE_DEVICES numbers.
struct Device {
  int physical = 0;
  std::mutex lock;  // of resident, capacity
  std::condition_variable freed;
  unsigned capacity = 128, resident = 0;  // blocks
  unsigned cooperative = 0;               // resident blocks of cooperative grids
  unsigned jitter_us = 0;
  std::vector<Queue*> queues;
  unsigned next_queue = 0;
  int broken = 0;  // the sticky error
};

struct CUctx_st {
  Device* device;
  CUstream legacy;
  bool peers[MAX_DEVICES] = {};  // devices whose memory this one may access
};

int device_count();
Device& device_of(CUdevice ordinal);
CUdevice ordinal_of(const Device& device);
CUcontext primary(CUdevice ordinal);
// Bytes of device memory that a retained context takes.
constexpr size_t CONTEXT_BYTES = (size_t)256 << 20;
CUcontext current_context();
CUresult context_state();
// The memory synchronisation domains of a device.
int memory_domains();
bool may_access(const Device& from, int physical);

// ---- memory.cpp

struct Region {
  CUdeviceptr start;  // what the user got
  size_t bytes;       // what the user asked for
  uintptr_t mapping;
  size_t mapped;
  int fd, physical;
  bool imported;
  int references;
  u64 id;
};
// Maps the memfd as memory of device `physical`; takes the fd.
CUresult map_region(int fd, size_t bytes, size_t mapped, int physical, bool imported,
                    CUdeviceptr* start);
bool find_region(CUdeviceptr address, Region* found);
// Finds a region; changes it under the lock of all regions.
void with_regions(const std::function<void(std::vector<Region*>&)>& change);
CUresult release_region(CUdeviceptr start, bool imported);
// Maps the memory of `to` for `from`, which may access it from now on, or unmaps it.
void map_peer(Device& from, int to, bool on);
bool is_pinned(const void* address, size_t bytes);
// Adds to the bytes that are in use on a device.
void use_memory(int physical, long bytes);
// The address at which the simulator reaches an address of a device or the host.
void* reach(u64 address);

// ---- operation.cpp: operations of streams

struct Completion {
  std::mutex lock;
  std::condition_variable changed;
  bool done = false;
  u64 nanoseconds = 0;  // CLOCK_MONOTONIC, when done
  std::vector<std::function<void()>> then;
  void finish();
  void wait();
  bool is_done();
};
using Done = std::shared_ptr<Completion>;

// SHORT and WAIT run on the thread that issues them, and WAIT may block its queue for long; ASIDE
// blocks only its stream.
enum class Kind { SHORT, WAIT, ASIDE };
struct Operation {
  Kind kind;
  Device* device;
  std::function<void(const Done&)> start;  // calls finish(), then or later
};
Operation simple(Kind kind, Device* device, std::function<void()> run);
void begin(const Operation& operation, const Done& done);
// Puts an operation into a hardware queue.
void issue(Device& device, unsigned queue, std::vector<Done> after, Operation operation, Done done);
// Fails all later calls on the device, as an error of a kernel does.
void break_device(Device& device, CUresult error);

// ---- block.cpp

// Runs one block to its end on the calling thread.
void run_block(Device& device, const SimKernel& kernel, const void* argument, SimDim grid,
               SimDim threads, SimDim index, unsigned jitter_us);

// ---- stream.cpp

struct Capture;
using CapturePtr = std::shared_ptr<Capture>;
struct CUstream_st {
  CUcontext context;
  unsigned flags;
  unsigned queue;
  bool is_legacy = false;
  Done tail;  // of the last operation
  CapturePtr capture;
  std::vector<int> front;  // nodes of the capture that the next one comes after
  u64 id = 0;              // unlike the handle, never used again
};
// The lock for the order of submission: streams, tails, fronts and captures.
extern std::mutex order;
// The stream that a handle means; nullptr without a context. Creates default streams.
CUstream stream_of(CUstream handle);
std::vector<CUstream>& all_streams();
// Queues the operation, or adds it to a capture.
CUresult submit(CUstream stream, Operation operation, Done* done = nullptr);
void synchronize_all();
// Waits for all work of the device of the current context, and of the devices that may access it or
// that it may access.
void synchronize_peers();
// The same if allocations wait.
void synchronize_for_allocation();

// ---- capture.cpp

struct Node {
  Operation operation;
  std::vector<int> after;
  // An event that each launch of the graph records, or waits for: nodes of external events.
  CUevent records = nullptr, waits = nullptr;
};
struct CUgraph_st {
  std::vector<Node> nodes;
};
struct Capture {
  u64 id;
  int mode;
  u64 thread;
  CUstream origin;
  bool invalid = false;
  std::shared_ptr<CUgraph_st> graph = std::make_shared<CUgraph_st>();
};
// ---- event.cpp

// The last record of an event, under `order`.
Done& last_record(CUevent event);

// Called under `order`. What a capture forbids is an error and invalidates the capture.
CUresult capture_node(CUstream stream, Operation operation, CUevent records = nullptr,
                      CUevent waits = nullptr);
CUresult forbid_unsafe();  // calls that captures of this or other threads forbid
CUresult forbid_on(
    CUstream stream);  // calls that ask a capturing stream, or the legacy stream beside one
u64 thread_id();
