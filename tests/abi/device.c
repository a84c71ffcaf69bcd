/* Calls on communicators of CUDA devices: device.c PART. */
#include "device.h"

#include <nccl_device.h>

/* Every collective, on a stream per rank, and what a communicator says of itself. */
static void collectives(void) {
  begin();
  for (int rank = 0; rank < RANKS; rank++) {
    int device;
    ncclCommProperties_t properties = NCCL_COMM_PROPERTIES_INITIALIZER;
    OK(ncclCommCuDevice(comms[rank], &device));
    EXPECT(device == rank % gpu_devices);
    OK(ncclCommQueryProperties(comms[rank], &properties));
    EXPECT(properties.cudaDev == device && properties.rank == rank && !properties.deviceApiSupport && !properties.hostRmaSupport);
  }
  EACH(ncclAllReduce(at(in[rank]), at(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank], streams[rank]));
  sums();
  fill();
  EACH(ncclReduceScatter(at(in[rank]), at(out[rank]), COUNT, ncclDouble, ncclMax, comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT; i++) EXPECT(found[i] == given(RANKS - 1, rank * COUNT + i));
  }
  fill();
  EACH(ncclAllGather(at(in[rank]), at(out[rank]), COUNT, ncclDouble, comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT * RANKS; i++) EXPECT(found[i] == given(i / COUNT, i % COUNT));
  }
  fill();
  EACH(ncclAlltoAll(at(in[rank]), at(out[rank]), COUNT, ncclDouble, comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT * RANKS; i++) EXPECT(found[i] == given(i / COUNT, rank * COUNT + i % COUNT));
  }
  for (int root = 0; root < RANKS; root += 3) {
    fill();
    EACH(ncclBroadcast(rank == root ? at(in[rank]) : NULL, at(out[rank]), COUNT, ncclDouble, root, comms[rank], streams[rank]));
    for (int rank = 0; rank < RANKS; rank++) {
      const double* found = result(rank);
      for (int i = 0; i < COUNT; i++) EXPECT(found[i] == given(root, i));
    }
    fill();
    EACH(ncclReduce(at(in[rank]), rank == root ? at(out[rank]) : NULL, COUNT, ncclDouble, ncclMin, root, comms[rank], streams[rank]));
    const double* found = result(root);
    for (int i = 0; i < COUNT; i++) EXPECT(found[i] == given(0, i));
    fill();
    EACH(ncclGather(at(in[rank]), rank == root ? at(out[rank]) : NULL, COUNT, ncclDouble, root, comms[rank], streams[rank]));
    found = result(root);
    for (int i = 0; i < COUNT * RANKS; i++) EXPECT(found[i] == given(i / COUNT, i % COUNT));
    fill();
    EACH(ncclScatter(rank == root ? at(in[rank]) : NULL, at(out[rank]), COUNT, ncclDouble, root, comms[rank], streams[rank]));
    for (int rank = 0; rank < RANKS; rank++) {
      found = result(rank);
      for (int i = 0; i < COUNT; i++) EXPECT(found[i] == given(root, rank * COUNT + i));
    }
  }
  /* Everything to everybody, oneself too. */
  fill();
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++) {
    for (int k = 0; k < RANKS; k++) {
      int to = (rank * 2 + k) % RANKS, from = (rank + 3 * k) % RANKS;
      OK(ncclSend(at(in[rank] + 8 * COUNT * to), COUNT, ncclDouble, to, comms[rank], streams[rank]));
      OK(ncclRecv(at(out[rank] + 8 * COUNT * from), COUNT, ncclDouble, from, comms[rank], streams[rank]));
    }
  }
  OK(ncclGroupEnd());
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT * RANKS; i++) EXPECT(found[i] == given(i / COUNT, rank * COUNT + i % COUNT));
  }
  /* The barrier, and blocks that differ. */
  size_t counts[RANKS] = {5, 0, 1000, 17};
  fill();
  EACH(maypoleAllGatherV(at(in[rank]), counts[rank], at(out[rank]), counts, NULL, ncclDouble, comms[rank], streams[rank]));
  EACH(maypoleBarrier(comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int from = 0; from < RANKS; from++)
      for (size_t i = 0; i < counts[from]; i++) EXPECT(*found++ == given(from, i));
  }
  /* By an algorithm of the caller's choice. */
  ncclCollConfig_t config = NCCL_COLLCONFIG_INITIALIZER;
  config.algSelection = "ring";
  fill();
  EACH(ncclAllReduceConfig(at(in[rank]), at(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank], streams[rank], &config));
  sums();
  /* A call of nothing waits for nobody. */
  OK(ncclAllReduce(at(in[0]), at(out[0]), 0, ncclDouble, ncclSum, comms[0], streams[0]));
  DRIVER(cuStreamSynchronize(streams[0]));
  ncclResult_t state;
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclCommGetAsyncError(comms[rank], &state));
    EXPECT(state == ncclSuccess);
    OK(ncclCommFinalize(comms[rank]));
    EXPECT(ncclAllReduce(at(in[0]), at(out[0]), 1, ncclDouble, ncclSum, comms[rank], streams[rank]) == ncclInvalidArgument);
  }
  end();
}

