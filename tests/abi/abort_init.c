/*
 * Communicators whose making waits for ranks that never come, and what ends it: an abort of what is being made, of its parent, a
 * revocation; from another thread where the making call waits. Nothing here may last until MAYPOLE_INIT_TIMEOUT, which is longer
 * than this program may run.
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

/* Until the communicator is told of another rank's end. */
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

static int is_end(ncclResult_t result) {
  return result == ncclRemoteError || result == ncclInvalidArgument;
}

/* Calls that wait, made by a thread of their own. */
static ncclComm_t comms[N], made[2];
static ncclUniqueId ids[2];

static ncclResult_t split(void) { return ncclCommSplit(comms[0], 0, 0, &made[0], NULL); }

static ncclResult_t shrink(void) {
  int out = 2;
  return ncclCommShrink(comms[0], &out, 1, &made[0], NULL, NCCL_SHRINK_DEFAULT);
}

static ncclResult_t shrink_again(void) {
  int out = 2;
  return ncclCommShrink(comms[1], &out, 1, &made[1], NULL, NCCL_SHRINK_DEFAULT);
}

/* The others come, but not the new rank. */
static ncclResult_t grow(void) {
  ncclComm_t others[N - 1];
  OK(ncclGroupStart());
  for (int i = 1; i < N; i++) OK(ncclCommGrow(comms[i], N + 1, NULL, -1, &others[i - 1], NULL));
  OK(ncclCommGrow(comms[0], N + 1, &ids[0], -1, &made[0], NULL));
  return ncclGroupEnd();
}

/* Not even the others come. */
static ncclResult_t grow_alone(void) { return ncclCommGrow(comms[0], N + 1, &ids[0], -1, &made[0], NULL); }

static ncclResult_t two_splits(void) {
  OK(ncclGroupStart());
  for (int i = 0; i < 2; i++) OK(ncclCommSplit(comms[0], 0, 0, &made[i], NULL));
  return ncclGroupEnd();
}

static ncclResult_t two_inits(void) {
  OK(ncclGroupStart());
  for (int i = 0; i < 2; i++) OK(ncclCommInitRank(&made[i], 2, ids[i], i));
  return ncclGroupEnd();
}

static ncclResult_t scalable(void) { return ncclCommInitRankScalable(&made[0], 4, 3, 2, ids, NULL); }

static ncclResult_t (*the_call)(void);

static void* run(void* unused) {
  (void)unused;
  EXPECT(is_end(the_call()));
  return NULL;
}

static void* run_well(void* unused) {
  (void)unused;
  OK(the_call());
  return NULL;
}

static ncclComm_t handle(int at) {
  for (int i = 0; i < 20000; i++) {
    ncclComm_t comm = *(ncclComm_t volatile*)&made[at];
    if (comm) return comm;
    usleep(500);
  }
  EXPECT(!"there is no handle");
  return NULL;
}

/* Makes `call` by another thread, ends it by an abort of `count` of what it makes, the last first, or of its parent, and waits for its return. */
static void ended(ncclResult_t (*call)(void), int count, int of_parent) {
  pthread_t thread;
  made[0] = made[1] = NULL;
  for (int i = 0; i < 2; i++) OK(ncclGetUniqueId(&ids[i]));
  the_call = call;
  EXPECT(pthread_create(&thread, NULL, run, NULL) == 0);
  ncclComm_t handles[2];
  for (int i = 0; i < count; i++) handles[i] = handle(i);
  /* So that it is, almost always, under way. */
  usleep(100 * 1000);
  if (of_parent) OK(ncclCommAbort(comms[0]));
  else
    for (int i = count - 1; i >= 0; i--) {
      ncclResult_t result = ncclCommAbort(handles[i]);
      /* The latter where the end of one was the end of the group. */
      EXPECT(result == ncclSuccess || (i < count - 1 && result == ncclInvalidArgument));
    }
  EXPECT(pthread_join(thread, NULL) == 0);
  for (int i = 0; i < count; i++) {
    ncclResult_t state;
    EXPECT(made[i] == NULL);
    EXPECT(ncclCommGetAsyncError(handles[i], &state) == ncclInvalidArgument);
  }
}

static void of_ids(void) {
  ended(two_inits, 2, 0);
  ended(scalable, 1, 0);
}

/* While the ranks gather, the parent of what is aborted is, too; on all ranks. */
static void while_gathering(void) {
  ncclResult_t (*calls[3])(void) = {split, grow_alone, two_splits};
  for (int i = 0; i < 3; i++)
    for (int of_parent = 0; of_parent < 2; of_parent++) {
      make(comms, 1);
      ended(calls[i], 1 + (i == 2), of_parent);
      if (!of_parent) {
        poll_for_end(comms[0]);
        OK(ncclCommAbort(comms[0]));
      }
      for (int rank = 1; rank < N; rank++) {
        poll_for_end(comms[rank]);
        OK(ncclCommAbort(comms[rank]));
      }
    }
}

