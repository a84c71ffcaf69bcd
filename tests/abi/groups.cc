// One thread as three ranks, from C++: in groups, where it would wait for itself otherwise.
#include "check.h"

int main() {
  const int nranks = 3;
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  ncclComm_t comms[nranks];
  OK(ncclGroupStart());
  for (int rank = 0; rank < nranks; rank++) OK(ncclCommInitRank(&comms[rank], nranks, id, rank));
  OK(ncclGroupEnd());

  double send[nranks], recv[nranks], again[nranks];
  OK(ncclGroupStart());
  for (int rank = 0; rank < nranks; rank++) {
    send[rank] = rank + 1;
    OK(ncclGroupStart());
    OK(ncclAllReduce(&send[rank], &recv[rank], 1, ncclDouble, ncclSum, comms[rank], nullptr));
    OK(ncclAllReduce(&recv[rank], &again[rank], 1, ncclDouble, ncclAvg, comms[rank], nullptr));
    OK(ncclGroupEnd());
  }
  OK(ncclGroupEnd());
  for (int rank = 0; rank < nranks; rank++) EXPECT(recv[rank] == 6 && again[rank] > 5.99 && again[rank] < 6.01);
  for (ncclComm_t comm : comms) OK(ncclCommDestroy(comm));
}
