/*
 * For programs on communicators of CUDA devices. One thread is all ranks; rank r is on device r
 * modulo the number of devices. Streams and memory are the driver's.
 */
#define _GNU_SOURCE
#include "gpu.h"

#include <maypole.h>
#include <unistd.h>

enum { RANKS = 4, COUNT = 3000, BYTES = COUNT * RANKS * sizeof(double) };

static ncclComm_t comms[RANKS];
static void* streams[RANKS];
static uint64_t in[RANKS], out[RANKS];
__attribute__((unused)) static double host[COUNT * RANKS];

#define DRIVER(call) EXPECT((call) == 0)

__attribute__((unused)) static double input_of(int rank, int i) { return rank * 1000 + i % 97; }

static void* pointer(uint64_t address) { return (void*)(uintptr_t)address; }

static uint64_t allocate(int device, size_t bytes) {
  uint64_t address;
  gpu_choose(device);
  DRIVER(cuMemAlloc_v2(&address, bytes));
  return address;
}

static void fill(void) {
  for (int rank = 0; rank < RANKS; rank++) {
    gpu_choose(rank);
    for (int i = 0; i < COUNT * RANKS; i++) host[i] = input_of(rank, i);
    DRIVER(cuMemcpyHtoD_v2(in[rank], host, BYTES));
    for (int i = 0; i < COUNT * RANKS; i++) host[i] = -1;
    DRIVER(cuMemcpyHtoD_v2(out[rank], host, BYTES));
  }
}

static void make(void) {
  int numbers[RANKS];
  for (int rank = 0; rank < RANKS; rank++) numbers[rank] = rank % gpu_devices;
  OK(ncclCommInitAll(comms, RANKS, numbers));
}

__attribute__((unused)) static void begin(void) {
  make();
  for (int rank = 0; rank < RANKS; rank++) {
    in[rank] = allocate(rank, BYTES);
    out[rank] = allocate(rank, BYTES);
    DRIVER(cuStreamCreate(&streams[rank], 1));
  }
  fill();
}

__attribute__((unused)) static void end(void) {
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclCommDestroy(comms[rank]));
    gpu_choose(rank);
    DRIVER(cuStreamDestroy_v2(streams[rank]));
    DRIVER(cuMemFree_v2(in[rank]));
    DRIVER(cuMemFree_v2(out[rank]));
  }
}

/* The output of a rank after all work on its stream. */
static const double* result(int rank) {
  gpu_choose(rank);
  DRIVER(cuStreamSynchronize(streams[rank]));
  DRIVER(cuMemcpyDtoH_v2(host, out[rank], BYTES));
  return host;
}

#define EACH(call)                                     \
  do {                                                 \
    OK(ncclGroupStart());                              \
    for (int rank = 0; rank < RANKS; rank++) OK(call); \
    OK(ncclGroupEnd());                                \
  } while (0)

__attribute__((unused)) static void check_sums(void) {
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT; i++) EXPECT(found[i] == 6000 + 4 * (i % 97));
    EXPECT(found[COUNT] == -1);
  }
}

/* A gate holds a stream until a copy on another stream opens it. */
static uint64_t gate;

__attribute__((unused)) static void close_gate(int rank) {
  uint64_t closed = 0;
  if (!gate) gate = allocate(rank, 8);
  gpu_choose(rank);
  DRIVER(cuMemcpyHtoD_v2(gate, &closed, 8));
  DRIVER(cuStreamWaitValue64_v2(streams[rank], gate, 1, 0));
}

__attribute__((unused)) static void open_gate(int rank) {
  static uint64_t open = 1;
  void* other;
  gpu_choose(rank);
  DRIVER(cuStreamCreate(&other, 1));
  DRIVER(cuMemcpyHtoDAsync_v2(gate, &open, 8, other));
  DRIVER(cuStreamSynchronize(other));
  DRIVER(cuStreamDestroy_v2(other));
}

enum { NOT_READY = 600 };
