/*
 * Random sequences of calls, most of which have a wrong argument, by one thread that is up to four
 * ranks. Each call returns an ncclResult_t, and at the end a communicator can still be created and
 * used. Usage: fuzz SECONDS SEED.
 *
 * It runs on host memory or devices. On devices no invalid stream is passed, as a driver reads
 * through it.
 *
 * No call waits for another call that this thread never makes: collectives of several ranks are in
 * groups, with all ranks or none.
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
static unsigned long calls, succeeded;

static unsigned below(unsigned n) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (unsigned)(seed >> 33) % n;
}

/* Mostly `sensible`, sometimes another value. */
static int maybe_wrong(int sensible) {
  static const int values[] = {-1, 0, 1, 2, 7, 12, 100, INT_MAX, INT_MIN};
  return below(4) ? sensible : values[below(sizeof values / sizeof *values)];
}

static ncclComm_t random_comm(void) {
  static const uintptr_t values[] = {0, 8, 16, 24, 0xdead0008, UINTPTR_MAX};
  return below(6) ? comms[below(SLOTS)] : (ncclComm_t)values[below(6)];
}

static void* buffer(int which, int rank) { return below(12) ? (void*)buffers[which][rank] : NULL; }

static void check_result(ncclResult_t result) {
  EXPECT(result >= ncclSuccess && result < ncclNumResults);
  EXPECT(ncclGetLastError(NULL) != NULL);
  calls++;
  succeeded += result == ncclSuccess;
}

/* A call that waits for no other rank: on a communicator of one rank, or a wrong one. */
static void single_rank_call(ncclComm_t comm) {
  int n = 0, dt = maybe_wrong(below(12)), op = maybe_wrong(below(5)), root = maybe_wrong(0),
      slot = below(SLOTS);
  size_t count = below(20) ? below(BYTES / 8) : SIZE_MAX - below(9);
  void *s = buffer(0, 0), *r = buffer(1, 0);
  ncclCollConfig_t config = NCCL_COLLCONFIG_INITIALIZER;
  config.minCTAs = maybe_wrong(1);
  config.forceAlgSelection = maybe_wrong(0);
  if (ncclCommCount(comm, &n) == ncclSuccess && n != 1) return;
  switch (below(22)) {
    case 0: check_result(ncclAllReduce(s, r, count, dt, op, comm, NULL)); break;
    case 1: check_result(ncclReduce(s, r, count, dt, op, root, comm, NULL)); break;
    case 2: check_result(ncclBroadcast(s, r, count, dt, root, comm, NULL)); break;
    case 3: check_result(ncclBcast(r, count, dt, root, comm, NULL)); break;
    case 4: check_result(ncclAllGather(s, r, count, dt, comm, NULL)); break;
    case 5: check_result(ncclReduceScatter(s, r, count, dt, op, comm, NULL)); break;
    case 6: check_result(ncclAlltoAll(s, r, count, dt, comm, NULL)); break;
    case 7: check_result(ncclGather(s, r, count, dt, root, comm, NULL)); break;
    case 8: check_result(ncclScatter(s, r, count, dt, root, comm, NULL)); break;
    case 9:
      check_result(ncclAllReduceConfig(s, r, count, dt, operators[slot], comm, NULL, &config));
      break;
    case 10: check_result(ncclSend(s, count, dt, root, comm, NULL)); break;
    case 11: check_result(ncclRecv(r, count, dt, root, comm, NULL)); break;
    case 12: check_result(maypoleBarrier(comm, NULL)); break;
    case 13: check_result(maypoleAllGatherV(s, count, r, &count, NULL, dt, comm, NULL)); break;
    case 14:
      check_result(ncclRedOpCreatePreMulSum(&operators[slot], buffers[0][0], dt,
                                            maybe_wrong(below(2)), comm));
      break;
    case 15: check_result(ncclRedOpDestroy(operators[slot], comm)); break;
    case 16: check_result(ncclCommRegister(comm, s, count, &registrations[slot])); break;
    case 17: check_result(ncclCommDeregister(comm, registrations[slot])); break;
    case 18:
      check_result(ncclCommWindowRegister(comm, s, BYTES, &windows[slot], maybe_wrong(0)));
      break;
    case 19: check_result(ncclCommWindowDeregister(comm, windows[slot])); break;
    case 20:
      check_result(ncclPutSignal(s, count, dt, root, windows[slot], below(BYTES), maybe_wrong(0),
                                 maybe_wrong(0), 0, comm, NULL));
      break;
    case 21:
      check_result(
          ncclAllReduce(s, r, count, dt, op, comm,
                        (cudaStream_t)(uintptr_t)(gpu ? maybe_wrong(0) & 0xfff : maybe_wrong(0))));
      break;
  }
}

