/*
 * nccl_device_kernels.h of Maypole: what kernels of programs use of NCCL's device API, by the same
 * names, so that programs which contain such kernels can be compiled. nccl_device.h includes it.
 *
 * Kernels of programs cannot communicate here. None is ever launched by a program that asks first:
 * ncclCommQueryProperties says that there is no device API, and ncclDevCommCreate returns
 * ncclInvalidUsage. A kernel that is launched all the same is trapped by the first of these
 * functions that it calls. Functions take more arguments than they name, where NCCL has many that
 * are optional.
 */
#ifndef NCCL_DEVICE_KERNELS_H_
#define NCCL_DEVICE_KERNELS_H_

#if defined(__cplusplus) && defined(__CUDACC__)

#include <cuda/atomic>

#define MAYPOLE_IN_KERNEL __device__ __forceinline__

/* Ends the kernel with an error, wherever a value or none is expected. */
struct maypoleNoDeviceApi {
  MAYPOLE_IN_KERNEL maypoleNoDeviceApi() { __trap(); }
  template <class T>
  MAYPOLE_IN_KERNEL operator T() const {
    return T();
  }
};
#define MAYPOLE_NO_DEVICE_API return maypoleNoDeviceApi()

/* ---- sets of threads ---- */

/* 2^n neighbours in a warp. */
template <int nThreads>
struct ncclCoopTile {
  MAYPOLE_IN_KERNEL int thread_rank() const { return int(threadIdx.x % nThreads); }
  MAYPOLE_IN_KERNEL int size() const { return nThreads; }
  MAYPOLE_IN_KERNEL int num_threads() const { return nThreads; }
  MAYPOLE_IN_KERNEL void sync() { __syncwarp(); }
};
typedef ncclCoopTile<1> ncclCoopThread;
typedef ncclCoopTile<32> ncclCoopWarp;

/* Some lanes of a warp. */
struct ncclCoopLanes {
  uint32_t lmask;
  MAYPOLE_IN_KERNEL ncclCoopLanes(uint32_t lanes = ~0u) : lmask(lanes) {}
  MAYPOLE_IN_KERNEL int thread_rank() const {
    return __popc(lmask & ((1u << (threadIdx.x % 32)) - 1));
  }
  MAYPOLE_IN_KERNEL int size() const { return __popc(lmask); }
  MAYPOLE_IN_KERNEL int num_threads() const { return __popc(lmask); }
  MAYPOLE_IN_KERNEL void sync() { __syncwarp(lmask); }
};

/* Warps that follow each other in a block. */
struct ncclCoopWarpSpan {
  uint32_t warp0, nWarps, id;
  MAYPOLE_IN_KERNEL ncclCoopWarpSpan(int first, int warps, int number)
      : warp0(uint32_t(first)), nWarps(uint32_t(warps)), id(uint32_t(number)) {}
  MAYPOLE_IN_KERNEL int thread_rank() const { return int(threadIdx.x - 32 * warp0); }
  MAYPOLE_IN_KERNEL int size() const { return int(32 * nWarps); }
  MAYPOLE_IN_KERNEL int num_threads() const { return int(32 * nWarps); }
  MAYPOLE_IN_KERNEL void sync() { __trap(); }
};

/* All threads of a block. */
struct ncclCoopCta {
  MAYPOLE_IN_KERNEL int thread_rank() const { return int(threadIdx.x); }
  MAYPOLE_IN_KERNEL int size() const { return int(blockDim.x); }
  MAYPOLE_IN_KERNEL int num_threads() const { return int(blockDim.x); }
  MAYPOLE_IN_KERNEL void sync() { __syncthreads(); }
};

/* ---- teams of a device communicator ---- */

struct ncclTeamTagWorld {};
struct ncclTeamTagLsa {};
struct ncclTeamTagRail {};

MAYPOLE_IN_KERNEL ncclTeam ncclTeamWorld(ncclDevComm const& comm) {
  return ncclTeam{comm.nRanks, comm.rank, 1};
}
MAYPOLE_IN_KERNEL ncclTeam ncclTeamLsa(ncclDevComm const& comm) {
  return ncclTeam{comm.lsaSize, comm.lsaRank, 1};
}
MAYPOLE_IN_KERNEL ncclTeam ncclTeamRail(ncclDevComm const&) { MAYPOLE_NO_DEVICE_API; }
MAYPOLE_IN_KERNEL int ncclTeamRankToWorld(ncclDevComm const& comm, ncclTeam team, int rank) {
  return comm.rank + (rank - team.rank) * team.stride;
}
MAYPOLE_IN_KERNEL int ncclTeamRankToLsa(ncclDevComm const&, ncclTeam, int) {
  MAYPOLE_NO_DEVICE_API;
}

