/* Every argument of every function out of range or NULL, on host memory or devices. The call
 * returns the documented result and leaves a text, and never crashes. */
#include "gpu.h"

#include <maypole.h>
#include <nccl_device.h>
#include <stdint.h>
#include <string.h>

static char before[64];
static int calls;

/* Checks a result, and that the call itself has left the last error. */
static void expect(const char* what, ncclResult_t got, ncclResult_t wanted, int line) {
  calls++;
  const char* text = ncclGetLastError(NULL);
  if (got != wanted || (wanted != ncclSuccess && (strlen(text) < 8 || strcmp(text, before) == 0))) {
    fprintf(stderr, "line %d: %s: %d, not %d; last error: %s\n", line, what, got, wanted, text);
    exit(1);
  }
}

/* Leaves a last error that no call under test leaves. */
static void mark(void) {
  static int number;
  ncclParamHandle_t handle;
  char name[32];
  snprintf(name, sizeof name, "NONE_%d", number++);
  ncclParamBind(&handle, name);
  snprintf(before, sizeof before, "%s", ncclGetLastError(NULL));
}

#define IS(wanted, call) (mark(), expect(#call, call, wanted, __LINE__))
#define BAD(call) IS(ncclInvalidArgument, call)
#define MISUSE(call) IS(ncclInvalidUsage, call)

static float send[64], recv[64];
static void* const ADDRESS = &send;

#define HANDLES(each)             \
  each(NULL);                     \
  each(dead);                     \
  each((ncclComm_t)ADDRESS);      \
  each((ncclComm_t)(uintptr_t)8); \
  each((ncclComm_t)UINTPTR_MAX)

static void handles(ncclComm_t dead) {
  int number;
  uint64_t value;
  ncclResult_t state;
  ncclComm_t new;
  ncclWindow_t window;
  ncclRedOp_t op;
  ncclUniqueId id;
  void* pointer;
  int list[1] = {0};
  size_t counts[1] = {1};
  ncclCommProperties_t properties = NCCL_COMM_PROPERTIES_INITIALIZER;
  ncclWaitSignalDesc_t wait = {1, 0, 0, 0};
  char memory[256];
#define EACH(comm)                                                                             \
  BAD(ncclCommCount(comm, &number));                                                           \
  BAD(ncclCommUserRank(comm, &number));                                                        \
  BAD(ncclCommCuDevice(comm, &number));                                                        \
  BAD(ncclCommGetAsyncError(comm, &state));                                                    \
  BAD(ncclCommSplit(comm, 0, 0, &new, NULL));                                                  \
  BAD(ncclCommShrink(comm, list, 1, &new, NULL, 0));                                           \
  BAD(ncclCommGetUniqueId(comm, &id));                                                         \
  BAD(ncclCommSuspend(comm, NCCL_SUSPEND_MEM));                                                \
  BAD(ncclCommResume(comm));                                                                   \
  BAD(ncclCommMemStats(comm, ncclStatGpuMemTotal, &value));                                    \
  BAD(ncclCommRegister(comm, send, 4, &pointer));                                              \
  BAD(ncclCommDeregister(comm, NULL));                                                         \
  BAD(ncclCommWindowRegister(comm, send, 4, &window, 0));                                      \
  BAD(ncclCommWindowDeregister(comm, NULL));                                                   \
  BAD(ncclWinGetUserPtr(comm, NULL, &pointer));                                                \
  BAD(ncclRedOpCreatePreMulSum(&op, send, ncclFloat, ncclScalarHostImmediate, comm));          \
  BAD(ncclRedOpDestroy((ncclRedOp_t)7, comm));                                                 \
  BAD(ncclAllReduce(send, recv, 1, ncclFloat, ncclSum, comm, NULL));                           \
  BAD(ncclReduce(send, recv, 1, ncclFloat, ncclSum, 0, comm, NULL));                           \
  BAD(ncclBroadcast(send, recv, 1, ncclFloat, 0, comm, NULL));                                 \
  BAD(ncclBcast(send, 1, ncclFloat, 0, comm, NULL));                                           \
  BAD(ncclReduceScatter(send, recv, 1, ncclFloat, ncclSum, comm, NULL));                       \
  BAD(ncclAllGather(send, recv, 1, ncclFloat, comm, NULL));                                    \
  BAD(ncclAlltoAll(send, recv, 1, ncclFloat, comm, NULL));                                     \
  BAD(ncclGather(send, recv, 1, ncclFloat, 0, comm, NULL));                                    \
  BAD(ncclScatter(send, recv, 1, ncclFloat, 0, comm, NULL));                                   \
  BAD(ncclAllReduceConfig(send, recv, 1, ncclFloat, ncclSum, comm, NULL, NULL));               \
  BAD(ncclSend(send, 1, ncclFloat, 0, comm, NULL));                                            \
  BAD(ncclRecv(recv, 1, ncclFloat, 0, comm, NULL));                                            \
  BAD(ncclPutSignal(send, 1, ncclFloat, 0, NULL, 0, 0, 0, 0, comm, NULL));                     \
  BAD(ncclSignal(0, 0, 0, 0, comm, NULL));                                                     \
  BAD(ncclWaitSignal(1, &wait, comm, NULL));                                                   \
  BAD(ncclCommQueryProperties(comm, &properties));                                             \
  BAD(ncclDevCommCreate(comm, (ncclDevCommRequirements_t*)memory, (ncclDevComm_t*)memory));    \
  BAD(ncclDevCommDestroy(comm, (ncclDevComm_t*)memory));                                       \
  BAD(maypoleBarrier(comm, NULL));                                                             \
  BAD(maypoleAllGatherV(send, 1, recv, counts, NULL, ncclFloat, comm, NULL));                  \
  EXPECT(ncclTeamWorld(comm).nRanks == 0 && ncclTeamLsa(comm).nRanks == 0);                    \
  EXPECT(ncclTeamRail(comm).nRanks == 0 && ncclTeamCft(comm, NCCL_CFT_TEAM_FLAT).nRanks == 0); \
  EXPECT(ncclTeamCftMultimem(comm).nRanks == 0);                                               \
  EXPECT(ncclTeamRankToWorld(comm, ncclTeamWorld(comm), 0) == -1);                             \
  EXPECT(ncclTeamRankToLsa(comm, ncclTeamWorld(comm), 0) == -1)
  HANDLES(EACH);
#define ENDS(comm)              \
  BAD(ncclCommFinalize(comm));  \
  BAD(ncclCommRevoke(comm, 0)); \
  BAD(ncclCommDestroy(comm));   \
  BAD(ncclCommAbort(comm))
  ENDS(dead);
  ENDS((ncclComm_t)ADDRESS);
  OK(ncclCommFinalize(NULL));
  OK(ncclCommDestroy(NULL));
  OK(ncclCommRevoke(NULL, 0));
  OK(ncclCommAbort(NULL));
}

