/* The life of communicators, on host memory or devices. The ranks are one thread or several. */
#include "gpu.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum { N = 4 };

static void wait_for(ncclComm_t comm, ncclResult_t wanted) {
  ncclResult_t state = ncclInProgress;
  for (int i = 0; i < 20000 && state == ncclInProgress; i++) {
    OK(ncclCommGetAsyncError(comm, &state));
    if (state == ncclInProgress) usleep(1000);
  }
  EXPECT(state == wanted);
}

/* Waits until the communicator knows of another rank's end. */
static void wait_for_end(ncclComm_t comm) {
  ncclResult_t state = ncclSuccess;
  for (int i = 0; i < 20000 && (state == ncclSuccess || state == ncclInProgress); i++) {
    OK(ncclCommGetAsyncError(comm, &state));
    usleep(1000);
  }
  EXPECT(state == ncclRemoteError);
}

/* Checks a sum over all ranks; one thread is all of them. */
static void check_sum(ncclComm_t* comms, int n) {
  static double send[8], recv[8];
  static int pinned;
  double sum = 0;
  if (!pinned++) GPU_PIN(send), GPU_PIN(recv);
  OK(ncclGroupStart());
  for (int i = 0; i < n; i++) {
    sum += send[i] = i + 1;
    OK(ncclAllReduce(&send[i], &recv[i], 1, ncclDouble, ncclSum, comms[i], NULL));
  }
  ncclResult_t end = ncclGroupEnd();
  EXPECT(end == ncclSuccess || end == ncclInProgress);
  for (int i = 0; i < n; i++) wait_for(comms[i], ncclSuccess);
  gpu_done();
  for (int i = 0; i < n; i++) EXPECT(recv[i] == sum);
}

static void make(ncclComm_t* comms, int n, ncclConfig_t* config) {
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  OK(ncclGroupStart());
  for (int i = 0; i < n; i++) {
    ncclResult_t result = ncclCommInitRankConfig(&comms[i], n, id, i, config);
    EXPECT(result == ncclSuccess);
  }
  ncclResult_t end = ncclGroupEnd();
  EXPECT(end == (config && config->blocking == 0 ? ncclInProgress : ncclSuccess));
  for (int i = 0; i < n; i++) wait_for(comms[i], ncclSuccess);
}

static void destroy(ncclComm_t* comms, int n) {
  for (int i = 0; i < n; i++) OK(ncclCommDestroy(comms[i]));
}

static void all_at_once(void) {
  ncclComm_t comms[N];
  int devices[N] = {3, 1, 2, 0}, twice[2] = {1, 1}, bad[1] = {-1}, number;
  OK(ncclCommInitAll(comms, N, devices));
  for (int i = 0; i < N; i++) {
    OK(ncclCommCuDevice(comms[i], &number));
    EXPECT(number == devices[i]);
    OK(ncclCommUserRank(comms[i], &number));
    EXPECT(number == i);
  }
  check_sum(comms, N);
  destroy(comms, N);
  EXPECT(ncclCommInitAll(comms, 2, twice) == ncclInvalidUsage);
  EXPECT(ncclCommInitAll(comms, 1, bad) == ncclInvalidArgument);
  EXPECT(ncclCommInitAll(comms, -1, NULL) == ncclInvalidArgument);
  EXPECT(ncclCommInitAll(NULL, 1, NULL) == ncclInvalidArgument);
  OK(ncclCommInitAll(comms, 1, NULL));
  OK(ncclCommCuDevice(comms[0], &number));
  EXPECT(number == 0);
  destroy(comms, 1);
}

static void scalable(void) {
  ncclComm_t comms[8];
  ncclUniqueId ids[8];
  int counts[4] = {1, 2, 3, 8};
  for (int at = 0; at < 4; at++) {
    for (int i = 0; i < counts[at]; i++) OK(ncclGetUniqueId(&ids[i]));
    OK(ncclGroupStart());
    for (int i = 0; i < 8; i++)
      OK(ncclCommInitRankScalable(&comms[i], 8, i, counts[at], ids, NULL));
    OK(ncclGroupEnd());
    check_sum(comms, 8);
    destroy(comms, 8);
  }
  ids[2] = ids[1];
  EXPECT(ncclCommInitRankScalable(&comms[0], 8, 0, 3, ids, NULL) == ncclInvalidArgument);
  EXPECT(ncclCommInitRankScalable(&comms[0], 2, 0, 3, ids, NULL) == ncclInvalidArgument);
  EXPECT(ncclCommInitRankScalable(&comms[0], 2, 0, 0, ids, NULL) == ncclInvalidArgument);
  EXPECT(ncclCommInitRankScalable(&comms[0], 2, 0, 1, NULL, NULL) == ncclInvalidArgument);
}