/* Afterwards what is made stands on its own feet, and ends on its own. */
static void after_gathering(void) {
  ncclComm_t parts[N];
  make(comms, 1);
  ended(grow, 1, 0);
  /* The parents are as they were: another rank's growth failed with it. */
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++) OK(ncclCommSplit(comms[i], 0, 0, &parts[i], NULL));
  OK(ncclGroupEnd());
  for (int i = 0; i < N; i++) OK(ncclCommDestroy(parts[i]));
  ended(grow, 1, 1);
  for (int i = 1; i < N; i++) OK(ncclCommAbort(comms[i]));
  /* A shrink that was aborted is told to who comes to it late; then all try again, whoever comes first. */
  make(comms, 1);
  for (int round = 0; round < 6; round++) {
    int out = 2;
    ncclComm_t late;
    ended(shrink, 1, 0);
    EXPECT(ncclCommShrink(comms[1], &out, 1, &late, NULL, NCCL_SHRINK_DEFAULT) == ncclRemoteError);
  }
  pthread_t thread;
  the_call = shrink_again;
  EXPECT(pthread_create(&thread, NULL, run_well, NULL) == 0);
  usleep(20 * 1000);
  OK(shrink());
  EXPECT(pthread_join(thread, NULL) == 0);
  OK(ncclCommDestroy(made[0]));
  OK(ncclCommDestroy(made[1]));
  ended(shrink, 1, 1);
  for (int i = 1; i < N; i++) OK(ncclCommAbort(comms[i]));
}

/* The same where no call waits. */
static void in_progress(void) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclUniqueId id;
  ncclComm_t several[2], part;
  ncclResult_t state;
  config.blocking = 0;
  /* Two of one group: each on its own. */
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
  /* A part: its parent is not in progress any more soon after. */
  make(comms, 0);
  EXPECT(ncclCommSplit(comms[1], 0, 0, &part, NULL) == ncclInProgress);
  OK(ncclCommAbort(part));
  EXPECT(poll(comms[1]) == ncclRemoteError);
  for (int i = 0; i < N; i++) {
    poll_for_end(comms[i]);
    OK(ncclCommAbort(comms[i]));
  }
  /* A revocation, and a shrink that aborts, end what is being made, and the successor is made. */
  for (int shrinks = 0; shrinks < 2; shrinks++) {
    ncclComm_t grown[N], parts[N];
    int out = 2;
    make(comms, 0);
    OK(ncclGetUniqueId(&id));
    for (int i = 0; i < N; i++)
      EXPECT(ncclCommGrow(comms[i], N + 1, i ? NULL : &id, -1, &grown[i], NULL) == ncclInProgress);
    usleep(50 * 1000);
    for (int i = 0; i < N - shrinks; i++) {
      if (!shrinks) OK(ncclCommRevoke(comms[i], 0));
      else EXPECT(ncclCommShrink(comms[i], &out, 1, &parts[i], NULL, NCCL_SHRINK_ABORT) == ncclInProgress);
    }
    if (!shrinks)
      for (int i = 0; i < N; i++) EXPECT(ncclCommSplit(comms[i], 0, i, &parts[i], NULL) == ncclInProgress);
    for (int i = 0; i < N - shrinks; i++) EXPECT(poll(parts[i]) == ncclSuccess);
    for (int i = 0; i < N; i++) {
      EXPECT(poll(grown[i]) == ncclRemoteError);
      OK(ncclCommAbort(grown[i]));
      EXPECT(poll(comms[i]) != ncclInProgress);
      OK(ncclCommAbort(comms[i]));
      if (i < N - shrinks) OK(ncclCommDestroy(parts[i]));
    }
  }
}

/* An abort before the end of the group. */
static void before_the_end(void) {
  for (int i = 0; i < 2; i++) OK(ncclGetUniqueId(&ids[i]));
  OK(ncclGroupStart());
  for (int i = 0; i < 2; i++) OK(ncclCommInitRank(&made[i], 2, ids[0], i));
  OK(ncclCommAbort(made[1]));
  EXPECT(is_end(ncclGroupEnd()));
  EXPECT(made[0] == NULL && made[1] == NULL);
}

int main(void) {
  of_ids();
  while_gathering();
  after_gathering();
  in_progress();
  before_the_end();
  return 0;
}
