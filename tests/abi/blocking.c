/* Prints the results of two inits: of a communicator that blocks, and of one that does not. */
#include "check.h"

#include <unistd.h>

static void print_result(int blocking, const char* end) {
  ncclUniqueId id;
  ncclComm_t comm;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclResult_t state;
  config.blocking = blocking;
  OK(ncclGetUniqueId(&id));
  printf("%d%s", ncclCommInitRankConfig(&comm, 1, id, 0, &config), end);
  do {
    OK(ncclCommGetAsyncError(comm, &state));
    usleep(100);
  } while (state == ncclInProgress);
  EXPECT(state == ncclSuccess);
  OK(ncclCommFinalize(comm));
  OK(ncclCommDestroy(comm));
}

int main(void) {
  print_result(1, " ");
  print_result(0, "\n");
  return 0;
}
