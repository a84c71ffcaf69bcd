/*
 * nccl_device.h of Maypole: the host's side of NCCL's device API.
 *
 * Kernels of programs cannot communicate here: the functions that prepare kernels return
 * ncclInvalidUsage. As with NCCL, ask ncclCommQueryProperties first: deviceApiSupport is false.
 * Structures that clients fill in have the layout of NCCL 2.32. What NCCL's header inlines into
 * kernels is declared, so that programs can be compiled, see nccl_device_kernels.h.
 */
#ifndef NCCL_DEVICE_H_
#define NCCL_DEVICE_H_

#include <stdbool.h>

#include "nccl.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint32_t ncclDevResourceHandle_t;
typedef uint32_t ncclGinSignal_t;
typedef uint32_t ncclGinCounter_t;
typedef uint32_t ncclCftLeId;

typedef enum {
  NCCL_GIN_TYPE_NONE = 0,
  NCCL_GIN_TYPE_PROXY = 2,
  NCCL_GIN_TYPE_GDAKI = 3,
  NCCL_GIN_TYPE_GPI = 4,
  NCCL_GIN_TYPE_EFA_GDA = 5,
  NCCL_GIN_MAX_TYPES = 6
} ncclGinType_t;

typedef enum {
  NCCL_GIN_CONNECTION_NONE = 0,
  NCCL_GIN_CONNECTION_FULL = 1,
  NCCL_GIN_CONNECTION_RAIL = 2,
  NCCL_GIN_CONNECTION_CUSTOM_STRIDE = 3
} ncclGinConnectionType_t;

typedef enum {
  NCCL_CFT_TEAM_FLAT = 0,
  NCCL_CFT_TEAM_HIER_MULTIMEM = 1,
  NCCL_CFT_TEAM_HIER_LSA = 2
} ncclCftTeamMode_t;

/* Ranks of a communicator at equal distances. Rank r of the team is stride * (r - rank) away from
 * this rank. */
typedef struct ncclTeam {
  int nRanks;
  int rank;
  int stride;
} ncclTeam_t;

typedef struct ncclMultimemHandle {
  void* mcBasePtr;
} ncclMultimemHandle_t;

typedef struct ncclLsaBarrierHandle {
  ncclDevResourceHandle_t bufHandle;
  int nBarriers;
} ncclLsaBarrierHandle_t;

typedef struct ncclGinBarrierHandle {
  ncclGinSignal_t signal0;
  ncclDevResourceHandle_t unused;
} ncclGinBarrierHandle_t;

typedef struct ncclLLA2AHandle {
  ncclDevResourceHandle_t bufHandle;
  uint32_t nSlots;
} ncclLLA2AHandle_t;

typedef struct ncclGinOutboxHandle {
  ncclDevResourceHandle_t bufHandle;
} ncclGinOutboxHandle_t;

typedef struct ncclGinInboxA2AHandle {
  ncclDevResourceHandle_t bufHandle;
} ncclGinInboxA2AHandle_t;

/* What a program passes to its kernels. Nothing ever fills it in, so only the names of the fields
 * are NCCL's, not their places. */
typedef struct ncclDevComm {
  unsigned int magic;
  unsigned int version;
  int rank;
  int nRanks;
  int lsaRank;
  int lsaSize;
  ncclMultimemHandle_t lsaMultimem;
  ncclLsaBarrierHandle_t lsaBarrier;
  ncclGinBarrierHandle_t railGinBarrier;
  ncclGinBarrierHandle_t worldGinBarrier;
  int ginSignalCount;
  int ginCounterCount;
  uint32_t ginContextCount;
} ncclDevComm_t;

typedef struct ncclDevResourceRequirements {
  struct ncclDevResourceRequirements* next;
  size_t bufferSize;
  size_t bufferAlign;
  ncclDevResourceHandle_t* outBufferHandle;
  int ginSignalCount;
  int ginCounterCount;
  ncclGinSignal_t* outGinSignalStart;
  ncclGinCounter_t* outGinCounterStart;
} ncclDevResourceRequirements_t;

