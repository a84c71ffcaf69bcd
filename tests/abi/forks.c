/*
 * Children made by fork while other threads are inside the library. A child has none of these
 * threads, but everything that they had locked, and it must not wait for that.
 */
#include "check.h"

#include <maypole.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 3, CHILDREN = 60 };

static atomic_int stop;

/* Sets the last error, prints, allocates, and makes and ends communicators, again and again. */
static void* contend(void* unused) {
  (void)unused;
  while (!stop) {
    void* memory;
    ncclUniqueId id;
    ncclComm_t comm;
    OK(ncclGetUniqueId(&id));
    EXPECT(ncclCommInitRank(&comm, 1, id, 5) == ncclInvalidArgument);
    OK(ncclMemAlloc(&memory, 4096));
    OK(ncclMemFree(memory));
    OK(ncclCommInitRank(&comm, 1, id, 0));
    OK(ncclCommDestroy(comm));
  }
  return NULL;
}

static void child(ncclComm_t inherited) {
  int value[2] = {1, 2}, sum[2];
  ncclComm_t comms[2];
  ncclResult_t state;
  void* memory;
  alarm(30);
  ncclGetLastError(NULL);
  EXPECT(ncclCommGetAsyncError(inherited, &state) == ncclInvalidUsage);
  EXPECT(ncclAllReduce(value, sum, 1, ncclInt, ncclSum, inherited, NULL) == ncclInvalidUsage);
  OK(ncclCommAbort(inherited));
  OK(ncclCommDestroy(inherited));
  OK(ncclMemAlloc(&memory, 4096));
  OK(ncclMemFree(memory));
  OK(ncclCommInitAll(comms, 2, NULL));
  EXPECT(comms[0] != inherited && comms[1] != inherited);
  OK(ncclGroupStart());
  for (int i = 0; i < 2; i++)
    OK(ncclAllReduce(&value[i], &sum[i], 1, ncclInt, ncclSum, comms[i], NULL));
  OK(ncclGroupEnd());
  EXPECT(sum[0] == 3 && sum[1] == 3);
  for (int i = 0; i < 2; i++) OK(ncclCommDestroy(comms[i]));
  _exit(0);
}

int main(void) {
  pthread_t threads[THREADS];
  ncclUniqueId id;
  ncclComm_t comm;
  OK(ncclGetUniqueId(&id));
  OK(ncclCommInitRank(&comm, 1, id, 0));
  for (int i = 0; i < THREADS; i++)
    EXPECT(pthread_create(&threads[i], NULL, contend, NULL) == 0);
  for (int i = 0; i < CHILDREN; i++) {
    int status;
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) child(comm);
    EXPECT(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  stop = 1;
  for (int i = 0; i < THREADS; i++) EXPECT(pthread_join(threads[i], NULL) == 0);
  /* The communicator of the parent was left alone. */
  int value = 7, sum = 0;
  OK(ncclAllReduce(&value, &sum, 1, ncclInt, ncclSum, comm, NULL));
  EXPECT(sum == 7);
  OK(ncclCommDestroy(comm));
  return 0;
}
