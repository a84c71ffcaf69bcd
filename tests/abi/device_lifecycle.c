/* Communicators of CUDA devices from creation to end, and what they refuse. Usage:
 * device_lifecycle PART. */
#include "device.h"

#include <pthread.h>

#define REFUSED(code, call, text) EXPECT((call) == (code) && strstr(ncclGetLastError(NULL), text))

/* Wrong arguments are refused and leave the communicator as it was. */
static void refused(void) {
  begin();
  maypoleStream_t host_stream;
  ncclWindow_t window = (ncclWindow_t)host;
  ncclWaitSignalDesc_t wait = {1, 1, 0, 0};
  double x = 1;
  OK(maypoleStreamCreate(&host_stream));
  void *send = pointer(in[0]), *recv = pointer(out[0]);
  REFUSED(ncclInvalidArgument,
          ncclAllReduce(send, recv, 1, ncclDouble, ncclSum, comms[0], host_stream),
          "maypoleStreamCreate");
  REFUSED(ncclInvalidArgument, ncclSend(send, 1, ncclDouble, 1, comms[0], host_stream),
          "maypoleStreamCreate");
  REFUSED(ncclInvalidArgument, maypoleBarrier(comms[0], host_stream), "maypoleStreamCreate");
  REFUSED(ncclInvalidArgument,
          ncclAllReduce(send, recv, 1, ncclDouble, ncclSum, comms[0], (void*)3), "is not a stream");
  OK(maypoleStreamDestroy(host_stream));
  REFUSED(ncclInvalidArgument,
          ncclAllReduce(send, recv, 1, ncclDouble, ncclSum, comms[0], host_stream),
          "maypoleStreamCreate");
  REFUSED(ncclInvalidArgument,
          ncclAllReduce(NULL, recv, 1, ncclDouble, ncclSum, comms[0], streams[0]), "NULL");
  REFUSED(ncclInvalidArgument, ncclAllReduce(send, recv, 1, 77, ncclSum, comms[0], streams[0]),
          "data type");
  /* An error in a group drops the group. */
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++)
    OK(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank],
                     streams[rank]));
  EXPECT(ncclAllReduce(send, recv, 1, ncclDouble, ncclSum, comms[0], host_stream) ==
         ncclInvalidArgument);
  EXPECT(ncclGroupEnd() == ncclInvalidArgument);
  EXPECT(result(0)[0] == -1);
  /* Windows as in NCCL without symmetric memory. */
  OK(ncclCommWindowRegister(comms[0], send, BYTES, &window, 0));
  EXPECT(window == NULL);
  REFUSED(ncclInvalidUsage, ncclSignal(1, 0, 0, 0, comms[0], streams[0]), "hostRmaSupport");
  REFUSED(ncclInvalidUsage, ncclWaitSignal(1, &wait, comms[0], streams[0]), "hostRmaSupport");
  /* A factor that no kernel can read. */
  ncclRedOp_t op;
  REFUSED(ncclInvalidArgument,
          ncclRedOpCreatePreMulSum(&op, &x, ncclDouble, ncclScalarDevice, comms[0]), "pageable");
  /* A device that does not exist, and one that is listed twice without permission. */
  ncclComm_t more[2];
  int missing[1] = {gpu_devices}, twice[2] = {0, 0};
  REFUSED(ncclInvalidArgument, ncclCommInitAll(more, 1, missing), "no device");
  if (!getenv("NCCL_MULTI_RANK_GPU_ENABLE"))
    REFUSED(ncclInvalidUsage, ncclCommInitAll(more, 2, twice), "twice");
  EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank],
                     streams[rank]));
  check_sums();
  end();
}

static int type_of(void* memory, int* device) {
  int kind = 0;
  if (cuPointerGetAttribute(&kind, 2, (uintptr_t)memory)) return 0;
  EXPECT(cuPointerGetAttribute(device, 9, (uintptr_t)memory) == 0);
  return kind;
}

