/*
 * Communicators whose creation waits for ranks that never call, and what ends it: an abort of the
 * new communicator or of its parent, or a revoke; from another thread if the creating call waits.
 * Nothing here may wait until MAYPOLE_INIT_TIMEOUT, which is longer than this program may run.
 */
#include "check.h"

#include <pthread.h>
#include <unistd.h>

enum { N = 3 };

static ncclResult_t poll(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  for (int i = 0; i < 20000 && state == ncclInProgress; i++) {
    OK(ncclCommGetAsyncError(comm, &state));
    if (state == ncclInProgress) usleep(500);
  }
  return state;
}

/* Waits until the communicator knows of another rank's end. */
static void poll_for_end(ncclComm_t comm) {
  ncclResult_t state = ncclSuccess;
  for (int i = 0; i < 20000 && (state == ncclSuccess || state == ncclInProgress); i++) {
    OK(ncclCommGetAsyncError(comm, &state));
    usleep(500);
  }
  EXPECT(state == ncclRemoteError);
}

static void make(ncclComm_t* comms, int blocking) {
  ncclUniqueId id;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = blocking;
  OK(ncclGetUniqueId(&id));
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++) OK(ncclCommInitRankConfig(&comms[i], N, id, i, &config));
  EXPECT(ncclGroupEnd() == (blocking ? ncclSuccess : ncclInProgress));
  for (int i = 0; i < N; i++) EXPECT(poll(comms[i]) == ncclSuccess);
}

static int is_abort_result(ncclResult_t result) {
  return result == ncclRemoteError || result == ncclInvalidArgument;
}

/* Calls that wait, each made by its own thread. */
static ncclComm_t comms[N], created[2];
static ncclUniqueId ids[2];

static ncclResult_t split(void) { return ncclCommSplit(comms[0], 0, 0, &created[0], NULL); }

static ncclResult_t shrink(void) {
  int out = 2;
  return ncclCommShrink(comms[0], &out, 1, &created[0], NULL, NCCL_SHRINK_DEFAULT);
}

static ncclResult_t shrink_again(void) {
  int out = 2;
  return ncclCommShrink(comms[1], &out, 1, &created[1], NULL, NCCL_SHRINK_DEFAULT);
}

/* The other ranks call, but not the new one. */
static ncclResult_t grow(void) {
  ncclComm_t others[N - 1];
  OK(ncclGroupStart());
  for (int i = 1; i < N; i++) OK(ncclCommGrow(comms[i], N + 1, NULL, -1, &others[i - 1], NULL));
  OK(ncclCommGrow(comms[0], N + 1, &ids[0], -1, &created[0], NULL));
  return ncclGroupEnd();
}

/* No other rank calls. */
static ncclResult_t grow_alone(void) {
  return ncclCommGrow(comms[0], N + 1, &ids[0], -1, &created[0], NULL);
}

static ncclResult_t two_splits(void) {
  OK(ncclGroupStart());
  for (int i = 0; i < 2; i++) OK(ncclCommSplit(comms[0], 0, 0, &created[i], NULL));
  return ncclGroupEnd();
}

static ncclResult_t two_inits(void) {
  OK(ncclGroupStart());
  for (int i = 0; i < 2; i++) OK(ncclCommInitRank(&created[i], 2, ids[i], i));
  return ncclGroupEnd();
}

static ncclResult_t scalable(void) {
  return ncclCommInitRankScalable(&created[0], 4, 3, 2, ids, NULL);
}

static ncclResult_t (*the_call)(void);

static void* run(void* unused) {
  (void)unused;
  EXPECT(is_abort_result(the_call()));
  return NULL;
}

static void* run_to_success(void* unused) {
  (void)unused;
  OK(the_call());
  return NULL;
}

static ncclComm_t handle(int at) {
  for (int i = 0; i < 20000; i++) {
    ncclComm_t comm = *(ncclComm_t volatile*)&created[at];
    if (comm) return comm;
    usleep(500);
  }
  EXPECT(!"there is no handle");
  return NULL;
}

/* Makes `call` on another thread and aborts `count` of the communicators that it creates, the last
 * one first, or their parent. Waits for the return of the call. */
static void expect_ended_by_abort(ncclResult_t (*call)(void), int count, int abort_parent) {
  pthread_t thread;
  created[0] = created[1] = NULL;
  for (int i = 0; i < 2; i++) OK(ncclGetUniqueId(&ids[i]));
  the_call = call;
  EXPECT(pthread_create(&thread, NULL, run, NULL) == 0);
  ncclComm_t handles[2];
  for (int i = 0; i < count; i++) handles[i] = handle(i);
  /* By then the call almost always waits. */
  usleep(100 * 1000);
  if (abort_parent)
    OK(ncclCommAbort(comms[0]));
  else
    for (int i = count - 1; i >= 0; i--) {
      ncclResult_t result = ncclCommAbort(handles[i]);
      /* The latter if the abort of one has expect_ended_by_abort the group. */
      EXPECT(result == ncclSuccess || (i < count - 1 && result == ncclInvalidArgument));
    }
  EXPECT(pthread_join(thread, NULL) == 0);
  for (int i = 0; i < count; i++) {
    ncclResult_t state;
    EXPECT(created[i] == NULL);
    EXPECT(ncclCommGetAsyncError(handles[i], &state) == ncclInvalidArgument);
  }
}

static void from_ids(void) {
  expect_ended_by_abort(two_inits, 2, 0);
  expect_ended_by_abort(scalable, 1, 0);
}

