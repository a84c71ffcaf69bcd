/* A program with kernels that use NCCL's device API in the ways of nccl-tests' programs: it can be
 * compiled, and is told at run time that there is no such API. */
#include "cuda_runtime.h"

#include <nccl_device.h>

#include "check.h"

/* Pointers to a window of every rank. */
template <typename T>
__global__ void sum_by_loads(ncclWindow_t sendwin, size_t sendoffset, ncclWindow_t recvwin,
                             size_t recvoffset, size_t count, int, struct ncclDevComm devComm) {
  ncclLsaBarrierSession<ncclCoopCta> bar{ncclCoopCta(), devComm, ncclTeamLsa(devComm),
                                         devComm.lsaBarrier, blockIdx.x};
  bar.sync(ncclCoopCta(), cuda::memory_order_relaxed);
  const int rank = devComm.rank, ranks = devComm.nRanks;
  for (size_t at = threadIdx.x + blockDim.x * rank; at < count; at += blockDim.x * ranks) {
    T sum = T{0};
    for (int peer = 0; peer < devComm.lsaSize; peer++)
      sum += ((T*)ncclGetLsaPointer(sendwin, sendoffset, peer))[at];
    for (int peer = 0; peer < ranks; peer++)
      ((T*)ncclGetLsaPointer(recvwin, recvoffset, peer))[at] = sum;
  }
  bar.arrive(ncclCoopCta(), cuda::memory_order_release);
  bar.wait(ncclCoopCta(), cuda::memory_order_acquire);
}

/* The functions that do the whole for a block, and multicast. */
template <typename T>
__global__ void sum_by_blocks(ncclWindow_t sendwin, size_t sendoffset, ncclWindow_t recvwin,
                              size_t recvoffset, size_t count, int, struct ncclDevComm devComm) {
  ncclCoopCta coop;
  ncclMultimemHandle multimem = devComm.lsaMultimem;
  ncclLsaBarrierSession<ncclCoopCta> bar{coop, devComm, ncclTeamTagLsa(), blockIdx.x, true};
  bar.sync(coop, cuda::memory_order_relaxed);
  T* to = reinterpret_cast<T*>(ncclGetLsaMultimemPointer(recvwin, recvoffset, devComm));
  T* from = (T*)ncclGetMultimemPointer(sendwin, sendoffset, multimem);
  to[0] = from[0];
  ncclLsaReduceSumCopy<T, ncclCoopCta, size_t>(coop, sendwin, sendoffset, recvwin, recvoffset,
                                               count, devComm);
  ncclMultimemReduceSumCopy<T, ncclCoopCta, size_t>(coop, sendwin, sendoffset, multimem, recvwin,
                                                    recvoffset, multimem, count);
  bar.sync(coop, cuda::memory_order_release);
}

/* Puts and signals through the network, and copies by some warps. */
template <typename T>
__global__ void exchange_by_puts(ncclWindow_t sendwin, size_t sendoffset, ncclWindow_t recvwin,
                                 size_t recvoffset, size_t count, int,
                                 struct ncclDevComm devComm) {
  unsigned int signal = blockIdx.x;
  ncclGin gin{devComm, int(blockIdx.x % devComm.ginContextCount)};
  uint64_t before = gin.readSignal(signal);
  ncclGinBarrierSession<ncclCoopCta> world{ncclCoopCta(), gin, ncclTeamTagWorld(), blockIdx.x};
  world.sync(ncclCoopCta(), cuda::memory_order_acquire, ncclGinFenceLevel::None);
  ncclBarrierSession<ncclCoopCta> bar{ncclCoopCta(), ncclTeamTagWorld(), gin, blockIdx.x};
  ncclTeam lsa = ncclTeamLsa(devComm), rail = ncclTeamRail(devComm);
  const size_t size = count * sizeof(T);
  for (int r = int(threadIdx.x); r < devComm.nRanks; r += int(blockDim.x))
    gin.put(ncclTeamWorld(devComm), r, recvwin, recvoffset + devComm.rank * size, sendwin,
            sendoffset + r * size, size, ncclGin_SignalInc{signal});
  gin.waitSignal(ncclCoopCta(), signal, before + devComm.nRanks);
  gin.waitSignalMeetShadow(ncclCoopThread(), signal);
  gin.increaseSignalShadow(signal, 1);
  gin.flush(ncclCoopCta());
  ncclCoopWarpSpan workers(1, int(blockDim.x) / 32 - 1, 1);
  char* source = (char*)ncclGetLocalPointer(sendwin, sendoffset);
  char* target = (char*)ncclGetLsaPointer(recvwin, recvoffset, (lsa.rank + rail.rank) % lsa.nRanks);
  ncclLocalCopy(workers, source, 1, target, 0, size);
  if (workers.thread_rank() == 0) workers.sync();
  bar.sync(ncclCoopCta(), cuda::memory_order_release, ncclGinFenceLevel::None);
}

typedef void (*Kernel)(ncclWindow_t, size_t, ncclWindow_t, size_t, size_t, int, ncclDevComm);

int main() {
  Kernel kernels[] = {sum_by_loads<float>,         sum_by_loads<double>, sum_by_blocks<int8_t>,
                      exchange_by_puts<uint64_t>, exchange_by_puts<char>};
  for (Kernel kernel : kernels) EXPECT(kernel != nullptr);
  ncclComm_t comm;
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  OK(ncclCommInitRank(&comm, 1, id, 0));
  ncclCommProperties_t properties = NCCL_COMM_PROPERTIES_INITIALIZER;
  OK(ncclCommQueryProperties(comm, &properties));
  EXPECT(!properties.deviceApiSupport && !properties.multimemSupport);
  EXPECT(properties.ginType == NCCL_GIN_TYPE_NONE && properties.nRanks == 1);
  ncclDevCommRequirements reqs = NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER;
  reqs.lsaBarrierCount = 16;
  reqs.worldGinBarrierCount = 16;
  reqs.ginConnectionType = NCCL_GIN_CONNECTION_FULL;
  ncclDevComm devComms[1];
  OK(ncclGroupStart());
  EXPECT(ncclDevCommCreate(comm, &reqs, devComms) == ncclInvalidUsage);
  EXPECT(ncclGroupEnd() != ncclInternalError);
  EXPECT(ncclDevCommDestroy(comm, devComms) == ncclInvalidUsage);
  OK(ncclCommDestroy(comm));
  return 0;
}