/* Memory is of the device that the thread has chosen, or of the host if it has chosen none. */
static void memory(void) {
  void *first, *second, *none = host, *host_stream, *handle;
  int device;
  uint64_t lasting, releasable, total, suspended;
  begin();
  gpu_choose(0);
  OK(ncclMemAlloc(&first, BYTES));
  EXPECT(type_of(first, &device) == 2 && device == 0);
  gpu_choose(1);
  OK(ncclMemAlloc(&second, BYTES));
  EXPECT(type_of(second, &device) == 2 && device == 1 % gpu_devices);
  OK(ncclMemAlloc(&none, 0));
  EXPECT(none == NULL);
  DRIVER(cuCtxSetCurrent(NULL));
  OK(ncclMemAlloc(&host_stream, BYTES));
  EXPECT(type_of(host_stream, &device) != 2);
  memset(host_stream, 1, BYTES);
  OK(ncclMemFree(host_stream));
  gpu_choose(0);
  OK(ncclCommRegister(comms[0], first, BYTES, &handle));
  OK(ncclCommDeregister(comms[0], handle));
  DRIVER(cuMemcpyHtoD_v2((uintptr_t)first, host, 8));
  EACH(ncclAllReduce(rank ? pointer(in[rank]) : first, pointer(out[rank]), 1, ncclDouble, ncclSum,
                     comms[rank], streams[rank]));
  gpu_done();
  OK(ncclMemFree(first));
  EXPECT(ncclMemFree(first) == ncclInvalidArgument);
  OK(ncclMemFree(second));
  OK(ncclCommMemStats(comms[0], ncclStatGpuMemPersist, &lasting));
  OK(ncclCommMemStats(comms[0], ncclStatGpuMemSuspend, &releasable));
  OK(ncclCommMemStats(comms[0], ncclStatGpuMemTotal, &total));
  EXPECT(lasting > 0 && total == lasting + releasable);
  OK(ncclCommSuspend(comms[0], NCCL_SUSPEND_MEM));
  OK(ncclCommMemStats(comms[0], ncclStatGpuMemSuspend, &suspended));
  EXPECT(suspended <= releasable);
  EXPECT(ncclAllReduce(pointer(in[0]), pointer(out[0]), 1, ncclDouble, ncclSum, comms[0],
                       streams[0]) == ncclInvalidUsage);
  OK(ncclCommResume(comms[0]));
  fill();
  EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank],
                     streams[rank]));
  check_sums();
  end();
}

static void wait_for(ncclComm_t comm, ncclResult_t wanted) {
  ncclResult_t state = wanted == ncclSuccess ? ncclInProgress : ncclSuccess;
  for (int i = 0; i < 40000; i++) {
    OK(ncclCommGetAsyncError(comm, &state));
    if (state == wanted) return;
    usleep(1000);
  }
  EXPECT(state == wanted);
}

static void* query_device(void* comm) {
  int device;
  /* The choice of this thread does not matter. */
  gpu_choose(1);
  OK(ncclCommCuDevice(*(ncclComm_t*)comm, &device));
  EXPECT(device == 0);
  return NULL;
}

/* A communicator works on the device that the thread has chosen at the call, however late it is
 * created. Children work on the device of their parent. */
static void lifecycle(void) {
  ncclUniqueId id;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclComm_t parts[RANKS], few[RANKS], more[RANKS + 1];
  int device, gone[1] = {1};
  for (int blocking = 0; blocking < 2; blocking++) {
    config.blocking = blocking;
    OK(ncclGetUniqueId(&id));
    OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++) {
      gpu_choose(rank);
      OK(ncclCommInitRankConfig(&comms[rank], RANKS, id, rank, &config));
    }
    gpu_choose(1);
    EXPECT(ncclGroupEnd() == (blocking ? ncclSuccess : ncclInProgress));
    for (int rank = 0; rank < RANKS; rank++) {
      wait_for(comms[rank], ncclSuccess);
      OK(ncclCommCuDevice(comms[rank], &device));
      EXPECT(device == rank % gpu_devices);
      in[rank] = allocate(rank, BYTES);
      out[rank] = allocate(rank, BYTES);
      DRIVER(cuStreamCreate(&streams[rank], 1));
    }
    fill();
    EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                       comms[rank], streams[rank]));
    check_sums();
    gpu_choose(0);
    OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++)
      OK(ncclCommSplit(comms[rank], 0, -rank, &parts[rank], NULL));
    EXPECT(ncclGroupEnd() == (blocking ? ncclSuccess : ncclInProgress));
    for (int rank = 0; rank < RANKS; rank++) {
      wait_for(comms[rank], ncclSuccess);
      wait_for(parts[rank], ncclSuccess);
      OK(ncclCommCuDevice(parts[rank], &device));
      EXPECT(device == rank % gpu_devices);
    }
    fill();
    EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                       parts[rank], streams[rank]));
    check_sums();
    for (int rank = 0; rank < RANKS; rank++) OK(ncclCommDestroy(parts[rank]));
    /* A shrink without rank 1. */
    OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++)
      if (rank != 1)
        OK(ncclCommShrink(comms[rank], gone, 1, &few[rank], NULL, NCCL_SHRINK_DEFAULT));
    EXPECT(ncclGroupEnd() == (blocking ? ncclSuccess : ncclInProgress));
    fill();
    for (int rank = 0; rank < RANKS; rank++)
      if (rank != 1) wait_for(few[rank], ncclSuccess);
    OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++)
      if (rank != 1)
        OK(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                         few[rank], streams[rank]));
    OK(ncclGroupEnd());
    EXPECT(result(2)[0] == 5000 && result(3)[1] == 5003);
    /* A grow by a new rank, on the device that this thread has chosen. */
    OK(ncclCommGetUniqueId(few[0], &id));
    gpu_choose(1);
    OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++)
      if (rank != 1)
        OK(ncclCommGrow(few[rank], RANKS, rank ? NULL : &id, -1, &more[rank], &config));
    OK(ncclCommGrow(NULL, RANKS, &id, RANKS - 1, &more[1], &config));
    EXPECT(ncclGroupEnd() == (blocking ? ncclSuccess : ncclInProgress));
    for (int rank = 0; rank < RANKS; rank++) {
      wait_for(more[rank], ncclSuccess);
      OK(ncclCommCuDevice(more[rank], &device));
      EXPECT(device == rank % gpu_devices);
    }
    fill();
    EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                       more[rank], streams[rank]));
    check_sums();
    for (int rank = 0; rank < RANKS; rank++) {
      OK(ncclCommDestroy(more[rank]));
      if (rank != 1) wait_for(few[rank], ncclSuccess);
      if (rank != 1) OK(ncclCommDestroy(few[rank]));
      wait_for(comms[rank], ncclSuccess);
    }
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, query_device, &comms[0]) == 0 &&
           pthread_join(thread, NULL) == 0);
    /* Finalize waits for queued calls; a communicator that does not block tells when they ended. */
    fill();
    close_gate(0);
    EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                       comms[rank], streams[rank]));
    if (blocking) open_gate(0);
    for (int rank = 0; rank < RANKS; rank++)
      EXPECT(ncclCommFinalize(comms[rank]) == (blocking ? ncclSuccess : ncclInProgress));
    if (!blocking) {
      ncclResult_t state;
      OK(ncclCommGetAsyncError(comms[0], &state));
      EXPECT(state == ncclInProgress);
      open_gate(0);
    }
    for (int rank = 0; rank < RANKS; rank++) wait_for(comms[rank], ncclSuccess);
    check_sums();
    end();
  }
}

