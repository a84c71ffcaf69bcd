/* Cases for the simulated GPU, each in a process of its own: simulator CASE. tests/simulator.rs
 * builds this, runs it and says what each case has to end with. Linked to the simulated
 * libcuda.so.1. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../sim/driver_api.h"

typedef unsigned long long u64;
typedef unsigned int u32;
typedef CUresult R;
R cuInit(unsigned);
R cuDriverGetVersion(int*);
R cuDeviceGetCount(int*);
R cuDeviceGetAttribute(int*, int, CUdevice);
R cuDeviceGetPCIBusId(char*, int, CUdevice);
R cuDeviceGetUuid_v2(CUuuid*, CUdevice);
R cuDevicePrimaryCtxRetain(CUcontext*, CUdevice);
R cuCtxSetCurrent(CUcontext);
R cuCtxGetCurrent(CUcontext*);
R cuCtxPushCurrent_v2(CUcontext);
R cuCtxPopCurrent_v2(CUcontext*);
R cuCtxGetDevice(CUdevice*);
R cuCtxSynchronize(void);
R cuDeviceCanAccessPeer(int*, CUdevice, CUdevice);
R cuCtxEnablePeerAccess(CUcontext, unsigned);
R cuCtxDisablePeerAccess(CUcontext);
R cuGetErrorName(R, const char**);
R cuGetErrorString(R, const char**);
R cuMemAlloc_v2(CUdeviceptr*, size_t);
R cuMemFree_v2(CUdeviceptr);
R cuMemAllocAsync(CUdeviceptr*, size_t, CUstream);
R cuMemFreeAsync(CUdeviceptr, CUstream);
R cuMemGetInfo_v2(size_t*, size_t*);
R cuMemGetAddressRange_v2(CUdeviceptr*, size_t*, CUdeviceptr);
R cuMemHostAlloc(void**, size_t, unsigned);
R cuMemFreeHost(void*);
R cuMemHostRegister_v2(void*, size_t, unsigned);
R cuMemHostUnregister(void*);
R cuMemHostGetDevicePointer_v2(CUdeviceptr*, void*, unsigned);
R cuPointerGetAttribute(void*, int, CUdeviceptr);
R cuStreamCreate(CUstream*, unsigned);
R cuStreamDestroy_v2(CUstream);
R cuStreamSynchronize(CUstream);
R cuStreamQuery(CUstream);
R cuStreamGetCtx(CUstream, CUcontext*);
R cuMemcpyHtoDAsync_v2(CUdeviceptr, const void*, size_t, CUstream);
R cuMemcpyDtoHAsync_v2(void*, CUdeviceptr, size_t, CUstream);
R cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, size_t, CUstream);
R cuMemcpyAsync(CUdeviceptr, CUdeviceptr, size_t, CUstream);
R cuMemcpyPeerAsync(CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream);
R cuMemcpyHtoD_v2(CUdeviceptr, const void*, size_t);
R cuMemcpyDtoH_v2(void*, CUdeviceptr, size_t);
R cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, CUstream);
R cuMemsetD32Async(CUdeviceptr, unsigned, size_t, CUstream);
R cuLaunchHostFunc(CUstream, CUhostFn, void*);
R cuStreamWaitValue32_v2(CUstream, CUdeviceptr, u32, unsigned);
R cuStreamWaitValue64_v2(CUstream, CUdeviceptr, uint64_t, unsigned);
R cuStreamWriteValue32_v2(CUstream, CUdeviceptr, u32, unsigned);
R cuStreamWriteValue64_v2(CUstream, CUdeviceptr, uint64_t, unsigned);
R cuEventCreate(CUevent*, unsigned);
R cuEventDestroy_v2(CUevent);
R cuEventRecord(CUevent, CUstream);
R cuEventQuery(CUevent);
R cuEventSynchronize(CUevent);
R cuStreamWaitEvent(CUstream, CUevent, unsigned);
R cuEventElapsedTime(float*, CUevent, CUevent);
R cuIpcGetMemHandle(CUipcMemHandle*, CUdeviceptr);
R cuIpcOpenMemHandle_v2(CUdeviceptr*, CUipcMemHandle, unsigned);
R cuIpcCloseMemHandle(CUdeviceptr);
R cuIpcGetEventHandle(CUipcEventHandle*, CUevent);
R cuIpcOpenEventHandle(CUevent*, CUipcEventHandle);
R cuModuleLoadData(CUmodule*, const void*);
R cuModuleUnload(CUmodule);
R cuModuleGetFunction(CUfunction*, CUmodule, const char*);
R cuLaunchKernel(CUfunction, u32, u32, u32, u32, u32, u32, u32, CUstream, void**, void**);
R cuLaunchCooperativeKernel(CUfunction, u32, u32, u32, u32, u32, u32, u32, CUstream, void**);
R cuLaunchKernelEx(const CUlaunchConfig*, CUfunction, void**, void**);
R cuThreadExchangeStreamCaptureMode(int*);
R cuStreamBeginCapture_v2(CUstream, int);
R cuStreamEndCapture(CUstream, CUgraph*);
R cuStreamIsCapturing(CUstream, int*);
R cuStreamGetCaptureInfo_v2(CUstream, int*, uint64_t*, CUgraph*, const CUgraphNode**, size_t*);
R cuStreamUpdateCaptureDependencies(CUstream, CUgraphNode*, size_t, unsigned);
R cuGraphInstantiateWithFlags(CUgraphExec*, CUgraph, u64);
R cuGraphLaunch(CUgraphExec, CUstream);
R cuGraphDestroy(CUgraph);
R cuGraphExecDestroy(CUgraphExec);
R cuGraphGetNodes(CUgraph, CUgraphNode*, size_t*);
R cuGetProcAddress_v2(const char*, void**, int, uint64_t, int*);
u64 simCalls(const char*);
u64 simCallsTotal(void);
void simCallsReset(void);
size_t simCallsReport(char*, size_t);
void simFail(const char*, u64, R);

#define CHECK(condition)                                      \
  do {                                                        \
    if (!(condition)) {                                       \
      fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
      exit(1);                                                \
    }                                                         \
  } while (0)
#define IS(expected, call)                                          \
  do {                                                              \
    const R is_ = (call);                                           \
    if (is_ != (expected)) {                                        \
      fprintf(stderr, "line %d: %s is %d\n", __LINE__, #call, is_); \
      exit(1);                                                      \
    }                                                               \
  } while (0)
#define OK(call) IS(0, call)

typedef struct {
  CUdeviceptr from, to;
  u64 value;
} Probe;
static CUcontext context, second;
static CUmodule module;
static CUfunction add, await_, meet, bypass;
static CUstream a, b;
static u64* flags; /* pinned */
static CUdeviceptr word, other;

