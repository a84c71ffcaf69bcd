/* Opens the library, binds 17 functions, computes with them in 3 threads, and closes the library:
 * twice, then in a thread, then in two threads at once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../loaded_library.h"

#define N 3
#define COUNT 1003

#define EXPECT(condition)                                                     \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                \
    }                                                                         \
  } while (0)

#define FUNCTIONS(f)                                                                         \
  f(GetVersion) f(GetUniqueId) f(GetErrorString) f(GetLastError) f(CommInitRank)             \
      f(CommInitRankConfig) f(CommFinalize) f(CommDestroy) f(CommAbort) f(CommGetAsyncError) \
          f(AllReduce) f(Broadcast) f(AllGather) f(Send) f(Recv) f(GroupStart) f(GroupEnd)

struct library {
  void* handle;
#define MEMBER(name) __typeof__(&nccl##name) name;
  FUNCTIONS(MEMBER)
};

static const char* path;

static void open_library(struct library* lib) {
  lib->handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
  if (!lib->handle) fprintf(stderr, "%s\n", dlerror());
  EXPECT(lib->handle);
#define BIND(name) EXPECT(lib->name = (__typeof__(lib->name))dlsym(lib->handle, "nccl" #name));
  FUNCTIONS(BIND)
}

struct rank {
  struct library* lib;
  ncclUniqueId id;
  int rank;
  pthread_barrier_t* done;
};

static void* run_rank(void* argument) {
  struct rank* my = argument;
  struct library* lib = my->lib;
  ncclComm_t comm = NULL;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclResult_t state = ncclInternalError;
  float send[COUNT], recv[COUNT], all[N * COUNT];
  if (my->rank == 0)
    EXPECT(lib->CommInitRank(&comm, N, my->id, 0) == ncclSuccess);
  else
    EXPECT(lib->CommInitRankConfig(&comm, N, my->id, my->rank, &config) == ncclSuccess);
  for (int i = 0; i < COUNT; i++) send[i] = (float)(i + 10 * my->rank);
  EXPECT(lib->AllReduce(send, recv, COUNT, ncclFloat, ncclSum, comm, NULL) == ncclSuccess);
  for (int i = 0; i < COUNT; i++) EXPECT(recv[i] == (float)(3 * i + 30));
  EXPECT(lib->Broadcast(send, recv, COUNT, ncclFloat, 2, comm, NULL) == ncclSuccess);
  for (int i = 0; i < COUNT; i++) EXPECT(recv[i] == (float)(i + 20));
  EXPECT(lib->AllGather(send, all, COUNT, ncclFloat, comm, NULL) == ncclSuccess);
  for (int i = 0; i < N * COUNT; i++) EXPECT(all[i] == (float)(i % COUNT + 10 * (i / COUNT)));
  EXPECT(lib->GroupStart() == ncclSuccess);
  EXPECT(lib->Send(send, COUNT, ncclFloat, (my->rank + 1) % N, comm, NULL) == ncclSuccess);
  EXPECT(lib->Recv(recv, COUNT, ncclFloat, (my->rank + N - 1) % N, comm, NULL) == ncclSuccess);
  EXPECT(lib->GroupEnd() == ncclSuccess);
  for (int i = 0; i < COUNT; i++) EXPECT(recv[i] == (float)(i + 10 * ((my->rank + N - 1) % N)));
  EXPECT(lib->Send(send, 1, ncclFloat, N, comm, NULL) == ncclInvalidArgument);
  EXPECT(strlen(lib->GetLastError(comm)) > 0 &&
         strlen(lib->GetErrorString(ncclInvalidArgument)) > 0);
  EXPECT(lib->CommGetAsyncError(comm, &state) == ncclSuccess && state == ncclSuccess);
  /* All ranks are done before one aborts, which would end their calls. */
  pthread_barrier_wait(my->done);
  EXPECT(lib->CommFinalize(comm) == ncclSuccess);
  if (my->rank == 1)
    EXPECT(lib->CommAbort(comm) == ncclSuccess);
  else
    EXPECT(lib->CommDestroy(comm) == ncclSuccess);
  return NULL;
}

/* Opens, computes and closes; returns the address of a function of the library. */
static void* use(void* nothing) {
  struct library lib;
  struct rank ranks[N];
  pthread_t threads[N];
  pthread_barrier_t done;
  int version = 0;
  void* address;
  (void)nothing;
  open_library(&lib);
  EXPECT(lib.GetVersion(&version) == ncclSuccess && version == NCCL_VERSION_CODE);
  EXPECT(lib.GetUniqueId(&ranks[0].id) == ncclSuccess);
  EXPECT(!pthread_barrier_init(&done, NULL, N));
  for (int i = 0; i < N; i++) {
    ranks[i] = (struct rank){&lib, ranks[0].id, i, &done};
    EXPECT(!pthread_create(&threads[i], NULL, run_rank, &ranks[i]));
  }
  for (int i = 0; i < N; i++) EXPECT(!pthread_join(threads[i], NULL));
  pthread_barrier_destroy(&done);
  address = (void*)lib.GetVersion;
  EXPECT(!dlclose(lib.handle));
  return address;
}

int main(int argc, char** argv) {
  pthread_t threads[2];
  void* addresses[2];
  void* first;
  EXPECT(argc == 2);
  path = argv[1];
  first = use(NULL);
  /* Threads of the library may still run, so dlclose does not unload it. */
  EXPECT(only_our_library_is_loaded(1) == 0);
  EXPECT(use(NULL) == first);
  EXPECT(!pthread_create(&threads[0], NULL, use, NULL) && !pthread_join(threads[0], &addresses[0]));
  EXPECT(addresses[0] == first);
  for (int i = 0; i < 2; i++) EXPECT(!pthread_create(&threads[i], NULL, use, NULL));
  for (int i = 0; i < 2; i++) {
    EXPECT(!pthread_join(threads[i], &addresses[i]));
    EXPECT(addresses[i] == first);
  }
  EXPECT(only_our_library_is_loaded(1) == 0);
  puts("17 functions, 3 ranks in threads; opened and closed 5 times, also in threads and at once");
  return 0;
}
