/*
 * Communicators that do not block, used as NCCL's documentation says: a call may return
 * ncclInProgress; then the program polls ncclCommGetAsyncError until it returns something else. One
 * thread is all ranks, mostly without groups: a call that waited would never return.
 */
#include "check.h"

#include <maypole.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N = 3, COUNT = 10000 };

static ncclResult_t poll(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  for (int i = 0; i < 20000 && state == ncclInProgress; i++) {
    OK(ncclCommGetAsyncError(comm, &state));
    if (state == ncclInProgress) usleep(500);
  }
  return state;
}

static void poll_all(ncclComm_t* comms) {
  for (int i = 0; i < N; i++) EXPECT(poll(comms[i]) == ncclSuccess);
}

static void make(ncclComm_t* comms) {
  ncclUniqueId id;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  OK(ncclGetUniqueId(&id));
  for (int i = 0; i < N; i++)
    EXPECT(ncclCommInitRankConfig(&comms[i], N, id, i, &config) == ncclInProgress);
  poll_all(comms);
}

static void destroy(ncclComm_t* comms) {
  for (int i = 0; i < N; i++) {
    ncclResult_t result = ncclCommFinalize(comms[i]);
    EXPECT(result == ncclSuccess || result == ncclInProgress);
    EXPECT(poll(comms[i]) == ncclSuccess);
    OK(ncclCommDestroy(comms[i]));
  }
}

static int in[N][COUNT], out[N][COUNT];

static void fill(int round) {
  memset(out, 0, sizeof out);
  for (int i = 0; i < N; i++)
    for (int at = 0; at < COUNT; at++) in[i][at] = round * i + at;
}

static void check(int round) {
  for (int i = 0; i < N; i++)
    for (int at = 0; at < COUNT; at++) EXPECT(out[i][at] == round * N * (N - 1) / 2 + N * at);
}

static ncclResult_t sum(ncclComm_t* comms, int i, cudaStream_t stream) {
  return ncclAllReduce(in[i], out[i], COUNT, ncclInt, ncclSum, comms[i], stream);
}

/* Calls without groups. */
static void without_groups(ncclComm_t* comms) {
  ncclResult_t state;
  for (int round = 0; round < 20; round++) {
    fill(round);
    EXPECT(sum(comms, 0, NULL) == ncclInProgress);
    OK(ncclCommGetAsyncError(comms[0], &state));
    EXPECT(state == ncclInProgress);
    /* Until the call is over the communicator takes no other one. */
    EXPECT(sum(comms, 0, NULL) == ncclInvalidArgument);
    EXPECT(ncclCommFinalize(comms[0]) == ncclInvalidArgument);
    EXPECT(ncclCommDestroy(comms[0]) == ncclInvalidArgument);
    int number = -1;
    EXPECT(ncclCommCount(comms[0], &number) == ncclInvalidArgument);
    EXPECT(ncclCommUserRank(comms[0], &number) == ncclInvalidArgument);
    EXPECT(ncclCommCuDevice(comms[0], &number) == ncclInvalidArgument);
    EXPECT(number == -1);
    for (int i = 1; i < N; i++) EXPECT(sum(comms, i, NULL) == ncclInProgress);
    poll_all(comms);
    check(round);
    OK(ncclCommUserRank(comms[0], &number));
    EXPECT(number == 0);
  }
  for (int i = 0; i < N; i++) EXPECT(maypoleBarrier(comms[i], NULL) == ncclInProgress);
  poll_all(comms);
}

