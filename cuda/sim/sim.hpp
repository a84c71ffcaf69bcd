// What the files of the simulated driver share.
#pragma once
#include <condition_variable>
#include <mutex>

#include "driver_api.h"
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#include "shim.hpp"

constexpr int DEVICES = 8;

// Room for blocks: what the multiprocessors of a device can hold at once.
struct Device {
  std::mutex lock;
  std::condition_variable freed;
  unsigned capacity = 128, resident = 0;
  unsigned jitter_us = 0;
};
Device& device(CUdevice ordinal);

// The device of the calling thread's context; nullptr without one.
Device* current_device();

// Runs one block to its end on the calling thread.
void run_block(const SimKernel& kernel, const void* argument, SimDim grid, SimDim threads, SimDim index, unsigned jitter_us);

// Sleeps up to `jitter_us`, by chance: what no test may depend on.
void jitter(unsigned jitter_us);

// Waits until every stream has run what it was given.
void synchronize_all_streams();

// Where the simulator itself reaches an address that may be the device's or the host's.
static inline void* reach(u64 address) {
  return (void*)(address - DEVICE_BASE < DEVICE_SPAN ? address + ALIAS : address);
}