/* Calls return while their stream is held; without groups too, as they wait for nobody. */
static void order(void) {
  begin();
  close_gate(0);
  for (int rank = 0; rank < RANKS; rank++) {
    gpu_choose(rank);
    OK(ncclAllReduce(at(in[rank]), at(in[rank]), COUNT, ncclDouble, ncclSum, comms[rank], streams[rank]));
    OK(ncclAllReduce(at(in[rank]), at(out[rank]), COUNT, ncclDouble, ncclMax, comms[rank], streams[rank]));
  }
  /* Ranks cannot have it before rank 0 has begun. */
  for (int rank = 0; rank < RANKS; rank++) EXPECT(cuStreamQuery(streams[rank]) == NOT_READY);
  open_gate(0);
  sums();
  /* A factor in device memory: read when the call runs. */
  uint64_t factors[RANKS];
  ncclRedOp_t late[RANKS], now[RANKS];
  close_gate(0);
  for (int rank = 0; rank < RANKS; rank++) {
    double one = 7, two = 2;
    factors[rank] = allocate(rank, 8);
    DRIVER(cuMemcpyHtoD_v2(factors[rank], &one, 8));
    OK(ncclRedOpCreatePreMulSum(&late[rank], at(factors[rank]), ncclDouble, ncclScalarDevice, comms[rank]));
    OK(ncclRedOpCreatePreMulSum(&now[rank], &two, ncclDouble, ncclScalarHostImmediate, comms[rank]));
    two = 5;
  }
  static double factor[RANKS] = {1, 2, 3, 4};
  for (int rank = 0; rank < RANKS; rank++) {
    gpu_choose(rank);
    DRIVER(cuMemcpyHtoDAsync_v2(factors[rank], &factor[rank], 8, streams[rank]));
  }
  EACH(ncclAllReduce(at(in[rank]), at(out[rank]), COUNT, ncclDouble, late[rank], comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) OK(ncclRedOpDestroy(late[rank], comms[rank]));
  open_gate(0);
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT; i++) EXPECT(found[i] == (6000 + 4 * (i % 97)) * 10);
  }
  EACH(ncclAllReduce(at(in[rank]), at(out[rank]), COUNT, ncclDouble, now[rank], comms[rank], streams[rank]));
  for (int rank = 0; rank < RANKS; rank++) {
    const double* found = result(rank);
    for (int i = 0; i < COUNT; i++) EXPECT(found[i] == (6000 + 4 * (i % 97)) * 8);
    OK(ncclRedOpDestroy(now[rank], comms[rank]));
  }
  /* The three default streams of the thread. */
  void* defaults[] = {NULL, (void*)1, (void*)2};
  for (int i = 0; i < 3; i++) {
    fill();
    EACH(ncclAllReduce(at(in[rank]), at(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank], defaults[i]));
    gpu_done();
    sums();
  }
  end();
}

/* A group's calls of one communicator on several streams: it waits for all of them, and all for it. */
static void join(void) {
  void* other;
  begin();
  gpu_choose(0);
  DRIVER(cuStreamCreate(&other, 1));
  close_gate(0);
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclAllReduce(at(in[rank]), at(in[rank]), COUNT, ncclDouble, ncclSum, comms[rank], rank ? streams[rank] : other));
    OK(ncclAllReduce(at(in[rank]), at(out[rank]), COUNT, ncclDouble, ncclMax, comms[rank], streams[rank]));
  }
  OK(ncclGroupEnd());
  EXPECT(cuStreamQuery(other) == NOT_READY && cuStreamQuery(streams[0]) == NOT_READY);
  for (int rank = 0; rank < RANKS; rank++) EXPECT(cuStreamQuery(streams[rank]) == NOT_READY);
  open_gate(0);
  /* Who waits for either stream has the results of both calls. */
  DRIVER(cuStreamSynchronize(other));
  gpu_choose(0);
  DRIVER(cuMemcpyDtoH_v2(host, out[0], BYTES));
  EXPECT(host[0] == 6000);
  sums();
  DRIVER(cuStreamDestroy_v2(other));
  end();
}

static uint64_t launches(void) {
  return simCalls("cuLaunchKernelEx") + simCalls("cuLaunchCooperativeKernel") + simCalls("cuLaunchKernel");
}

