/* On host memory or devices: every collective among processes: `collectives NRANKS`. The id goes to the children through pipes. */
#include "gpu.h"

#include <sys/wait.h>
#include <unistd.h>

enum { COUNT = 1000, MOST = 8 };

/* A call, and its result. */
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

  static float mine[MOST * COUNT], theirs[MOST * COUNT], factor, token;
  GPU_PIN(mine);
  GPU_PIN(theirs);
  gpu_pin(&factor, sizeof factor);
  gpu_pin(&token, sizeof token);
  float total = 0;
  for (int r = 0; r < nranks; r++) total += r + 1;

  for (int i = 0; i < COUNT; i++) mine[i] = (rank + 1) * (i % 7);
  DONE(ncclAllReduce(mine, theirs, COUNT, ncclFloat, ncclSum, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(theirs[i] == total * (i % 7));
  DONE(ncclAllReduce(mine, mine, COUNT, ncclFloat, ncclMax, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(mine[i] == nranks * (i % 7));

  for (int i = 0; i < COUNT; i++) mine[i] = rank * COUNT + i;
  DONE(ncclAllGather(mine, theirs, COUNT, ncclFloat32, comm, NULL));
  for (int i = 0; i < nranks * COUNT; i++) EXPECT(theirs[i] == i);

  for (int i = 0; i < nranks * COUNT; i++) mine[i] = (rank + 1) * (i % 5);
  DONE(ncclReduceScatter(mine, theirs, COUNT, ncclFloat, ncclSum, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(theirs[i] == total * ((rank * COUNT + i) % 5));

  int root = nranks - 1;
  for (int i = 0; i < COUNT; i++) mine[i] = rank == root ? i : -1;
  DONE(ncclBroadcast(rank == root ? mine : NULL, theirs, COUNT, ncclFloat, root, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(theirs[i] == i);
  DONE(ncclBcast(mine, COUNT, ncclFloat, root, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(mine[i] == i);

  /* Factors of each rank's own: read at once, and read when the call runs. */
  float weighted = 0;
  factor = rank + 1;
  for (int r = 0; r < nranks; r++) weighted += (r + 1) * 2;
  ncclRedOp_t immediate, device;
  OK(ncclRedOpCreatePreMulSum(&immediate, &factor, ncclFloat, ncclScalarHostImmediate, comm));
  OK(ncclRedOpCreatePreMulSum(&device, &factor, ncclFloat, ncclScalarDevice, comm));
  EXPECT(immediate >= ncclNumOps && device != immediate);
  factor = 10 * (rank + 1);
  for (int i = 0; i < COUNT; i++) mine[i] = 2;
  DONE(ncclAllReduce(mine, theirs, COUNT, ncclFloat, immediate, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(theirs[i] == weighted);
  DONE(ncclAllReduce(mine, theirs, COUNT, ncclFloat, device, comm, NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(theirs[i] == 10 * weighted);
  EXPECT(ncclAllReduce(mine, theirs, COUNT, ncclDouble, device, comm, NULL) == ncclInvalidArgument);

  /* Everything to everybody, oneself too, in a group; then a ring without one. */
  for (int i = 0; i < nranks * COUNT; i++) mine[i] = rank * nranks * COUNT + i, theirs[i] = -1;
  OK(ncclGroupStart());
  for (int peer = 0; peer < nranks; peer++) {
    OK(ncclSend(mine + peer * COUNT, COUNT, ncclFloat, peer, comm, NULL));
    OK(ncclRecv(theirs + peer * COUNT, COUNT, ncclFloat, peer, comm, NULL));
  }
  DONE(ncclGroupEnd());
  for (int peer = 0; peer < nranks; peer++)
    for (int i = 0; i < COUNT; i++) EXPECT(theirs[peer * COUNT + i] == (peer * nranks + rank) * COUNT + i);
  if (nranks > 1) {
    token = rank ? -1 : 42;
    if (rank) OK(ncclRecv(&token, 1, ncclFloat, rank - 1, comm, NULL));
    OK(ncclSend(&token, 1, ncclFloat, (rank + 1) % nranks, comm, NULL));
    if (!rank) OK(ncclRecv(&token, 1, ncclFloat, nranks - 1, comm, NULL));
    gpu_done();
    EXPECT(token == 42);
  }

  /* A group: queued, run in order at its end, with an operator that is gone by then. */
  for (int i = 0; i < COUNT; i++) mine[i] = 1, theirs[i] = 0;
  OK(ncclGroupStart());
  OK(ncclAllReduce(mine, theirs, COUNT, ncclFloat, immediate, comm, NULL));
  OK(ncclAllReduce(theirs, mine, COUNT, ncclFloat, ncclSum, comm, NULL));
  OK(ncclRedOpDestroy(immediate, comm));
  EXPECT(theirs[0] == 0);
  DONE(ncclGroupEnd());
  for (int i = 0; i < COUNT; i++) EXPECT(theirs[i] == total && mine[i] == nranks * total);
  OK(ncclRedOpDestroy(device, comm));

  ncclResult_t state = ncclInternalError;
  OK(ncclCommGetAsyncError(comm, &state));
  EXPECT(state == ncclSuccess);
  OK(ncclCommFinalize(comm));
  OK(ncclCommDestroy(comm));
}

int main(int argc, char** argv) {
  int nranks = argc > 1 ? atoi(argv[1]) : 1;
  EXPECT(nranks >= 1 && nranks <= MOST);
  int pipes[MOST][2];
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
  for (int rank = 1; rank < nranks; rank++) EXPECT(write(pipes[rank][1], &id, sizeof id) == sizeof id);
  rank_main(id, nranks, 0);
  for (int rank = 1; rank < nranks; rank++) {
    int status;
    EXPECT(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  return 0;
}
