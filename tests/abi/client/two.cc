// One thread as two ranks, in C++.
#include <maypole.h>

int main() {
  ncclComm_t comms[2];
  float send[2] = {1, 2}, recv[2] = {0, 0};
  if (ncclCommInitAll(comms, 2, nullptr) != ncclSuccess) return 1;
  ncclGroupStart();
  for (int i = 0; i < 2; i++)
    ncclAllReduce(&send[i], &recv[i], 1, ncclFloat, ncclSum, comms[i], nullptr);
  for (int i = 0; i < 2; i++) maypoleBarrier(comms[i], nullptr);
  if (ncclGroupEnd() != ncclSuccess) return 2;
  for (ncclComm_t comm : comms) ncclCommDestroy(comm);
  return recv[0] == 3 && recv[1] == 3 ? 0 : 3;
}
