/* Wrong calls return the documented result and leave a text; none crashes. */
#include "check.h"

#include <stdint.h>
#include <string.h>

#define REFUSED(call) EXPECT((call) == ncclInvalidArgument && strlen(ncclGetLastError(NULL)) > 0)
#define MISUSED(call) EXPECT((call) == ncclInvalidUsage && strlen(ncclGetLastError(NULL)) > 0)

int main(void) {
  int version = 0;
  OK(ncclGetVersion(&version));
  EXPECT(version == NCCL_VERSION_CODE && version == 23203);
  REFUSED(ncclGetVersion(NULL));
  EXPECT(strcmp(ncclGetErrorString(ncclSuccess), "no error") == 0);

  ncclUniqueId id, garbage;
  memset(&garbage, 0x11, sizeof garbage);
  OK(ncclGetUniqueId(&id));
  REFUSED(ncclGetUniqueId(NULL));

  ncclComm_t comm = NULL;
  REFUSED(ncclCommInitRank(NULL, 1, id, 0));
  REFUSED(ncclCommInitRank(&comm, 0, id, 0));
  REFUSED(ncclCommInitRank(&comm, 1, id, 1));
  REFUSED(ncclCommInitRank(&comm, 1, id, -1));
  REFUSED(ncclCommInitRank(&comm, 1, garbage, 0));
  OK(ncclCommInitRank(&comm, 1, id, 0));

  float send[4] = {1, 2, 3, 4}, recv[4] = {0};
  REFUSED(ncclAllReduce(NULL, recv, 4, ncclFloat, ncclSum, comm, NULL));
  REFUSED(ncclAllReduce(send, NULL, 4, ncclFloat, ncclSum, comm, NULL));
  REFUSED(ncclAllReduce(send, recv, 4, (ncclDataType_t)12, ncclSum, comm, NULL));
  REFUSED(ncclAllReduce(send, recv, 4, (ncclDataType_t)-1, ncclSum, comm, NULL));
  REFUSED(ncclAllReduce(send, recv, 4, ncclFloat, (ncclRedOp_t)5, comm, NULL));
  REFUSED(ncclAllReduce(send, recv, 4, ncclFloat, (ncclRedOp_t)-1, comm, NULL));
  REFUSED(ncclAllReduce(send, recv, SIZE_MAX / 2, ncclFloat, ncclSum, comm, NULL));
  REFUSED(ncclBroadcast(send, recv, 4, ncclFloat, 1, comm, NULL));
  REFUSED(ncclBroadcast(send, recv, 4, ncclFloat, -1, comm, NULL));
  REFUSED(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, (cudaStream_t)send));
  OK(ncclAllReduce(NULL, NULL, 0, ncclFloat, ncclSum, comm, NULL));
  OK(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, NULL));
  EXPECT(memcmp(send, recv, sizeof send) == 0);

  MISUSED(ncclSend(send, 4, ncclFloat, 0, comm, NULL));
  MISUSED(ncclRecv(recv, 4, ncclFloat, 0, comm, NULL));
  MISUSED(ncclGroupEnd());

  ncclRedOp_t op;
  REFUSED(ncclRedOpCreatePreMulSum(NULL, send, ncclFloat, ncclScalarHostImmediate, comm));
  REFUSED(ncclRedOpCreatePreMulSum(&op, NULL, ncclFloat, ncclScalarHostImmediate, comm));
  REFUSED(ncclRedOpCreatePreMulSum(&op, send, ncclFloat, (ncclScalarResidence_t)2, comm));
  REFUSED(ncclRedOpDestroy(ncclSum, comm));

  /* A wrong call in a group makes its end fail and drops the other calls. */
  memset(recv, 0, sizeof recv);
  OK(ncclGroupStart());
  OK(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, NULL));
  REFUSED(ncclAllReduce(send, NULL, 4, ncclFloat, ncclSum, comm, NULL));
  REFUSED(ncclGroupEnd());
  EXPECT(recv[0] == 0);
  OK(ncclGroupStart());
  OK(ncclGroupEnd());

  int number;
  REFUSED(ncclCommCount(NULL, &number));
  REFUSED(ncclCommCount(comm, NULL));
  REFUSED(ncclCommUserRank((ncclComm_t)send, &number));
  OK(ncclCommCuDevice(comm, &number));
  EXPECT(number == -1);

  OK(ncclCommFinalize(NULL));
  OK(ncclCommFinalize(comm));
  REFUSED(ncclCommFinalize(comm));
  REFUSED(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, NULL));
  OK(ncclCommDestroy(comm));
  REFUSED(ncclCommDestroy(comm));
  REFUSED(ncclCommAbort(comm));
  REFUSED(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, NULL));
  REFUSED(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, (ncclComm_t)recv, NULL));
  REFUSED(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, NULL, NULL));
  /* The end of nothing is fine, as in NCCL. */
  OK(ncclCommDestroy(NULL));
  OK(ncclCommAbort(NULL));
  OK(ncclCommRevoke(NULL, NCCL_REVOKE_DEFAULT));
  OK(ncclCommRevoke(NULL, 1));
  OK(ncclMemFree(NULL));
  OK(ncclSetEncryption(NULL));
  return 0;
}