static void children(ncclConfig_t* config) {
  int blocks = !config || config->blocking != 0;
  ncclComm_t comms[N], halves[N], few[N], more[N + 2];
  int number;
  make(comms, N, config);
  /* Two halves in reverse order; rank 3 joins none. */
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++) {
    halves[i] = (ncclComm_t)&number;
    OK(ncclCommSplit(comms[i], i == 3 ? NCCL_SPLIT_NOCOLOR : i / 2, -i, &halves[i], NULL));
  }
  EXPECT(ncclGroupEnd() == (blocks ? ncclSuccess : ncclInProgress));
  for (int i = 0; i < N; i++) wait_for(comms[i], ncclSuccess);
  EXPECT(halves[3] == NULL);
  for (int i = 0; i < 3; i++) wait_for(halves[i], ncclSuccess);
  OK(ncclCommUserRank(halves[0], &number));
  EXPECT(number == 1);
  OK(ncclCommCount(halves[2], &number));
  EXPECT(number == 1);
  check_sum(halves, 2);
  destroy(halves, 3);
  /* A shrink without rank 1. */
  int out[1] = {1};
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++)
    if (i != 1)
      OK(ncclCommShrink(comms[i], out, 1, &few[i > 1 ? i - 1 : i], NULL, NCCL_SHRINK_DEFAULT));
  EXPECT(ncclGroupEnd() == (blocks ? ncclSuccess : ncclInProgress));
  for (int i = 0; i < N - 1; i++) wait_for(few[i], ncclSuccess);
  check_sum(few, N - 1);
  for (int i = 0; i < N; i++) wait_for(comms[i], ncclSuccess);
  destroy(comms, N);
  /* A grow by two new ranks. */
  ncclUniqueId id;
  OK(ncclCommGetUniqueId(few[0], &id));
  OK(ncclGroupStart());
  for (int i = 0; i < N - 1; i++)
    OK(ncclCommGrow(few[i], N + 1, i == 0 ? &id : NULL, -1, &more[i], config));
  for (int i = N - 1; i < N + 1; i++) OK(ncclCommGrow(NULL, N + 1, &id, i, &more[i], config));
  EXPECT(ncclGroupEnd() == (blocks ? ncclSuccess : ncclInProgress));
  for (int i = 0; i < N + 1; i++) wait_for(more[i], ncclSuccess);
  check_sum(more, N + 1);
  for (int i = 0; i < N - 1; i++) wait_for(few[i], ncclSuccess);
  destroy(few, N - 1);
  destroy(more, N + 1);
}

static void revoked(void) {
  ncclComm_t comms[2], halves[2];
  float value = 0;
  make(comms, 2, NULL);
  EXPECT(ncclCommRevoke(comms[0], 1) == ncclInvalidArgument);
  ncclResult_t state = ncclInternalError;
  OK(ncclCommRevoke(comms[0], 0));
  /* No call of the other rank has failed. Its next one does, until it revokes as well. */
  OK(ncclCommGetAsyncError(comms[1], &state));
  EXPECT(state == ncclSuccess);
  if (!gpu) {
    EXPECT(ncclAllReduce(&value, &value, 1, ncclFloat, ncclSum, comms[1], NULL) == ncclRemoteError);
    OK(ncclCommGetAsyncError(comms[1], &state));
    EXPECT(state == ncclRemoteError);
  }
  OK(ncclCommRevoke(comms[1], 0));
  EXPECT(ncclCommRevoke(comms[0], 0) == ncclInvalidArgument);
  EXPECT(ncclAllReduce(&value, &value, 1, ncclFloat, ncclSum, comms[0], NULL) == ncclInvalidUsage);
  EXPECT(ncclCommFinalize(comms[0]) == ncclInvalidUsage);
  /* Nothing runs any more, and that is the state, also after a split. */
  for (int i = 0; i < 2; i++) {
    OK(ncclCommGetAsyncError(comms[i], &state));
    EXPECT(state == ncclSuccess);
  }
  OK(ncclGroupStart());
  for (int i = 0; i < 2; i++) OK(ncclCommSplit(comms[i], 0, i, &halves[i], NULL));
  OK(ncclGroupEnd());
  for (int i = 0; i < 2; i++) {
    OK(ncclCommGetAsyncError(comms[i], &state));
    EXPECT(state == ncclSuccess);
  }
  check_sum(halves, 2);
  destroy(halves, 2);
  int out[1] = {1};
  OK(ncclCommShrink(comms[0], out, 1, &halves[0], NULL, NCCL_SHRINK_ABORT));
  check_sum(halves, 1);
  destroy(halves, 1);
  OK(ncclCommGetAsyncError(comms[0], &state));
  EXPECT(state == ncclSuccess);
  destroy(comms, 2);
}