typedef struct ncclTeamRequirements {
  struct ncclTeamRequirements* next;
  ncclTeam_t team;
  bool multimem;
  ncclMultimemHandle_t* outMultimemHandle;
} ncclTeamRequirements_t;

typedef struct ncclDevCommRequirements {
  size_t size;
  unsigned int magic;
  unsigned int version;
  ncclDevResourceRequirements_t* resourceRequirementsList;
  ncclTeamRequirements_t* teamRequirementsList;
  bool lsaMultimem;
  int barrierCount;
  int lsaBarrierCount;
  int railGinBarrierCount;
  int lsaLLA2ABlockCount;
  int lsaLLA2ASlotCount;
  bool ginForceEnable;
  int ginContextCount;
  int ginSignalCount;
  int ginCounterCount;
  ncclGinConnectionType_t ginConnectionType;
  bool ginExclusiveContexts;
  int ginQueueDepth;
  int ginTrafficClass;
  int worldGinBarrierCount;
  bool ginStrongSignalsRequired;
  bool ginVaSignalsRequired;
  int ginCustomStride;
  ncclGinType_t ginType;
  bool useRuntimeVersion;
  int cftCaps;
  int cftBarrierCount;
} ncclDevCommRequirements_t;

#define NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER                                                  \
  {                                                                                             \
    sizeof(ncclDevCommRequirements_t), NCCL_API_MAGIC, NCCL_VERSION_CODE, NULL, NULL, false, 0, \
      0, 0, 0, 0, false, 4, 0, 0, NCCL_GIN_CONNECTION_NONE, false, 0, NCCL_CONFIG_UNDEF_INT, 0, \
      true, true, 1, NCCL_GIN_TYPE_NONE, false, 0, 0                                            \
  }

typedef struct ncclCommProperties {
  size_t size;
  unsigned int magic;
  unsigned int version;
  int rank;
  int nRanks;
  int cudaDev;
  int nvmlDev;
  bool deviceApiSupport; /* false */
  bool multimemSupport;  /* false */
  ncclGinType_t ginType;
  int nLsaTeams;
  bool hostRmaSupport; /* true on host memory, false on CUDA devices */
  ncclGinType_t railedGinType;
  uint64_t commHash;
  int ginMinStride;
  ncclGinConnectionType_t ginConnectionType;
  bool ginSupport[64];
  size_t devCommRuntimeVersionSize;
  bool cftSupport;          /* false */
  bool cftMulticastSupport; /* false */
  bool cftCountedSupport;   /* false */
} ncclCommProperties_t;

#define NCCL_COMM_PROPERTIES_INITIALIZER                                                       \
  {                                                                                            \
    sizeof(ncclCommProperties_t), NCCL_API_MAGIC, NCCL_VERSION_CODE, 0, 0, 0, 0, false, false, \
      NCCL_GIN_TYPE_NONE, 0, false, NCCL_GIN_TYPE_NONE, 0, 0, NCCL_GIN_CONNECTION_NONE,        \
      {false}, 0, false, false, false                                                          \
  }

MAYPOLE_FUNCTION(ncclResult_t, ncclCommQueryProperties, ncclComm_t comm,
                 ncclCommProperties_t* props);

/* ---- functions that prepare kernels: all return ncclInvalidUsage ---- */

MAYPOLE_FUNCTION(ncclResult_t, ncclDevCommCreate, ncclComm_t comm,
                 const ncclDevCommRequirements_t* reqs, ncclDevComm_t* outDevComm);
MAYPOLE_FUNCTION(ncclResult_t, ncclDevCommDestroy, ncclComm_t comm, const ncclDevComm_t* devComm);
MAYPOLE_FUNCTION(ncclResult_t, ncclGetLsaMultimemDevicePointer, ncclWindow_t window, size_t offset,
                 void** outPtr);
