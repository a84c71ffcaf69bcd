/* Calls on communicators of CUDA devices. Usage: device PART. */
#include "device.h"

#include <nccl_device.h>

/* Every collective on one stream per rank, and the properties of a communicator. */
static void collectives(void) {
  begin();
  for (int rank = 0; rank < RANKS; rank++) {
    int device;
    ncclCommProperties_t properties = NCCL_COMM_PROPERTIES_INITIALIZER;
    OK(ncclCommCuDevice(comms[rank], &device));
    EXPECT(device == rank % gpu_devices);
    OK(ncclCommQueryProperties(comms[rank], &properties));
    EXPECT(properties.cudaDev == device && properties.rank == rank &&
           !properties.deviceApiSupport && !properties.hostRmaSupport);
  }
  EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank],
                     streams[rank]));
  check_sums();
  fill();
  EACH(ncclReduceScatter(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclMax,
                         comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT; i++) EXPECT(found[i] == input_of(RANKS - 1, rank * COUNT + i));
  }
  fill();
  EACH(ncclAllGather(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, comms[rank],
                     streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT * RANKS; i++) EXPECT(found[i] == input_of(i / COUNT, i % COUNT));
  }
  fill();
  EACH(ncclAlltoAll(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, comms[rank],
                    streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT * RANKS; i++)
      EXPECT(found[i] == input_of(i / COUNT, rank * COUNT + i % COUNT));
  }
  for (int root = 0; root < RANKS; root += 3) {
    fill();
    EACH(ncclBroadcast(rank == root ? pointer(in[rank]) : NULL, pointer(out[rank]), COUNT,
                       ncclDouble, root, comms[rank], streams[rank]));
    for (int rank = 0; rank < RANKS; rank++) {
      const double* found = result(rank);
      for (int i = 0; i < COUNT; i++) EXPECT(found[i] == input_of(root, i));
    }
    fill();
    EACH(ncclReduce(pointer(in[rank]), rank == root ? pointer(out[rank]) : NULL, COUNT, ncclDouble,
                    ncclMin, root, comms[rank], streams[rank]));
    const double* found = result(root);
    for (int i = 0; i < COUNT; i++) EXPECT(found[i] == input_of(0, i));
    fill();
    EACH(ncclGather(pointer(in[rank]), rank == root ? pointer(out[rank]) : NULL, COUNT, ncclDouble,
                    root, comms[rank], streams[rank]));
    found = result(root);
    for (int i = 0; i < COUNT * RANKS; i++) EXPECT(found[i] == input_of(i / COUNT, i % COUNT));
    fill();
    EACH(ncclScatter(rank == root ? pointer(in[rank]) : NULL, pointer(out[rank]), COUNT, ncclDouble,
                     root, comms[rank], streams[rank]));
    for (int rank = 0; rank < RANKS; rank++) {
      found = result(rank);
      for (int i = 0; i < COUNT; i++) EXPECT(found[i] == input_of(root, rank * COUNT + i));
    }
  }
  /* Each rank sends to each rank, itself included. */
  fill();
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++) {
    for (int k = 0; k < RANKS; k++) {
      int to = (rank * 2 + k) % RANKS, from = (rank + 3 * k) % RANKS;
      OK(ncclSend(pointer(in[rank] + 8 * COUNT * to), COUNT, ncclDouble, to, comms[rank],
                  streams[rank]));
      OK(ncclRecv(pointer(out[rank] + 8 * COUNT * from), COUNT, ncclDouble, from, comms[rank],
                  streams[rank]));
    }
  }
  OK(ncclGroupEnd());
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT * RANKS; i++)
      EXPECT(found[i] == input_of(i / COUNT, rank * COUNT + i % COUNT));
  }
  /* The barrier, and a vector collective. */
  size_t counts[RANKS] = {5, 0, 1000, 17};
  fill();
  EACH(maypoleAllGatherV(pointer(in[rank]), counts[rank], pointer(out[rank]), counts, NULL,
                         ncclDouble, comms[rank], streams[rank]));
  EACH(maypoleBarrier(comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int from = 0; from < RANKS; from++)
      for (size_t i = 0; i < counts[from]; i++) EXPECT(*found++ == input_of(from, i));
  }
  /* An algorithm that the caller names. */
  ncclCollConfig_t config = NCCL_COLLCONFIG_INITIALIZER;
  config.algSelection = "ring";
  fill();
  EACH(ncclAllReduceConfig(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                           comms[rank], streams[rank], &config));
  check_sums();
  /* A call without elements waits for no rank. */
  OK(ncclAllReduce(pointer(in[0]), pointer(out[0]), 0, ncclDouble, ncclSum, comms[0], streams[0]));
  DRIVER(cuStreamSynchronize(streams[0]));
  ncclResult_t state;
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclCommGetAsyncError(comms[rank], &state));
    EXPECT(state == ncclSuccess);
    OK(ncclCommFinalize(comms[rank]));
    EXPECT(ncclAllReduce(pointer(in[0]), pointer(out[0]), 1, ncclDouble, ncclSum, comms[rank],
                         streams[rank]) == ncclInvalidArgument);
  }
  end();
}

