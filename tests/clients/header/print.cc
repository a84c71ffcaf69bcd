// Prints what programs are compiled with: sizes, offsets and types of fields, values, initialisers
// and types of functions. It is compiled with our headers and with NVIDIA's; both must print the
// same. Types are printed as C++ mangles them; for a function that is everything but its name.
#include <nccl.h>
#include <nccl_device.h>

#include <cstddef>
#include <cstdio>
#include <typeinfo>

#define STRUCT(type) \
  std::printf(#type " size %zu align %zu %s\n", sizeof(type), alignof(type), typeid(type).name())
#define FIELD(type, field)                                            \
  std::printf(#type "." #field " at %zu %s\n", offsetof(type, field), \
              typeid(decltype(type::field)).name())
#define VALUE(name) std::printf(#name " %lld\n", static_cast<long long>(name))
#define REAL(name) std::printf(#name " %g\n", static_cast<double>(name))
#define FUNCTION(f) std::printf(#f " %s\n", typeid(decltype(f)).name());

template <typename T>
static void bytes(const char* name, const T& value) {
  std::printf("%s", name);
  for (std::size_t i = 0; i < sizeof value; i++)
    std::printf(" %02x", reinterpret_cast<const unsigned char*>(&value)[i]);
  std::printf("\n");
}
#define INITIALISER(type, name) \
  static type of_##name = name; \
  bytes(#name, of_##name)

static void structures() {
  STRUCT(ncclUniqueId);
  FIELD(ncclUniqueId, internal);
  STRUCT(ncclConfig_t);
  FIELD(ncclConfig_t, size);
  FIELD(ncclConfig_t, magic);
  FIELD(ncclConfig_t, version);
  FIELD(ncclConfig_t, blocking);
  FIELD(ncclConfig_t, cgaClusterSize);
  FIELD(ncclConfig_t, minCTAs);
  FIELD(ncclConfig_t, maxCTAs);
  FIELD(ncclConfig_t, netName);
  FIELD(ncclConfig_t, splitShare);
  FIELD(ncclConfig_t, trafficClass);
  FIELD(ncclConfig_t, commName);
  FIELD(ncclConfig_t, collnetEnable);
  FIELD(ncclConfig_t, CTAPolicy);
  FIELD(ncclConfig_t, shrinkShare);
  FIELD(ncclConfig_t, nvlsCTAs);
  FIELD(ncclConfig_t, nChannelsPerNetPeer);
  FIELD(ncclConfig_t, nvlinkCentricSched);
  FIELD(ncclConfig_t, graphUsageMode);
  FIELD(ncclConfig_t, numRmaCtx);
  FIELD(ncclConfig_t, maxP2pPeers);
  FIELD(ncclConfig_t, graphStreamOrdering);
  FIELD(ncclConfig_t, launchOrderImplicit);
  FIELD(ncclConfig_t, numRmaSig);
  FIELD(ncclConfig_t, rmaEagerInit);
  FIELD(ncclConfig_t, hostCftMode);
  FIELD(ncclConfig_t, nvlsHostMode);
  STRUCT(ncclConfigExt_t);
  FIELD(ncclConfigExt_t, next);
  FIELD(ncclConfigExt_t, key);
  FIELD(ncclConfigExt_t, val);
  STRUCT(ncclCollConfig_t);
  FIELD(ncclCollConfig_t, size);
  FIELD(ncclCollConfig_t, magic);
  FIELD(ncclCollConfig_t, version);
  FIELD(ncclCollConfig_t, ext);
  FIELD(ncclCollConfig_t, minCTAs);
  FIELD(ncclCollConfig_t, maxCTAs);
  FIELD(ncclCollConfig_t, nvlsCTAs);
  FIELD(ncclCollConfig_t, cgaClusterSize);
  FIELD(ncclCollConfig_t, algSelection);
  FIELD(ncclCollConfig_t, forceAlgSelection);
  FIELD(ncclCollConfig_t, CTAPolicy);
  FIELD(ncclCollConfig_t, userProfilerTag);
  FIELD(ncclCollConfig_t, launchCompletionEvent);
  STRUCT(ncclSimInfo_t);
  FIELD(ncclSimInfo_t, size);
  FIELD(ncclSimInfo_t, magic);
  FIELD(ncclSimInfo_t, version);
  FIELD(ncclSimInfo_t, estimatedTime);
  STRUCT(ncclWaitSignalDesc_t);
  FIELD(ncclWaitSignalDesc_t, opCnt);
  FIELD(ncclWaitSignalDesc_t, peer);
  FIELD(ncclWaitSignalDesc_t, sigIdx);
  FIELD(ncclWaitSignalDesc_t, ctx);
  STRUCT(ncclEncryptionConfig_t);
  FIELD(ncclEncryptionConfig_t, size);
  FIELD(ncclEncryptionConfig_t, magic);
  FIELD(ncclEncryptionConfig_t, version);
  FIELD(ncclEncryptionConfig_t, mode);
  FIELD(ncclEncryptionConfig_t, psk);
  STRUCT(ncclTeam_t);
  FIELD(ncclTeam_t, nRanks);
  FIELD(ncclTeam_t, rank);
  FIELD(ncclTeam_t, stride);
  STRUCT(ncclMultimemHandle_t);
  FIELD(ncclMultimemHandle_t, mcBasePtr);
  STRUCT(ncclLsaBarrierHandle_t);
  FIELD(ncclLsaBarrierHandle_t, bufHandle);
  FIELD(ncclLsaBarrierHandle_t, nBarriers);
  STRUCT(ncclGinBarrierHandle_t);
  FIELD(ncclGinBarrierHandle_t, signal0);
  FIELD(ncclGinBarrierHandle_t, unused);
  STRUCT(ncclLLA2AHandle_t);
  FIELD(ncclLLA2AHandle_t, bufHandle);
  FIELD(ncclLLA2AHandle_t, nSlots);
  STRUCT(ncclDevResourceRequirements_t);
  FIELD(ncclDevResourceRequirements_t, next);
  FIELD(ncclDevResourceRequirements_t, bufferSize);
  FIELD(ncclDevResourceRequirements_t, bufferAlign);
  FIELD(ncclDevResourceRequirements_t, outBufferHandle);
  FIELD(ncclDevResourceRequirements_t, ginSignalCount);
  FIELD(ncclDevResourceRequirements_t, ginCounterCount);
  FIELD(ncclDevResourceRequirements_t, outGinSignalStart);
  FIELD(ncclDevResourceRequirements_t, outGinCounterStart);
  STRUCT(ncclTeamRequirements_t);
  FIELD(ncclTeamRequirements_t, next);
  FIELD(ncclTeamRequirements_t, team);
  FIELD(ncclTeamRequirements_t, multimem);
  FIELD(ncclTeamRequirements_t, outMultimemHandle);
  STRUCT(ncclDevCommRequirements_t);
  FIELD(ncclDevCommRequirements_t, size);
  FIELD(ncclDevCommRequirements_t, magic);
  FIELD(ncclDevCommRequirements_t, version);
  FIELD(ncclDevCommRequirements_t, resourceRequirementsList);
  FIELD(ncclDevCommRequirements_t, teamRequirementsList);
  FIELD(ncclDevCommRequirements_t, lsaMultimem);
  FIELD(ncclDevCommRequirements_t, barrierCount);
  FIELD(ncclDevCommRequirements_t, lsaBarrierCount);
  FIELD(ncclDevCommRequirements_t, railGinBarrierCount);
  FIELD(ncclDevCommRequirements_t, lsaLLA2ABlockCount);
  FIELD(ncclDevCommRequirements_t, lsaLLA2ASlotCount);
  FIELD(ncclDevCommRequirements_t, ginForceEnable);
  FIELD(ncclDevCommRequirements_t, ginContextCount);
  FIELD(ncclDevCommRequirements_t, ginSignalCount);
  FIELD(ncclDevCommRequirements_t, ginCounterCount);
  FIELD(ncclDevCommRequirements_t, ginConnectionType);
  FIELD(ncclDevCommRequirements_t, ginExclusiveContexts);
  FIELD(ncclDevCommRequirements_t, ginQueueDepth);
  FIELD(ncclDevCommRequirements_t, ginTrafficClass);
  FIELD(ncclDevCommRequirements_t, worldGinBarrierCount);
  FIELD(ncclDevCommRequirements_t, ginStrongSignalsRequired);
  FIELD(ncclDevCommRequirements_t, ginVaSignalsRequired);
  FIELD(ncclDevCommRequirements_t, ginCustomStride);
  FIELD(ncclDevCommRequirements_t, ginType);
  FIELD(ncclDevCommRequirements_t, useRuntimeVersion);
  FIELD(ncclDevCommRequirements_t, cftCaps);
  FIELD(ncclDevCommRequirements_t, cftBarrierCount);
  STRUCT(ncclCommProperties_t);
  FIELD(ncclCommProperties_t, size);
  FIELD(ncclCommProperties_t, magic);
  FIELD(ncclCommProperties_t, version);
  FIELD(ncclCommProperties_t, rank);
  FIELD(ncclCommProperties_t, nRanks);
  FIELD(ncclCommProperties_t, cudaDev);
  FIELD(ncclCommProperties_t, nvmlDev);
  FIELD(ncclCommProperties_t, deviceApiSupport);
  FIELD(ncclCommProperties_t, multimemSupport);
  FIELD(ncclCommProperties_t, ginType);
  FIELD(ncclCommProperties_t, nLsaTeams);
  FIELD(ncclCommProperties_t, hostRmaSupport);
  FIELD(ncclCommProperties_t, railedGinType);
  FIELD(ncclCommProperties_t, commHash);
  FIELD(ncclCommProperties_t, ginMinStride);
  FIELD(ncclCommProperties_t, ginConnectionType);
  FIELD(ncclCommProperties_t, ginSupport);
  FIELD(ncclCommProperties_t, devCommRuntimeVersionSize);
  FIELD(ncclCommProperties_t, cftSupport);
  FIELD(ncclCommProperties_t, cftMulticastSupport);
  FIELD(ncclCommProperties_t, cftCountedSupport);
}

static void values() {
  STRUCT(ncclResult_t);
  VALUE(ncclSuccess);
  VALUE(ncclUnhandledCudaError);
  VALUE(ncclSystemError);
  VALUE(ncclInternalError);
  VALUE(ncclInvalidArgument);
  VALUE(ncclInvalidUsage);
  VALUE(ncclRemoteError);
  VALUE(ncclInProgress);
  VALUE(ncclTimeout);
  VALUE(ncclNumResults);
  STRUCT(ncclDataType_t);
  VALUE(ncclInt8);
  VALUE(ncclChar);
  VALUE(ncclUint8);
  VALUE(ncclInt32);
  VALUE(ncclInt);
  VALUE(ncclUint32);
  VALUE(ncclInt64);
  VALUE(ncclUint64);
  VALUE(ncclFloat16);
  VALUE(ncclHalf);
  VALUE(ncclFloat32);
  VALUE(ncclFloat);
  VALUE(ncclFloat64);
  VALUE(ncclDouble);
  VALUE(ncclBfloat16);
  VALUE(ncclFloat8e4m3);
  VALUE(ncclFloat8e5m2);
  VALUE(ncclNumTypes);
  STRUCT(ncclRedOp_dummy_t);
  VALUE(ncclNumOps_dummy);
  STRUCT(ncclRedOp_t);
  VALUE(ncclSum);
  VALUE(ncclProd);
  VALUE(ncclMax);
  VALUE(ncclMin);
  VALUE(ncclAvg);
  VALUE(ncclNumOps);
  VALUE(ncclMaxRedOp);
  STRUCT(ncclScalarResidence_t);
  VALUE(ncclScalarDevice);
  VALUE(ncclScalarHostImmediate);
  STRUCT(ncclCommMemStat_t);
  VALUE(ncclStatGpuMemSuspend);
  VALUE(ncclStatGpuMemSuspended);
  VALUE(ncclStatGpuMemPersist);
  VALUE(ncclStatGpuMemTotal);
  STRUCT(ncclHostCftMode_t);
  VALUE(ncclHostCftDefault);
  VALUE(ncclHostCftEnable);
  VALUE(ncclHostCftDisable);
  VALUE(ncclHostCftFallback);
  STRUCT(ncclNvlsHostMode_t);
  VALUE(ncclNvlsHostModeDefault);
  VALUE(ncclNvlsHostModeEnable);
  VALUE(ncclNvlsHostModeDisableTransport);
  VALUE(ncclNvlsHostModeDisableSymmetricMultimem);
  VALUE(ncclNvlsHostModeDisable);
  STRUCT(ncclGinType_t);
  VALUE(NCCL_GIN_TYPE_NONE);
  VALUE(NCCL_GIN_TYPE_PROXY);
  VALUE(NCCL_GIN_TYPE_GDAKI);
  VALUE(NCCL_GIN_TYPE_GPI);
  VALUE(NCCL_GIN_TYPE_EFA_GDA);
  VALUE(NCCL_GIN_MAX_TYPES);
  STRUCT(ncclGinConnectionType_t);
  VALUE(NCCL_GIN_CONNECTION_NONE);
  VALUE(NCCL_GIN_CONNECTION_FULL);
  VALUE(NCCL_GIN_CONNECTION_RAIL);
  VALUE(NCCL_GIN_CONNECTION_CUSTOM_STRIDE);
  STRUCT(ncclCftTeamMode_t);
  VALUE(NCCL_CFT_TEAM_FLAT);
  VALUE(NCCL_CFT_TEAM_HIER_MULTIMEM);
  VALUE(NCCL_CFT_TEAM_HIER_LSA);
  VALUE(NCCL_MAJOR);
  VALUE(NCCL_MINOR);
  VALUE(NCCL_PATCH);
  VALUE(NCCL_VERSION_CODE);
  VALUE(NCCL_UNIQUE_ID_BYTES);
  VALUE(NCCL_API_MAGIC);
  VALUE(NCCL_CONFIG_UNDEF_INT);
  REAL(NCCL_UNDEF_FLOAT);
  VALUE(NCCL_SPLIT_NOCOLOR);
  VALUE(NCCL_SHRINK_DEFAULT);
  VALUE(NCCL_SHRINK_ABORT);
  VALUE(NCCL_REVOKE_DEFAULT);
  VALUE(NCCL_SUSPEND_MEM);
  VALUE(NCCL_CTA_POLICY_DEFAULT);
  VALUE(NCCL_CTA_POLICY_EFFICIENCY);
  VALUE(NCCL_CTA_POLICY_ZERO);
  VALUE(NCCL_WIN_DEFAULT);
  VALUE(NCCL_WIN_COLL_SYMMETRIC);
  VALUE(NCCL_WIN_STRICT_ORDERING);
  VALUE(NCCL_WIN_GIN_ONLY);
  VALUE(NCCL_WIN_CFT_COUNTED);
  VALUE(NCCL_WIN_REQUIRED_ALIGNMENT);
  STRUCT(ncclEncryptionMode_t);
  VALUE(NCCL_ENCRYPTION_MODE_NONE);
  VALUE(NCCL_ENCRYPTION_MODE_PSK);
  VALUE(NCCL_VERSION(2, 8, 4));
  VALUE(NCCL_VERSION(2, 9, 6));
  std::puts("NCCL_SUFFIX " NCCL_SUFFIX);
}

int main() {
  structures();
  values();
#include "functions.inc"
  INITIALISER(ncclConfig_t, NCCL_CONFIG_INITIALIZER);
  INITIALISER(ncclCollConfig_t, NCCL_COLLCONFIG_INITIALIZER);
  INITIALISER(ncclSimInfo_t, NCCL_SIM_INFO_INITIALIZER);
  INITIALISER(ncclEncryptionConfig_t, NCCL_ENCRYPTION_CONFIG_INITIALIZER);
  INITIALISER(ncclDevCommRequirements_t, NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER);
  INITIALISER(ncclCommProperties_t, NCCL_COMM_PROPERTIES_INITIALIZER);
}