/* While the ranks gather, an abort of a child aborts the parent too, on all ranks. */
static void while_gathering(void) {
  ncclResult_t (*calls[3])(void) = {split, grow_alone, two_splits};
  for (int i = 0; i < 3; i++)
    for (int abort_parent = 0; abort_parent < 2; abort_parent++) {
      make(comms, 1);
      expect_ended_by_abort(calls[i], 1 + (i == 2), abort_parent);
      if (!abort_parent) {
        poll_for_end(comms[0]);
        OK(ncclCommAbort(comms[0]));
      }
      for (int rank = 1; rank < N; rank++) {
        poll_for_end(comms[rank]);
        OK(ncclCommAbort(comms[rank]));
      }
    }
}

/* After the ranks have gathered, an abort of a child does not touch the parent. */
static void after_gathering(void) {
  ncclComm_t children[N];
  make(comms, 1);
  expect_ended_by_abort(grow, 1, 0);
  /* The parents are as they were, though the grow of the other ranks failed too. */
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++) OK(ncclCommSplit(comms[i], 0, 0, &children[i], NULL));
  OK(ncclGroupEnd());
  for (int i = 0; i < N; i++) OK(ncclCommDestroy(children[i]));
  expect_ended_by_abort(grow, 1, 1);
  for (int i = 1; i < N; i++) OK(ncclCommAbort(comms[i]));
  /* A rank that calls late learns that the shrink was aborted. Then all ranks try again, in any
   * order. */
  make(comms, 1);
  for (int round = 0; round < 6; round++) {
    int out = 2;
    ncclComm_t late;
    expect_ended_by_abort(shrink, 1, 0);
    EXPECT(ncclCommShrink(comms[1], &out, 1, &late, NULL, NCCL_SHRINK_DEFAULT) == ncclRemoteError);
  }
  pthread_t thread;
  the_call = shrink_again;
  EXPECT(pthread_create(&thread, NULL, run_to_success, NULL) == 0);
  usleep(20 * 1000);
  OK(shrink());
  EXPECT(pthread_join(thread, NULL) == 0);
  OK(ncclCommDestroy(created[0]));
  OK(ncclCommDestroy(created[1]));
  expect_ended_by_abort(shrink, 1, 1);
  for (int i = 1; i < N; i++) OK(ncclCommAbort(comms[i]));
}

/* The same with calls that do not block. */
static void in_progress(void) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclUniqueId id;
  ncclComm_t several[2], child;
  ncclResult_t state;
  config.blocking = 0;
  /* Two creations of one group are independent. */
  OK(ncclGroupStart());
  for (int i = 0; i < 2; i++) {
    OK(ncclGetUniqueId(&id));
    OK(ncclCommInitRankConfig(&several[i], 2, id, i, &config));
  }
  EXPECT(ncclGroupEnd() == ncclInProgress);
  OK(ncclCommAbort(several[0]));
  OK(ncclCommGetAsyncError(several[1], &state));
  EXPECT(state == ncclInProgress);
  OK(ncclCommAbort(several[1]));
  /* After an abort of a child, its parent is soon no longer in progress. */
  make(comms, 0);
  EXPECT(ncclCommSplit(comms[1], 0, 0, &child, NULL) == ncclInProgress);
  OK(ncclCommAbort(child));
  EXPECT(poll(comms[1]) == ncclRemoteError);
  for (int i = 0; i < N; i++) {
    poll_for_end(comms[i]);
    OK(ncclCommAbort(comms[i]));
  }
  /* A revoke, and a shrink that aborts, end the creation of a child. Then another child is
   * created. */
  for (int shrinks = 0; shrinks < 2; shrinks++) {
    ncclComm_t grown[N], children[N];
    int out = 2;
    make(comms, 0);
    OK(ncclGetUniqueId(&id));
    for (int i = 0; i < N; i++)
      EXPECT(ncclCommGrow(comms[i], N + 1, i ? NULL : &id, -1, &grown[i], NULL) == ncclInProgress);
    usleep(50 * 1000);
    for (int i = 0; i < N - shrinks; i++) {
      if (!shrinks)
        OK(ncclCommRevoke(comms[i], 0));
      else
        EXPECT(ncclCommShrink(comms[i], &out, 1, &children[i], NULL, NCCL_SHRINK_ABORT) ==
               ncclInProgress);
    }
    if (!shrinks)
      for (int i = 0; i < N; i++)
        EXPECT(ncclCommSplit(comms[i], 0, i, &children[i], NULL) == ncclInProgress);
    for (int i = 0; i < N - shrinks; i++) EXPECT(poll(children[i]) == ncclSuccess);
    for (int i = 0; i < N; i++) {
      EXPECT(poll(grown[i]) == ncclRemoteError);
      OK(ncclCommAbort(grown[i]));
      EXPECT(poll(comms[i]) != ncclInProgress);
      OK(ncclCommAbort(comms[i]));
      if (i < N - shrinks) OK(ncclCommDestroy(children[i]));
    }
  }
}

/* An abort before the end of the group. */
static void before_the_end(void) {
  for (int i = 0; i < 2; i++) OK(ncclGetUniqueId(&ids[i]));
  OK(ncclGroupStart());
  for (int i = 0; i < 2; i++) OK(ncclCommInitRank(&created[i], 2, ids[0], i));
  OK(ncclCommAbort(created[1]));
  EXPECT(is_abort_result(ncclGroupEnd()));
  EXPECT(created[0] == NULL && created[1] == NULL);
}

int main(void) {
  from_ids();
  while_gathering();
  after_gathering();
  in_progress();
  before_the_end();
  return 0;
}
