/* A tool takes the place of a function and calls the library's by its p name. */
#include <nccl.h>

static int asked;

ncclResult_t ncclGetVersion(int* version) {
  asked++;
  return pncclGetVersion(version);
}

int main(void) {
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess && version == NCCL_VERSION_CODE && asked == 1 ? 0 : 1;
}
