/* Every collective among processes, on host memory or devices. Child processes get the unique id
 * through pipes. Usage: collectives NRANKS. */
#include "gpu.h"

#include <sys/wait.h>
#include <unistd.h>

enum { COUNT = 1000, MAX_RANKS = 8 };

/* Makes a call and waits for its result. */
#define DONE(call) \
  do {             \
    OK(call);      \
    gpu_done();    \
  } while (0)

static void rank_main(ncclUniqueId id, int nranks, int rank) {
  ncclComm_t comm;
  gpu_begin();
  gpu_choose(rank);
  OK(ncclCommInitRank(&comm, nranks, id, rank));
  int number = -1;
  OK(ncclCommCount(comm, &number));
  EXPECT(number == nranks);
  OK(ncclCommUserRank(comm, &number));
  EXPECT(number == rank);

  static float send[MAX_RANKS * COUNT], recv[MAX_RANKS * COUNT], factor, token;
  GPU_PIN(send);
  GPU_PIN(recv);
  gpu_pin(&factor, sizeof factor);
  gpu_pin(&token, sizeof token);
  float total = 0;
  for (int r = 0; r < nranks; r++) total += r + 1;

  for (int i = 0; i < COUNT; i++) send[i] = (rank + 1) * (i % 7);
  DONE(ncclAllReduce(send, recv, COUNT, ncclFloat, ncclSum, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(recv[i] == total * (i % 7));
  DONE(ncclAllReduce(send, send, COUNT, ncclFloat, ncclMax, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(send[i] == nranks * (i % 7));

  for (int i = 0; i < COUNT; i++) send[i] = rank * COUNT + i;
  DONE(ncclAllGather(send, recv, COUNT, ncclFloat32, comm, NULL));
  for (int i = 0; i < nranks * COUNT; i++) EXPECT(recv[i] == i);

  for (int i = 0; i < nranks * COUNT; i++) send[i] = (rank + 1) * (i % 5);
  DONE(ncclReduceScatter(send, recv, COUNT, ncclFloat, ncclSum, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(recv[i] == total * ((rank * COUNT + i) % 5));

  /* Each rank sends a part to each rank; then in place, and with buffers that overlap in part. */
  static float many[MAX_RANKS * COUNT + 1];
  GPU_PIN(many);
  float* const places[][2] = {{send, recv}, {many, many}, {many, many + 1}, {many + 1, many}};
  for (int place = 0; place < 4; place++) {
    float *from = places[place][0], *to = places[place][1];
    for (int i = 0; i < nranks * COUNT; i++) from[i] = rank * nranks * COUNT + i;
    DONE(ncclAlltoAll(from, to, COUNT, ncclFloat, comm, NULL));
    for (int peer = 0; peer < nranks; peer++)
      for (int i = 0; i < COUNT; i++)
        EXPECT(to[peer * COUNT + i] == (peer * nranks + rank) * COUNT + i);
  }

  int root = nranks - 1;
  for (int i = 0; i < COUNT; i++) send[i] = rank == root ? i : -1;
  DONE(ncclBroadcast(rank == root ? send : NULL, recv, COUNT, ncclFloat, root, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(recv[i] == i);
  DONE(ncclBcast(send, COUNT, ncclFloat, root, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(send[i] == i);

  /* Factors that differ between ranks: read at once, and read when the call runs. */
  float weighted = 0;
  factor = rank + 1;
  for (int r = 0; r < nranks; r++) weighted += (r + 1) * 2;
  ncclRedOp_t immediate, device;
  OK(ncclRedOpCreatePreMulSum(&immediate, &factor, ncclFloat, ncclScalarHostImmediate, comm));
  OK(ncclRedOpCreatePreMulSum(&device, &factor, ncclFloat, ncclScalarDevice, comm));
  EXPECT(immediate >= ncclNumOps && device != immediate);
  factor = 10 * (rank + 1);
  for (int i = 0; i < COUNT; i++) send[i] = 2;
  DONE(ncclAllReduce(send, recv, COUNT, ncclFloat, immediate, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(recv[i] == weighted);
  DONE(ncclAllReduce(send, recv, COUNT, ncclFloat, device, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(recv[i] == 10 * weighted);
  EXPECT(ncclAllReduce(send, recv, COUNT, ncclDouble, device, comm, NULL) == ncclInvalidArgument);

  /* Each rank sends to each rank, itself included, in a group; then a ring without a group. */
  for (int i = 0; i < nranks * COUNT; i++) send[i] = rank * nranks * COUNT + i, recv[i] = -1;
  OK(ncclGroupStart());
  for (int peer = 0; peer < nranks; peer++) {
    OK(ncclSend(send + peer * COUNT, COUNT, ncclFloat, peer, comm, NULL));
    OK(ncclRecv(recv + peer * COUNT, COUNT, ncclFloat, peer, comm, NULL));
  }
  DONE(ncclGroupEnd());
  for (int peer = 0; peer < nranks; peer++)
    for (int i = 0; i < COUNT; i++)
      EXPECT(recv[peer * COUNT + i] == (peer * nranks + rank) * COUNT + i);
  if (nranks > 1) {
    token = rank ? -1 : 42;
    if (rank) OK(ncclRecv(&token, 1, ncclFloat, rank - 1, comm, NULL));
    OK(ncclSend(&token, 1, ncclFloat, (rank + 1) % nranks, comm, NULL));
    if (!rank) OK(ncclRecv(&token, 1, ncclFloat, nranks - 1, comm, NULL));
    gpu_done();
    EXPECT(token == 42);
  }

  /* Calls in a group run in order at its end; the operator is destroyed before. */
  for (int i = 0; i < COUNT; i++) send[i] = 1, recv[i] = 0;
  OK(ncclGroupStart());
  OK(ncclAllReduce(send, recv, COUNT, ncclFloat, immediate, comm, NULL));
  OK(ncclAllReduce(recv, send, COUNT, ncclFloat, ncclSum, comm, NULL));
  OK(ncclRedOpDestroy(immediate, comm));
  EXPECT(recv[0] == 0);
  DONE(ncclGroupEnd());
  for (int i = 0; i < COUNT; i++) EXPECT(recv[i] == total && send[i] == nranks * total);
  OK(ncclRedOpDestroy(device, comm));

  ncclResult_t state = ncclInternalError;
  OK(ncclCommGetAsyncError(comm, &state));
  EXPECT(state == ncclSuccess);
  OK(ncclCommFinalize(comm));
  OK(ncclCommDestroy(comm));
}

int main(int argc, char** argv) {
  int nranks = argc > 1 ? atoi(argv[1]) : 1;
  EXPECT(nranks >= 1 && nranks <= MAX_RANKS);
  int pipes[MAX_RANKS][2];
  for (int rank = 1; rank < nranks; rank++) {
    EXPECT(pipe(pipes[rank]) == 0);
    if (fork() == 0) {
      ncclUniqueId id;
      EXPECT(read(pipes[rank][0], &id, sizeof id) == sizeof id);
      rank_main(id, nranks, rank);
      return 0;
    }
  }
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  for (int rank = 1; rank < nranks; rank++)
    EXPECT(write(pipes[rank][1], &id, sizeof id) == sizeof id);
  rank_main(id, nranks, 0);
  for (int rank = 1; rank < nranks; rank++) {
    int status;
    EXPECT(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  return 0;
}
