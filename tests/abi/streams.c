/* Host streams. One thread is all ranks. Usage: streams PART. */
#define _GNU_SOURCE
#include "check.h"

#include <maypole.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS = 3, COUNT = 1000 };

static ncclComm_t comms[RANKS];
static maypoleStream_t streams[RANKS];

static void begin(void) {
  OK(ncclCommInitAll(comms, RANKS, NULL));
  for (int rank = 0; rank < RANKS; rank++) OK(maypoleStreamCreate(&streams[rank]));
}

static void end(void) {
  for (int rank = 0; rank < RANKS; rank++) {
    OK(maypoleStreamDestroy(streams[rank]));
    OK(ncclCommDestroy(comms[rank]));
  }
}

/* A gate: a callback that holds a stream until it is opened. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int gate_open, inside;

static void gate(ncclResult_t result, void* data) {
  (void)result, (void)data;
  pthread_mutex_lock(&lock);
  inside++;
  pthread_cond_broadcast(&changed);
  while (!gate_open) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
}

static void close_gate(maypoleStream_t stream) {
  gate_open = inside = 0;
  OK(maypoleStreamAddCallback(stream, gate, NULL));
}

static void open_gate(void) {
  pthread_mutex_lock(&lock);
  gate_open = 1;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}

static int64_t value_in_callback = -1;

static void read_value(ncclResult_t result, void* data) {
  EXPECT(result == ncclSuccess);
  value_in_callback = *(int64_t*)data;
  /* A callback must not wait for work that may wait for it. */
  EXPECT(maypoleStreamSynchronize(streams[0]) == ncclInvalidUsage);
}

static void order(void) {
  static int64_t buffer[RANKS][COUNT], all[RANKS][RANKS];
  begin();
  close_gate(streams[0]);
  for (int rank = 0; rank < RANKS; rank++) {
    for (int i = 0; i < COUNT; i++) buffer[rank][i] = rank + i;
    for (int turn = 0; turn < 10; turn++)
      OK(ncclAllReduce(buffer[rank], buffer[rank], COUNT, ncclInt64, turn % 2 ? ncclMax : ncclSum,
                       comms[rank], streams[rank]));
    OK(maypoleBarrier(comms[rank], streams[rank]));
  }
  OK(maypoleStreamAddCallback(streams[0], read_value, buffer[0]));
  int fd;
  OK(maypoleStreamGetEventFd(streams[0], &fd));
  EXPECT(maypoleStreamQuery(streams[0]) == ncclInProgress && value_in_callback == -1);
  open_gate();
  /* The gate, ten calls, the barrier and the callback end. */
  for (uint64_t ended = 0, more; ended < 13; ended += more) {
    struct pollfd event = {.fd = fd, .events = POLLIN};
    EXPECT(poll(&event, 1, 40000) == 1 && read(fd, &more, 8) == 8);
  }
  /* The first sum adds up the ranks; each of the four later ones multiplies by three. */
  const int64_t expected = (0 + 1 + 2) * 81;
  EXPECT(value_in_callback == expected);
  for (int rank = 0; rank < RANKS; rank++) {
    OK(maypoleStreamSynchronize(streams[rank]));
    OK(maypoleStreamQuery(streams[rank]));
    for (int i = 0; i < COUNT; i++) EXPECT(buffer[rank][i] == expected + 243 * i);
  }
  /* A stream waits for another; calls on the default stream wait for those on streams. */
  close_gate(streams[1]);
  OK(maypoleStreamWaitStream(streams[0], streams[1]));
  OK(maypoleStreamWaitStream(streams[2], streams[1]));
  for (int rank = 0; rank < RANKS; rank++) {
    all[rank][rank] = 10 + rank;
    OK(ncclAllGather(&all[rank][rank], all[rank], 1, ncclInt64, comms[rank], streams[rank]));
  }
  for (int rank = 0; rank < RANKS; rank++)
    EXPECT(maypoleStreamQuery(streams[rank]) == ncclInProgress);
  open_gate();
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++)
    OK(ncclAllReduce(all[rank], all[rank], RANKS, ncclInt64, ncclSum, comms[rank], NULL));
  OK(ncclGroupEnd());
  for (int rank = 0; rank < RANKS; rank++)
    for (int i = 0; i < RANKS; i++) EXPECT(all[rank][i] == RANKS * (10 + i));
  /* Values that are no stream are refused, and so is a stream that was destroyed. */
  int64_t x = 1;
  maypoleStream_t garbage[] = {(maypoleStream_t)3, (maypoleStream_t)&x,
                               (maypoleStream_t)(uintptr_t)-1, (maypoleStream_t)0x14000};
  for (int i = 0; i < 4; i++) {
    EXPECT(ncclAllReduce(&x, &x, 1, ncclInt64, ncclSum, comms[0], garbage[i]) ==
           ncclInvalidArgument);
    EXPECT(maypoleStreamSynchronize(garbage[i]) == ncclInvalidArgument);
    EXPECT(maypoleStreamDestroy(garbage[i]) == ncclInvalidArgument);
  }
  EXPECT(maypoleStreamCreate(NULL) == ncclInvalidArgument);
  EXPECT(maypoleStreamAddCallback(streams[0], NULL, NULL) == ncclInvalidArgument);
  maypoleStream_t old = streams[0];
  end();
  EXPECT(maypoleStreamQuery(old) == ncclInvalidArgument);
  OK(maypoleStreamDestroy(NULL));
  OK(maypoleStreamQuery(NULL));
}

