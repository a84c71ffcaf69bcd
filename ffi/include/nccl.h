/*
 * nccl.h of Maypole: collective communication over host and CUDA memory behind NCCL's C interface.
 *
 * The types, values and functions are those of NCCL 2.32.3. A program compiles against either
 * header and runs with either library. docs/abi.md says what each function does here.
 *
 * Where the compiler finds no headers of CUDA, or MAYPOLE_NO_CUDA is defined, a stream is an opaque
 * pointer. On host memory pass NULL as the stream: a call, or the outermost ncclGroupEnd, then
 * returns when its result is there.
 */
#ifndef NCCL_H_
#define NCCL_H_

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#if !defined(MAYPOLE_NO_CUDA) && defined(__has_include)
#if __has_include(<cuda_runtime.h>)
#define MAYPOLE_HAS_CUDA 1
#endif
#endif

#ifdef MAYPOLE_HAS_CUDA
#include <cuda_runtime.h>
#if __has_include(<cuda_fp16.h>)
#include <cuda_fp16.h>
#endif
#if CUDART_VERSION >= 11000 && __has_include(<cuda_bf16.h>)
#include <cuda_bf16.h>
#endif
#if CUDART_VERSION >= 11080 && __has_include(<cuda_fp8.h>)
#include <cuda_fp8.h>
#endif
#else
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
#endif

#define NCCL_MAJOR 2
#define NCCL_MINOR 32
#define NCCL_PATCH 3
#define NCCL_SUFFIX ""

#define NCCL_VERSION(X, Y, Z) \
  (((X) <= 2 && (Y) <= 8) ? (X) * 1000 + (Y) * 100 + (Z) : (X) * 10000 + (Y) * 100 + (Z))
#define NCCL_VERSION_CODE NCCL_VERSION(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH)