static void init(void) {
  ncclUniqueId id, garbage;
  ncclComm_t comm;
  memset(&garbage, 0x11, sizeof garbage);
  OK(ncclGetUniqueId(&id));
  BAD(ncclGetVersion(NULL));
  BAD(ncclGetUniqueId(NULL));
  BAD(ncclCommInitRank(NULL, 1, id, 0));
  BAD(ncclCommInitRank(&comm, 0, id, 0));
  BAD(ncclCommInitRank(&comm, -1, id, 0));
  BAD(ncclCommInitRank(&comm, 2, id, 2));
  BAD(ncclCommInitRank(&comm, 2, id, -1));
  BAD(ncclCommInitRank(&comm, 2, id, INT_MIN));
  BAD(ncclCommInitRank(&comm, 1, garbage, 0));
  BAD(ncclCommInitRankConfig(NULL, 1, id, 0, NULL));
  BAD(ncclCommInitRankScalable(&comm, 1, 0, 1, &garbage, NULL));
  /* Each field of the configuration. */
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
#define FIELD(field, value)                              \
  config.field = value;                                  \
  BAD(ncclCommInitRankConfig(&comm, 1, id, 0, &config)); \
  EXPECT(strstr(ncclGetLastError(NULL), #field));        \
  config.field = INT_MIN
  FIELD(blocking, 2);
  FIELD(cgaClusterSize, -1);
  FIELD(minCTAs, 0);
  FIELD(maxCTAs, 0);
  FIELD(splitShare, 2);
  FIELD(trafficClass, -1);
  FIELD(collnetEnable, 2);
  FIELD(CTAPolicy, 4);
  FIELD(shrinkShare, -1);
  FIELD(nvlsCTAs, 0);
  FIELD(nChannelsPerNetPeer, 65);
  FIELD(nvlinkCentricSched, 2);
  FIELD(graphUsageMode, 3);
  FIELD(numRmaCtx, -1);
  FIELD(maxP2pPeers, 0);
  FIELD(graphStreamOrdering, 2);
  FIELD(launchOrderImplicit, 2);
  FIELD(numRmaSig, -1);
  FIELD(rmaEagerInit, 2);
  FIELD(hostCftMode, 4);
  FIELD(nvlsHostMode, 4);
  config.magic = 0;
  BAD(ncclCommInitRankConfig(&comm, 1, id, 0, &config));
  config.magic = NCCL_API_MAGIC;
  config.size = 0;
  BAD(ncclCommInitRankConfig(&comm, 1, id, 0, &config));
  config.size = sizeof config;
  OK(ncclCommInitRankConfig(&comm, 1, id, 0, &config));
  OK(ncclCommDestroy(comm));
}

static void calls_of(ncclComm_t comm, ncclComm_t other) {
  ncclCollConfig_t config = NCCL_COLLCONFIG_INITIALIZER;
  size_t counts[1] = {4}, places[1] = {0}, huge[1] = {SIZE_MAX / 2};
  cudaStream_t stream = (cudaStream_t)ADDRESS;
  /* Each argument that all collectives have. */
#define EVERY(bad)                                            \
  bad(ncclAllReduce, ncclSum, comm, NULL);                    \
  bad(ncclReduce, ncclSum, 0, comm, NULL);                    \
  bad(ncclReduceScatter, ncclSum, comm, NULL);                \
  bad(ncclBroadcast, 0, comm, NULL);                          \
  bad(ncclAllGather, comm, NULL);                             \
  bad(ncclAlltoAll, comm, NULL);                              \
  bad(ncclGather, 0, comm, NULL);                             \
  bad(ncclScatter, 0, comm, NULL);                            \
  bad(ncclAllReduceConfig, ncclSum, comm, NULL, &config);     \
  bad(ncclReduceConfig, ncclSum, 0, comm, NULL, &config);     \
  bad(ncclReduceScatterConfig, ncclSum, comm, NULL, &config); \
  bad(ncclBroadcastConfig, 0, comm, NULL, &config);           \
  bad(ncclAllGatherConfig, comm, NULL, &config);              \
  bad(ncclAlltoAllConfig, comm, NULL, &config);               \
  bad(ncclGatherConfig, 0, comm, NULL, &config);              \
  bad(ncclScatterConfig, 0, comm, NULL, &config)
#define BUFFERS(name, ...)                                     \
  BAD(name(NULL, recv, 4, ncclFloat, __VA_ARGS__));            \
  BAD(name(send, NULL, 4, ncclFloat, __VA_ARGS__));            \
  BAD(name(send, recv, SIZE_MAX, ncclFloat, __VA_ARGS__));     \
  BAD(name(send, recv, SIZE_MAX / 4, ncclFloat, __VA_ARGS__)); \
  BAD(name(send, recv, 4, (ncclDataType_t)12, __VA_ARGS__));   \
  BAD(name(send, recv, 4, (ncclDataType_t) - 1, __VA_ARGS__)); \
  OK(name(send, recv, 4, ncclFloat, __VA_ARGS__));             \
  OK(name(NULL, NULL, 0, ncclFloat, __VA_ARGS__))
  EVERY(BUFFERS);
  /* Each field of the configuration of a collective. */
#define CONFIGURED(bad)                                       \
  bad(ncclAllReduceConfig, ncclSum, comm, NULL, &config);     \
  bad(ncclReduceConfig, ncclSum, 0, comm, NULL, &config);     \
  bad(ncclReduceScatterConfig, ncclSum, comm, NULL, &config); \
  bad(ncclBroadcastConfig, 0, comm, NULL, &config);           \
  bad(ncclAllGatherConfig, comm, NULL, &config);              \
  bad(ncclAlltoAllConfig, comm, NULL, &config);               \
  bad(ncclGatherConfig, 0, comm, NULL, &config);              \
  bad(ncclScatterConfig, 0, comm, NULL, &config)
#define REFUSED(name, ...) BAD(name(send, recv, 4, ncclFloat, __VA_ARGS__))
#define COLL_FIELD(field, value) \
  config.field = value;          \
  CONFIGURED(REFUSED);           \
  config.field = NCCL_CONFIG_UNDEF_INT
  COLL_FIELD(minCTAs, 0);
  COLL_FIELD(maxCTAs, 0);
  COLL_FIELD(nvlsCTAs, 0);
  COLL_FIELD(cgaClusterSize, -1);
  COLL_FIELD(CTAPolicy, 4);
  config.forceAlgSelection = 2;
  CONFIGURED(REFUSED);
  config.forceAlgSelection = 1;
  config.magic = 1;
  CONFIGURED(REFUSED);
  config.magic = NCCL_API_MAGIC;
  config.size = 63;
  CONFIGURED(REFUSED);
  config.size = sizeof config;
  config.algSelection = "no_such_algorithm";
  MISUSE(ncclAllReduceConfig(send, recv, 4, ncclFloat, ncclSum, comm, NULL, &config));
  config.forceAlgSelection = 0;
  OK(ncclAllReduceConfig(send, recv, 4, ncclFloat, ncclSum, comm, NULL, &config));
  /* Operators. */
  ncclRedOp_t op, elsewhere;
  OK(ncclRedOpCreatePreMulSum(&op, send, ncclFloat, ncclScalarHostImmediate, comm));
  OK(ncclRedOpCreatePreMulSum(&elsewhere, send, ncclFloat, ncclScalarHostImmediate, other));
  ncclRedOp_t const wrong[] = {(ncclRedOp_t)6, (ncclRedOp_t)-1, ncclMaxRedOp, elsewhere};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    BAD(ncclAllReduce(send, recv, 4, ncclFloat, wrong[i], comm, NULL));
    BAD(ncclReduce(send, recv, 4, ncclFloat, wrong[i], 0, comm, NULL));
    BAD(ncclReduceScatter(send, recv, 4, ncclFloat, wrong[i], comm, NULL));
    BAD(maypoleReduceScatterV(send, counts, NULL, recv, 4, ncclFloat, wrong[i], comm, NULL));
    BAD(ncclRedOpDestroy(wrong[i], comm));
  }
  for (int builtin = ncclSum; builtin <= ncclAvg; builtin++)
    BAD(ncclRedOpDestroy((ncclRedOp_t)builtin, comm));
  BAD(ncclAllReduce(send, recv, 4, ncclDouble, op, comm, NULL));
  OK(ncclRedOpDestroy(op, comm));
  BAD(ncclRedOpDestroy(op, comm));
  BAD(ncclRedOpCreatePreMulSum(NULL, send, ncclFloat, ncclScalarHostImmediate, comm));
  BAD(ncclRedOpCreatePreMulSum(&op, NULL, ncclFloat, ncclScalarHostImmediate, comm));
  BAD(ncclRedOpCreatePreMulSum(&op, send, (ncclDataType_t)99, ncclScalarHostImmediate, comm));
  BAD(ncclRedOpCreatePreMulSum(&op, send, ncclFloat, (ncclScalarResidence_t)2, comm));
  /* Roots, peers, streams. */
  int const ranks[] = {1, -1, INT_MAX, INT_MIN};
  for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
    int rank = ranks[i];
    BAD(ncclReduce(send, recv, 4, ncclFloat, ncclSum, rank, comm, NULL));
    BAD(ncclBroadcast(send, recv, 4, ncclFloat, rank, comm, NULL));
    BAD(ncclBcast(send, 4, ncclFloat, rank, comm, NULL));
    BAD(ncclGather(send, recv, 4, ncclFloat, rank, comm, NULL));
    BAD(ncclScatter(send, recv, 4, ncclFloat, rank, comm, NULL));
    BAD(ncclSend(send, 4, ncclFloat, rank, comm, NULL));
    BAD(ncclRecv(recv, 4, ncclFloat, rank, comm, NULL));
    BAD(ncclPutSignal(send, 4, ncclFloat, rank, NULL, 0, 0, 0, 0, comm, NULL));
    BAD(ncclSignal(rank, 0, 0, 0, comm, NULL));
    BAD(maypoleGatherV(send, 4, recv, counts, NULL, ncclFloat, rank, comm, NULL));
    BAD(maypoleScatterV(send, counts, NULL, recv, 4, ncclFloat, rank, comm, NULL));
  }
  /* On a device any address may be a stream; only the driver can tell. */
  if (gpu) stream = (cudaStream_t)(uintptr_t)0x14;
  BAD(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, stream));
  BAD(ncclBcast(send, 4, ncclFloat, 0, comm, stream));
  BAD(ncclSend(send, 4, ncclFloat, 0, comm, stream));
  BAD(ncclSignal(0, 0, 0, 0, comm, stream));
  BAD(maypoleBarrier(comm, stream));
  OK(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, (cudaStream_t)(uintptr_t)1));
  OK(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, (cudaStream_t)(uintptr_t)2));
  BAD(ncclSend(NULL, 4, ncclFloat, 0, comm, NULL));
  BAD(ncclRecv(NULL, 4, ncclFloat, 0, comm, NULL));
  BAD(ncclSend(send, SIZE_MAX / 2, ncclFloat, 0, comm, NULL));
  BAD(ncclRecv(recv, 4, (ncclDataType_t)12, 0, comm, NULL));
  BAD(ncclBcast(NULL, 4, ncclFloat, 0, comm, NULL));
  MISUSE(ncclSend(send, 4, ncclFloat, 0, comm, NULL));
  MISUSE(ncclRecv(recv, 4, ncclFloat, 0, comm, NULL));
  /* Vector collectives. */