static void mark(ncclResult_t result, void* marked) {
  OK(result);
  *(int*)marked = 1;
}

/* Groups: several ranks on one stream, one rank on several streams, sends and receives, and host
 * streams together with a default stream. */
static void join(void) {
  int64_t one[RANKS], two[RANKS], from[RANKS];
  begin();
  close_gate(streams[2]);
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++) {
    one[rank] = rank, two[rank] = 10;
    OK(ncclAllReduce(&one[rank], &one[rank], 1, ncclInt64, ncclSum, comms[rank], streams[0]));
    OK(ncclAllReduce(&two[rank], &two[rank], 1, ncclInt64, ncclSum, comms[rank], streams[rank]));
    /* As with a CUDA stream: the calls of the group are not on the stream yet. */
    int marked = 0;
    OK(maypoleStreamAddCallback(streams[0], mark, &marked));
    OK(maypoleStreamWaitStream(streams[0], streams[1]));
    OK(maypoleStreamSynchronize(streams[0]));
    EXPECT(marked == 1 && one[rank] == rank);
  }
  OK(ncclGroupEnd());
  for (int rank = 0; rank < RANKS; rank++)
    EXPECT(maypoleStreamQuery(streams[rank]) == ncclInProgress);
  open_gate();
  OK(maypoleStreamSynchronize(streams[0]));
  for (int rank = 0; rank < RANKS; rank++) EXPECT(one[rank] == 3 && two[rank] == 30);

  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclSend(&one[rank], 1, ncclInt64, (rank + 1) % RANKS, comms[rank], streams[1]));
    OK(ncclRecv(&from[rank], 1, ncclInt64, (rank + RANKS - 1) % RANKS, comms[rank],
                rank ? streams[1] : NULL));
    one[rank] = rank;
  }
  OK(ncclGroupEnd());
  EXPECT(from[0] == RANKS - 1);
  OK(maypoleStreamSynchronize(streams[1]));
  for (int rank = 0; rank < RANKS; rank++) EXPECT(from[rank] == (rank + RANKS - 1) % RANKS);

  /* Ranks on a host stream and ranks on the default stream in one group. */
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++)
    OK(ncclAllReduce(&one[rank], &two[rank], 1, ncclInt64, ncclMax, comms[rank],
                     rank ? NULL : streams[0]));
  OK(ncclGroupEnd());
  OK(maypoleStreamSynchronize(streams[0]));
  for (int rank = 0; rank < RANKS; rank++) EXPECT(two[rank] == RANKS - 1);
  /* A wrong argument makes the group fail; nothing is queued. */
  OK(ncclGroupStart());
  OK(ncclAllReduce(&one[0], &two[0], 1, ncclInt64, ncclMax, comms[0], streams[0]));
  EXPECT(ncclAllReduce(&one[1], &two[1], 1, 99, ncclMax, comms[1], streams[0]) ==
         ncclInvalidArgument);
  EXPECT(ncclGroupEnd() == ncclInvalidArgument);
  OK(maypoleStreamQuery(streams[0]));
  end();
}

/* Finalize and destroy wait for the calls on streams. */
static void drain(void) {
  int64_t value[RANKS] = {1, 2, 3};
  begin();
  for (int rank = 0; rank < RANKS; rank++)
    OK(ncclAllReduce(&value[rank], &value[rank], 1, ncclInt64, ncclSum, comms[rank],
                     streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclCommFinalize(comms[rank]));
    EXPECT(value[rank] == 6);
    EXPECT(ncclAllReduce(&value[rank], &value[rank], 1, ncclInt64, ncclSum, comms[rank],
                         streams[rank]) == ncclInvalidArgument);
  }
  end();
  begin();
  for (int rank = 0; rank < RANKS; rank++)
    OK(ncclAllReduce(&value[rank], &value[rank], 1, ncclInt64, ncclSum, comms[rank],
                     streams[rank]));
  end();
  for (int rank = 0; rank < RANKS; rank++) EXPECT(value[rank] == 18);
}

