/* ncclCommAbort of another thread ends a call that waits for a peer that never calls. */
#include "check.h"

#include <pthread.h>
#include <unistd.h>

static ncclComm_t comms[2];
static int ready[2];

static void* wait_for_the_peer(void* unused) {
  (void)unused;
  float value = 1;
  EXPECT(write(ready[1], "x", 1) == 1);
  ncclResult_t result = ncclAllReduce(&value, &value, 1, ncclFloat, ncclSum, comms[0], NULL);
  /* The latter if this thread was so slow that the communicator is already destroyed. */
  EXPECT(result == ncclRemoteError || result == ncclInvalidArgument);
  return NULL;
}

int main(void) {
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  OK(ncclGroupStart());
  for (int rank = 0; rank < 2; rank++) OK(ncclCommInitRank(&comms[rank], 2, id, rank));
  OK(ncclGroupEnd());

  pthread_t thread;
  char byte;
  EXPECT(pipe(ready) == 0);
  EXPECT(pthread_create(&thread, NULL, wait_for_the_peer, NULL) == 0);
  EXPECT(read(ready[0], &byte, 1) == 1);
  /* By then the call almost always waits. */
  usleep(100 * 1000);
  OK(ncclCommAbort(comms[0]));
  EXPECT(pthread_join(thread, NULL) == 0);
  /* The peer learns of the abort. */
  ncclResult_t state = ncclSuccess;
  for (int i = 0; i < 30000 && state == ncclSuccess; i++) {
    OK(ncclCommGetAsyncError(comms[1], &state));
    usleep(1000);
  }
  EXPECT(state == ncclRemoteError);
  OK(ncclCommAbort(comms[1]));
  return 0;
}