#define UNEVEN(...)                    \
  BAD(maypoleAllGatherV(__VA_ARGS__)); \
  BAD(maypoleGatherV(__VA_ARGS__))
  BAD(maypoleAllGatherV(NULL, 4, recv, counts, NULL, ncclFloat, comm, NULL));
  BAD(maypoleAllGatherV(send, 4, NULL, counts, NULL, ncclFloat, comm, NULL));
  BAD(maypoleAllGatherV(send, 4, recv, NULL, NULL, ncclFloat, comm, NULL));
  BAD(maypoleAllGatherV(send, 4, recv, huge, NULL, ncclFloat, comm, NULL));
  BAD(maypoleAllGatherV(send, 4, recv, counts, huge, ncclFloat, comm, NULL));
  BAD(maypoleAllGatherV(send, 4, recv, counts, places, (ncclDataType_t)12, comm, NULL));
  BAD(maypoleReduceScatterV(send, NULL, NULL, recv, 4, ncclFloat, ncclSum, comm, NULL));
  BAD(maypoleAlltoAllV(send, NULL, NULL, recv, counts, NULL, ncclFloat, comm, NULL));
  BAD(maypoleAlltoAllV(send, counts, NULL, recv, NULL, NULL, ncclFloat, comm, NULL));
  BAD(maypoleGatherV(send, 4, recv, NULL, NULL, ncclFloat, 0, comm, NULL));
  BAD(maypoleScatterV(send, NULL, NULL, recv, 4, ncclFloat, 0, comm, NULL));
  OK(maypoleAllGatherV(send, 4, recv, counts, places, ncclFloat, comm, NULL));
  OK(maypoleBarrier(comm, NULL));
}