static void begin_two(int devices) {
  OK(cuInit(0));
  if (devices > 1) OK(cuDevicePrimaryCtxRetain(&second, 1));
  OK(cuDevicePrimaryCtxRetain(&context, 0));
  OK(cuCtxSetCurrent(context));
  OK(cuModuleLoadData(&module, ".version 7.0")); /* stands for the kernels.so beside libcuda */
  OK(cuModuleGetFunction(&add, module, "add"));
  OK(cuModuleGetFunction(&await_, module, "await"));
  OK(cuModuleGetFunction(&meet, module, "meet"));
  OK(cuModuleGetFunction(&bypass, module, "bypass"));
  OK(cuStreamCreate(&a, CU_STREAM_NON_BLOCKING));
  OK(cuStreamCreate(&b, CU_STREAM_NON_BLOCKING));
  OK(cuMemHostAlloc((void**)&flags, 4096, 0));
  memset(flags, 0, 4096);
  OK(cuMemAlloc_v2(&word, 64));
  OK(cuMemAlloc_v2(&other, 64));
  OK(cuMemsetD8Async(word, 0, 64, a));
  OK(cuMemsetD8Async(other, 0, 64, a));
  OK(cuStreamSynchronize(a));
}
static void begin(void) { begin_two(1); }
static R launch(CUfunction f, u32 grid, CUstream s, CUdeviceptr from, CUdeviceptr to, u64 value) {
  Probe probe = {from, to, value};
  void* arguments[] = {&probe};
  return cuLaunchKernel(f, grid, 1, 1, 32, 1, 1, 0, s, arguments, NULL);
}
static u64 read_word(CUdeviceptr at) {
  u64 value;
  CUstream s;
  OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
  OK(cuMemcpyDtoHAsync_v2(&value, at, 8, s));
  OK(cuStreamDestroy_v2(s));
  return value;
}
static void set_flag(int i, u64 value) { __atomic_store_n(&flags[i], value, __ATOMIC_RELEASE); }
#define FLAG(i) ((CUdeviceptr) & flags[i])

/* A stream is in order; a copy behind a kernel that waits has not happened while the kernel waits.
 */