/* Queries, abort and destroy: on any communicator at any time. */
static void any_time_call(void) {
  ncclComm_t comm = random_comm(), new = NULL;
  int number, list[2] = {maybe_wrong(0), maybe_wrong(1)};
  uint64_t value;
  ncclResult_t state;
  ncclUniqueId id;
  void* pointer;
  ncclCommProperties_t properties = NCCL_COMM_PROPERTIES_INITIALIZER;
  int slot = below(SLOTS), n = 0;
  ncclCommCount(comm, &n);
  switch (below(20)) {
    case 0: check_result(ncclCommCount(comm, below(9) ? &number : NULL)); break;
    case 1: check_result(ncclCommUserRank(comm, &number)); break;
    case 2: check_result(ncclCommCuDevice(comm, &number)); break;
    case 3: check_result(ncclCommGetAsyncError(comm, &state)); break;
    case 4: check_result(ncclCommMemStats(comm, maybe_wrong(3), &value)); break;
    case 5: check_result(ncclCommSuspend(comm, maybe_wrong(1))); break;
    case 6: check_result(ncclCommResume(comm)); break;
    case 7:
      if (!below(4)) check_result(ncclCommFinalize(comm));
      break;
    case 8: check_result(ncclCommDestroy(comm)); break;
    case 9: check_result(ncclCommAbort(comm)); break;
    case 10:
      if (!below(4)) check_result(ncclCommRevoke(comm, maybe_wrong(0)));
      break;
    case 11: check_result(ncclWinGetUserPtr(comm, windows[slot], &pointer)); break;
    case 12: check_result(ncclCommQueryProperties(comm, &properties)); break;
    case 13:
      check_result(ncclMemAlloc(&memories[slot], below(9) ? below(1 << 16) : SIZE_MAX));
      break;
    case 14: check_result(ncclMemFree(memories[slot])), memories[slot] = NULL; break;
    case 15: check_result(ncclCommGetUniqueId(comm, NULL)); break;
    case 16:
      memset(&id, below(256), sizeof id);
      check_result(ncclCommInitRank(&new, maybe_wrong(1), id, maybe_wrong(0)));
      break;
    case 17:
      if (n == 1)
        check_result(ncclCommSplit(comm, maybe_wrong(0), maybe_wrong(0), &comms[slot], NULL));
      break;
    case 18:
      if (n == 1)
        check_result(ncclCommShrink(comm, list, maybe_wrong(1) > 2 ? 2 : list[0] & 1, &new, NULL,
                                    maybe_wrong(0)));
      break;
    case 19: ncclTeamRankToWorld(comm, ncclTeamWorld(comm), maybe_wrong(0)); break;
  }
}

/* New communicators: one rank, or four ranks of this thread. */
static void make(void) {
  ncclUniqueId id;
  int at = below(SLOTS - N), n = below(2) ? 1 : N;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.minCTAs = maybe_wrong(1);
  config.blocking = below(3) ? 1 : 0;
  OK(ncclGetUniqueId(&id));
  for (int i = 0; i < n; i++) ncclCommAbort(comms[at + i]);
  check_result(ncclGroupStart());
  for (int rank = 0; rank < n; rank++)
    check_result(ncclCommInitRankConfig(&comms[at + rank], n, id, rank, &config));
  check_result(ncclGroupEnd());
}

/* A call of four ranks in a group, sometimes with a wrong call in it. */
static void four_rank_call(void) {
  int at = below(SLOTS - N), n = 0, kind = below(9), number, dt = below(12);
  size_t count = below(64);
  static const size_t counts[N] = {3, 0, 5, 2};
  for (int i = 0; i < N; i++)
    if (ncclCommCount(comms[at + i], &n) || n != N || ncclCommUserRank(comms[at + i], &number) ||
        number != i)
      return;
  ncclResult_t state;
  for (int i = 0; i < N; i++) do {
      if (ncclCommGetAsyncError(comms[at + i], &state)) return;
      nanosleep(&(struct timespec){0, 10000}, NULL);
    } while (state == ncclInProgress);
  ncclGroupStart();
  for (int i = 0; i < N; i++) {
    void *s = buffers[0][i], *r = buffers[1][i];
    ncclComm_t comm = comms[at + i];
    switch (kind) {
      case 0: check_result(ncclAllReduce(s, r, count, dt, ncclMax, comm, NULL)); break;
      case 1: check_result(ncclReduce(s, r, count, dt, ncclSum, 1, comm, NULL)); break;
      case 2: check_result(ncclAllGather(s, r, count, dt, comm, NULL)); break;
      case 3: check_result(ncclAlltoAll(s, r, count, dt, comm, NULL)); break;
      case 4: check_result(ncclScatter(s, r, count, dt, 2, comm, NULL)); break;
      case 5: check_result(maypoleBarrier(comm, NULL)); break;
      case 6: check_result(maypoleAllGatherV(s, counts[i], r, counts, NULL, dt, comm, NULL)); break;
      case 7:
        check_result(ncclSend(s, count, dt, (i + 1) % N, comm, NULL));
        check_result(ncclRecv(r, count, dt, (i + N - 1) % N, comm, NULL));
        break;
      case 8: check_result(ncclReduceScatter(s, r, count, dt, ncclMin, comm, NULL)); break;
    }
  }
  if (!below(8))
    check_result(ncclAllReduce(NULL, NULL, 1, maybe_wrong(0), maybe_wrong(0), random_comm(), NULL));
  ncclSimInfo_t info = NCCL_SIM_INFO_INITIALIZER;
  check_result(below(8) ? ncclGroupEnd() : ncclGroupSimulateEnd(&info));
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
      case 1:
      case 2:
      case 3: four_rank_call(); break;
      case 4:
      case 5: any_time_call(); break;
      case 6: check_result(ncclGroupEnd()); break;
      default: single_rank_call(random_comm()); break;
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
  printf("%lu calls, %lu of them succeeded\n", calls, succeeded);
  EXPECT(succeeded * 20 > calls);
  return 0;
}
