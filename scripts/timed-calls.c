/*
 * `timed-calls LIBRARY RANK RANKS FOLDER CORE CALLS SIZES SECONDS` is one rank of
 * scripts/compare-libraries. CALLS and SIZES are separated by commas; SECONDS are spent on each
 * pair of them. All ranks share the file FOLDER/shared, in which they meet and rank 0 finds the
 * times of all. A sample is the mean of some calls back to back, about a millisecond, on the
 * slowest rank. Rank 0 prints for each pair: the call, the bytes, and the times in microseconds of
 * the first call and of the median of the samples.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

enum { FLOAT32 = 7, SUM = 0, MAX_RANKS = 64, MAX_SAMPLES = 400 };

struct id { char bytes[128]; };
struct shared {
  uint32_t arrived, generation, calls, stop, failed;
  struct id id;
  double seconds[MAX_RANKS];
};

static int (*unique_id)(struct id*);
static int (*init)(void**, int, struct id, int);
static int (*all_reduce)(const void*, void*, size_t, int, int, void*, void*);
static int (*all_gather)(const void*, void*, size_t, int, void*, void*);
static int (*broadcast)(const void*, void*, size_t, int, int, void*, void*);
static int (*send_to)(const void*, size_t, int, int, void*, void*);
static int (*receive)(void*, size_t, int, int, void*, void*);
static int (*group_start)(void), (*group_end)(void), (*destroy)(void*);
static struct shared* shared;
static int rank, ranks;
static void* comm;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Returns when all ranks have called it. Where cores are shared, waiting ranks sleep. */
static void barrier(void) {
  uint32_t before = __atomic_load_n(&shared->generation, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&shared->arrived, 1, __ATOMIC_ACQ_REL) == (uint32_t)ranks) {
    __atomic_store_n(&shared->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&shared->generation, before + 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &shared->generation, FUTEX_WAKE, MAX_RANKS, NULL, NULL, 0);
    return;
  }
  int spins = ranks > sysconf(_SC_NPROCESSORS_ONLN) ? 200 : 100000;
  while (__atomic_load_n(&shared->generation, __ATOMIC_ACQUIRE) == before) {
    if (spins-- > 0) continue;
    struct timespec second = {1, 0};
    syscall(SYS_futex, &shared->generation, FUTEX_WAIT, before, &second, NULL, 0);
    if (__atomic_load_n(&shared->failed, __ATOMIC_RELAXED)) exit(1);
  }
}

static void check(int result, const char* what) {
  if (result == 0) return;
  fprintf(stderr, "rank %d: %s returns %d\n", rank, what, result);
  __atomic_store_n(&shared->failed, 1, __ATOMIC_RELAXED);
  exit(1);
}

static void call(const char* name, float* in, float* out, size_t bytes, long number) {
  size_t count = bytes / sizeof(float), part = count / (size_t)ranks;
  if (!strcmp(name, "all_reduce")) {
    check(all_reduce(in, out, count, FLOAT32, SUM, comm, NULL), name);
  } else if (!strcmp(name, "all_gather")) {
    check(all_gather(in, out, part, FLOAT32, comm, NULL), name);
  } else if (!strcmp(name, "broadcast")) {
    /* Another root each time, so that calls do not overlap. */
    check(broadcast(out, out, count, FLOAT32, (int)(number % ranks), comm, NULL), name);
  } else if (!strcmp(name, "all_to_all")) {
    check(group_start(), name);
    for (int peer = 0; peer < ranks; peer++) {
      check(send_to(in + (size_t)peer * part, part, FLOAT32, peer, comm, NULL), name);
      check(receive(out + (size_t)peer * part, part, FLOAT32, peer, comm, NULL), name);
    }
    check(group_end(), name);
  } else if (!strcmp(name, "sendrecv")) {
    /* One round trip of ranks 0 and 1. */
    if (rank == 0) check(send_to(in, count, FLOAT32, 1, comm, NULL), name);
    if (rank < 2) check(receive(out, count, FLOAT32, 1 - rank, comm, NULL), name);
    if (rank == 1) check(send_to(in, count, FLOAT32, 0, comm, NULL), name);
  } else {
    check(-1, "a name that is no call");
  }
}

