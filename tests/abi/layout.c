/* Sizes, offsets and values of nccl.h that programs were compiled for. Compiled as C and as C++,
 * with and without CUDA's headers. ffi/src/layout.rs asserts the same for the library. */
#include <maypole.h>
#include <nccl.h>
#include <nccl_device.h>
#include <stddef.h>
#include <string.h>

#ifdef __cplusplus
#define ASSERT(condition) static_assert(condition, #condition)
#else
#define ASSERT(condition) _Static_assert(condition, #condition)
#endif
#define AT(type, field, offset) ASSERT(offsetof(type, field) == (offset))
#define SIZE(type, size) ASSERT(sizeof(type) == (size))

SIZE(ncclUniqueId, 128);
ASSERT(NCCL_UNIQUE_ID_BYTES == 128);

SIZE(ncclConfig_t, 120);
AT(ncclConfig_t, size, 0);
AT(ncclConfig_t, magic, 8);
AT(ncclConfig_t, version, 12);
AT(ncclConfig_t, blocking, 16);
AT(ncclConfig_t, cgaClusterSize, 20);
AT(ncclConfig_t, minCTAs, 24);
AT(ncclConfig_t, maxCTAs, 28);
AT(ncclConfig_t, netName, 32);
AT(ncclConfig_t, splitShare, 40);
AT(ncclConfig_t, trafficClass, 44);
AT(ncclConfig_t, commName, 48);
AT(ncclConfig_t, collnetEnable, 56);
AT(ncclConfig_t, CTAPolicy, 60);
AT(ncclConfig_t, shrinkShare, 64);
AT(ncclConfig_t, nvlsCTAs, 68);
AT(ncclConfig_t, nChannelsPerNetPeer, 72);
AT(ncclConfig_t, nvlinkCentricSched, 76);
AT(ncclConfig_t, graphUsageMode, 80);
AT(ncclConfig_t, numRmaCtx, 84);
AT(ncclConfig_t, maxP2pPeers, 88);
AT(ncclConfig_t, graphStreamOrdering, 92);
AT(ncclConfig_t, launchOrderImplicit, 96);
AT(ncclConfig_t, numRmaSig, 100);
AT(ncclConfig_t, rmaEagerInit, 104);
AT(ncclConfig_t, hostCftMode, 108);
AT(ncclConfig_t, nvlsHostMode, 112);

SIZE(ncclCollConfig_t, 72);
AT(ncclCollConfig_t, ext, 16);
AT(ncclCollConfig_t, minCTAs, 24);
AT(ncclCollConfig_t, maxCTAs, 28);
AT(ncclCollConfig_t, nvlsCTAs, 32);
AT(ncclCollConfig_t, cgaClusterSize, 36);
AT(ncclCollConfig_t, algSelection, 40);
AT(ncclCollConfig_t, forceAlgSelection, 48);
AT(ncclCollConfig_t, CTAPolicy, 52);
AT(ncclCollConfig_t, userProfilerTag, 56);
AT(ncclCollConfig_t, launchCompletionEvent, 64);

SIZE(ncclConfigExt_t, 24);
AT(ncclConfigExt_t, key, 8);
AT(ncclConfigExt_t, val, 16);

SIZE(ncclSimInfo_t, 24);
AT(ncclSimInfo_t, estimatedTime, 16);

SIZE(ncclWaitSignalDesc_t, 16);
AT(ncclWaitSignalDesc_t, peer, 4);
AT(ncclWaitSignalDesc_t, sigIdx, 8);
AT(ncclWaitSignalDesc_t, ctx, 12);

SIZE(ncclEncryptionConfig_t, 32);
AT(ncclEncryptionConfig_t, mode, 16);
AT(ncclEncryptionConfig_t, psk, 24);

SIZE(ncclCommProperties_t, 152);
AT(ncclCommProperties_t, rank, 16);
AT(ncclCommProperties_t, nRanks, 20);
AT(ncclCommProperties_t, cudaDev, 24);
AT(ncclCommProperties_t, nvmlDev, 28);
AT(ncclCommProperties_t, deviceApiSupport, 32);
AT(ncclCommProperties_t, multimemSupport, 33);
AT(ncclCommProperties_t, ginType, 36);
AT(ncclCommProperties_t, nLsaTeams, 40);
AT(ncclCommProperties_t, hostRmaSupport, 44);
AT(ncclCommProperties_t, railedGinType, 48);
AT(ncclCommProperties_t, commHash, 56);
AT(ncclCommProperties_t, ginSupport, 72);
AT(ncclCommProperties_t, devCommRuntimeVersionSize, 136);
AT(ncclCommProperties_t, cftSupport, 144);
AT(ncclCommProperties_t, cftMulticastSupport, 145);
AT(ncclCommProperties_t, cftCountedSupport, 146);