#ifdef __cplusplus
extern "C" {
#endif

/* As in NCCL each function has two names, ncclX and its alias pncclX. A tool may define ncclX
 * itself and call pncclX. */
#define MAYPOLE_FUNCTION(result, name, ...) \
  result name(__VA_ARGS__);                 \
  result p##name(__VA_ARGS__)

/* ---- types ---- */

typedef enum {
  ncclSuccess = 0,
  ncclUnhandledCudaError = 1,
  ncclSystemError = 2,
  ncclInternalError = 3,
  ncclInvalidArgument = 4, /* the call had no effect */
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7, /* not an error: poll ncclCommGetAsyncError */
  ncclTimeout = 8,
  ncclNumResults = 9
} ncclResult_t;

typedef enum {
  ncclInt8 = 0,
  ncclChar = 0,
  ncclUint8 = 1,
  ncclInt32 = 2,
  ncclInt = 2,
  ncclUint32 = 3,
  ncclInt64 = 4,
  ncclUint64 = 5,
  ncclFloat16 = 6,
  ncclHalf = 6,
  ncclFloat32 = 7,
  ncclFloat = 7,
  ncclFloat64 = 8,
  ncclDouble = 8,
  ncclBfloat16 = 9,
  ncclFloat8e4m3 = 10,
  ncclFloat8e5m2 = 11,
  ncclNumTypes = 12
} ncclDataType_t;

typedef enum { ncclNumOps_dummy = 5 } ncclRedOp_dummy_t;
typedef enum {
  ncclSum = 0,
  ncclProd = 1,
  ncclMax = 2,
  ncclMin = 3,
  ncclAvg = 4,
  ncclNumOps = 5, /* ncclRedOpCreatePreMulSum creates operators from this value on */
  ncclMaxRedOp = 0x7fffffff
} ncclRedOp_t;

/* When the factor of an operator is read: when the calls run, or when the operator is created. */
typedef enum { ncclScalarDevice = 0, ncclScalarHostImmediate = 1 } ncclScalarResidence_t;

/* For ncclCommMemStats. A communicator of host memory counts host memory. */
typedef enum {
  ncclStatGpuMemSuspend = 0,   /* bytes that ncclCommSuspend gives back */
  ncclStatGpuMemSuspended = 1, /* 1 while the communicator is suspended */
  ncclStatGpuMemPersist = 2,   /* bytes that stay while it is suspended */
  ncclStatGpuMemTotal = 3
} ncclCommMemStat_t;

typedef enum {
  ncclHostCftDefault = INT_MIN,
  ncclHostCftEnable = 1,
  ncclHostCftDisable = 2,
  ncclHostCftFallback = 3
} ncclHostCftMode_t;

typedef enum {
  ncclNvlsHostModeDefault = INT_MIN,
  ncclNvlsHostModeEnable = 0,
  ncclNvlsHostModeDisableTransport = 1,
  ncclNvlsHostModeDisableSymmetricMultimem = 2,
  ncclNvlsHostModeDisable = INT_MAX
} ncclNvlsHostMode_t;

/* Handles of a communicator, a window and a parameter. They are numbers, not addresses; every
 * function refuses a handle whose object no longer exists. */
typedef struct ncclComm* ncclComm_t;
typedef struct ncclWindow_vidmem* ncclWindow_t;
typedef struct ncclParamHandle* ncclParamHandle_t;
#define NCCL_COMM_NULL NULL

/* One rank creates the id and passes it to all others. It holds a secret: every process that has
 * the id can join. */
#define NCCL_UNIQUE_ID_BYTES 128
typedef struct {
  char internal[NCCL_UNIQUE_ID_BYTES];
} ncclUniqueId;

#define NCCL_API_MAGIC 0xcafebeef
#define NCCL_CONFIG_UNDEF_INT INT_MIN
#define NCCL_CONFIG_UNDEF_PTR NULL
#define NCCL_UNDEF_FLOAT -1.0f

#define NCCL_SPLIT_NOCOLOR -1
#define NCCL_SHRINK_DEFAULT 0x00
#define NCCL_SHRINK_ABORT 0x01
#define NCCL_REVOKE_DEFAULT 0x00
#define NCCL_SUSPEND_MEM 0x01

#define NCCL_CTA_POLICY_DEFAULT 0x00
#define NCCL_CTA_POLICY_EFFICIENCY 0x01
#define NCCL_CTA_POLICY_ZERO 0x02

#define NCCL_WIN_DEFAULT 0x00
#define NCCL_WIN_COLL_SYMMETRIC 0x01
#define NCCL_WIN_STRICT_ORDERING 0x02
#define NCCL_WIN_GIN_ONLY 0x04
#define NCCL_WIN_CFT_COUNTED 0x08
#define NCCL_WIN_REQUIRED_ALIGNMENT 4096

/* Configuration of a communicator. All fields are checked. On host memory only blocking and
 * commName change anything. */
typedef struct ncclConfig_v23100 {
  /* set only by the initialiser */
  size_t size;
  unsigned int magic;
  unsigned int version;
  /* since 2.14 */
  int blocking;
  /* since 2.17 */
  int cgaClusterSize;
  int minCTAs;
  int maxCTAs;
  const char* netName;
  /* since 2.18 */
  int splitShare;
  /* since 2.26 */
  int trafficClass;
  /* since 2.27 */
  const char* commName;
  int collnetEnable;
  int CTAPolicy;
  int shrinkShare;
  int nvlsCTAs;
  /* since 2.28 */
  int nChannelsPerNetPeer;
  int nvlinkCentricSched;
  /* since 2.29 */
  int graphUsageMode;
  int numRmaCtx;
  /* since 2.30 */
  int maxP2pPeers;
  int graphStreamOrdering;
  /* since 2.31 */
  int launchOrderImplicit;
  int numRmaSig;
  int rmaEagerInit;
  int hostCftMode;
  /* since 2.32 */
  int nvlsHostMode;
} ncclConfig_t;

#define NCCL_CONFIG_INITIALIZER                                                                 \
  {                                                                                             \
    sizeof(ncclConfig_t), NCCL_API_MAGIC, NCCL_VERSION_CODE,                                    \
    NCCL_CONFIG_UNDEF_INT, /* blocking */                                                       \
    NCCL_CONFIG_UNDEF_INT, /* cgaClusterSize */                                                 \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* minCTAs, maxCTAs */                        \
    NCCL_CONFIG_UNDEF_PTR, /* netName */                                                        \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* splitShare, trafficClass */                \
    NCCL_CONFIG_UNDEF_PTR, /* commName */                                                       \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* collnetEnable, CTAPolicy */                \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* shrinkShare, nvlsCTAs */                   \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* nChannelsPerNetPeer, nvlinkCentricSched */ \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* graphUsageMode, numRmaCtx */               \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* maxP2pPeers, graphStreamOrdering */        \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* launchOrderImplicit, numRmaSig */          \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* rmaEagerInit, hostCftMode */               \
    NCCL_CONFIG_UNDEF_INT /* nvlsHostMode */                                                    \
  }

/* A list of further options of a vendor. This library has none. */
typedef struct ncclConfigExt {
  struct ncclConfigExt* next;
  struct {
    int vendorId;
    int optionId;
  } key;
  union {
    int i;
    const char* s;
    void* raw;
  } val;
} ncclConfigExt_t;

/* Configuration of one collective. On host memory only algSelection has a meaning; see
 * docs/abi.md. */
typedef struct ncclCollConfig_v23200 {
  /* set only by the initialiser */
  size_t size;
  unsigned int magic;
  unsigned int version;
  /* since 2.31 */
  ncclConfigExt_t* ext;
  int minCTAs;
  int maxCTAs;
  int nvlsCTAs;
  int cgaClusterSize;
  const char* algSelection;
  int forceAlgSelection;
  int CTAPolicy;
  uint64_t userProfilerTag;
  /* since 2.32 */
  cudaEvent_t launchCompletionEvent;
} ncclCollConfig_t;

#define NCCL_COLLCONFIG_INITIALIZER                                                             \
  {                                                                                             \
    sizeof(ncclCollConfig_t), NCCL_API_MAGIC, NCCL_VERSION_CODE,                                \
    NULL, /* ext */                                                                             \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* minCTAs, maxCTAs */                        \
    NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, /* nvlsCTAs, cgaClusterSize */                \
    NCCL_CONFIG_UNDEF_PTR, 1,                     /* algSelection, forceAlgSelection */         \
    NCCL_CONFIG_UNDEF_INT, 0,                     /* CTAPolicy, userProfilerTag */              \
    NULL                                          /* launchCompletionEvent */                   \
  }

typedef struct ncclSimInfo_v22200 {
  size_t size;
  unsigned int magic;
  unsigned int version;
  float estimatedTime; /* microseconds */
} ncclSimInfo_t;

#define NCCL_SIM_INFO_INITIALIZER \
  { sizeof(ncclSimInfo_t), 0x74685283, NCCL_VERSION_CODE, NCCL_UNDEF_FLOAT }

typedef struct {
  int opCnt; /* how many signals to wait for */
  int peer;  /* the rank that sends them */
  int sigIdx;
  int ctx;
} ncclWaitSignalDesc_t;

typedef enum { NCCL_ENCRYPTION_MODE_NONE = 0, NCCL_ENCRYPTION_MODE_PSK = 1 } ncclEncryptionMode_t;
typedef struct ncclEncryptionConfig_v23200 {
  size_t size;
  unsigned int magic;
  unsigned int version;
  int mode;
  const char* psk;
} ncclEncryptionConfig_t;

#define NCCL_ENCRYPTION_CONFIG_INITIALIZER                                \
  {                                                                       \
    sizeof(ncclEncryptionConfig_t), NCCL_API_MAGIC, NCCL_VERSION_CODE,    \
      NCCL_ENCRYPTION_MODE_NONE, NULL                                     \
  }

/* ---- errors, version, logs ---- */

MAYPOLE_FUNCTION(ncclResult_t, ncclGetVersion, int* version);
MAYPOLE_FUNCTION(const char*, ncclGetErrorString, ncclResult_t result);
/* The text of the last error of the process; comm is ignored. It is valid until the same thread
 * calls this function again. */
MAYPOLE_FUNCTION(const char*, ncclGetLastError, ncclComm_t comm);
/* Does nothing; deprecated in NCCL. */
MAYPOLE_FUNCTION(void, ncclResetDebugInit, void);
/* Refuses pre-shared keys, as this version does not encrypt. */
MAYPOLE_FUNCTION(ncclResult_t, ncclSetEncryption, const ncclEncryptionConfig_t* config);

/* ---- communicators ---- */

MAYPOLE_FUNCTION(ncclResult_t, ncclGetUniqueId, ncclUniqueId* uniqueId);
/* Returns when all ranks have joined. In a group one thread may be several ranks. The handle is
 * written at once, so that another thread can abort the call. */
MAYPOLE_FUNCTION(ncclResult_t, ncclCommInitRank, ncclComm_t* comm, int nranks, ncclUniqueId commId,
                 int rank);
/* With blocking = 0 it returns ncclInProgress at once. */
MAYPOLE_FUNCTION(ncclResult_t, ncclCommInitRankConfig, ncclComm_t* comm, int nranks,
                 ncclUniqueId commId, int rank, ncclConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommInitRankScalable, ncclComm_t* newcomm, int nranks,
                 int myrank, int nId, ncclUniqueId* commIds, ncclConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommInitAll, ncclComm_t* comm, int ndev, const int* devlist);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommSplit, ncclComm_t comm, int color, int key,
                 ncclComm_t* newcomm, ncclConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommShrink, ncclComm_t comm, int* excludeRanksList,
                 int excludeRanksCount, ncclComm_t* newcomm, ncclConfig_t* config, int shrinkFlags);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommGetUniqueId, ncclComm_t comm, ncclUniqueId* uniqueId);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommGrow, ncclComm_t comm, int nRanks,
                 const ncclUniqueId* uniqueId, int rank, ncclComm_t* newcomm, ncclConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommFinalize, ncclComm_t comm);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommDestroy, ncclComm_t comm);