static void streams(void) {
  begin();
  OK(launch(await_, 1, a, FLAG(0), word, 1));
  OK(launch(add, 1, a, word, word, 10));
  OK(cuMemcpyDtoDAsync_v2(other, word, 8, a));
  IS(CUDA_ERROR_NOT_READY, cuStreamQuery(a));
  OK(cuStreamQuery(b));
  CHECK(read_word(other) == 0);
  set_flag(0, 1);
  OK(cuStreamSynchronize(a));
  OK(cuStreamQuery(a));
  CHECK(read_word(other) == 11);
  CUcontext of;
  OK(cuStreamGetCtx(a, &of));
  CHECK(of == context);
}
static void default_streams(void) {
  begin();
  CUstream blocking;
  OK(cuStreamCreate(&blocking, 0));
  OK(launch(await_, 1, blocking, FLAG(0), word, 1));
  OK(launch(add, 1, NULL, word, other, 0)); /* legacy: behind the blocking stream */
  OK(launch(add, 1, CU_STREAM_PER_THREAD, other, word,
            5));                              /* a blocking stream: behind the legacy one */
  OK(launch(add, 1, a, FLAG(1), FLAG(2), 7)); /* non-blocking: behind nobody */
  OK(cuStreamSynchronize(a));
  CHECK(flags[2] == 7);
  IS(CUDA_ERROR_NOT_READY, cuStreamQuery(NULL));
  IS(CUDA_ERROR_NOT_READY, cuStreamQuery(CU_STREAM_PER_THREAD));
  set_flag(0, 1);
  OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
  CHECK(read_word(word) == 6);
  OK(cuStreamQuery(CU_STREAM_LEGACY));
}
static void* in_thread(void* seen) {
  OK(cuCtxSetCurrent(context));
  *(R*)seen = cuStreamQuery(CU_STREAM_PER_THREAD);
  return NULL;
}
static void per_thread(void) {
  begin();
  OK(launch(await_, 1, CU_STREAM_PER_THREAD, FLAG(0), word, 1));
  R seen = -1;
  pthread_t thread;
  pthread_create(&thread, NULL, in_thread, &seen);
  pthread_join(thread, NULL);
  CHECK(seen == CUDA_SUCCESS);
  IS(CUDA_ERROR_NOT_READY, cuStreamQuery(CU_STREAM_PER_THREAD));
  set_flag(0, 1);
  OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
}
static void events(void) {
  begin();
  CUevent start, end, silent;
  OK(cuEventCreate(&start, 0));
  OK(cuEventCreate(&end, 0));
  OK(cuEventCreate(&silent, CU_EVENT_DISABLE_TIMING));
  OK(cuEventQuery(start));
  OK(cuEventRecord(start, a));
  OK(launch(await_, 1, a, FLAG(0), word, 1));
  OK(cuEventRecord(end, a));
  OK(cuStreamWaitEvent(b, end, 0));
  OK(launch(add, 1, b, word, other, 1));
  IS(CUDA_ERROR_NOT_READY, cuEventQuery(end));
  IS(CUDA_ERROR_NOT_READY, cuStreamQuery(b));
  usleep(2000);
  set_flag(0, 1);
  OK(cuEventSynchronize(end));
  OK(cuStreamSynchronize(b));
  CHECK(read_word(other) == 2);
  float ms = -1;
  OK(cuEventElapsedTime(&ms, start, end));
  CHECK(ms >= 1.0f && ms < 60000.0f);
  OK(cuEventRecord(silent, a));
  IS(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime(&ms, start, silent));
  OK(cuEventDestroy_v2(start));
}
static void add_flag(void* flag) { *(u64*)flag += 3; }
static void doze(void* nothing) {
  (void)nothing;
  usleep(20000);
}
static void host_functions(void) {
  begin();
  OK(launch(await_, 1, a, FLAG(0), FLAG(1), 1));
  OK(cuLaunchHostFunc(a, add_flag, &flags[1]));
  OK(launch(add, 1, a, FLAG(1), word, 0));
  usleep(2000);
  CHECK(flags[1] == 0);
  set_flag(0, 1);
  OK(cuStreamSynchronize(a));
  CHECK(flags[1] == 4 && read_word(word) == 4);
  /* Work outlives its stream, and who frees waits for it. */
  CUstream s;
  CUdeviceptr left;
  OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
  OK(cuMemAlloc_v2(&left, 64));
  OK(cuLaunchHostFunc(s, doze, NULL));
  OK(cuMemsetD8Async(left, 1, 64, s));
  OK(cuLaunchHostFunc(s, add_flag, &flags[9]));
  OK(cuStreamDestroy_v2(s));
  OK(cuMemFree_v2(left));
  CHECK(flags[9] == 3);
}
static void values(void) {
  begin();
  OK(cuStreamWaitValue64_v2(a, word, 5, CU_STREAM_WAIT_VALUE_GEQ));
  OK(cuStreamWaitValue32_v2(a, other, 2, CU_STREAM_WAIT_VALUE_EQ));
  OK(cuStreamWriteValue32_v2(a, FLAG(0), 9, 0));
  IS(CUDA_ERROR_NOT_READY, cuStreamQuery(a));
  OK(cuStreamWriteValue64_v2(b, word, 1ull << 40, 0));
  OK(cuStreamSynchronize(b));
  IS(CUDA_ERROR_NOT_READY, cuStreamQuery(a));
  OK(cuStreamWriteValue32_v2(b, other, 2, 0));
  OK(cuStreamSynchronize(a));
  CHECK(flags[0] == 9 && read_word(word) == 1ull << 40);
  OK(cuStreamWaitValue32_v2(a, FLAG(0), 8, CU_STREAM_WAIT_VALUE_AND));
  OK(cuStreamWaitValue32_v2(a, FLAG(0), 8, CU_STREAM_WAIT_VALUE_NOR));
  OK(cuStreamSynchronize(a));
  u64 pageable = 0;
  IS(CUDA_ERROR_INVALID_VALUE, cuStreamWriteValue64_v2(a, (CUdeviceptr)&pageable, 1, 0));
}
static void copies(void) {
  begin();
  u64 here = 41, back = 0;
  OK(cuMemcpyHtoDAsync_v2(word, &here, 8, a));
  here = 0; /* staged: free to change */
  OK(cuMemcpyDtoDAsync_v2(other, word, 8, a));
  OK(cuMemcpyAsync(FLAG(3), other, 8, a));
  OK(cuMemcpyDtoHAsync_v2(&back, other, 8, a)); /* pageable: done on return */
  CHECK(back == 41 && flags[3] == 41);
  OK(cuMemsetD32Async(word, 7, 2, a));
  OK(cuStreamSynchronize(a));
  CHECK(read_word(word) == (7ull << 32 | 7));
  OK(cuMemcpyHtoD_v2(word, &back, 8));
  OK(cuMemcpyDtoH_v2(&here, word, 8));
  CHECK(here == 41);
  IS(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoDAsync_v2(word, other, 65, a)); /* past the end */
  /* From pinned memory nothing is staged: what it holds when the copy runs is what arrives. */
  OK(launch(await_, 1, a, FLAG(0), other, 1));
  flags[5] = 1;
  OK(cuMemcpyHtoDAsync_v2(word, &flags[5], 8, a));
  flags[5] = 2;
  set_flag(0, 1);
  OK(cuStreamSynchronize(a));
  CHECK(read_word(word) == 2);
  CUdeviceptr late;
  OK(cuMemAllocAsync(&late, 8, a));
  OK(cuMemsetD8Async(late, 1, 8, a));
  OK(cuMemFreeAsync(late, a));
  OK(cuStreamSynchronize(a));
  CUdeviceptr start;
  IS(CUDA_ERROR_NOT_FOUND, cuMemGetAddressRange_v2(&start, NULL, late));
}
static void pinned(void) {
  begin();
  u64* mine = aligned_alloc(4096, 4096);
  memset(mine, 0, 4096);
  CUdeviceptr at;
  IS(CUDA_ERROR_INVALID_VALUE, cuMemHostGetDevicePointer_v2(&at, mine, 0));
  OK(cuMemHostRegister_v2(mine, 4096, 0));
  IS(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(mine + 8, 8, 0));
  OK(cuMemHostGetDevicePointer_v2(&at, mine + 1, 0));
  OK(launch(add, 1, a, at, at + 8, 6));
  OK(cuStreamSynchronize(a));
  CHECK(mine[2] == 6);
  u32 type;
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)mine));
  CHECK(type == CU_MEMORYTYPE_HOST);
  OK(cuMemHostUnregister(mine));
  IS(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(mine));
  IS(CUDA_ERROR_INVALID_VALUE,
     cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)mine));
  OK(cuMemFreeHost(flags));
}
static void attributes(void) {
  begin_two(2);
  u32 type;
  int ordinal, n;
  size_t bytes, left, less, total;
  CUdeviceptr start, there;
  OK(cuCtxPushCurrent_v2(second));
  OK(cuMemGetInfo_v2(&left, &total));
  OK(cuMemAlloc_v2(&there, 1000));
  OK(cuMemGetInfo_v2(&less, &total));
  CHECK(less < left);
  OK(cuCtxPopCurrent_v2(NULL));
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, there + 999));
  OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, there + 999));
  OK(cuPointerGetAttribute(&start, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, there + 999));
  OK(cuPointerGetAttribute(&bytes, CU_POINTER_ATTRIBUTE_RANGE_SIZE, there + 999));
  CHECK(type == CU_MEMORYTYPE_DEVICE && ordinal == 1 && start == there && bytes == 1000);
  IS(CUDA_ERROR_INVALID_VALUE,
     cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, there + 1000));
  char bus[2][16];
  CUuuid id[2];
  for (int d = 0; d < 2; d++) {
    OK(cuDeviceGetPCIBusId(bus[d], 16, d));
    OK(cuDeviceGetUuid_v2(&id[d], d));
  }
  CHECK(strcmp(bus[0], bus[1]) && memcmp(&id[0], &id[1], 16));
  OK(cuDeviceGetAttribute(&n, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0));
  CHECK(n == 9);
  const char* text;
  OK(cuGetErrorName(700, &text));
  CHECK(!strcmp(text, "CUDA_ERROR_ILLEGAL_ADDRESS"));
  OK(cuGetErrorString(2, &text));
  CHECK(!strcmp(text, "out of memory"));
  OK(cuDriverGetVersion(&n));
  CHECK(n == atoi(getenv("SIMCUDA_DRIVER_VERSION")));
}
static void contexts(void) {
  begin_two(2);
  CUcontext now;
  CUdevice device;
  OK(cuCtxPushCurrent_v2(second));
  OK(cuCtxGetDevice(&device));
  CHECK(device == 1);
  OK(cuCtxPopCurrent_v2(&now));
  CHECK(now == second);
  OK(cuCtxGetCurrent(&now));
  CHECK(now == context);
  OK(cuCtxSetCurrent(NULL));
  IS(CUDA_ERROR_INVALID_CONTEXT, cuMemAlloc_v2(&word, 8));
  IS(CUDA_ERROR_INVALID_CONTEXT, cuCtxPopCurrent_v2(NULL));
}
static CUdeviceptr on_second(void) {
  CUdeviceptr there;
  OK(cuCtxPushCurrent_v2(second));
  OK(cuMemAlloc_v2(&there, 64));
  OK(cuMemsetD8Async(there, 0, 64, NULL));
  OK(cuStreamSynchronize(NULL));
  OK(cuCtxPopCurrent_v2(NULL));
  return there;
}
static void peers(void) {
  begin_two(2);
  int can;
  OK(cuDeviceCanAccessPeer(&can, 0, 1));
  CHECK(can);
  CUdeviceptr before = on_second();
  OK(cuCtxEnablePeerAccess(second, 0));
  IS(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, cuCtxEnablePeerAccess(second, 0));
  CUdeviceptr after = on_second();
  OK(launch(add, 1, a, before, after, 3));
  OK(launch(add, 1, a, after, word, 1));
  OK(cuMemcpyPeerAsync(before, second, word, context, 8, a));
  OK(cuStreamSynchronize(a));
  CHECK(read_word(word) == 4 && read_word(before) == 4);
}
static void no_peer_access(void) {
  begin_two(2);
  CUdeviceptr there = on_second();
  OK(cuCtxEnablePeerAccess(second, 0));
  OK(launch(add, 1, a, there, word, 1));
  OK(cuStreamSynchronize(a));
  OK(cuCtxDisablePeerAccess(second));
  IS(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, cuCtxDisablePeerAccess(second));
  OK(cuMemcpyPeerAsync(there, second, word, context, 8, a)); /* a copy needs none */
  OK(cuStreamSynchronize(a));
  OK(launch(add, 1, a, there, word, 1)); /* traps */
  OK(cuStreamSynchronize(a));
}
static void peers_forbidden(void) {
  begin_two(2);
  int can;
  OK(cuDeviceCanAccessPeer(&can, 0, 1));
  CHECK(!can);
  IS(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, cuCtxEnablePeerAccess(second, 0));
}
static void host_touches_device(void) {
  begin();
  *(volatile u64*)word = 1;
}
static void raw_pointer(void) {
  begin();
  OK(launch(bypass, 1, a, word, other, 0));
  OK(cuStreamSynchronize(a));
}
static void past_the_end(void) {
  begin();
  CUdeviceptr tight;
  OK(cuMemAlloc_v2(&tight, 256));
  OK(launch(add, 1, a, word, tight + 248, 0));
  OK(cuStreamSynchronize(a));
  OK(launch(add, 1, a, word, tight + 256, 0));
  OK(cuStreamSynchronize(a));
}
static void freed(void) {
  begin();
  OK(cuMemFree_v2(other));
  OK(launch(add, 1, a, word, other, 0));
  OK(cuStreamSynchronize(a));
}

