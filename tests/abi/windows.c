/* Windows and one-sided calls over one kind of link. One thread is all ranks. Usage:
 * windows LINK. */
#define _GNU_SOURCE
#include "check.h"

#include <maypole.h>
#include <stdint.h>
#include <string.h>

enum { RANKS = 3, COUNT = 50000 };

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  if (strcmp(argv[1], "local")) setenv("NCCL_P2P_DISABLE", "1", 1);
  if (strcmp(argv[1], "tcp") == 0) setenv("NCCL_SHM_DISABLE", "1", 1);
  static int64_t mine[RANKS][COUNT], parts[RANKS][RANKS][COUNT];
  ncclComm_t comms[RANKS];
  ncclWindow_t windows[RANKS];
  maypoleStream_t streams[RANKS];
  ncclWaitSignalDesc_t waits[RANKS];
  OK(ncclCommInitAll(comms, RANKS, NULL));
  EXPECT(ncclSignal(1, 0, 0, 0, comms[0], NULL) == ncclInvalidArgument);
  OK(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++)
    OK(ncclCommWindowRegister(comms[rank], parts[rank], sizeof parts[rank], &windows[rank],
                              NCCL_WIN_DEFAULT));
  OK(ncclGroupEnd());
  void* pointer;
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclWinGetUserPtr(comms[rank], windows[rank], &pointer));
    EXPECT(pointer == parts[rank]);
    OK(maypoleStreamCreate(&streams[rank]));
    waits[rank] = (ncclWaitSignalDesc_t){.opCnt = 2, .peer = rank};
  }
  EXPECT(ncclWinGetUserPtr(comms[0], windows[1], &pointer) == ncclInvalidArgument);
  EXPECT(ncclPutSignal(mine[0], COUNT, ncclInt64, 1, windows[0], sizeof parts[0] - 8, 0, 0, 0,
                       comms[0], NULL) == ncclInvalidArgument);

  /* Each rank puts to each rank and signals once more: on streams, then in a group without
   * streams. */
  for (int round = 0; round < 2; round++) {
    if (round == 1) OK(ncclGroupStart());
    for (int rank = 0; rank < RANKS; rank++) {
      maypoleStream_t stream = round ? NULL : streams[rank];
      for (int i = 0; i < COUNT; i++) mine[rank][i] = round + rank * 1000000 + i;
      if (round == 1) OK(ncclWaitSignal(RANKS, waits, comms[rank], stream));
      for (int peer = 0; peer < RANKS; peer++) {
        OK(ncclPutSignal(mine[rank], COUNT, ncclInt64, peer, windows[rank], rank * sizeof mine[0],
                         0, 0, 0, comms[rank], stream));
        OK(ncclSignal(peer, 0, 0, 0, comms[rank], stream));
      }
      if (round == 0) OK(ncclWaitSignal(RANKS, waits, comms[rank], stream));
    }
    if (round == 1) OK(ncclGroupEnd());
    for (int rank = 0; rank < RANKS; rank++) OK(maypoleStreamSynchronize(streams[rank]));
    for (int rank = 0; rank < RANKS; rank++)
      for (int peer = 0; peer < RANKS; peer++)
        for (int i = 0; i < COUNT; i++) EXPECT(parts[rank][peer][i] == round + peer * 1000000 + i);
  }
  for (int rank = 0; rank < RANKS; rank++) {
    OK(ncclCommWindowDeregister(comms[rank], windows[rank]));
    EXPECT(ncclCommWindowDeregister(comms[rank], windows[rank]) == ncclInvalidArgument);
    OK(ncclCommWindowDeregister(comms[rank], NULL));
    OK(maypoleStreamDestroy(streams[rank]));
  }
  for (int rank = 0; rank < RANKS; rank++) OK(ncclCommDestroy(comms[rank]));
  return 0;
}