static ncclComm_t never;
static int ready[2];

static void* init_that_waits(void* id) {
  char byte = 'x';
  EXPECT(write(ready[1], &byte, 1) == 1);
  ncclResult_t result = ncclCommInitRank(&never, 2, *(ncclUniqueId*)id, 0);
  EXPECT(result == ncclRemoteError || result == ncclInvalidArgument);
  EXPECT(never == NULL);
  return NULL;
}

static void aborted_init(void) {
  ncclUniqueId id;
  ncclComm_t comm = NULL;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  float value = 0;
  /* An init that does not block, whose peer never calls. */
  config.blocking = 0;
  OK(ncclGetUniqueId(&id));
  EXPECT(ncclCommInitRankConfig(&comm, 2, id, 0, &config) == ncclInProgress);
  ncclResult_t state;
  OK(ncclCommGetAsyncError(comm, &state));
  EXPECT(state == ncclInProgress);
  EXPECT(ncclAllReduce(&value, &value, 1, ncclFloat, ncclSum, comm, NULL) == ncclInvalidArgument);
  EXPECT(ncclCommDestroy(comm) == ncclInvalidArgument);
  OK(ncclCommAbort(comm));
  EXPECT(ncclCommGetAsyncError(comm, &state) == ncclInvalidArgument);
  /* An init that blocks, aborted by another thread: the handle is written at its begin. */
  pthread_t thread;
  char byte;
  EXPECT(pipe(ready) == 0);
  OK(ncclGetUniqueId(&id));
  EXPECT(pthread_create(&thread, NULL, init_that_waits, &id) == 0);
  EXPECT(read(ready[0], &byte, 1) == 1);
  ncclComm_t handle = NULL;
  for (int i = 0; i < 10000 && !handle; i++) {
    handle = *(ncclComm_t volatile*)&never;
    usleep(1000);
  }
  OK(ncclCommAbort(handle));
  EXPECT(pthread_join(thread, NULL) == 0);
  close(ready[0]);
  close(ready[1]);
}

static ncclComm_t parents[2];

static void* split_that_waits(void* unused) {
  (void)unused;
  char byte = 'x';
  ncclComm_t child;
  EXPECT(write(ready[1], &byte, 1) == 1);
  ncclResult_t result = ncclCommSplit(parents[0], 0, 0, &child, NULL);
  EXPECT(result == ncclRemoteError || result == ncclInvalidArgument);
  return NULL;
}

/* An abort of the parent ends a split that waits for a rank that never calls. */
static void aborted_split(void) {
  pthread_t thread;
  char byte;
  make(parents, 2, NULL);
  EXPECT(pipe(ready) == 0);
  EXPECT(pthread_create(&thread, NULL, split_that_waits, NULL) == 0);
  EXPECT(read(ready[0], &byte, 1) == 1);
  usleep(100 * 1000);
  OK(ncclCommAbort(parents[0]));
  EXPECT(pthread_join(thread, NULL) == 0);
  wait_for_end(parents[1]);
  OK(ncclCommAbort(parents[1]));
  close(ready[0]);
  close(ready[1]);
}

/* A child of a split that does not block is aborted; the handle of its parent stays valid. */
static void aborted_child(void) {
  ncclComm_t comms[2], child;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  make(comms, 2, &config);
  EXPECT(ncclCommSplit(comms[0], 0, 0, &child, NULL) == ncclInProgress);
  ncclResult_t state;
  OK(ncclCommGetAsyncError(comms[0], &state));
  EXPECT(state == ncclInProgress);
  int number;
  EXPECT(ncclCommCount(child, &number) == ncclInvalidArgument);
  EXPECT(ncclCommCount(comms[0], &number) == ncclInvalidArgument);
  OK(ncclCommAbort(child));
  EXPECT(ncclCommGetAsyncError(child, &state) == ncclInvalidArgument);
  OK(ncclCommAbort(comms[0]));
  wait_for_end(comms[1]);
  OK(ncclCommAbort(comms[1]));
}