/* May be called from any thread. Ends the running call, or init, on all ranks. */
MAYPOLE_FUNCTION(ncclResult_t, ncclCommAbort, ncclComm_t comm);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommRevoke, ncclComm_t comm, int revokeFlags);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommGetAsyncError, ncclComm_t comm, ncclResult_t* asyncError);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommCount, const ncclComm_t comm, int* count);
/* The number of the CUDA device; on host memory the number given to ncclCommInitAll, else -1. */
MAYPOLE_FUNCTION(ncclResult_t, ncclCommCuDevice, const ncclComm_t comm, int* device);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommUserRank, const ncclComm_t comm, int* rank);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommSuspend, ncclComm_t comm, int flags);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommResume, ncclComm_t comm);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommMemStats, ncclComm_t comm, ncclCommMemStat_t stat,
                 uint64_t* value);

/* ---- memory ---- */

MAYPOLE_FUNCTION(ncclResult_t, ncclMemAlloc, void** ptr, size_t size);
MAYPOLE_FUNCTION(ncclResult_t, ncclMemFree, void* ptr);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommRegister, const ncclComm_t comm, void* buff, size_t size,
                 void** handle);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommDeregister, const ncclComm_t comm, void* handle);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommWindowRegister, ncclComm_t comm, void* buff, size_t size,
                 ncclWindow_t* win, int winFlags);