static void keep_result(ncclResult_t result, void* data) { *(ncclResult_t*)data = result; }

/* Aborts a call that waits for a peer, and one behind a gate. Later work on the streams still
 * runs. */
static void abort_queued(void) {
  int64_t value[RANKS] = {1, 2, 3};
  ncclResult_t kept = ncclSuccess, state;
  begin();
  OK(ncclAllReduce(&value[0], &value[0], 1, ncclInt64, ncclSum, comms[0], streams[0]));
  OK(ncclAllReduce(&value[0], &value[0], 1, ncclInt64, ncclSum, comms[0], streams[1]));
  OK(maypoleStreamAddCallback(streams[0], keep_result, &kept));
  close_gate(streams[2]);
  OK(ncclAllReduce(&value[1], &value[1], 1, ncclInt64, ncclSum, comms[1], streams[2]));
  OK(ncclCommGetAsyncError(comms[0], &state));
  EXPECT(state == ncclSuccess);
  /* The abort does not wait for the gate. */
  OK(ncclCommAbort(comms[1]));
  EXPECT(maypoleStreamSynchronize(streams[0]) == ncclRemoteError && kept == ncclRemoteError);
  OK(maypoleStreamSynchronize(streams[0]));
  OK(ncclCommGetAsyncError(comms[0], &state));
  EXPECT(state == ncclRemoteError);
  EXPECT(maypoleStreamQuery(streams[2]) == ncclInProgress);
  open_gate();
  OK(maypoleStreamSynchronize(streams[2]));
  EXPECT(maypoleStreamDestroy(streams[1]) == ncclRemoteError);
  OK(maypoleStreamDestroy(streams[0]));
  OK(maypoleStreamDestroy(streams[2]));
  OK(ncclCommAbort(comms[0]));
  OK(ncclCommAbort(comms[2]));
  EXPECT(value[1] == 2);
}

static void in_child(void (*run)(void)) {
  pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) {
    run();
    _exit(0);
  }
  int status;
  EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void child_of_fork(void) {
  int64_t value = 1;
  EXPECT(maypoleStreamQuery(streams[0]) == ncclInvalidArgument);
  EXPECT(ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comms[0], NULL) == ncclInvalidUsage);
  EXPECT(ncclAllReduce(&value, &value, 1, ncclInt64, ncclSum, comms[0], streams[0]) ==
         ncclInvalidUsage);
  /* New streams get other handles than those of the parent process, which stay refused. */
  maypoleStream_t inherited = streams[0], own;
  OK(maypoleStreamCreate(&own));
  EXPECT(own != inherited && maypoleStreamQuery(inherited) == ncclInvalidArgument);
  OK(maypoleStreamDestroy(own));
  drain();
}

/* A fork while calls are on streams. */
static void with_fork(void) {
  int64_t value[RANKS] = {1, 2, 3};
  begin();
  close_gate(streams[0]);
  for (int rank = 0; rank < RANKS; rank++)
    OK(ncclAllReduce(&value[rank], &value[rank], 1, ncclInt64, ncclSum, comms[rank],
                     streams[rank]));
  in_child(child_of_fork);
  open_gate();
  end();
  for (int rank = 0; rank < RANKS; rank++) EXPECT(value[rank] == 6);
}

/* The process exits while one call runs and others wait. */
static void with_exit(void) {
  static int64_t value[RANKS];
  begin();
  for (int turn = 0; turn < 3; turn++)
    OK(ncclAllReduce(&value[0], &value[0], 1, ncclInt64, ncclSum, comms[0], streams[0]));
  exit(0);
}

int main(int argc, char** argv) {
  const struct {
    const char* name;
    void (*run)(void);
  } parts[] = {{"order", order},        {"join", join},      {"drain", drain},
               {"abort", abort_queued}, {"fork", with_fork}, {"exit", with_exit}};
  for (unsigned i = 0; argc == 2 && i < sizeof parts / sizeof *parts; i++)
    if (strcmp(argv[1], parts[i].name) == 0) return parts[i].run(), 0;
  return 2;
}