/* In a group collectives run in order, then sends and receives. */
static void grouped(ncclComm_t* comms) {
  int from[N], twice[N], given[N], got[N];
  for (int round = 0; round < 20; round++) {
    fill(round);
    for (int i = 0; i < N; i++) {
      given[i] = round + i;
      OK(ncclGroupStart());
      OK(sum(comms, i, NULL));
      OK(ncclAllReduce(&given[i], &from[i], 1, ncclInt, ncclMax, comms[i], NULL));
      OK(ncclBcast(i ? &twice[i] : memcpy(&twice[0], &round, sizeof round), 1, ncclInt, 0, comms[i],
                   NULL));
      OK(ncclSend(&given[i], 1, ncclInt, (i + 1) % N, comms[i], NULL));
      OK(ncclRecv(&got[i], 1, ncclInt, (i + N - 1) % N, comms[i], NULL));
      EXPECT(ncclGroupEnd() == ncclInProgress);
    }
    poll_all(comms);
    check(round);
    for (int i = 0; i < N; i++) {
      EXPECT(from[i] == round + N - 1 && twice[i] == round);
      EXPECT(got[i] == round + (i + N - 1) % N);
    }
    /* All ranks in one group. */
    fill(round + 1);
    OK(ncclGroupStart());
    for (int i = 0; i < N; i++) OK(sum(comms, i, NULL));
    EXPECT(ncclGroupEnd() == ncclInProgress);
    poll_all(comms);
    check(round + 1);
  }
  /* A communicator that was aborted makes the group fail before any call begins. */
  ncclComm_t others[N];
  make(others);
  OK(ncclGroupStart());
  OK(sum(comms, 0, NULL));
  OK(sum(others, 0, NULL));
  OK(ncclCommAbort(others[0]));
  EXPECT(ncclGroupEnd() == ncclInvalidArgument);
  EXPECT(poll(comms[0]) == ncclSuccess);
  for (int i = 1; i < N; i++) OK(ncclCommAbort(others[i]));
}

/* Calls on a host stream are queued, and a call on a default stream runs after them. */
static void on_streams(ncclComm_t* comms) {
  cudaStream_t streams[N];
  int first[N], second[N];
  for (int i = 0; i < N; i++) OK(maypoleStreamCreate(&streams[i]));
  fill(1);
  for (int i = 0; i < N; i++) {
    first[i] = 1;
    OK(ncclAllReduce(&first[i], &first[i], 1, ncclInt, ncclSum, comms[i], streams[i]));
    OK(ncclAllReduce(&first[i], &first[i], 1, ncclInt, ncclSum, comms[i], streams[i]));
    EXPECT(ncclAllReduce(&first[i], &second[i], 1, ncclInt, ncclSum, comms[i], NULL) ==
           ncclInProgress);
  }
  poll_all(comms);
  for (int i = 0; i < N; i++) EXPECT(first[i] == N * N && second[i] == N * N * N);
  /* A group on both kinds of streams is one piece of work. */
  for (int i = 0; i < N; i++) {
    OK(ncclGroupStart());
    OK(ncclAllReduce(&first[i], &first[i], 1, ncclInt, ncclSum, comms[i], streams[i]));
    OK(ncclAllReduce(&first[i], &second[i], 1, ncclInt, ncclSum, comms[i], NULL));
    EXPECT(ncclGroupEnd() == ncclInProgress);
  }
  poll_all(comms);
  for (int i = 0; i < N; i++) EXPECT(first[i] == N * N * N && second[i] == N * N * N * N);
  /* A group on host streams alone is queued. */
  for (int i = 0; i < N; i++) {
    first[i] = 1;
    OK(ncclGroupStart());
    OK(ncclAllReduce(&first[i], &first[i], 1, ncclInt, ncclSum, comms[i], streams[i]));
    OK(ncclGroupEnd());
  }
  for (int i = 0; i < N; i++) {
    OK(maypoleStreamSynchronize(streams[i]));
    EXPECT(first[i] == N);
    OK(maypoleStreamDestroy(streams[i]));
  }
}

/* Windows exist when the group that registers them ends. A wrong argument that is found late is
 * returned once. */