/* ---- other processes. The child is forked before anything is initialised. */
typedef struct {
  CUipcMemHandle memory;
  CUipcEventHandle event;
} Handles;
static void ipc(void) {
  int down[2], up[2];
  CHECK(pipe(down) == 0 && pipe(up) == 0);
  if (fork() == 0) {
    alarm(30); /* a parent that fails leaves nobody to answer */
    Handles h;
    char done = 1;
    CUdeviceptr at, again;
    CUevent event;
    begin();
    CHECK(read(down[0], &h, sizeof h) == sizeof h);
    OK(cuIpcOpenMemHandle_v2(&at, h.memory, 1));
    OK(cuIpcOpenMemHandle_v2(&again, h.memory, 1));
    CHECK(at == again);
    OK(cuIpcCloseMemHandle(again));
    OK(cuIpcOpenEventHandle(&event, h.event));
    OK(cuStreamWaitEvent(a, event, 0)); /* the parent's kernel still waits */
    OK(launch(add, 1, a, at, at + 8, 100));
    IS(CUDA_ERROR_NOT_READY, cuEventQuery(event));
    CHECK(write(up[1], &done, 1) == 1);
    OK(cuStreamSynchronize(a));
    OK(cuEventQuery(event));
    IS(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(at));
    OK(cuIpcCloseMemHandle(at));
    IS(CUDA_ERROR_INVALID_VALUE, cuIpcCloseMemHandle(at));
    exit(0);
  }
  begin();
  Handles h;
  CUdeviceptr at;
  CUevent event, plain, ignored;
  char done;
  int status;
  OK(cuEventCreate(&plain, 0));
  IS(CUDA_ERROR_INVALID_HANDLE, cuIpcGetEventHandle(&h.event, plain));
  IS(CUDA_ERROR_INVALID_VALUE, cuEventCreate(&event, CU_EVENT_INTERPROCESS));
  OK(cuEventCreate(&event, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING));
  OK(launch(await_, 1, a, FLAG(0), word, 1));
  OK(cuEventRecord(event, a));
  OK(cuIpcGetMemHandle(&h.memory, word));
  OK(cuIpcGetEventHandle(&h.event, event));
  IS(CUDA_ERROR_INVALID_CONTEXT,
     cuIpcOpenMemHandle_v2(&at, h.memory, 1)); /* not in the exporting process */
  IS(CUDA_ERROR_INVALID_CONTEXT, cuIpcOpenEventHandle(&ignored, h.event));
  CHECK(write(down[1], &h, sizeof h) == sizeof h);
  CHECK(read(up[0], &done, 1) == 1);
  CHECK(read_word(word + 8) == 0);
  set_flag(0, 1);
  CHECK(wait(&status) > 0 && status == 0);
  CHECK(read_word(word + 8) == 101);
}