/* Calls return while their stream is held, also without groups, as they wait for no rank. */
static void order(void) {
  begin();
  close_gate(0);
  for (int rank = 0; rank < RANKS; rank++) {
    gpu_choose(rank);
    OK(ncclAllReduce(pointer(in[rank]), pointer(in[rank]), COUNT, ncclDouble, ncclSum, comms[rank],
                     streams[rank]));
    OK(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclMax, comms[rank],
                     streams[rank]));
  }
  /* No rank can have the result before rank 0 has begun. */
  for (int rank = 0; rank < RANKS; rank++) EXPECT(cuStreamQuery(streams[rank]) == NOT_READY);
  open_gate(0);
  check_sums();
  /* A factor in device memory is read when the call runs. */
  uint64_t factors[RANKS];
  ncclRedOp_t late[RANKS], now[RANKS];
  close_gate(0);
  for (int rank = 0; rank < RANKS; rank++) {
    double one = 7, two = 2;
    factors[rank] = allocate(rank, 8);
    DRIVER(cuMemcpyHtoD_v2(factors[rank], &one, 8));
    OK(ncclRedOpCreatePreMulSum(&late[rank], pointer(factors[rank]), ncclDouble, ncclScalarDevice,
                                comms[rank]));
    OK(ncclRedOpCreatePreMulSum(&now[rank], &two, ncclDouble, ncclScalarHostImmediate,
                                comms[rank]));
    two = 5;
  }
  static double factor[RANKS] = {1, 2, 3, 4};
  for (int rank = 0; rank < RANKS; rank++) {
    gpu_choose(rank);
    DRIVER(cuMemcpyHtoDAsync_v2(factors[rank], &factor[rank], 8, streams[rank]));
  }
  EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, late[rank],
                     comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) OK(ncclRedOpDestroy(late[rank], comms[rank]));
  open_gate(0);
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT; i++) EXPECT(found[i] == (6000 + 4 * (i % 97)) * 10);
  }
  EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, now[rank],
                     comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT; i++) EXPECT(found[i] == (6000 + 4 * (i % 97)) * 8);
    OK(ncclRedOpDestroy(now[rank], comms[rank]));
  }
  /* The three default streams of the thread. */
  void* defaults[] = {NULL, (void*)1, (void*)2};
  for (int i = 0; i < 3; i++) {
    fill();
    EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                       comms[rank], defaults[i]));
    gpu_done();
    check_sums();
  }
  end();
}

/* The calls of a group on one communicator on several streams wait for all of these streams, and
 * these for the calls. */