/* One thread queries all the time; this does not disturb the calls of another thread. */
static int volatile stop;

static void* watch(void* comm) {
  ncclResult_t state;
  while (!stop) {
    OK(ncclCommGetAsyncError(comm, &state));
    EXPECT(state == ncclSuccess);
  }
  return NULL;
}

static void queried(void) {
  ncclComm_t comm;
  pthread_t thread;
  static float value = 1;
  gpu_pin(&value, sizeof value);
  make(&comm, 1, NULL);
  EXPECT(pthread_create(&thread, NULL, watch, comm) == 0);
  for (int i = 0; i < 20000; i++)
    OK(ncclAllReduce(&value, &value, 1, ncclFloat, ncclSum, comm, NULL));
  stop = 1;
  EXPECT(pthread_join(thread, NULL) == 0);
  OK(ncclCommDestroy(comm));
}

static void suspended(void) {
  ncclComm_t comms[2];
  uint64_t value, total, lasting, releasable;
  float number = 0;
  make(comms, 2, NULL);
  check_sum(comms, 2);
  OK(ncclCommMemStats(comms[0], ncclStatGpuMemSuspend, &releasable));
  OK(ncclCommMemStats(comms[0], ncclStatGpuMemPersist, &lasting));
  OK(ncclCommMemStats(comms[0], ncclStatGpuMemTotal, &total));
  EXPECT(lasting > 0 && total == lasting + releasable);
  OK(ncclCommSuspend(comms[0], NCCL_SUSPEND_MEM));
  OK(ncclCommMemStats(comms[0], ncclStatGpuMemSuspended, &value));
  EXPECT(value == 1);
  OK(ncclCommMemStats(comms[0], ncclStatGpuMemSuspend, &value));
  EXPECT(value == 0);
  EXPECT(ncclAllReduce(&number, &number, 1, ncclFloat, ncclSum, comms[0], NULL) ==
         ncclInvalidUsage);
  EXPECT(ncclCommSuspend(comms[0], NCCL_SUSPEND_MEM) == ncclInvalidUsage);
  OK(ncclCommResume(comms[0]));
  EXPECT(ncclCommResume(comms[0]) == ncclInvalidUsage);
  check_sum(comms, 2);
  destroy(comms, 2);
}

/* A group of blocking and nonblocking communicators is refused and leaves no handles. */
static void mixed_group(void) {
  ncclUniqueId id;
  ncclComm_t comms[2];
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  OK(ncclGetUniqueId(&id));
  OK(ncclGroupStart());
  OK(ncclCommInitRank(&comms[0], 2, id, 0));
  EXPECT(ncclCommInitRankConfig(&comms[1], 2, id, 1, &config) == ncclInvalidArgument);
  EXPECT(ncclGroupEnd() == ncclInvalidArgument);
  EXPECT(comms[0] == NULL);
}

static void simulated(void) {
  ncclComm_t comms[2];
  ncclSimInfo_t info = NCCL_SIM_INFO_INITIALIZER;
  static float send[2][100000], recv[2][100000];
  make(comms, 2, NULL);
  float before = 0;
  for (size_t count = 10; count <= 100000; count *= 100) {
    OK(ncclGroupStart());
    for (int i = 0; i < 2; i++) {
      send[i][0] = 5;
      OK(ncclAllReduce(send[i], recv[i], count, ncclFloat, ncclSum, comms[i], NULL));
    }
    OK(ncclGroupSimulateEnd(&info));
    EXPECT(info.estimatedTime > before && recv[0][0] == 0);
    before = info.estimatedTime;
  }
  OK(ncclGroupStart());
  OK(ncclSend(send[0], 1000, ncclFloat, 1, comms[0], NULL));
  OK(ncclGroupSimulateEnd(&info));
  EXPECT(info.estimatedTime > 0);
  EXPECT(ncclGroupSimulateEnd(&info) == ncclInvalidUsage);
  OK(ncclGroupStart());
  EXPECT(ncclGroupSimulateEnd(NULL) == ncclInvalidArgument);
  check_sum(comms, 2);
  destroy(comms, 2);
}

int main(void) {
  gpu_begin();
  ncclConfig_t nonblocking = NCCL_CONFIG_INITIALIZER;
  nonblocking.blocking = 0;
  nonblocking.commName = "test";
  all_at_once();
  scalable();
  children(NULL);
  children(&nonblocking);
  revoked();
  aborted_init();
  aborted_split();
  aborted_child();
  queried();
  suspended();
  mixed_group();
  simulated();
  return 0;
}