static void others(ncclComm_t comm, ncclComm_t other) {
  int number, list[2] = {0, 0};
  uint64_t value;
  void *pointer, *handle;
  ncclComm_t new;
  ncclUniqueId id, garbage;
  ncclWindow_t window, elsewhere;
  memset(&garbage, 0x11, sizeof garbage);
  OK(ncclGetUniqueId(&id));
  BAD(ncclCommCount(comm, NULL));
  BAD(ncclCommUserRank(comm, NULL));
  BAD(ncclCommCuDevice(comm, NULL));
  BAD(ncclCommGetAsyncError(comm, NULL));
  BAD(ncclCommRevoke(comm, 1));
  BAD(ncclCommSplit(comm, -2, 0, &new, NULL));
  BAD(ncclCommSplit(comm, 0, 0, NULL, NULL));
  BAD(ncclCommShrink(comm, list, 0, &new, NULL, 0));
  BAD(ncclCommShrink(comm, list, -1, &new, NULL, 0));
  BAD(ncclCommShrink(comm, NULL, 1, &new, NULL, 0));
  BAD(ncclCommShrink(comm, list, 1, &new, NULL, 0));
  BAD(ncclCommShrink(comm, list, 1, NULL, NULL, 0));
  BAD(ncclCommShrink(comm, list, 1, &new, NULL, 2));
  BAD(ncclCommGetUniqueId(comm, NULL));
  BAD(ncclCommGrow(comm, 1, &id, -1, &new, NULL));
  BAD(ncclCommGrow(comm, -5, &id, -1, &new, NULL));
  BAD(ncclCommGrow(comm, 2, &id, 0, &new, NULL));
  BAD(ncclCommGrow(comm, 2, &id, -1, NULL, NULL));
  BAD(ncclCommGrow(comm, 2, &garbage, -1, &new, NULL));
  BAD(ncclCommGrow(comm, 2, NULL, -1, &new, NULL));
  BAD(ncclCommGrow(NULL, 2, NULL, 1, &new, NULL));
  BAD(ncclCommGrow(NULL, 2, &id, 2, &new, NULL));
  BAD(ncclCommGrow(NULL, 2, &id, 0, &new, NULL));
  BAD(ncclCommSuspend(comm, 0));
  BAD(ncclCommSuspend(comm, 2));
  MISUSE(ncclCommResume(comm));
  BAD(ncclCommMemStats(comm, (ncclCommMemStat_t)4, &value));
  BAD(ncclCommMemStats(comm, ncclStatGpuMemTotal, NULL));
  /* Memory. */
  BAD(ncclMemAlloc(NULL, 16));
  BAD(ncclMemFree(send));
  IS(gpu ? ncclUnhandledCudaError : ncclSystemError, ncclMemAlloc(&pointer, SIZE_MAX));
  OK(ncclMemFree(NULL));
  OK(ncclMemAlloc(&pointer, 0));
  EXPECT(pointer == NULL);
  OK(ncclMemAlloc(&pointer, 12345));
  EXPECT(((uintptr_t)pointer & (gpu ? 255 : 4095)) == 0);
  if (!gpu) memset(pointer, 1, 12345);
  OK(ncclMemFree(pointer));
  BAD(ncclMemFree(pointer));
  BAD(ncclCommRegister(comm, NULL, 4, &handle));
  BAD(ncclCommRegister(comm, send, 0, &handle));
  BAD(ncclCommRegister(comm, send, 4, NULL));
  OK(ncclCommRegister(comm, send, sizeof send, &handle));
  BAD(ncclCommDeregister(comm, send));
  BAD(ncclCommDeregister(other, handle));
  OK(ncclCommDeregister(comm, handle));
  BAD(ncclCommDeregister(comm, handle));
  OK(ncclCommDeregister(comm, NULL));
  /* Windows. */
  BAD(ncclCommWindowRegister(comm, NULL, 4, &window, 0));
  BAD(ncclCommWindowRegister(comm, send, 0, &window, 0));
  BAD(ncclCommWindowRegister(comm, send, 4, NULL, 0));
  BAD(ncclCommWindowRegister(comm, send, 4, &window, 0x10));
  OK(ncclCommWindowRegister(comm, send, sizeof send, &window, NCCL_WIN_COLL_SYMMETRIC));
  OK(ncclCommWindowRegister(other, send, sizeof send, &elsewhere, 0));
  /* On devices there are no windows. */
  EXPECT(!gpu == (window != NULL) && !gpu == (elsewhere != NULL));
  OK(ncclWinGetUserPtr(comm, window, &pointer));
  EXPECT(pointer == (gpu ? NULL : send));
  BAD(ncclWinGetUserPtr(comm, window, NULL));
  if (!gpu) BAD(ncclWinGetUserPtr(comm, elsewhere, &pointer));
  BAD(ncclWinGetUserPtr(comm, (ncclWindow_t)ADDRESS, &pointer));
  ncclWaitSignalDesc_t wait = {1, 0, 0, 0}, wrong = {0, 0, 0, 0};
  BAD(ncclPutSignal(NULL, 4, ncclFloat, 0, window, 0, 0, 0, 0, comm, NULL));
  BAD(ncclPutSignal(send, 4, (ncclDataType_t)12, 0, window, 0, 0, 0, 0, comm, NULL));
  BAD(ncclPutSignal(send, 4, ncclFloat, 0, elsewhere, 0, 0, 0, 0, comm, NULL));
  BAD(ncclPutSignal(send, 4, ncclFloat, 0, window, sizeof send, 0, 0, 0, comm, NULL));
  BAD(ncclPutSignal(send, SIZE_MAX / 2, ncclFloat, 0, window, 0, 0, 0, 0, comm, NULL));
  BAD(ncclPutSignal(send, 4, ncclFloat, 0, window, 0, 1, 0, 0, comm, NULL));
  BAD(ncclPutSignal(send, 4, ncclFloat, 0, window, 0, 0, 1, 0, comm, NULL));
  BAD(ncclPutSignal(send, 4, ncclFloat, 0, window, 0, 0, 0, 1, comm, NULL));
  if (gpu) {
    BAD(ncclPutSignal(send, 4, ncclFloat, 0, window, 0, 0, 0, 0, comm, NULL));
    MISUSE(ncclSignal(0, 0, 0, 0, comm, NULL));
  } else {
    OK(ncclPutSignal(send, 4, ncclFloat, 0, window, 0, 0, 0, 0, comm, NULL));
    OK(ncclSignal(0, 0, 0, 0, comm, NULL));
  }
  BAD(ncclWaitSignal(0, &wait, comm, NULL));
  BAD(ncclWaitSignal(1, NULL, comm, NULL));
  BAD(ncclWaitSignal(1, &wrong, comm, NULL));
  if (gpu) {
    MISUSE(ncclWaitSignal(1, &wait, comm, NULL));
  } else {
    OK(ncclWaitSignal(1, &wait, comm, NULL));
    OK(ncclWaitSignal(1, &wait, comm, NULL));
    /* A rank that waits for its own signals would wait without end. */
    BAD(ncclWaitSignal(1, &wait, comm, NULL));
  }
  /* The device API. */
  ncclCommProperties_t properties = NCCL_COMM_PROPERTIES_INITIALIZER;
  ncclMultimemHandle_t multimem = {NULL};
  ncclTeam_t team = ncclTeamWorld(comm);
  ncclCftLeId le;
  size_t offset;
  ncclLsaBarrierHandle_t lsa;
  ncclGinBarrierHandle_t gin;
  ncclLLA2AHandle_t ll;
  ncclDevResourceRequirements_t requirement;
  char memory[64];
  BAD(ncclCommQueryProperties(comm, NULL));
  properties.magic = 0;
  BAD(ncclCommQueryProperties(comm, &properties));
  properties.magic = NCCL_API_MAGIC;
  properties.size = 8;
  BAD(ncclCommQueryProperties(comm, &properties));
  properties.size = sizeof properties;
  properties.deviceApiSupport = true, properties.hostRmaSupport = gpu;
  OK(ncclCommQueryProperties(comm, &properties));
  EXPECT(!properties.deviceApiSupport && properties.hostRmaSupport == !gpu &&
         properties.nRanks == 1);
  BAD(ncclDevCommCreate(comm, NULL, (ncclDevComm_t*)memory));
  MISUSE(ncclDevCommCreate(comm, (ncclDevCommRequirements_t*)memory, (ncclDevComm_t*)memory));
  MISUSE(ncclDevCommDestroy(comm, (ncclDevComm_t*)memory));
  /* A window that does not exist. */
#define OF_WINDOW(call) IS(gpu ? ncclInvalidArgument : ncclInvalidUsage, call)
  BAD(ncclGetLsaDevicePointer(window, 0, 0, NULL));
  BAD(ncclGetLsaDevicePointer(NULL, 0, 0, &pointer));
  BAD(ncclGetPeerDevicePointer(window, sizeof send, 0, &pointer));
  OF_WINDOW(ncclGetLsaDevicePointer(window, 0, 0, &pointer));
  OF_WINDOW(ncclGetPeerDevicePointer(window, 0, 0, &pointer));
  OF_WINDOW(ncclGetMultimemDevicePointer(window, 0, multimem, &pointer));
  OF_WINDOW(ncclGetLsaMultimemDevicePointer(window, 0, &pointer));
  BAD(ncclGetPeerDeviceLeInfo(window, 0, 0, NULL, &offset));
  OF_WINDOW(ncclGetPeerDeviceLeInfo(window, 0, 0, &le, &offset));
  OF_WINDOW(ncclGetCftDeviceLeInfo(window, 0, 0, team, &le, &offset));
  OF_WINDOW(ncclGetMultimemDeviceLeInfo(window, 0, &le, &offset));
  BAD(ncclLsaBarrierCreateRequirement(team, 1, NULL, &requirement));
  MISUSE(ncclLsaBarrierCreateRequirement(team, 1, &lsa, &requirement));
  MISUSE(ncclGinBarrierCreateRequirement(comm, team, 1, &gin, &requirement));
  MISUSE(ncclLLA2ACreateRequirement(1, 1, &ll, &requirement));
  MISUSE(ncclGinOutboxCreateRequirement(1, 1, (ncclGinOutboxHandle_t*)memory, &requirement));
  MISUSE(
      ncclGinInboxA2ACreateRequirement(team, 1, 1, (ncclGinInboxA2AHandle_t*)memory, &requirement));
  EXPECT(ncclLLA2ACalcSlots(1, 1) == 0);
  EXPECT(team.nRanks == 1 && team.rank == 0 && team.stride == 1);
  EXPECT(ncclTeamRankToWorld(comm, team, 0) == 0 && ncclTeamRankToLsa(comm, team, 0) == 0);
  EXPECT(ncclTeamRankToWorld(comm, team, 1) == -1 && ncclTeamRankToLsa(comm, team, INT_MIN) == -1);
  EXPECT(ncclTeamCft(comm, (ncclCftTeamMode_t)9).nRanks == 0);
  if (!gpu) BAD(ncclCommWindowDeregister(comm, elsewhere));
  OK(ncclCommWindowDeregister(comm, window));
  if (!gpu) BAD(ncclCommWindowDeregister(comm, window));
  OK(ncclCommWindowDeregister(comm, NULL));
  (void)number;
}

