/* A few calls for a profiler to record. */
#include "check.h"

int main(void) {
  ncclUniqueId id;
  ncclComm_t comm;
  int value = 5, result = 0;
  OK(ncclGetUniqueId(&id));
  OK(ncclCommInitRank(&comm, 1, id, 0));
  OK(ncclGroupStart());
  OK(ncclAllReduce(&value, &result, 1, ncclInt32, ncclSum, comm, 0));
  OK(ncclGroupEnd());
  OK(pncclAllReduce(&value, &result, 1, ncclInt32, ncclSum, comm, 0));
  EXPECT(result == 5);
  OK(ncclCommDestroy(comm));
  return 0;
}