static void join(void) {
  void* other;
  begin();
  gpu_choose(0);
  DRIVER(cuStreamCreate(&other, 1));
  close_gate(0);
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclAllReduce(pointer(in[rank]), pointer(in[rank]), COUNT, ncclDouble, ncclSum, comms[rank],
                     rank ? streams[rank] : other));
    OK(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclMax, comms[rank],
                     streams[rank]));
  }
  OK(ncclGroupEnd());
  EXPECT(cuStreamQuery(other) == NOT_READY && cuStreamQuery(streams[0]) == NOT_READY);
  for (int rank = 0; rank < RANKS; rank++) EXPECT(cuStreamQuery(streams[rank]) == NOT_READY);
  open_gate(0);
  /* After a wait for either stream the results of both calls are there. */
  DRIVER(cuStreamSynchronize(other));
  gpu_choose(0);
  DRIVER(cuMemcpyDtoH_v2(host, out[0], BYTES));
  EXPECT(host[0] == 6000);
  check_sums();
  DRIVER(cuStreamDestroy_v2(other));
  end();
}

static uint64_t launches(void) {
  return simCalls("cuLaunchKernelEx") + simCalls("cuLaunchCooperativeKernel") +
         simCalls("cuLaunchKernel");
}

/* How many calls of the driver a repeated call needs; a group is one launch per device. */
static void costs(void) {
  char report[4096];
  begin();
  EXPECT(simCalls);
  /* Without groups, if the thread has chosen the device of the rank: a launch and three
   * other calls. */
  for (int kind = 0; kind < 4; kind++) {
    uint64_t spent = 0, seen = 0;
    for (int turn = 0; turn < 12; turn++) {
      for (int rank = 0; rank < RANKS; rank++) {
        ncclComm_t comm = comms[rank];
        void *send = pointer(in[rank]), *recv = pointer(out[rank]);
        gpu_choose(rank);
        simCallsReset();
        if (kind == 0)
          OK(ncclAllReduce(send, recv, COUNT, ncclDouble, ncclSum, comm, streams[rank]));
        if (kind == 1) OK(ncclAllGather(send, recv, COUNT, ncclDouble, comm, streams[rank]));
        if (kind == 2)
          OK(ncclReduceScatter(send, recv, COUNT, ncclDouble, ncclSum, comm, streams[rank]));
        if (kind == 3)
          OK(rank % 2 ? ncclSend(send, COUNT, ncclDouble, rank - 1, comm, streams[rank])
                      : ncclRecv(recv, COUNT, ncclDouble, rank + 1, comm, streams[rank]));
        if (turn < 2) continue;
        EXPECT(launches() == 1);
        uint64_t total = simCallsTotal();
        /* Then a thread of the library looked at the device; a repeated call does not do that. It
         * may do so at any time, so the total comes first. */
        if (simCalls("cuThreadExchangeStreamCaptureMode")) continue;
        spent += total, seen++;
        if (total <= 3) continue;
        simCallsReport(report, sizeof report);
        fprintf(stderr, "kind %d costs\n%s", kind, report);
        EXPECT(total <= 4);
      }
    }
    EXPECT(seen > 10 * RANKS / 2);
    printf("%.1f calls of the driver for one of kind %d\n", (double)spent / seen, kind);
    gpu_done();
  }
  /* One thread as all ranks: a launch per stream and group, however many calls there are. */
  fill();
  for (int turn = 0; turn < 12; turn++) {
    if (turn == 2) simCallsReset();
    OK(ncclGroupStart());
    for (int call = 0; call < 5; call++)
      for (int rank = 0; rank < RANKS; rank++)
        OK(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                         comms[rank], streams[rank % gpu_devices]));
    OK(ncclGroupEnd());
  }
  simCallsReport(report, sizeof report);
  printf("10 groups of 5 calls of %d ranks on %d devices cost\n%s", RANKS, gpu_devices, report);
  EXPECT(launches() == 10u * gpu_devices);
  gpu_done();
  check_sums();
  /* A group that is only predicted does not touch the device. A thread of the library may look at
   * the device at the same time, but not every time. */
  int untouched = 0;
  for (int turn = 0; turn < 20 && !untouched; turn++) {
    OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++)
      OK(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                       comms[rank], streams[rank]));
    ncclSimInfo_t info = NCCL_SIM_INFO_INITIALIZER;
    simCallsReset();
    OK(ncclGroupSimulateEnd(&info));
    EXPECT(info.estimatedTime > 0);
    untouched = simCallsTotal() == 0;
  }
  EXPECT(untouched);
  end();
}

