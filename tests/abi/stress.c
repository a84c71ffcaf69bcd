/*
 * Many communicators of 2 to 8 ranks, each rank a thread. They are created, used, split, shrunk,
 * grown and destroyed, or another thread aborts them at a random moment of their init or of their
 * calls. No descriptor, thread or memory is left over. Usage: stress COMMUNICATORS SEED.
 */
#include "check.h"

#include <dirent.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

enum { MAX_RANKS = 8 };

static uint64_t seed;
static int created;

static unsigned random_below(unsigned n) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (unsigned)(seed >> 33) % n;
}

typedef struct {
  ncclUniqueId id, growth;
  int n, rank, kind, excluded;
  ncclComm_t volatile comm;
  pthread_t thread;
  /* Whether another thread aborts this rank. */
  int aborted;
} Rank;

enum { PLAIN, SPLIT, SHRINK, GROW, KINDS };

static void sum(ncclComm_t comm) {
  int n;
  double one = 1, all = 0;
  OK(ncclCommCount(comm, &n));
  OK(ncclAllReduce(&one, &all, 1, ncclDouble, ncclSum, comm, NULL));
  EXPECT(all == n);
}

/* A rank whose communicator is created, used and destroyed. */
static void* orderly_rank(void* argument) {
  Rank* self = argument;
  ncclComm_t comm, child = NULL;
  int joins = self->kind == GROW && self->rank == self->n - 1;
  if (joins) {
    OK(ncclCommGrow(NULL, self->n, &self->growth, self->rank, &comm, NULL));
    sum(comm);
    OK(ncclCommDestroy(comm));
    return NULL;
  }
  OK(ncclCommInitRank(&comm, self->kind == GROW ? self->n - 1 : self->n, self->id, self->rank));
  sum(comm);
  switch (self->kind) {
    case SPLIT:
      OK(ncclCommSplit(comm, self->rank % 3 == 2 ? NCCL_SPLIT_NOCOLOR : self->rank % 2, -self->rank,
                       &child, NULL));
      break;
    case SHRINK:
      if (self->rank != self->excluded)
        OK(ncclCommShrink(comm, &self->excluded, 1, &child, NULL, NCCL_SHRINK_DEFAULT));
      break;
    case GROW:
      OK(ncclCommGrow(comm, self->n, self->rank ? NULL : &self->growth, -1, &child, NULL));
      break;
  }
  if (child) {
    sum(child);
    OK(ncclCommDestroy(child));
  }
  OK(ncclCommDestroy(comm));
  return NULL;
}

/* A rank that calls until a call fails, because a rank was aborted. */
static void* rank_until_abort(void* argument) {
  Rank* self = argument;
  float value = 0;
  ncclResult_t result = ncclCommInitRank((ncclComm_t*)&self->comm, self->n, self->id, self->rank);
  ncclComm_t comm = self->comm;
  while (result == ncclSuccess)
    result = ncclAllReduce(&value, &value, 1, ncclFloat, ncclSum, comm, NULL);
  EXPECT(result == ncclRemoteError || result == ncclInvalidUsage ||
         (result == ncclInvalidArgument && self->aborted));
  /* The handle of an aborted rank is freed by the thread that aborts it. */
  if (comm && !self->aborted) OK(ncclCommAbort(comm));
  return NULL;
}

static void run_communicator(int n) {
  Rank ranks[MAX_RANKS] = {0};
  ncclUniqueId id, growth;
  int kind = random_below(KINDS + 2), excluded = random_below(n), aborted = random_below(n);
  if (kind == GROW && n == 2) kind = PLAIN;
  OK(ncclGetUniqueId(&id));
  if (kind == GROW) OK(ncclGetUniqueId(&growth));
  for (int rank = 0; rank < n; rank++) {
    Rank self = {.id = id, .n = n, .rank = rank, .kind = kind, .excluded = excluded};
    if (kind == GROW) self.growth = growth;
    self.aborted = kind >= KINDS && rank == aborted;
    ranks[rank] = self;
    EXPECT(pthread_create(&ranks[rank].thread, NULL, kind < KINDS ? orderly_rank : rank_until_abort,
                          &ranks[rank]) == 0);
  }
  if (kind >= KINDS) {
    ncclComm_t comm;
    while (!(comm = ranks[aborted].comm)) usleep(50);
    usleep(random_below(kind == KINDS ? 300 : 6000));
    OK(ncclCommAbort(comm));
  }
  for (int rank = 0; rank < n; rank++) EXPECT(pthread_join(ranks[rank].thread, NULL) == 0);
  created++;
}

static int count(const char* path) {
  int entries = 0;
  DIR* folder = opendir(path);
  EXPECT(folder);
  while (readdir(folder)) entries++;
  closedir(folder);
  return entries;
}

typedef struct {
  int descriptors, threads;
  size_t bytes;
} Resources;

static Resources resources(void) {
  malloc_trim(0);
  return (Resources){count("/proc/self/fd"), count("/proc/self/task"), mallinfo2().uordblks};
}

int main(int argc, char** argv) {
  int communicators = argc > 1 ? atoi(argv[1]) : 50;
  seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  while (created < communicators / 5 + 1) run_communicator(2 + random_below(MAX_RANKS - 1));
  usleep(500 * 1000);
  Resources before = resources(), after;
  while (created < communicators) run_communicator(2 + random_below(MAX_RANKS - 1));
  /* Bootstrap roots and other threads may take a moment to end. */
  for (int i = 0; i < 200; i++) {
    after = resources();
    if (after.descriptors <= before.descriptors && after.threads <= before.threads) break;
    usleep(50 * 1000);
  }
  printf("%d communicators: %d -> %d descriptors, %d -> %d threads, %zu -> %zu bytes\n", created,
         before.descriptors, after.descriptors, before.threads, after.threads, before.bytes,
         after.bytes);
  EXPECT(after.descriptors <= before.descriptors);
  EXPECT(after.threads <= before.threads);
  /* Tables of the library do not shrink. */
  EXPECT(after.bytes <= before.bytes + (64 << 10));
  return 0;
}