MAYPOLE_FUNCTION(ncclResult_t, ncclCommWindowDeregister, ncclComm_t comm, ncclWindow_t win);
MAYPOLE_FUNCTION(ncclResult_t, ncclWinGetUserPtr, ncclComm_t comm, ncclWindow_t win,
                 void** outUserPtr);

/* ---- operators ---- */

MAYPOLE_FUNCTION(ncclResult_t, ncclRedOpCreatePreMulSum, ncclRedOp_t* op, void* scalar,
                 ncclDataType_t datatype, ncclScalarResidence_t residence, ncclComm_t comm);
MAYPOLE_FUNCTION(ncclResult_t, ncclRedOpDestroy, ncclRedOp_t op, ncclComm_t comm);

/* ---- collectives ---- */

/* A buffer that a rank does not use may be NULL, for example recvbuff of a reduce on ranks other
 * than the root. */
MAYPOLE_FUNCTION(ncclResult_t, ncclAllReduce, const void* sendbuff, void* recvbuff, size_t count,
                 ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclReduce, const void* sendbuff, void* recvbuff, size_t count,
                 ncclDataType_t datatype, ncclRedOp_t op, int root, ncclComm_t comm,
                 cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclBroadcast, const void* sendbuff, void* recvbuff, size_t count,
                 ncclDataType_t datatype, int root, ncclComm_t comm, cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclReduceScatter, const void* sendbuff, void* recvbuff,
                 size_t recvcount, ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                 cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclAllGather, const void* sendbuff, void* recvbuff,
                 size_t sendcount, ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclAlltoAll, const void* sendbuff, void* recvbuff, size_t count,
                 ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclGather, const void* sendbuff, void* recvbuff, size_t count,
                 ncclDataType_t datatype, int root, ncclComm_t comm, cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclScatter, const void* sendbuff, void* recvbuff, size_t count,
                 ncclDataType_t datatype, int root, ncclComm_t comm, cudaStream_t stream);
