/*
 * fuzz SECONDS SEED: random sequences of calls, most of them wrong somewhere, by one thread that is up to four ranks. Whatever is called
 * answers with a code of ncclResult_t, and after it all a communicator can still be made and used.
 *
 * On host memory or devices, there without streams that are none: a driver reads through them.
 *
 * Calls that would wait for a call which this thread never makes are left out: collectives of several ranks are in groups, all ranks or none.
 */
#include "gpu.h"

#include <maypole.h>
#include <nccl_device.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { N = 4, SLOTS = 12, BYTES = 4096 };

static uint64_t seed;
static ncclComm_t comms[SLOTS];
static ncclWindow_t windows[SLOTS];
static void* memories[SLOTS];
static void* registrations[SLOTS];
static ncclRedOp_t operators[SLOTS];
static char buffers[2][N][BYTES * N];
static unsigned long calls, good;

static unsigned below(unsigned n) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (unsigned)(seed >> 33) % n;
}

/* Mostly sensible, sometimes not. */
static int odd(int sensible) {
  static const int values[] = {-1, 0, 1, 2, 7, 12, 100, INT_MAX, INT_MIN};
  return below(4) ? sensible : values[below(sizeof values / sizeof *values)];
}

static ncclComm_t some(void) {
  static const uintptr_t values[] = {0, 8, 16, 24, 0xdead0008, UINTPTR_MAX};
  return below(6) ? comms[below(SLOTS)] : (ncclComm_t)values[below(6)];
}

static void* buffer(int which, int rank) { return below(12) ? (void*)buffers[which][rank] : NULL; }

static void answered(ncclResult_t result) {
  EXPECT(result >= ncclSuccess && result < ncclNumResults);
  EXPECT(ncclGetLastError(NULL) != NULL);
  calls++;
  good += result == ncclSuccess;
}

/* One call for one communicator that waits for nobody else: of a communicator of one rank, or wrong. */
static void alone(ncclComm_t comm) {
  int n = 0, dt = odd(below(12)), op = odd(below(5)), root = odd(0), slot = below(SLOTS);
  size_t count = below(20) ? below(BYTES / 8) : SIZE_MAX - below(9);
  void *s = buffer(0, 0), *r = buffer(1, 0);
  ncclCollConfig_t config = NCCL_COLLCONFIG_INITIALIZER;
  config.minCTAs = odd(1);
  config.forceAlgSelection = odd(0);
  if (ncclCommCount(comm, &n) == ncclSuccess && n != 1) return;
  switch (below(22)) {
    case 0: answered(ncclAllReduce(s, r, count, dt, op, comm, NULL)); break;
    case 1: answered(ncclReduce(s, r, count, dt, op, root, comm, NULL)); break;
    case 2: answered(ncclBroadcast(s, r, count, dt, root, comm, NULL)); break;
    case 3: answered(ncclBcast(r, count, dt, root, comm, NULL)); break;
    case 4: answered(ncclAllGather(s, r, count, dt, comm, NULL)); break;
    case 5: answered(ncclReduceScatter(s, r, count, dt, op, comm, NULL)); break;
    case 6: answered(ncclAlltoAll(s, r, count, dt, comm, NULL)); break;
    case 7: answered(ncclGather(s, r, count, dt, root, comm, NULL)); break;
    case 8: answered(ncclScatter(s, r, count, dt, root, comm, NULL)); break;
    case 9: answered(ncclAllReduceConfig(s, r, count, dt, operators[slot], comm, NULL, &config)); break;
    case 10: answered(ncclSend(s, count, dt, root, comm, NULL)); break;
    case 11: answered(ncclRecv(r, count, dt, root, comm, NULL)); break;
    case 12: answered(maypoleBarrier(comm, NULL)); break;
    case 13: answered(maypoleAllGatherV(s, count, r, &count, NULL, dt, comm, NULL)); break;
    case 14: answered(ncclRedOpCreatePreMulSum(&operators[slot], buffers[0][0], dt, odd(below(2)), comm)); break;
    case 15: answered(ncclRedOpDestroy(operators[slot], comm)); break;
    case 16: answered(ncclCommRegister(comm, s, count, &registrations[slot])); break;
    case 17: answered(ncclCommDeregister(comm, registrations[slot])); break;
    case 18: answered(ncclCommWindowRegister(comm, s, BYTES, &windows[slot], odd(0))); break;
    case 19: answered(ncclCommWindowDeregister(comm, windows[slot])); break;
    case 20: answered(ncclPutSignal(s, count, dt, root, windows[slot], below(BYTES), odd(0), odd(0), 0, comm, NULL)); break;
    case 21: answered(ncclAllReduce(s, r, count, dt, op, comm, (cudaStream_t)(uintptr_t)(gpu ? odd(0) & 0xfff : odd(0)))); break;
  }
}

