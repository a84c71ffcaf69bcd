/* The smallest program: one rank, one all-reduce. */
#include <nccl.h>
#include <stdio.h>

int main(void) {
  ncclComm_t comm;
  double send = 7, recv = 0;
  if (ncclCommInitAll(&comm, 1, NULL) != ncclSuccess) return 1;
  if (ncclAllReduce(&send, &recv, 1, ncclDouble, ncclSum, comm, NULL) != ncclSuccess) return 2;
  if (ncclCommDestroy(comm) != ncclSuccess) return 3;
  return recv == 7 ? 0 : 4;
}