/* The seconds per call on the slowest rank, known to all. */
static double sample(const char* name, float* in, float* out, size_t bytes, long calls) {
  static long number;
  barrier();
  double start = now();
  for (long i = 0; i < calls; i++) call(name, in, out, bytes, number++);
  shared->seconds[rank] = (now() - start) / (double)calls;
  barrier();
  double most = 0;
  for (int r = 0; r < ranks; r++) most = shared->seconds[r] > most ? shared->seconds[r] : most;
  return most;
}

static int order(const void* a, const void* b) {
  double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void measure(const char* name, size_t bytes, double seconds) {
  size_t room = (bytes + 4095) / 4096 * 4096;
  float *in = aligned_alloc(4096, room), *out = aligned_alloc(4096, room);
  memset(in, 0, room), memset(out, 0, room);
  static double samples[MAX_SAMPLES];
  double first = sample(name, in, out, bytes, 1), warm = sample(name, in, out, bytes, 10);
  long calls = warm > 1e-3 ? 1 : (long)(1e-3 / warm);
  calls = calls > 200 ? 200 : calls;
  int n = 0;
  double end = now() + seconds;
  do {
    samples[n++] = sample(name, in, out, bytes, calls);
    if (rank == 0) shared->stop = (now() > end && n >= 5) || n == MAX_SAMPLES;
    barrier();
  } while (!shared->stop);
  qsort(samples, (size_t)n, sizeof *samples, order);
  if (rank == 0) printf("%s %zu %.3f %.3f\n", name, bytes, first * 1e6, samples[n / 2] * 1e6);
  free(in), free(out);
  barrier();
}

static void* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (!found) fprintf(stderr, "the library has no %s\n", name), exit(2);
  return found;
}

int main(int argc, char** argv) {
  if (argc != 9) return 2;
  rank = atoi(argv[2]), ranks = atoi(argv[3]);
  cpu_set_t core;
  CPU_ZERO(&core);
  CPU_SET(atoi(argv[5]), &core);
  sched_setaffinity(0, sizeof core, &core);
  char path[4096];
  snprintf(path, sizeof path, "%s/shared", argv[4]);
  int file = open(path, O_RDWR);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (shared == MAP_FAILED) return perror(path), 2;
  void* library = dlopen(argv[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
  *(void**)&unique_id = symbol(library, "ncclGetUniqueId");
  *(void**)&init = symbol(library, "ncclCommInitRank");
  *(void**)&all_reduce = symbol(library, "ncclAllReduce");
  *(void**)&all_gather = symbol(library, "ncclAllGather");
  *(void**)&broadcast = symbol(library, "ncclBroadcast");
  *(void**)&send_to = symbol(library, "ncclSend");
  *(void**)&receive = symbol(library, "ncclRecv");
  *(void**)&group_start = symbol(library, "ncclGroupStart");
  *(void**)&group_end = symbol(library, "ncclGroupEnd");
  *(void**)&destroy = symbol(library, "ncclCommDestroy");
  if (rank == 0) check(unique_id(&shared->id), "ncclGetUniqueId");
  barrier();
  check(init(&comm, ranks, shared->id, rank), "ncclCommInitRank");
  char *names = argv[6], *name;
  while ((name = strsep(&names, ","))) {
    char *sizes = strdup(argv[7]), *rest = sizes, *size;
    while ((size = strsep(&rest, ","))) measure(name, strtoull(size, NULL, 10), atof(argv[8]));
    free(sizes);
  }
  check(destroy(comm), "ncclCommDestroy");
  return 0;
}
