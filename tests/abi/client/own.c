/* A program that defines a function itself and calls the library's by its pnccl alias. */
#include <nccl.h>

static int calls;

ncclResult_t ncclGetVersion(int* version) {
  calls++;
  return pncclGetVersion(version);
}

int main(void) {
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess && version == NCCL_VERSION_CODE && calls == 1 ? 0
                                                                                               : 1;
}