/* As the functions above, with a configuration; NULL means none. */
MAYPOLE_FUNCTION(ncclResult_t, ncclAllReduceConfig, const void* sendbuff, void* recvbuff,
                 size_t count, ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                 cudaStream_t stream, const ncclCollConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclReduceConfig, const void* sendbuff, void* recvbuff,
                 size_t count, ncclDataType_t datatype, ncclRedOp_t op, int root, ncclComm_t comm,
                 cudaStream_t stream, const ncclCollConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclBroadcastConfig, const void* sendbuff, void* recvbuff,
                 size_t count, ncclDataType_t datatype, int root, ncclComm_t comm,
                 cudaStream_t stream, const ncclCollConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclReduceScatterConfig, const void* sendbuff, void* recvbuff,
                 size_t recvcount, ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                 cudaStream_t stream, const ncclCollConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclAllGatherConfig, const void* sendbuff, void* recvbuff,
                 size_t sendcount, ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream,
                 const ncclCollConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclAlltoAllConfig, const void* sendbuff, void* recvbuff,
                 size_t count, ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream,
                 const ncclCollConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclGatherConfig, const void* sendbuff, void* recvbuff,
                 size_t count, ncclDataType_t datatype, int root, ncclComm_t comm,
                 cudaStream_t stream, const ncclCollConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclScatterConfig, const void* sendbuff, void* recvbuff,
                 size_t count, ncclDataType_t datatype, int root, ncclComm_t comm,
                 cudaStream_t stream, const ncclCollConfig_t* config);
MAYPOLE_FUNCTION(ncclResult_t, ncclBcast, void* buff, size_t count, ncclDataType_t datatype,
                 int root, ncclComm_t comm, cudaStream_t stream);

/* ---- transfers between two ranks ----
 *
 * Several transfers that run at once, and those of a rank with itself, have to be in one group. */

MAYPOLE_FUNCTION(ncclResult_t, ncclSend, const void* sendbuff, size_t count,
                 ncclDataType_t datatype, int peer, ncclComm_t comm, cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclRecv, void* recvbuff, size_t count, ncclDataType_t datatype,
                 int peer, ncclComm_t comm, cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclPutSignal, const void* localbuff, size_t count,
                 ncclDataType_t datatype, int peer, ncclWindow_t peerWin, size_t peerWinOffset,
                 int sigIdx, int ctx, unsigned int flags, ncclComm_t comm, cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclSignal, int peer, int sigIdx, int ctx, unsigned int flags,
                 ncclComm_t comm, cudaStream_t stream);
MAYPOLE_FUNCTION(ncclResult_t, ncclWaitSignal, int nDesc, ncclWaitSignalDesc_t* signalDescs,
                 ncclComm_t comm, cudaStream_t stream);

/* ---- groups ---- */

MAYPOLE_FUNCTION(ncclResult_t, ncclGroupStart, void);
MAYPOLE_FUNCTION(ncclResult_t, ncclGroupEnd, void);
/* Drops the group and predicts how long it would have taken. */
MAYPOLE_FUNCTION(ncclResult_t, ncclGroupSimulateEnd, ncclSimInfo_t* simInfo);

/* ---- settings ----
 *
 * The key is the name of the environment variable, with or without NCCL_. */

MAYPOLE_FUNCTION(ncclResult_t, ncclParamBind, ncclParamHandle_t* out, const char* key);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetI8, ncclParamHandle_t h, int8_t* out);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetI16, ncclParamHandle_t h, int16_t* out);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetI32, ncclParamHandle_t h, int32_t* out);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetI64, ncclParamHandle_t h, int64_t* out);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetU8, ncclParamHandle_t h, uint8_t* out);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetU16, ncclParamHandle_t h, uint16_t* out);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetU32, ncclParamHandle_t h, uint32_t* out);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetU64, ncclParamHandle_t h, uint64_t* out);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetStr, ncclParamHandle_t h, const char** out);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGet, ncclParamHandle_t h, void* out, int maxLen, int* len);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetParameter, const char* key, const char** value,
                 int* valueLen);
MAYPOLE_FUNCTION(ncclResult_t, ncclParamGetAllParameterKeys, const char*** table, int* tableLen);
MAYPOLE_FUNCTION(void, ncclParamDumpAll, void);

#ifdef __cplusplus
}
#endif

#endif