/* ---- addresses in windows ---- */

MAYPOLE_IN_KERNEL void* ncclGetLocalPointer(ncclWindow_t, size_t) { MAYPOLE_NO_DEVICE_API; }
MAYPOLE_IN_KERNEL void* ncclGetLsaPointer(ncclWindow_t, size_t, int) { MAYPOLE_NO_DEVICE_API; }
MAYPOLE_IN_KERNEL void* ncclGetPeerPointer(ncclWindow_t, size_t, int) { MAYPOLE_NO_DEVICE_API; }
MAYPOLE_IN_KERNEL void* ncclGetPeerPointer(ncclWindow_t, size_t, ncclTeam, int) {
  MAYPOLE_NO_DEVICE_API;
}
MAYPOLE_IN_KERNEL void* ncclGetMultimemPointer(ncclWindow_t, size_t, ncclMultimemHandle) {
  MAYPOLE_NO_DEVICE_API;
}
MAYPOLE_IN_KERNEL void* ncclGetLsaMultimemPointer(ncclWindow_t, size_t, ncclDevComm const&) {
  MAYPOLE_NO_DEVICE_API;
}

/* A place in the window of every rank. */
template <class T>
struct ncclSymPtr {
  ncclWindow_t window;
  size_t offset;
  MAYPOLE_IN_KERNEL T* localPtr() const { MAYPOLE_NO_DEVICE_API; }
  MAYPOLE_IN_KERNEL T* lsaPtr(int) const { MAYPOLE_NO_DEVICE_API; }
  MAYPOLE_IN_KERNEL T* peerPtr(int) const { MAYPOLE_NO_DEVICE_API; }
  MAYPOLE_IN_KERNEL T* peerPtr(ncclTeam, int) const { MAYPOLE_NO_DEVICE_API; }
  MAYPOLE_IN_KERNEL T* multimemPtr(ncclMultimemHandle) const { MAYPOLE_NO_DEVICE_API; }
  MAYPOLE_IN_KERNEL T* lsaMultimemPtr(ncclDevComm const&) const { MAYPOLE_NO_DEVICE_API; }
};

/* ---- messages through the network ---- */

struct ncclGin_None {};
struct ncclGin_SignalInc {
  ncclGinSignal_t signal;
};
struct ncclGin_StrongSignalInc {
  ncclGinSignal_t signal;
};
struct ncclGin_WeakSignalInc {
  ncclGinSignal_t signal;
};
struct ncclGin_SignalAdd {
  ncclGinSignal_t signal;
  uint64_t value;
};
struct ncclGin_StrongSignalAdd {
  ncclGinSignal_t signal;
  uint64_t value;
};
struct ncclGin_WeakSignalAdd {
  ncclGinSignal_t signal;
  uint64_t value;
};
struct ncclGin_CounterInc {
  ncclGinCounter_t counter;
};
struct ncclGin_WeakCounterInc {
  ncclGinCounter_t counter;
};

enum class ncclGinFenceLevel { None, Relaxed };

