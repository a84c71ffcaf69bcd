/* Ranks as processes, in C99. The program forks before it calls the library, and passes the id
 * through a pipe. The argument says how the library is linked: shared or static. */
#define _POSIX_C_SOURCE 200809L
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../loaded_library.h"

#define N 3
#define COUNT 1003

static int one_rank(int rank, ncclUniqueId id) {
  static double send[COUNT], recv[COUNT];
  ncclComm_t comm;
  int i;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 1;
  if (ncclCommInitRankConfig(&comm, N, id, rank, &config) != ncclSuccess) return 10;
  for (i = 0; i < COUNT; i++) send[i] = i + 1000 * rank;
  if (ncclAllReduce(send, recv, COUNT, ncclDouble, ncclSum, comm, NULL) != ncclSuccess) return 11;
  for (i = 0; i < COUNT; i++)
    if (recv[i] != 3 * i + 3000) return 12;
  if (ncclCommDestroy(comm) != ncclSuccess) return 13;
  return 0;
}

int main(int argc, char** argv) {
  int pipes[N][2], i, status, bad = 0;
  ncclUniqueId id;
  if (argc != 2) return 2;
  for (i = 0; i < N; i++) {
    pid_t child;
    if (pipe(pipes[i])) return 3;
    child = fork();
    if (child < 0) return 4;
    if (!child) {
      if (read(pipes[i][0], &id, sizeof id) != sizeof id) _exit(5);
      _exit(one_rank(i, id));
    }
  }
  if (ncclGetUniqueId(&id) != ncclSuccess) return 6;
  for (i = 0; i < N; i++)
    if (write(pipes[i][1], &id, sizeof id) != sizeof id) return 7;
  for (i = 0; i < N; i++)
    if (wait(&status) < 0 || status) bad = 8;
  if (bad) fprintf(stderr, "a rank ended with %#x\n", (unsigned)status);
  return bad ? bad : only_our_library_is_loaded(!strcmp(argv[1], "shared"));
}