static void process(void) {
  ncclParamHandle_t handle;
  int64_t i64;
  int8_t i8;
  uint64_t u64;
  int len;
  const char *text, **table;
  char bytes[64];
  BAD(ncclParamBind(NULL, "DEBUG"));
  BAD(ncclParamBind(&handle, NULL));
  BAD(ncclParamBind(&handle, "NO_SUCH_THING"));
  OK(ncclParamBind(&handle, "NCCL_SOCKET_NTHREADS"));
  OK(ncclParamGetI64(handle, &i64));
  EXPECT(i64 == 1);
  OK(ncclParamGetU64(handle, &u64));
  OK(ncclParamGetI8(handle, &i8));
  BAD(ncclParamGetI8(handle, NULL));
  BAD(ncclParamGetI32(NULL, (int32_t*)bytes));
  BAD(ncclParamGetU16((ncclParamHandle_t)ADDRESS, (uint16_t*)bytes));
  OK(ncclParamGet(handle, bytes, sizeof bytes, &len));
  EXPECT(len == 8);
  BAD(ncclParamGet(handle, bytes, 7, &len));
  BAD(ncclParamGet(handle, bytes, -1, &len));
  BAD(ncclParamGet(handle, NULL, 8, &len));
  BAD(ncclParamGet(handle, bytes, 8, NULL));
  OK(ncclParamGetStr(handle, &text));
  EXPECT(strcmp(text, "1") == 0);
  BAD(ncclParamGetStr(handle, NULL));
  OK(ncclParamBind(&handle, "SOCKET_FAMILY"));
  BAD(ncclParamGetI64(handle, &i64));
  OK(ncclParamGetParameter("MAYPOLE_INIT_TIMEOUT", &text, &len));
  EXPECT(len == 3 && memcmp(text, "600", 3) == 0);
  BAD(ncclParamGetParameter(NULL, &text, &len));
  BAD(ncclParamGetParameter("DEBUG", NULL, &len));
  BAD(ncclParamGetParameter("DEBUG", &text, NULL));
  OK(ncclParamGetAllParameterKeys(&table, &len));
  EXPECT(len > 20);
  for (int i = 0; i < len; i++) OK(ncclParamBind(&handle, table[i]));
  BAD(ncclParamGetAllParameterKeys(NULL, &len));
  BAD(ncclParamGetAllParameterKeys(&table, NULL));
  /* Groups. */
  ncclSimInfo_t info = NCCL_SIM_INFO_INITIALIZER;
  MISUSE(ncclGroupEnd());
  MISUSE(ncclGroupSimulateEnd(&info));
  OK(ncclGroupStart());
  info.magic = 0;
  BAD(ncclGroupSimulateEnd(&info));
  MISUSE(ncclGroupEnd());
  /* Encryption. */
  ncclEncryptionConfig_t encryption = NCCL_ENCRYPTION_CONFIG_INITIALIZER;
  OK(ncclSetEncryption(NULL));
  OK(ncclSetEncryption(&encryption));
  encryption.mode = NCCL_ENCRYPTION_MODE_PSK;
  BAD(ncclSetEncryption(&encryption));
  encryption.psk = "too short";
  BAD(ncclSetEncryption(&encryption));
  encryption.psk = "0123456789abcdef0123456789abcdef";
  MISUSE(ncclSetEncryption(&encryption));
  encryption.mode = 7;
  BAD(ncclSetEncryption(&encryption));
  encryption.magic = 7;
  BAD(ncclSetEncryption(&encryption));
  ncclResetDebugInit();
  for (int code = -2; code < 12; code++) EXPECT(strlen(ncclGetErrorString((ncclResult_t)code)) > 0);
}