/* What a call costs in calls of the driver once it is known, and that a group is one launch per device. */
static void costs(void) {
  char report[4096];
  begin();
  EXPECT(simCalls);
  /* Without groups, each rank in a thread that has chosen its device: a launch and two other calls. */
  for (int kind = 0; kind < 4; kind++) {
    uint64_t spent = 0, seen = 0;
    for (int turn = 0; turn < 12; turn++) {
      for (int rank = 0; rank < RANKS; rank++) {
        ncclComm_t comm = comms[rank];
        void *send = at(in[rank]), *recv = at(out[rank]);
        gpu_choose(rank);
        simCallsReset();
        if (kind == 0) OK(ncclAllReduce(send, recv, COUNT, ncclDouble, ncclSum, comm, streams[rank]));
        if (kind == 1) OK(ncclAllGather(send, recv, COUNT, ncclDouble, comm, streams[rank]));
        if (kind == 2) OK(ncclReduceScatter(send, recv, COUNT, ncclDouble, ncclSum, comm, streams[rank]));
        if (kind == 3) OK(rank % 2 ? ncclSend(send, COUNT, ncclDouble, rank - 1, comm, streams[rank])
                                   : ncclRecv(recv, COUNT, ncclDouble, rank + 1, comm, streams[rank]));
        if (turn < 2) continue;
        EXPECT(launches() == 1);
        /* A thread of the library looked at the device meanwhile: a call that is known does not touch this. */
        if (simCalls("cuThreadExchangeStreamCaptureMode")) continue;
        spent += simCallsTotal(), seen++;
        if (simCallsTotal() <= 3) continue;
        simCallsReport(report, sizeof report);
        fprintf(stderr, "kind %d costs\n%s", kind, report);
        EXPECT(simCallsTotal() <= 3);
      }
    }
    EXPECT(seen > 10 * RANKS / 2);
    printf("%.1f calls of the driver for one of kind %d\n", (double)spent / seen, kind);
    gpu_done();
  }
  /* All ranks by one thread: a launch per stream and group, however many calls of a rank there are. */
  fill();
  for (int turn = 0; turn < 12; turn++) {
    if (turn == 2) simCallsReset();
    OK(ncclGroupStart());
    for (int call = 0; call < 5; call++)
      for (int rank = 0; rank < RANKS; rank++)
        OK(ncclAllReduce(at(in[rank]), at(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank], streams[rank % gpu_devices]));
    OK(ncclGroupEnd());
  }
  simCallsReport(report, sizeof report);
  printf("10 groups of 5 calls of %d ranks on %d devices cost\n%s", RANKS, gpu_devices, report);
  EXPECT(launches() == 10u * gpu_devices);
  gpu_done();
  sums();
  /* A simulated group does not touch the device. A thread of the library may look at it meanwhile, but not every time. */
  int untouched = 0;
  for (int turn = 0; turn < 20 && !untouched; turn++) {
    OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++)
      OK(ncclAllReduce(at(in[rank]), at(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank], streams[rank]));
    ncclSimInfo_t info = NCCL_SIM_INFO_INITIALIZER;
    simCallsReset();
    OK(ncclGroupSimulateEnd(&info));
    EXPECT(info.estimatedTime > 0);
    untouched = simCallsTotal() == 0;
  }
  EXPECT(untouched);
  end();
}

/* Recorded, nothing runs; replayed, it runs each time, among calls that are not of the graph. */
static void captured(void) {
  void *graph, *ready, *events[RANKS];
  begin();
  /* New calls, known ones, and new ones while other threads' captures matter as well. */
  for (int known = 0; known < 3; known++) {
    fill();
    gpu_choose(0);
    /* The streams of all ranks are part of the capture of the first. */
    DRIVER(cuStreamBeginCapture_v2(streams[0], known == 0));
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
    EACH(ncclAllReduce(at(in[rank]), at(in[rank]), COUNT + 100 * (known == 2), ncclDouble, ncclMax, comms[rank], streams[rank]));
    EACH(ncclAllReduce(at(in[rank]), at(out[rank]), COUNT, ncclDouble, ncclSum, comms[rank], streams[rank]));
    OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++) {
      OK(ncclSend(at(out[rank]), 10, ncclDouble, (rank + 1) % RANKS, comms[rank], streams[rank]));
      OK(ncclRecv(at(in[rank]), 10, ncclDouble, (rank + RANKS - 1) % RANKS, comms[rank], streams[rank]));
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
      for (int rank = 0; rank < RANKS; rank++) EXPECT(result(rank)[0] == 4 * largest && result(rank)[COUNT - 1] == 4 * given(3, COUNT - 1));
      largest *= 4;
      /* In between, outside of the graph. */
      EACH(ncclAllReduce(at(out[rank]), at(out[rank]), 1, ncclDouble, ncclMin, comms[rank], streams[rank]));
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
  } parts[] = {{"collectives", collectives}, {"order", order}, {"join", join}, {"costs", costs}, {"captured", captured}};
  gpu_begin();
  EXPECT(gpu);
  for (unsigned i = 0; argc == 2 && i < sizeof parts / sizeof *parts; i++)
    if (strcmp(argv[1], parts[i].name) == 0) return parts[i].run(), 0;
  return 2;
}
