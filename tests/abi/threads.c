/*
 * One thread as several ranks. The library starts threads for its first group and none for later
 * groups, and no thread is left after the last communicator was destroyed. This program defines
 * `pthread_create` itself and counts its calls.
 */
#define _GNU_SOURCE
#include "check.h"

#include <dirent.h>
#include <dlfcn.h>
#include <maypole.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N = 4, ROUNDS = 500 };

static atomic_int created;

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) {
  int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  *(void**)&real = dlsym(RTLD_NEXT, "pthread_create");
  EXPECT(real);
  atomic_fetch_add(&created, 1);
  return real(thread, attributes, run, argument);
}

static int threads(void) {
  int entries = -2;
  DIR* folder = opendir("/proc/self/task");
  EXPECT(folder);
  while (readdir(folder)) entries++;
  closedir(folder);
  return entries;
}

static void make(ncclComm_t* comms) {
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++) OK(ncclCommInitRank(&comms[i], N, id, i));
  OK(ncclGroupEnd());
}

static void sum(ncclComm_t* comms) {
  float in[N], out[N];
  OK(ncclGroupStart());
  for (int i = 0; i < N; i++) {
    in[i] = (float)i;
    OK(ncclGroupStart());
    OK(ncclAllReduce(&in[i], &out[i], 1, ncclFloat, ncclSum, comms[i], NULL));
    OK(ncclGroupEnd());
  }
  OK(ncclGroupEnd());
  for (int i = 0; i < N; i++) EXPECT(out[i] == N * (N - 1) / 2);
}

static void destroy(ncclComm_t* comms) {
  for (int i = 0; i < N; i++) OK(ncclCommDestroy(comms[i]));
}

/* The threads of the library are on their way out. */
static void wait_until_alone(void) {
  for (int i = 0; i < 30000 && threads() > 1; i++) usleep(1000);
  EXPECT(threads() == 1);
}

static void repeated_groups_start_no_threads(void) {
  ncclComm_t comms[N];
  EXPECT(threads() == 1);
  make(comms);
  sum(comms);
  int warm = created;
  EXPECT(warm > 0);
  for (int round = 0; round < ROUNDS; round++) sum(comms);
  EXPECT(created == warm);
  /* An error drops a group, which starts no thread either. */
  float value = 0;
  OK(ncclGroupStart());
  OK(ncclAllReduce(&value, &value, 1, ncclFloat, ncclSum, comms[0], NULL));
  EXPECT(ncclAllReduce(&value, &value, 1, 99, ncclSum, comms[1], NULL) == ncclInvalidArgument);
  EXPECT(ncclGroupEnd() == ncclInvalidArgument);
  sum(comms);
  EXPECT(created == warm);
  destroy(comms);
  wait_until_alone();
}

/* A group of several communicators in a callback of a stream, on a thread of the library. */
static ncclComm_t callback_comms[N];
static atomic_int called;

static void group_in_callback(ncclResult_t result, void* unused) {
  (void)unused;
  EXPECT(result == ncclSuccess);
  sum(callback_comms);
  called++;
}

static void groups_in_callbacks(void) {
  cudaStream_t stream;
  make(callback_comms);
  OK(maypoleStreamCreate(&stream));
  OK(maypoleStreamAddCallback(stream, group_in_callback, NULL));
  OK(maypoleStreamSynchronize(stream));
  EXPECT(called == 1);
  OK(maypoleStreamDestroy(stream));
  destroy(callback_comms);
}

/* A child process has none of the threads of its parent process, and starts its own. */
static void groups_after_a_fork(void) {
  ncclComm_t comms[N];
  make(comms);
  sum(comms);
  pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) {
    ncclComm_t own[N];
    alarm(30);
    make(own);
    for (int round = 0; round < 3; round++) sum(own);
    destroy(own);
    _exit(0);
  }
  sum(comms);
  int status;
  EXPECT(waitpid(child, &status, 0) == child);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  sum(comms);
  destroy(comms);
}

/* Several threads run groups at once, each with its own communicators. */
static void* run_groups(void* unused) {
  (void)unused;
  ncclComm_t comms[N];
  make(comms);
  for (int round = 0; round < ROUNDS / 5; round++) sum(comms);
  destroy(comms);
  return NULL;
}

static void groups_of_several_threads(void) {
  pthread_t thread[3];
  for (int i = 0; i < 3; i++) EXPECT(pthread_create(&thread[i], NULL, run_groups, NULL) == 0);
  for (int i = 0; i < 3; i++) EXPECT(pthread_join(thread[i], NULL) == 0);
  wait_until_alone();
}

int main(void) {
  repeated_groups_start_no_threads();
  groups_in_callbacks();
  groups_after_a_fork();
  groups_of_several_threads();
  return 0;
}