/* ---- launches */
static void residency(void) { /* SIMCUDA_BLOCKS=3 */
  begin();
  Probe probe = {word, word, 4};
  void* arguments[] = {&probe};
  IS(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
     cuLaunchCooperativeKernel(meet, 4, 1, 1, 32, 1, 1, 0, a, arguments));
  CUlaunchAttribute together = {.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value = {.cooperative = 1}};
  CUlaunchConfig config = {4, 1, 1, 32, 1, 1, 0, a, &together, 1};
  IS(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, cuLaunchKernelEx(&config, meet, arguments, NULL));
  OK(launch(await_, 9, a, FLAG(1), word, 0)); /* nine blocks, three at a time */
  OK(cuStreamSynchronize(a));
  CHECK(read_word(word) == 9);
  probe.value = 12;
  OK(cuLaunchCooperativeKernel(meet, 3, 1, 1, 32, 1, 1, 0, a, arguments));
  OK(cuStreamSynchronize(a));
}
static void too_many_blocks_hang(void) {
  begin();
  OK(launch(meet, 4, a, word, word, 4)); /* the fourth never comes */
  OK(cuStreamSynchronize(a));
}
/* A kernel waits for one that stands in the queue behind what waits for the first. */
static void queues(void) {
  begin();
  OK(launch(await_, 1, a, word, other, 1));
  OK(launch(add, 1, a, other, other, 1));
  OK(launch(add, 1, b, word, word, 1));
  OK(cuStreamSynchronize(a));
  CHECK(read_word(other) == 2);
}

