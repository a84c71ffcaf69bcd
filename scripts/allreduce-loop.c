/*
 * `allreduce-loop N` makes N all-reduces of 8 bytes between two processes, for an instruction
 * counter. This process is rank 0. It starts rank 1 by exec, so that a counter that does not follow
 * exec leaves rank 1 at full speed, and rank 0 finds the messages that it waits for already there.
 */
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define OK(call)                                                                    \
  do {                                                                              \
    if ((call) != ncclSuccess) {                                                    \
      fprintf(stderr, "%s: %s\n", #call, ncclGetLastError(NULL));                   \
      exit(1);                                                                      \
    }                                                                               \
  } while (0)

static void loop(ncclUniqueId id, int rank, long calls) {
  ncclComm_t comm;
  double send = 1, recv = 0;
  OK(ncclCommInitRank(&comm, 2, id, rank));
  for (long i = 0; i < calls; i++)
    OK(ncclAllReduce(&send, &recv, 1, ncclDouble, ncclSum, comm, NULL));
  if (recv != 2) abort();
  OK(ncclCommDestroy(comm));
}

int main(int argc, char** argv) {
  ncclUniqueId id;
  if (argc > 2 && strcmp(argv[2], "peer") == 0) {
    if (read(0, &id, sizeof id) != sizeof id) return 1;
    loop(id, 1, atol(argv[1]));
    return 0;
  }
  int ends[2];
  if (argc != 2 || pipe(ends) != 0) return 6;
  pid_t peer = fork();
  if (peer == 0) {
    dup2(ends[0], 0);
    execl(argv[0], argv[0], argv[1], "peer", (char*)NULL);
    _exit(127);
  }
  OK(ncclGetUniqueId(&id));
  if (write(ends[1], &id, sizeof id) != sizeof id) return 1;
  loop(id, 0, atol(argv[1]));
  int status;
  return waitpid(peer, &status, 0) == peer && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