/* Abort and revoke while a kernel waits for a rank that never calls. */
static void aborted(void) {
  ncclResult_t state;
  ncclComm_t parts[RANKS];
  begin();
  for (int rank = 0; rank < RANKS - 1; rank++) {
    gpu_choose(rank);
    OK(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank],
                     streams[rank]));
  }
  for (int rank = 0; rank < RANKS - 1; rank++) {
    OK(ncclCommGetAsyncError(comms[rank], &state));
    EXPECT(state == ncclSuccess && cuStreamQuery(streams[rank]) == NOT_READY);
  }
  OK(ncclCommAbort(comms[RANKS - 1]));
  for (int rank = 0; rank < RANKS - 1; rank++) {
    wait_for(comms[rank], ncclRemoteError);
    /* The kernel has ended, and the device still works. */
    gpu_choose(rank);
    DRIVER(cuStreamSynchronize(streams[rank]));
    EXPECT(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                         comms[rank], streams[rank]) == ncclRemoteError);
    OK(ncclCommAbort(comms[rank]));
  }
  make();
  fill();
  for (int rank = 1; rank < RANKS; rank++) {
    gpu_choose(rank);
    OK(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank],
                     streams[rank]));
  }
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclCommRevoke(comms[rank], 0));
    gpu_choose(rank);
    DRIVER(cuStreamSynchronize(streams[rank]));
    EXPECT(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), 1, ncclDouble, ncclSum, comms[rank],
                         streams[rank]) == ncclInvalidUsage);
  }
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++)
    OK(ncclCommSplit(comms[rank], 0, rank, &parts[rank], NULL));
  OK(ncclGroupEnd());
  fill();
  EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum, parts[rank],
                     streams[rank]));
  check_sums();
  for (int rank = 0; rank < RANKS; rank++) OK(ncclCommDestroy(parts[rank]));
  end();
}

/* Ranks whose calls differ get an error. */
static void mismatched(void) {
  ncclResult_t state = ncclSuccess;
  begin();
  for (int rank = 0; rank < RANKS; rank++) {
    gpu_choose(rank);
    /* The difference may be found before the last rank calls. */
    ncclResult_t called =
        ncclAllReduce(pointer(in[rank]), pointer(out[rank]), rank ? COUNT : COUNT / 2, ncclDouble,
                      ncclSum, comms[rank], streams[rank]);
    EXPECT(called == ncclSuccess || (rank > 1 && called == ncclInvalidUsage));
  }
  for (int rank = 0; rank < RANKS; rank++) {
    for (int i = 0; i < 40000 && state == ncclSuccess; i++) {
      OK(ncclCommGetAsyncError(comms[rank], &state));
      usleep(1000);
    }
    EXPECT(state == ncclInvalidUsage);
    state = ncclSuccess;
    DRIVER(cuStreamSynchronize(streams[rank]));
  }
  for (int rank = 0; rank < RANKS; rank++) OK(ncclCommAbort(comms[rank]));
  make();
  end();
}