struct ncclGin {
  ncclDevComm const& comm;
  uint32_t contextId;
  template <class... More>
  MAYPOLE_IN_KERNEL ncclGin(ncclDevComm const& of, int context, More...)
      : comm(of), contextId(uint32_t(context)) {
    __trap();
  }
  template <class... More>
  MAYPOLE_IN_KERNEL void put(ncclTeam, int, More...) const {
    __trap();
  }
  template <class... More>
  MAYPOLE_IN_KERNEL void putValue(ncclTeam, int, More...) const {
    __trap();
  }
  template <class... More>
  MAYPOLE_IN_KERNEL void get(ncclTeam, int, More...) const {
    __trap();
  }
  template <class... More>
  MAYPOLE_IN_KERNEL void signal(ncclTeam, int, More...) const {
    __trap();
  }
  template <class Coop, class... More>
  MAYPOLE_IN_KERNEL ncclResult_t flush(Coop, More...) const {
    MAYPOLE_NO_DEVICE_API;
  }
  template <class... More>
  MAYPOLE_IN_KERNEL uint64_t readSignal(More...) const {
    MAYPOLE_NO_DEVICE_API;
  }
  template <class... More>
  MAYPOLE_IN_KERNEL uint64_t readCounter(More...) const {
    MAYPOLE_NO_DEVICE_API;
  }
  template <class Coop, class... More>
  MAYPOLE_IN_KERNEL ncclResult_t waitSignal(Coop, More...) const {
    MAYPOLE_NO_DEVICE_API;
  }
  template <class Coop, class... More>
  MAYPOLE_IN_KERNEL ncclResult_t waitCounter(Coop, More...) const {
    MAYPOLE_NO_DEVICE_API;
  }
  template <class Coop, class... More>
  MAYPOLE_IN_KERNEL void waitSignalMeetShadow(Coop, More...) const {
    __trap();
  }
  template <class Coop, class... More>
  MAYPOLE_IN_KERNEL void waitSignalFollowShadow(Coop, More...) const {
    __trap();
  }
  MAYPOLE_IN_KERNEL uint64_t* getSignalShadowPtr(ncclGinSignal_t) const { MAYPOLE_NO_DEVICE_API; }
  MAYPOLE_IN_KERNEL void increaseSignalShadow(ncclGinSignal_t, uint64_t) const { __trap(); }
  MAYPOLE_IN_KERNEL void resetSignal(ncclGinSignal_t) const { __trap(); }
  MAYPOLE_IN_KERNEL void resetCounter(ncclGinCounter_t) const { __trap(); }
};

/* ---- barriers ---- */

/* What all barriers have. */
template <class Coop>
struct maypoleBarrierSession {
  template <class... More>
  MAYPOLE_IN_KERNEL ncclResult_t arrive(Coop, cuda::memory_order, More...) {
    MAYPOLE_NO_DEVICE_API;
  }
  template <class... More>
  MAYPOLE_IN_KERNEL ncclResult_t wait(Coop, cuda::memory_order, More...) {
    MAYPOLE_NO_DEVICE_API;
  }
  template <class... More>
  MAYPOLE_IN_KERNEL ncclResult_t sync(Coop, cuda::memory_order, More...) {
    MAYPOLE_NO_DEVICE_API;
  }
};

template <class Coop>
struct ncclLsaBarrierSession : maypoleBarrierSession<Coop> {
  MAYPOLE_IN_KERNEL ncclLsaBarrierSession(Coop, ncclDevComm const&, ncclTeam, ncclLsaBarrierHandle,
                                          uint32_t, bool = false,
                                          ncclMultimemHandle = ncclMultimemHandle()) {
    __trap();
  }
  MAYPOLE_IN_KERNEL ncclLsaBarrierSession(Coop, ncclDevComm const&, ncclTeamTagLsa, uint32_t,
                                          bool = false) {
    __trap();
  }
};

template <class Coop>
struct ncclGinBarrierSession : maypoleBarrierSession<Coop> {
  template <class Tag, class... More>
  MAYPOLE_IN_KERNEL ncclGinBarrierSession(Coop, ncclGin, Tag, More...) {
    __trap();
  }
};

template <class Coop>
struct ncclBarrierSession : maypoleBarrierSession<Coop> {
  template <class Tag, class... More>
  MAYPOLE_IN_KERNEL ncclBarrierSession(Coop, Tag, More...) {
    __trap();
  }
};

/* ---- sums and copies by all threads of a set ---- */

#define MAYPOLE_REDUCE_COPY(name)                                                           \
  template <class T = void, class Coop = ncclCoopCta, class Count = size_t, class... More> \
  MAYPOLE_IN_KERNEL void name(Coop, More...) {                                              \
    __trap();                                                                               \
  }
MAYPOLE_REDUCE_COPY(ncclLocalCopy)
MAYPOLE_REDUCE_COPY(ncclLsaCopy)
MAYPOLE_REDUCE_COPY(ncclLsaReduceSum)
MAYPOLE_REDUCE_COPY(ncclLsaReduceSumCopy)
MAYPOLE_REDUCE_COPY(ncclMultimemCopy)
MAYPOLE_REDUCE_COPY(ncclMultimemReduceSum)
MAYPOLE_REDUCE_COPY(ncclMultimemReduceSumCopy)
MAYPOLE_REDUCE_COPY(ncclLsaReduceSumMultimemCopy)
MAYPOLE_REDUCE_COPY(ncclMultimemReduceSumLsaCopy)
#undef MAYPOLE_REDUCE_COPY

#endif

#endif