/* More calls in a group than one launch holds: each rank waits for calls of the others. */
static void many(void) {
  begin();
  OK(ncclGroupStart());
  for (int call = 0; call < 40; call++)
    for (int rank = 0; rank < RANKS; rank++)
      OK(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                       comms[rank], streams[rank]));
  OK(ncclGroupEnd());
  check_sums();
  end();
}

/* While a graph is recorded no call runs. Each replay runs them, between calls outside of it. */
static void captured(void) {
  void *graph, *ready, *events[RANKS];
  begin();
  /* New calls, repeated ones, and new ones in a capture mode that concerns other threads too. */
  for (int round = 0; round < 3; round++) {
    fill();
    gpu_choose(0);
    /* The streams of all ranks join the capture of the first stream. */
    DRIVER(cuStreamBeginCapture_v2(streams[0], round == 0));
    for (int rank = 0; rank < RANKS; rank++) {
      gpu_choose(rank);
      DRIVER(cuEventCreate(&events[rank], 2));
    }
    gpu_choose(0);
    DRIVER(cuEventRecord(events[0], streams[0]));
    for (int rank = 1; rank < RANKS; rank++) {
      gpu_choose(rank);
      DRIVER(cuStreamWaitEvent(streams[rank], events[0], 0));
    }
    EACH(ncclAllReduce(pointer(in[rank]), pointer(in[rank]), COUNT + 100 * (round == 2), ncclDouble,
                       ncclMax, comms[rank], streams[rank]));
    EACH(ncclAllReduce(pointer(in[rank]), pointer(out[rank]), COUNT, ncclDouble, ncclSum,
                       comms[rank], streams[rank]));
    OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++) {
      OK(ncclSend(pointer(out[rank]), 10, ncclDouble, (rank + 1) % RANKS, comms[rank],
                  streams[rank]));
      OK(ncclRecv(pointer(in[rank]), 10, ncclDouble, (rank + RANKS - 1) % RANKS, comms[rank],
                  streams[rank]));
    }
    OK(ncclGroupEnd());
    for (int rank = 1; rank < RANKS; rank++) {
      gpu_choose(rank);
      DRIVER(cuEventRecord(events[rank], streams[rank]));
      DRIVER(cuStreamWaitEvent(streams[0], events[rank], 0));
    }
    gpu_choose(0);
    DRIVER(cuStreamEndCapture(streams[0], &graph));
    DRIVER(cuGraphInstantiateWithFlags(&ready, graph, 0));
    DRIVER(cuGraphDestroy(graph));
    EXPECT(result(1)[0] == -1);
    double largest = 3000;
    for (int turn = 0; turn < 3; turn++) {
      gpu_choose(0);
      DRIVER(cuGraphLaunch(ready, streams[0]));
      DRIVER(cuStreamSynchronize(streams[0]));
      for (int rank = 0; rank < RANKS; rank++)
        EXPECT(result(rank)[0] == 4 * largest &&
               result(rank)[COUNT - 1] == 4 * input_of(3, COUNT - 1));
      largest *= 4;
      /* A call between replays, outside of the graph. */
      EACH(ncclAllReduce(pointer(out[rank]), pointer(out[rank]), 1, ncclDouble, ncclMin,
                         comms[rank], streams[rank]));
      for (int rank = 0; rank < RANKS; rank++) EXPECT(result(rank)[0] == largest);
    }
    gpu_choose(0);
    DRIVER(cuGraphExecDestroy(ready));
  }
  end();
}

int main(int argc, char** argv) {
  const struct {
    const char* name;
    void (*run)(void);
  } parts[] = {{"collectives", collectives},
               {"order", order},
               {"join", join},
               {"costs", costs},
               {"many", many},
               {"captured", captured}};
  gpu_begin();
  EXPECT(gpu);
  for (unsigned i = 0; argc == 2 && i < sizeof parts / sizeof *parts; i++)
    if (strcmp(argv[1], parts[i].name) == 0) return parts[i].run(), 0;
  return 2;
}
