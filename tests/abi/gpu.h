/*
 * CUDA's driver for programs of tests/abi. It is opened at run time, so that they build without
 * CUDA. A program that calls `gpu_begin` runs on devices if MAYPOLE_DEVICE is cuda or auto, else on
 * host memory; then the functions here do nothing.
 */
#include "check.h"

#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

/* Whether this program runs on devices, and the number of devices. */
static int gpu, gpu_devices;

#define GPU_FUNCTIONS(each)                                                                       \
  each(cuInit, (unsigned)) each(cuDeviceGetCount, (int*))                                         \
      each(cuDevicePrimaryCtxRetain, (void**, int)) each(cuCtxSetCurrent, (void*))                \
          each(cuCtxGetDevice, (int*)) each(cuCtxSynchronize, (void)) each(                       \
              cuMemAlloc_v2, (uint64_t*, size_t)) each(cuMemFree_v2, (uint64_t))                  \
              each(cuMemHostRegister_v2, (void*, size_t, unsigned)) each(                         \
                  cuMemcpyHtoD_v2, (uint64_t, const void*, size_t))                               \
                  each(cuMemcpyDtoH_v2, (void*, uint64_t, size_t)) each(                          \
                      cuMemcpyHtoDAsync_v2, (uint64_t, const void*, size_t, void*))               \
                      each(cuPointerGetAttribute, (void*, int, uint64_t)) each(                   \
                          cuStreamCreate, (void**, unsigned)) each(cuStreamDestroy_v2, (void*))   \
                          each(cuStreamQuery, (void*)) each(cuStreamSynchronize, (void*))         \
                              each(cuStreamWaitValue64_v2, (void*, uint64_t, uint64_t, unsigned)) \
                                  each(cuStreamBeginCapture_v2, (void*, int)) each(               \
                                      cuStreamEndCapture, (void*, void**))                        \
                                      each(cuStreamIsCapturing, (void*, int*)) each(              \
                                          cuEventCreate, (void**, unsigned))                      \
                                          each(cuEventRecord, (void*, void*)) each(               \
                                              cuStreamWaitEvent, (void*, void*, unsigned))        \
                                              each(cuGraphInstantiateWithFlags,                   \
                                                   (void**, void*, unsigned long long))           \
                                                  each(cuGraphGetNodes, (void*, void**, size_t*)) \
                                                      each(cuGraphLaunch, (void*, void*))         \
                                                          each(cuGraphExecDestroy, (void*))       \
                                                              each(cuGraphDestroy, (void*))

#define GPU_DECLARE(name, arguments) __attribute__((unused)) static int(*name) arguments;
GPU_FUNCTIONS(GPU_DECLARE)

/* Functions of the simulated GPU alone; NULL with another driver. */
__attribute__((unused)) static uint64_t (*simCalls)(const char*);
__attribute__((unused)) static uint64_t (*simCallsTotal)(void);
__attribute__((unused)) static size_t (*simCallsReport)(char*, size_t);
__attribute__((unused)) static void (*simCallsReset)(void);

/* Makes the calling thread choose a device. */
__attribute__((unused)) static void gpu_choose(int device) {
  void* context;
  if (!gpu) return;
  EXPECT(cuDevicePrimaryCtxRetain(&context, device % gpu_devices) == 0);
  EXPECT(cuCtxSetCurrent(context) == 0);
}

static void gpu_begin(void) {
  const char* wanted = getenv("MAYPOLE_DEVICE");
  if (!wanted || (strcmp(wanted, "cuda") != 0 && strcmp(wanted, "auto") != 0)) return;
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  EXPECT(library);
#define GPU_LOAD(name, arguments) EXPECT((*(void**)& name = dlsym(library, #name)));
  GPU_FUNCTIONS(GPU_LOAD)
  *(void**)&simCalls = dlsym(library, "simCalls");
  *(void**)&simCallsTotal = dlsym(library, "simCallsTotal");
  *(void**)&simCallsReport = dlsym(library, "simCallsReport");
  *(void**)&simCallsReset = dlsym(library, "simCallsReset");
  EXPECT(cuInit(0) == 0 && cuDeviceGetCount(&gpu_devices) == 0 && gpu_devices > 0);
  gpu = 1;
  gpu_choose(0);
}

/* Pins memory of the program. Devices may use it from now on, at the same address. */
__attribute__((unused)) static void gpu_pin(void* memory, size_t bytes) {
  if (gpu) EXPECT(cuMemHostRegister_v2(memory, bytes, 3) == 0);
}
#define GPU_PIN(array) gpu_pin(array, sizeof array)

/* Waits for all queued work on all devices. */
__attribute__((unused)) static void gpu_done(void) {
  int chosen;
  if (!gpu) return;
  EXPECT(cuCtxGetDevice(&chosen) == 0);
  for (int device = 0; device < gpu_devices; device++) {
    gpu_choose(device);
    EXPECT(cuCtxSynchronize() == 0);
  }
  gpu_choose(chosen);
}