SIZE(ncclTeam_t, 12);
AT(ncclTeam_t, rank, 4);
AT(ncclTeam_t, stride, 8);
SIZE(ncclMultimemHandle_t, 8);
SIZE(ncclDevResourceRequirements_t, 56);
SIZE(ncclTeamRequirements_t, 32);

SIZE(ncclResult_t, 4);
SIZE(ncclDataType_t, 4);
SIZE(ncclRedOp_t, 4);
SIZE(ncclScalarResidence_t, 4);
SIZE(ncclCommMemStat_t, 4);
SIZE(ncclHostCftMode_t, 4);
SIZE(ncclNvlsHostMode_t, 4);

ASSERT(NCCL_VERSION_CODE == 23203);
ASSERT(NCCL_VERSION(2, 8, 4) == 2804 && NCCL_VERSION(2, 9, 6) == 20906);
ASSERT(NCCL_API_MAGIC == 0xcafebeef);
ASSERT(NCCL_CONFIG_UNDEF_INT == INT_MIN && NCCL_SPLIT_NOCOLOR == -1);
ASSERT(NCCL_SHRINK_DEFAULT == 0 && NCCL_SHRINK_ABORT == 1 && NCCL_SUSPEND_MEM == 1);
ASSERT(NCCL_CTA_POLICY_DEFAULT == 0 && NCCL_CTA_POLICY_EFFICIENCY == 1 &&
       NCCL_CTA_POLICY_ZERO == 2);
ASSERT(NCCL_WIN_DEFAULT == 0 && NCCL_WIN_COLL_SYMMETRIC == 1 && NCCL_WIN_STRICT_ORDERING == 2);
ASSERT(NCCL_WIN_GIN_ONLY == 4 && NCCL_WIN_CFT_COUNTED == 8 && NCCL_WIN_REQUIRED_ALIGNMENT == 4096);
ASSERT(ncclSuccess == 0 && ncclUnhandledCudaError == 1 && ncclSystemError == 2 &&
       ncclInternalError == 3);
ASSERT(ncclInvalidArgument == 4 && ncclInvalidUsage == 5 && ncclRemoteError == 6 &&
       ncclInProgress == 7);
ASSERT(ncclTimeout == 8 && ncclNumResults == 9);
ASSERT(ncclInt8 == 0 && ncclChar == 0 && ncclUint8 == 1 && ncclInt32 == 2 && ncclInt == 2 &&
       ncclUint32 == 3);
ASSERT(ncclInt64 == 4 && ncclUint64 == 5 && ncclFloat16 == 6 && ncclHalf == 6 && ncclFloat32 == 7 &&
       ncclFloat == 7);
ASSERT(ncclFloat64 == 8 && ncclDouble == 8 && ncclBfloat16 == 9 && ncclFloat8e4m3 == 10 &&
       ncclFloat8e5m2 == 11);
ASSERT(ncclNumTypes == 12);
ASSERT(ncclSum == 0 && ncclProd == 1 && ncclMax == 2 && ncclMin == 3 && ncclAvg == 4 &&
       ncclNumOps == 5);
ASSERT(ncclMaxRedOp == 0x7fffffff && ncclScalarDevice == 0 && ncclScalarHostImmediate == 1);
ASSERT(ncclStatGpuMemSuspend == 0 && ncclStatGpuMemSuspended == 1 && ncclStatGpuMemPersist == 2);
ASSERT(ncclStatGpuMemTotal == 3);

int main(void) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclCollConfig_t coll = NCCL_COLLCONFIG_INITIALIZER;
  ncclSimInfo_t simulation = NCCL_SIM_INFO_INITIALIZER;
  ncclEncryptionConfig_t encryption = NCCL_ENCRYPTION_CONFIG_INITIALIZER;
  ncclCommProperties_t properties = NCCL_COMM_PROPERTIES_INITIALIZER;
  ncclDevCommRequirements_t requirements = NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER;
  int good = config.size == 120 && config.magic == 0xcafebeef && config.version == 23203;
  good = good && config.blocking == INT_MIN && config.netName == NULL &&
         config.nvlsHostMode == INT_MIN;
  good = good && coll.size == 72 && coll.magic == 0xcafebeef && coll.forceAlgSelection == 1 &&
         coll.userProfilerTag == 0;
  good = good && simulation.size == 24 && simulation.magic == 0x74685283 &&
         simulation.estimatedTime == -1.0f;
  good = good && encryption.size == 32 && encryption.mode == NCCL_ENCRYPTION_MODE_NONE &&
         encryption.psk == NULL;
  good = good && properties.size == 152 && properties.magic == 0xcafebeef && properties.rank == 0;
  good = good && requirements.size == sizeof requirements && requirements.ginContextCount == 4;
  return good ? 0 : 1;
}