static void windows(ncclComm_t* comms) {
  static int memory[N][16];
  ncclWindow_t window[N];
  ncclWaitSignalDesc_t wait = {.opCnt = 1, .peer = 0, .sigIdx = 0, .ctx = 0};
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++)
    OK(ncclCommWindowRegister(comms[i], memory[i], sizeof memory[i], &window[i], 0));
  OK(ncclGroupEnd());
  int value = 7;
  EXPECT(ncclWaitSignal(1, &wait, comms[1], NULL) == ncclInProgress);
  ncclResult_t put =
      ncclPutSignal(&value, 1, ncclInt, 1, window[0], sizeof memory[1], 0, 0, 0, comms[0], NULL);
  EXPECT(put == ncclInProgress);
  EXPECT(poll(comms[0]) == ncclInvalidArgument);
  put = ncclPutSignal(&value, 1, ncclInt, 1, window[0], 4, 0, 0, 0, comms[0], NULL);
  EXPECT(put == ncclInProgress);
  EXPECT(poll(comms[0]) == ncclSuccess && poll(comms[1]) == ncclSuccess);
  EXPECT(memory[1][1] == value);
}

/* The thread that made a call aborts it while it waits for a peer. */
static void aborted(void) {
  ncclComm_t comms[N];
  make(comms);
  EXPECT(sum(comms, 0, NULL) == ncclInProgress);
  EXPECT(sum(comms, 1, NULL) == ncclInProgress);
  OK(ncclCommAbort(comms[0]));
  ncclResult_t state;
  EXPECT(ncclCommGetAsyncError(comms[0], &state) == ncclInvalidArgument);
  EXPECT(poll(comms[1]) == ncclRemoteError);
  for (int i = 0; i < 20000 && (ncclCommGetAsyncError(comms[2], &state), state == ncclSuccess); i++)
    usleep(1000);
  EXPECT(state == ncclRemoteError);
  for (int i = 1; i < N; i++) OK(ncclCommAbort(comms[i]));
  /* A revoke ends it too; then a split creates new communicators. */
  ncclComm_t parts[N];
  make(comms);
  EXPECT(sum(comms, 0, NULL) == ncclInProgress);
  for (int i = 0; i < N; i++) OK(ncclCommRevoke(comms[i], 0));
  for (int i = 0; i < N; i++)
    EXPECT(ncclCommSplit(comms[i], 0, i, &parts[i], NULL) == ncclInProgress);
  poll_all(parts);
  fill(3);
  for (int i = 0; i < N; i++) EXPECT(sum(parts, i, NULL) == ncclInProgress);
  poll_all(parts);
  check(3);
  for (int i = 0; i < N; i++) {
    EXPECT(poll(comms[i]) != ncclInProgress);
    OK(ncclCommDestroy(comms[i]));
    OK(ncclCommDestroy(parts[i]));
  }
}

/* Calls that differ: the failure of a call in progress. */
static void mismatched(void) {
  ncclComm_t comms[N];
  make(comms);
  for (int i = 0; i < N; i++)
    EXPECT(ncclAllReduce(in[i], out[i], 1 + (i == 1), ncclInt, ncclSum, comms[i], NULL) ==
           ncclInProgress);
  for (int i = 0; i < N; i++) {
    EXPECT(poll(comms[i]) == ncclInvalidUsage);
    OK(ncclCommAbort(comms[i]));
  }
}

/* In a child process no thread does the work. A query there returns an error, so that it does not
 * poll without end. */
static void forked(void) {
  ncclComm_t comms[N];
  make(comms);
  EXPECT(sum(comms, 0, NULL) == ncclInProgress);
  pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) {
    ncclResult_t state;
    alarm(30);
    EXPECT(ncclCommGetAsyncError(comms[0], &state) == ncclInvalidUsage);
    _exit(0);
  }
  int status;
  EXPECT(waitpid(child, &status, 0) == child);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  for (int i = 1; i < N; i++) EXPECT(sum(comms, i, NULL) == ncclInProgress);
  poll_all(comms);
  destroy(comms);
}

int main(int argc, char** argv) {
  ncclComm_t comms[N];
  int valgrind = argc > 1 && strcmp(argv[1], "valgrind") == 0;
  make(comms);
  without_groups(comms);
  grouped(comms);
  on_streams(comms);
  windows(comms);
  destroy(comms);
  aborted();
  mismatched();
  /* By design a child process never frees what it inherited. */
  if (!valgrind) forked();
  return 0;
}