/* Questions and ends: of any communicator at any time. */
static void any(void) {
  ncclComm_t comm = some(), new = NULL;
  int number, list[2] = {odd(0), odd(1)};
  uint64_t value;
  ncclResult_t state;
  ncclUniqueId id;
  void* pointer;
  ncclCommProperties_t properties = NCCL_COMM_PROPERTIES_INITIALIZER;
  int slot = below(SLOTS), n = 0;
  ncclCommCount(comm, &n);
  switch (below(20)) {
    case 0: answered(ncclCommCount(comm, below(9) ? &number : NULL)); break;
    case 1: answered(ncclCommUserRank(comm, &number)); break;
    case 2: answered(ncclCommCuDevice(comm, &number)); break;
    case 3: answered(ncclCommGetAsyncError(comm, &state)); break;
    case 4: answered(ncclCommMemStats(comm, odd(3), &value)); break;
    case 5: answered(ncclCommSuspend(comm, odd(1))); break;
    case 6: answered(ncclCommResume(comm)); break;
    case 7: if (!below(4)) answered(ncclCommFinalize(comm)); break;
    case 8: answered(ncclCommDestroy(comm)); break;
    case 9: answered(ncclCommAbort(comm)); break;
    case 10: if (!below(4)) answered(ncclCommRevoke(comm, odd(0))); break;
    case 11: answered(ncclWinGetUserPtr(comm, windows[slot], &pointer)); break;
    case 12: answered(ncclCommQueryProperties(comm, &properties)); break;
    case 13: answered(ncclMemAlloc(&memories[slot], below(9) ? below(1 << 16) : SIZE_MAX)); break;
    case 14: answered(ncclMemFree(memories[slot])), memories[slot] = NULL; break;
    case 15: answered(ncclCommGetUniqueId(comm, NULL)); break;
    case 16:
      memset(&id, below(256), sizeof id);
      answered(ncclCommInitRank(&new, odd(1), id, odd(0)));
      break;
    case 17: if (n == 1) answered(ncclCommSplit(comm, odd(0), odd(0), &comms[slot], NULL)); break;
    case 18: if (n == 1) answered(ncclCommShrink(comm, list, odd(1) > 2 ? 2 : list[0] & 1, &new, NULL, odd(0))); break;
    case 19: ncclTeamRankToWorld(comm, ncclTeamWorld(comm), odd(0)); break;
  }
}

/* New communicators: one rank, or four by this thread. */
static void make(void) {
  ncclUniqueId id;
  int at = below(SLOTS - N), n = below(2) ? 1 : N;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.minCTAs = odd(1);
  config.blocking = below(3) ? 1 : 0;
  OK(ncclGetUniqueId(&id));
  for (int i = 0; i < n; i++) ncclCommAbort(comms[at + i]);
  answered(ncclGroupStart());
  for (int rank = 0; rank < n; rank++) answered(ncclCommInitRankConfig(&comms[at + rank], n, id, rank, &config));
  answered(ncclGroupEnd());
}

/* Four ranks together, in a group, with an error in it now and then; operations that all ranks agree on. */
static void together(void) {
  int at = below(SLOTS - N), n = 0, kind = below(9), number, dt = below(12);
  size_t count = below(64);
  static const size_t counts[N] = {3, 0, 5, 2};
  for (int i = 0; i < N; i++)
    if (ncclCommCount(comms[at + i], &n) || n != N || ncclCommUserRank(comms[at + i], &number) || number != i) return;
  ncclResult_t state;
  for (int i = 0; i < N; i++)
    do {
      if (ncclCommGetAsyncError(comms[at + i], &state)) return;
      nanosleep(&(struct timespec){0, 10000}, NULL);
    } while (state == ncclInProgress);
  ncclGroupStart();
  for (int i = 0; i < N; i++) {
    void *s = buffers[0][i], *r = buffers[1][i];
    ncclComm_t comm = comms[at + i];
    switch (kind) {
      case 0: answered(ncclAllReduce(s, r, count, dt, ncclMax, comm, NULL)); break;
      case 1: answered(ncclReduce(s, r, count, dt, ncclSum, 1, comm, NULL)); break;
      case 2: answered(ncclAllGather(s, r, count, dt, comm, NULL)); break;
      case 3: answered(ncclAlltoAll(s, r, count, dt, comm, NULL)); break;
      case 4: answered(ncclScatter(s, r, count, dt, 2, comm, NULL)); break;
      case 5: answered(maypoleBarrier(comm, NULL)); break;
      case 6: answered(maypoleAllGatherV(s, counts[i], r, counts, NULL, dt, comm, NULL)); break;
      case 7:
        answered(ncclSend(s, count, dt, (i + 1) % N, comm, NULL));
        answered(ncclRecv(r, count, dt, (i + N - 1) % N, comm, NULL));
        break;
      case 8: answered(ncclReduceScatter(s, r, count, dt, ncclMin, comm, NULL)); break;
    }
  }
  if (!below(8)) answered(ncclAllReduce(NULL, NULL, 1, odd(0), odd(0), some(), NULL));
  ncclSimInfo_t info = NCCL_SIM_INFO_INITIALIZER;
  answered(below(8) ? ncclGroupEnd() : ncclGroupSimulateEnd(&info));
}

int main(int argc, char** argv) {
  double seconds = argc > 1 ? atof(argv[1]) : 2;
  uint64_t first = seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL);
  struct timespec start, now;
  gpu_begin();
  GPU_PIN(buffers);
  clock_gettime(CLOCK_MONOTONIC, &start);
  printf("seed %llu\n", (unsigned long long)first);
  fflush(stdout);
  do {
    switch (below(16)) {
      case 0: make(); break;
      case 1: case 2: case 3: together(); break;
      case 4: case 5: any(); break;
      case 6: answered(ncclGroupEnd()); break;
      default: alone(some()); break;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
  } while (now.tv_sec - start.tv_sec + (now.tv_nsec - start.tv_nsec) / 1e9 < seconds);
  for (int i = 0; i < SLOTS; i++) ncclCommAbort(comms[i]);
  ncclComm_t comm;
  static float value = 3, sum = 0;
  gpu_pin(&value, sizeof value);
  gpu_pin(&sum, sizeof sum);
  OK(ncclCommInitAll(&comm, 1, NULL));
  OK(ncclAllReduce(&value, &sum, 1, ncclFloat, ncclSum, comm, NULL));
  gpu_done();
  EXPECT(sum == 3);
  OK(ncclCommDestroy(comm));
  printf("%lu calls, %lu of them good\n", calls, good);
  EXPECT(good * 20 > calls);
  return 0;
}