MAYPOLE_FUNCTION(ncclResult_t, ncclGetMultimemDevicePointer, ncclWindow_t window, size_t offset,
                 ncclMultimemHandle_t multimem, void** outPtr);
MAYPOLE_FUNCTION(ncclResult_t, ncclGetLsaDevicePointer, ncclWindow_t window, size_t offset,
                 int lsaRank, void** outPtr);
MAYPOLE_FUNCTION(ncclResult_t, ncclGetPeerDevicePointer, ncclWindow_t window, size_t offset,
                 int peer, void** outPtr);
MAYPOLE_FUNCTION(ncclResult_t, ncclGetMultimemDeviceLeInfo, ncclWindow_t window, size_t offset,
                 ncclCftLeId* leId, size_t* leOffset);
MAYPOLE_FUNCTION(ncclResult_t, ncclGetCftDeviceLeInfo, ncclWindow_t window, size_t offset,
                 int peerCft, ncclTeam_t cftTeam, ncclCftLeId* leId, size_t* leOffset);
MAYPOLE_FUNCTION(ncclResult_t, ncclGetPeerDeviceLeInfo, ncclWindow_t window, size_t offset,
                 int peerWorld, ncclCftLeId* leId, size_t* leOffset);
MAYPOLE_FUNCTION(ncclResult_t, ncclLsaBarrierCreateRequirement, ncclTeam_t team, int nBarriers,
                 ncclLsaBarrierHandle_t* outHandle, ncclDevResourceRequirements_t* outReq);
MAYPOLE_FUNCTION(ncclResult_t, ncclGinBarrierCreateRequirement, ncclComm_t comm, ncclTeam_t team,
                 int nBarriers, ncclGinBarrierHandle_t* outHandle,
                 ncclDevResourceRequirements_t* outReq);
MAYPOLE_FUNCTION(int, ncclLLA2ACalcSlots, int maxElts, int maxEltSize);
MAYPOLE_FUNCTION(ncclResult_t, ncclLLA2ACreateRequirement, int nBlocks, int nSlots,
                 ncclLLA2AHandle_t* outHandle, ncclDevResourceRequirements_t* outReq);
MAYPOLE_FUNCTION(ncclResult_t, ncclGinOutboxCreateRequirement, int nBlocks, int size_log2,
                 ncclGinOutboxHandle_t* outHandle, ncclDevResourceRequirements_t* outReq);
MAYPOLE_FUNCTION(ncclResult_t, ncclGinInboxA2ACreateRequirement, ncclTeam_t peers, int nBlocks,
                 int size_log2, ncclGinInboxA2AHandle_t* outHandle,
                 ncclDevResourceRequirements_t* outReq);

/* ---- teams: no two ranks share device memory ---- */

MAYPOLE_FUNCTION(ncclTeam_t, ncclTeamWorld, ncclComm_t comm);
MAYPOLE_FUNCTION(ncclTeam_t, ncclTeamLsa, ncclComm_t comm);
MAYPOLE_FUNCTION(ncclTeam_t, ncclTeamRail, ncclComm_t comm);
#ifdef __cplusplus
MAYPOLE_FUNCTION(ncclTeam_t, ncclTeamCft, ncclComm_t comm,
                 ncclCftTeamMode_t mode = NCCL_CFT_TEAM_FLAT);
#else
MAYPOLE_FUNCTION(ncclTeam_t, ncclTeamCft, ncclComm_t comm, ncclCftTeamMode_t mode);
#endif
MAYPOLE_FUNCTION(ncclTeam_t, ncclTeamCftMultimem, ncclComm_t comm);
/* Return -1 if there is no such rank. */
MAYPOLE_FUNCTION(int, ncclTeamRankToWorld, ncclComm_t comm, ncclTeam_t team, int rank);
MAYPOLE_FUNCTION(int, ncclTeamRankToLsa, ncclComm_t comm, ncclTeam_t team, int rank);

#ifdef __cplusplus
}
#endif

#include "nccl_device_kernels.h"

#endif