/* ---- failures */
static void failures(void) { /* SIMCUDA_FAIL=cuMemAlloc_v2:3:2,cuStreamQuery:1:999 */
  begin();
  CUdeviceptr at;
  IS(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&at, 8));
  OK(cuMemAlloc_v2(&at, 8));
  IS(CUDA_ERROR_UNKNOWN, cuStreamQuery(a));
  OK(cuStreamQuery(a));
  simFail("cuStreamQuery", 2, 719);
  OK(cuStreamQuery(a));
  IS(CUDA_ERROR_LAUNCH_FAILED, cuStreamQuery(a));
}
static void kernel_failure(void) { /* SIMCUDA_FAIL=kernel:2:700 */
  begin_two(2);
  OK(launch(await_, 1, b, FLAG(0), word, 1)); /* never told: ends because the device fails */
  while (simCalls("kernel") < 1) usleep(100);
  OK(launch(add, 1, a, word, other, 1));
  IS(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(a));
  IS(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(b));
  IS(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemAlloc_v2(&word, 8));
  cuMemFreeHost(flags);        /* waits for the kernel that nobody told */
  OK(cuCtxSetCurrent(second)); /* the other device goes on */
  OK(cuMemAlloc_v2(&word, 8));
}
static void counters(void) {
  begin();
  simCallsReset();
  for (int i = 0; i < 5; i++) OK(launch(add, 1, a, word, word, 1));
  OK(cuStreamSynchronize(a));
  CHECK(simCalls("cuLaunchKernel") == 5 && simCalls("cuStreamSynchronize") == 1 &&
        simCalls("cuMemAlloc_v2") == 0);
  CHECK(simCallsTotal() == 6 && simCalls("kernel") == 5);
  char text[200];
  simCallsReport(text, sizeof text);
  CHECK(strstr(text, "cuLaunchKernel 5\n"));
}
static void devices(void) { /* SIMCUDA_DEVICES=5 CUDA_VISIBLE_DEVICES=3,1 */
  int n;
  char bus[16];
  OK(cuInit(0));
  OK(cuDeviceGetCount(&n));
  CHECK(n == 2);
  OK(cuDeviceGetPCIBusId(bus, 16, 0));
  CHECK(!strcmp(bus, "0000:13:00.0"));
  CUcontext none;
  IS(CUDA_ERROR_INVALID_DEVICE, cuDevicePrimaryCtxRetain(&none, 2));
}
static void no_devices(void) { IS(CUDA_ERROR_NO_DEVICE, cuInit(0)); }
static void delays(
    void) { /* with SIMCUDA_JITTER_US and SIMCUDA_CALL_JITTER_US: everything stays in order */
  begin();
  for (u64 i = 0; i < 200; i++) OK(launch(add, 1, a, word, word, 1));
  OK(cuStreamSynchronize(a));
  CHECK(read_word(word) == 200);
}