/* The first device does not work. Under MAYPOLE_DEVICE=auto that is an error for a thread that has
 * chosen it. Other threads get host memory, also in a group with a device that works. */
static void unusable(void) {
  static double mine[2] = {1, 2}, sum[2];
  int number = 0;
  double two = 2, found = 0;
  void* stream;
  DRIVER(cuCtxSetCurrent(NULL));
  OK(ncclGroupStart());
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  OK(ncclCommInitRank(&comms[0], 1, id, 0));
  OK(ncclGroupEnd());
  OK(ncclCommCuDevice(comms[0], &number));
  EXPECT(number == -1);
  gpu_choose(1);
  OK(ncclGetUniqueId(&id));
  OK(ncclCommInitRank(&comms[1], 1, id, 0));
  OK(ncclCommCuDevice(comms[1], &number));
  EXPECT(number == 1);
  in[1] = allocate(1, 8);
  out[1] = allocate(1, 8);
  DRIVER(cuMemcpyHtoD_v2(in[1], &two, 8));
  DRIVER(cuStreamCreate(&stream, 1));
  REFUSED(ncclInvalidArgument, ncclAllReduce(mine, sum, 2, ncclDouble, ncclSum, comms[0], stream),
          "host memory");
  OK(ncclGroupStart());
  OK(ncclAllReduce(mine, sum, 2, ncclDouble, ncclSum, comms[0], NULL));
  OK(ncclAllReduce(pointer(in[1]), pointer(out[1]), 1, ncclDouble, ncclSum, comms[1], stream));
  OK(ncclGroupEnd());
  /* On host memory the result is there at the end of the group. */
  EXPECT(sum[1] == 2);
  DRIVER(cuStreamSynchronize(stream));
  DRIVER(cuMemcpyDtoH_v2(&found, out[1], 8));
  EXPECT(found == 2);
  DRIVER(cuStreamDestroy_v2(stream));
  for (int i = 0; i < 2; i++) OK(ncclCommDestroy(comms[i]));
}

static void unusable_and_chosen(void) {
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  gpu_choose(0);
  EXPECT(ncclCommInitRank(&comms[0], 1, id, 0) == ncclInvalidUsage);
  EXPECT(strstr(ncclGetLastError(NULL), "refuses all kernels"));
}

/* Each device loads the kernels once, although it is checked before the communicators are made. */
static void loads(void) {
  simCallsReset();
  begin();
  EXPECT(simCalls("cuModuleLoadData") == (uint64_t)gpu_devices);
  end();
}

static int (*cudaSetDevice)(int);

/* Each thread has chosen a device in a runtime that makes no context for that. */
static void* chosen_in_runtime(void* argument) {
  const int rank = (int)(intptr_t)argument;
  int device;
  void* memory;
  EXPECT(cudaSetDevice(rank) == 0);
  OK(ncclMemAlloc(&memory, BYTES));
  EXPECT(type_of(memory, &device) == (rank ? 2 : 0) && (rank == 0 || device == rank));
  OK(ncclMemFree(memory));
  OK(ncclCommInitRank(&comms[rank], RANKS, *(ncclUniqueId*)host, rank));
  OK(ncclCommCuDevice(comms[rank], &device));
  EXPECT(device == rank);
  OK(ncclCommDestroy(comms[rank]));
  return NULL;
}

static void runtime(void) {
  pthread_t threads[RANKS];
  void* library = dlopen("libcudart.so.11.0", RTLD_NOW);
  EXPECT(library);
  EXPECT((*(void**)&cudaSetDevice = dlsym(library, "cudaSetDevice")));
  EXPECT(sizeof(ncclUniqueId) <= sizeof host);
  OK(ncclGetUniqueId((ncclUniqueId*)host));
  for (intptr_t rank = 0; rank < RANKS; rank++)
    EXPECT(pthread_create(&threads[rank], NULL, chosen_in_runtime, (void*)rank) == 0);
  for (int rank = 0; rank < RANKS; rank++) EXPECT(pthread_join(threads[rank], NULL) == 0);
}

int main(int argc, char** argv) {
  const struct {
    const char* name;
    void (*run)(void);
  } parts[] = {{"refused", refused},
               {"memory", memory},
               {"lifecycle", lifecycle},
               {"aborted", aborted},
               {"mismatched", mismatched},
               {"loads", loads},
               {"runtime", runtime},
               {"unusable", unusable},
               {"unusable_and_chosen", unusable_and_chosen}};
  gpu_begin();
  EXPECT(gpu);
  for (unsigned i = 0; argc == 2 && i < sizeof parts / sizeof *parts; i++)
    if (strcmp(argv[1], parts[i].name) == 0) return parts[i].run(), 0;
  return 2;
}