/* The end of a group returns its first error, and the work of the group is dropped. Ends without a
 * start are refused. */
static void groups(ncclComm_t comm) {
  memset(recv, 0, sizeof recv);
  send[0] = 3;
  OK(ncclGroupStart());
  OK(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, NULL));
  BAD(ncclSend(send, 4, ncclFloat, 7, comm, NULL));
  BAD(ncclGroupEnd());
  EXPECT(recv[0] == 0);
  OK(ncclGroupStart());
  OK(ncclSend(send, 4, ncclFloat, 0, comm, NULL));
  MISUSE(ncclGroupEnd());
  OK(ncclGroupStart());
  OK(ncclGroupStart());
  OK(ncclRecv(recv, 4, ncclFloat, 0, comm, NULL));
  OK(ncclGroupEnd());
  EXPECT(recv[0] == 0);
  OK(ncclSend(send, 4, ncclFloat, 0, comm, NULL));
  OK(maypoleBarrier(comm, NULL));
  OK(ncclGroupEnd());
  gpu_done();
  EXPECT(recv[0] == 3);
}

int main(void) {
  ncclComm_t comm, other, dead;
  ncclUniqueId id;
  ncclComm_t* const all[] = {&comm, &other, &dead};
  gpu_begin();
  GPU_PIN(send);
  GPU_PIN(recv);
  init();
  for (int i = 0; i < 3; i++) {
    OK(ncclGetUniqueId(&id));
    OK(ncclCommInitRank(all[i], 1, id, 0));
  }
  OK(ncclCommDestroy(dead));
  handles(dead);
  calls_of(comm, other);
  others(comm, other);
  process();
  groups(comm);
  /* A group whose communicator is destroyed before its end. */
  OK(ncclGroupStart());
  OK(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, other, NULL));
  OK(ncclCommDestroy(other));
  BAD(ncclGroupEnd());
  OK(ncclCommFinalize(comm));
  BAD(ncclCommFinalize(comm));
  BAD(ncclAllReduce(send, recv, 4, ncclFloat, ncclSum, comm, NULL));
  MISUSE(ncclCommSplit(comm, 0, 0, &other, NULL));
  BAD(ncclCommRevoke(comm, 0));
  OK(ncclCommDestroy(comm));
  printf("%d calls checked\n", calls);
  return 0;
}