/* ---- graphs */
static CUgraphExec instantiate(CUgraph graph) {
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphDestroy(graph));
  return exec;
}
static void graphs(void) {
  begin();
  CUevent fork_, join;
  OK(cuEventCreate(&fork_, CU_EVENT_DISABLE_TIMING));
  OK(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
  int status = -1;
  uint64_t id = 0;
  CUgraph graph;
  size_t n = 99;
  const CUgraphNode* front;
  OK(cuStreamIsCapturing(a, &status));
  CHECK(status == CU_STREAM_CAPTURE_STATUS_NONE);
  OK(cuStreamBeginCapture_v2(a, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  OK(launch(add, 1, a, word, word, 1));
  OK(cuEventRecord(fork_, a));
  OK(cuStreamWaitEvent(b, fork_, 0));
  OK(cuStreamIsCapturing(b, &status));
  CHECK(status == CU_STREAM_CAPTURE_STATUS_ACTIVE);
  /* Two branches, the first of which waits for the second: they run side by side. */
  OK(cuStreamWaitValue64_v2(a, FLAG(0), 1, CU_STREAM_WAIT_VALUE_GEQ));
  OK(launch(await_, 1, a, FLAG(0), FLAG(1), 1));
  OK(cuStreamWriteValue64_v2(b, FLAG(0), 1, 0));
  OK(cuLaunchHostFunc(b, add_flag, &flags[2]));
  OK(cuEventRecord(join, b));
  OK(cuStreamWaitEvent(a, join, 0));
  OK(cuStreamGetCaptureInfo_v2(a, &status, &id, &graph, &front, &n));
  CHECK(status == CU_STREAM_CAPTURE_STATUS_ACTIVE && id != 0 && n == 2);
  OK(cuMemcpyDtoDAsync_v2(other, word, 8, a));
  OK(cuMemsetD8Async(FLAG(0), 0, 8, a));
  OK(cuStreamEndCapture(a, &graph));
  OK(cuStreamIsCapturing(b, &status));
  CHECK(status == CU_STREAM_CAPTURE_STATUS_NONE);
  OK(cuGraphGetNodes(graph, NULL, &n));
  CHECK(n == 7);
  CHECK(read_word(word) == 0); /* nothing has run */
  CUgraphExec exec = instantiate(graph);
  for (u64 i = 1; i <= 3; i++) OK(cuGraphLaunch(exec, i % 2 ? a : b));
  OK(cuStreamSynchronize(a));
  OK(cuStreamSynchronize(b));
  CHECK(read_word(word) == 3 && read_word(other) == 3 && flags[1] == 3 && flags[2] == 9);
  OK(cuGraphExecDestroy(exec));
}
/* What is queued in the capturing stream after joining by hand comes after what was added. */
static void capture_dependencies(void) {
  begin();
  int status;
  uint64_t id;
  CUgraph graph;
  size_t n;
  const CUgraphNode* front;
  OK(cuStreamBeginCapture_v2(a, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(launch(add, 1, a, word, word, 1));
  OK(cuStreamGetCaptureInfo_v2(a, &status, &id, &graph, &front, &n));
  CUgraphNode first = front[0];
  OK(launch(add, 1, a, word, word, 1));
  OK(cuStreamUpdateCaptureDependencies(a, &first, 1, 1));
  OK(cuStreamGetCaptureInfo_v2(a, &status, &id, &graph, &front, &n));
  CHECK(n == 1 && front[0] == first);
  IS(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, cuStreamEndCapture(a, &graph));
}
static void expect_invalid(CUstream s) {
  CUgraph graph;
  int status;
  OK(cuStreamIsCapturing(s, &status));
  CHECK(status == CU_STREAM_CAPTURE_STATUS_INVALIDATED);
  IS(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, launch(add, 1, s, word, word, 1));
  IS(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(s, &graph));
  CHECK(graph == NULL);
}
static void capture_forbids(void) {
  begin();
  CUevent event, outside;
  CUgraph graph;
  CUdeviceptr at;
  CUstream blocking;
  OK(cuEventCreate(&event, 0));
  OK(cuEventCreate(&outside, 0));
  OK(cuEventRecord(outside, b));
  OK(cuStreamCreate(&blocking, 0));
  const int global = CU_STREAM_CAPTURE_MODE_GLOBAL;
  IS(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamBeginCapture_v2(NULL, global));
  OK(cuStreamBeginCapture_v2(a, global));
  IS(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(a));
  expect_invalid(a);
  OK(cuStreamBeginCapture_v2(a, global));
  IS(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamQuery(a));
  expect_invalid(a);
  OK(cuStreamBeginCapture_v2(a, global));
  IS(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemAlloc_v2(&at, 8));
  expect_invalid(a);
  OK(cuStreamBeginCapture_v2(a, global));
  IS(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuEventQuery(outside));
  expect_invalid(a);
  OK(cuStreamBeginCapture_v2(a, global));
  OK(cuEventRecord(event, a));
  IS(CUDA_ERROR_CAPTURED_EVENT, cuEventSynchronize(event));
  expect_invalid(a);
  OK(cuStreamBeginCapture_v2(a, global));
  IS(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, cuStreamWaitEvent(a, outside, 0));
  expect_invalid(a);
  OK(cuStreamBeginCapture_v2(blocking, global));
  IS(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, launch(add, 1, NULL, word, word, 1));
  expect_invalid(blocking);
  OK(cuStreamBeginCapture_v2(a, global)); /* a fork that never comes back */
  OK(cuEventRecord(event, a));
  OK(cuStreamWaitEvent(b, event, 0));
  OK(launch(add, 1, b, word, word, 1));
  IS(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, cuStreamEndCapture(b, &graph));
  IS(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(a, &graph));
  OK(cuStreamBeginCapture_v2(a, global));
  OK(cuEventRecord(event, a));
  OK(cuStreamWaitEvent(b, event, 0));
  OK(launch(add, 1, b, word, word, 1));
  IS(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, cuStreamEndCapture(a, &graph));
  /* Relaxed: allocation is allowed, and the legacy stream beside a non-blocking one always is. */
  OK(cuStreamBeginCapture_v2(a, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(cuMemAlloc_v2(&at, 8));
  OK(launch(add, 1, NULL, word, word, 1));
  OK(launch(add, 1, a, word, word, 1));
  OK(cuStreamEndCapture(a, &graph));
  /* A thread may ask to be let. */
  int mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  OK(cuStreamBeginCapture_v2(a, global));
  OK(cuThreadExchangeStreamCaptureMode(&mode));
  CHECK(mode == global);
  OK(cuMemAlloc_v2(&at, 8));
  OK(cuStreamEndCapture(a, &graph));
}
static void older_driver(void) { /* built without cuLaunchKernelEx, which this does not link then */
  begin();
  void* function = &function;
  int found;
  IS(CUDA_ERROR_NOT_FOUND, cuGetProcAddress_v2("cuLaunchKernelEx", &function, 12000, 0, &found));
  CHECK(function == NULL);
  OK(cuGetProcAddress_v2("cuMemAlloc", &function, 12000, 0, &found));
  CHECK(function == (void*)cuMemAlloc_v2);
}

#define CASE(name) {#name, name}
static const struct {
  const char* name;
  void (*run)(void);
} CASES[] = {CASE(streams),
             CASE(default_streams),
             CASE(per_thread),
             CASE(events),
             CASE(host_functions),
             CASE(values),
             CASE(copies),
             CASE(pinned),
             CASE(attributes),
             CASE(contexts),
             CASE(peers),
             CASE(no_peer_access),
             CASE(peers_forbidden),
             CASE(host_touches_device),
             CASE(raw_pointer),
             CASE(past_the_end),
             CASE(freed),
             CASE(ipc),
             CASE(residency),
             CASE(too_many_blocks_hang),
             CASE(queues),
             CASE(failures),
             CASE(kernel_failure),
             CASE(counters),
             CASE(devices),
             CASE(no_devices),
             CASE(delays),
             CASE(graphs),
             CASE(capture_dependencies),
             CASE(capture_forbids),
             CASE(older_driver)};

int main(int count, char** arguments) {
  for (size_t i = 0; count == 2 && i < sizeof CASES / sizeof *CASES; i++)
    if (!strcmp(arguments[1], CASES[i].name)) {
      CASES[i].run();
      puts("passed");
      return 0;
    }
  return 2;
}
