/*
 * `call-loop CALL N` makes N calls of 8 bytes between two processes, for an instruction counter.
 * CALL is all_reduce, broadcast, sendrecv (a send, then a receive, on both ranks: sends of 8 bytes
 * do not wait) or all_to_all (a group of sends and receives with all ranks). This process is rank
 * 0. It starts rank 1 by exec, so that a counter that does not follow exec leaves rank 1 at full
 * speed, and rank 0 finds the messages that it waits for already there.
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

enum call { ALL_REDUCE, BROADCAST, SENDRECV, ALL_TO_ALL, CALLS };
static const char* const names[] = {"all_reduce", "broadcast", "sendrecv", "all_to_all"};
static double in[2] = {1, 1}, out[2];
static ncclComm_t comm;

static void send_and_receive(int rank) {
  OK(ncclSend(in, 1, ncclDouble, 1 - rank, comm, NULL));
  OK(ncclRecv(out, 1, ncclDouble, 1 - rank, comm, NULL));
}

static void all_to_all(void) {
  OK(ncclGroupStart());
  for (int peer = 0; peer < 2; peer++) {
    OK(ncclSend(in + peer, 1, ncclDouble, peer, comm, NULL));
    OK(ncclRecv(out + peer, 1, ncclDouble, peer, comm, NULL));
  }
  OK(ncclGroupEnd());
}

/* What is inside is counted. */
__attribute__((noinline)) static void one_call(enum call call, int rank, long i) {
  switch (call) {
    case ALL_REDUCE: OK(ncclAllReduce(in, out, 1, ncclDouble, ncclSum, comm, NULL)); break;
    case BROADCAST: OK(ncclBroadcast(in, out, 1, ncclDouble, (int)(i % 2), comm, NULL)); break;
    case SENDRECV: send_and_receive(rank); break;
    case ALL_TO_ALL: all_to_all(); break;
    case CALLS: break;
  }
}

static void loop(ncclUniqueId id, int rank, const char* name, long calls) {
  int call = 0;
  while (call < CALLS && strcmp(name, names[call]) != 0) call++;
  if (call == CALLS) exit(6);
  OK(ncclCommInitRank(&comm, 2, id, rank));
  for (long i = 0; i < calls; i++) one_call((enum call)call, rank, i);
  if (out[0] != (call == ALL_REDUCE ? 2 : 1)) abort();
  OK(ncclCommDestroy(comm));
}

int main(int argc, char** argv) {
  ncclUniqueId id;
  if (argc > 3 && strcmp(argv[3], "peer") == 0) {
    if (read(0, &id, sizeof id) != sizeof id) return 1;
    loop(id, 1, argv[1], atol(argv[2]));
    return 0;
  }
  int ends[2];
  if (argc != 3 || pipe(ends) != 0) return 6;
  pid_t peer = fork();
  if (peer == 0) {
    dup2(ends[0], 0);
    execl(argv[0], argv[0], argv[1], argv[2], "peer", (char*)NULL);
    _exit(127);
  }
  OK(ncclGetUniqueId(&id));
  if (write(ends[1], &id, sizeof id) != sizeof id) return 1;
  loop(id, 0, argv[1], atol(argv[2]));
  int status;
  return waitpid(peer, &status, 0) == peer && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
