/*
 * One thread makes four ranks in a group, and one of them fails: the end of the group returns an
 * error and no handle. And a rank for whose init no thread can be started tells the others. Nothing
 * here may wait until MAYPOLE_INIT_TIMEOUT, which is longer than this program may run. This program
 * defines `pthread_create` itself.
 */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>
#include <errno.h>
#include <maypole.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { N = 4 };

static atomic_int no_threads;

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) {
  int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  if (no_threads) return EAGAIN;
  *(void**)&real = dlsym(RTLD_NEXT, "pthread_create");
  EXPECT(real);
  return real(thread, attributes, run, argument);
}

static ncclResult_t state_of(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) {
    OK(ncclCommGetAsyncError(comm, &state));
    if (state == ncclInProgress) usleep(500);
  }
  return state;
}

/* The last rank gives this rank number and this number of ranks. */
static void group(int rank, int nranks, const char* reason, int blocking) {
  ncclUniqueId id;
  ncclComm_t comms[N];
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = blocking;
  OK(ncclGetUniqueId(&id));
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++) {
    int last = i == N - 1;
    OK(ncclCommInitRankConfig(&comms[i], last ? nranks : N, id, last ? rank : i, &config));
  }
  ncclResult_t result = ncclGroupEnd();
  if (blocking) {
    /* Another rank may be told first, which has another code. */
    EXPECT(result != ncclSuccess && result != ncclInProgress);
    for (int i = 0; i < N; i++) EXPECT(comms[i] == NULL);
    EXPECT(strstr(ncclGetLastError(NULL), reason) && !strstr(ncclGetLastError(NULL), "abort"));
  } else {
    EXPECT(result == ncclInProgress);
    for (int i = 0; i < N; i++) {
      EXPECT(state_of(comms[i]) != ncclSuccess);
      OK(ncclCommAbort(comms[i]));
    }
  }
}

/* Rank 0 of 2, which waits for the other. */
static void* first_rank(void* id) {
  ncclComm_t comm;
  ncclResult_t result = ncclCommInitRank(&comm, 2, *(ncclUniqueId*)id, 0);
  EXPECT(result != ncclSuccess && comm == NULL);
  EXPECT(strstr(ncclGetLastError(NULL), "rank 1"));
  return NULL;
}

/* There is no thread for the init of rank 1, nor for that of the ranks of a group. */
static void without_threads(void) {
  ncclUniqueId id;
  ncclComm_t comms[N];
  pthread_t first;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  OK(ncclGetUniqueId(&id));
  EXPECT(pthread_create(&first, NULL, first_rank, &id) == 0);
  no_threads = 1;
  EXPECT(ncclCommInitRankConfig(&comms[1], 2, id, 1, &config) == ncclSystemError);
  OK(ncclCommAbort(comms[1]));
  pthread_join(first, NULL);
  no_threads = 0;
  OK(ncclGetUniqueId(&id));
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++) OK(ncclCommInitRank(&comms[i], N, id, i));
  no_threads = 1;
  EXPECT(ncclGroupEnd() == ncclSystemError);
  no_threads = 0;
  for (int i = 0; i < N; i++) EXPECT(comms[i] == NULL);
}

static int gate[2];

static void wait_for_gate(ncclResult_t result, void* unused) {
  char byte;
  (void)unused;
  EXPECT(result == ncclSuccess && read(gate[0], &byte, 1) == 0);
}

/* There is no thread for a call of rank 0 that does not block: rank 1 is told. */
static void call_without_threads(void) {
  enum { BUSY = 16 };
  maypoleStream_t streams[BUSY];
  ncclUniqueId id;
  ncclComm_t comms[2];
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  float value = 1;
  config.blocking = 0;
  OK(ncclGetUniqueId(&id));
  for (int i = 0; i < 2; i++)
    EXPECT(ncclCommInitRankConfig(&comms[i], 2, id, i, &config) == ncclInProgress);
  for (int i = 0; i < 2; i++) EXPECT(state_of(comms[i]) == ncclSuccess);
  /* All threads of the library that are idle get something to do. */
  EXPECT(pipe(gate) == 0);
  for (int i = 0; i < BUSY; i++) {
    OK(maypoleStreamCreate(&streams[i]));
    OK(maypoleStreamAddCallback(streams[i], wait_for_gate, NULL));
  }
  no_threads = 1;
  EXPECT(ncclAllReduce(&value, &value, 1, ncclFloat, ncclSum, comms[0], NULL) == ncclSystemError);
  no_threads = 0;
  ncclResult_t state = ncclSuccess;
  for (int i = 0; i < 30000 && state == ncclSuccess; i++) {
    OK(ncclCommGetAsyncError(comms[1], &state));
    usleep(1000);
  }
  EXPECT(state == ncclRemoteError);
  close(gate[1]);
  for (int i = 0; i < BUSY; i++) OK(maypoleStreamDestroy(streams[i]));
  for (int i = 0; i < 2; i++) OK(ncclCommAbort(comms[i]));
}

int main(void) {
  /* First, while the library has no threads that are idle. */
  without_threads();
  call_without_threads();
  for (int blocking = 0; blocking < 2; blocking++) {
    group(2, N, "rank 2", blocking);
    group(3, N + 1, "ranks", blocking);
  }
  /* What was made before stays. */
  ncclUniqueId id;
  ncclComm_t comm;
  int count;
  OK(ncclGetUniqueId(&id));
  OK(ncclCommInitRank(&comm, 1, id, 0));
  OK(ncclCommCount(comm, &count));
  EXPECT(count == 1);
  OK(ncclCommDestroy(comm));
  return 0;
}
