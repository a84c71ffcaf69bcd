// One thread as three ranks in C++, on host memory or devices. Without groups it would wait for
// itself.
#include "gpu.h"

int main() {
  gpu_begin();
  const int nranks = 3;
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  ncclComm_t comms[nranks];
  OK(ncclGroupStart());
  for (int rank = 0; rank < nranks; rank++) OK(ncclCommInitRank(&comms[rank], nranks, id, rank));
  OK(ncclGroupEnd());

  static double send[nranks], recv[nranks], again[nranks];
  GPU_PIN(send);
  GPU_PIN(recv);
  GPU_PIN(again);
  OK(ncclGroupStart());
  for (int rank = 0; rank < nranks; rank++) {
    send[rank] = rank + 1;
    OK(ncclGroupStart());
    OK(ncclAllReduce(&send[rank], &recv[rank], 1, ncclDouble, ncclSum, comms[rank], nullptr));
    OK(ncclAllReduce(&recv[rank], &again[rank], 1, ncclDouble, ncclAvg, comms[rank], nullptr));
    OK(ncclGroupEnd());
  }
  OK(ncclGroupEnd());
  gpu_done();
  for (int rank = 0; rank < nranks; rank++)
    EXPECT(recv[rank] == 6 && again[rank] > 5.99 && again[rank] < 6.01);
  for (ncclComm_t comm : comms) OK(ncclCommDestroy(comm));
}
