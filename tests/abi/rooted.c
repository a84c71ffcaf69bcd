/* Collectives with a root, all-to-all, those with a configuration, vector collectives and the
 * barrier, on host memory or devices. One thread is all ranks. */
#include "gpu.h"

#include <maypole.h>
#include <string.h>

enum { N = 5, COUNT = 777 };

static ncclComm_t comms[N];
static int send[N][N * COUNT], recv[N][N * COUNT];

/* Element `i` of the send buffer of rank `rank`. */
static int input_of(int rank, int i) { return rank * 1000000 + i; }

static void fill(void) {
  for (int rank = 0; rank < N; rank++)
    for (int i = 0; i < N * COUNT; i++) send[rank][i] = input_of(rank, i), recv[rank][i] = -1;
}

#define EACH(call)                                 \
  do {                                             \
    OK(ncclGroupStart());                          \
    for (int rank = 0; rank < N; rank++) OK(call); \
    OK(ncclGroupEnd());                            \
    gpu_done();                                    \
  } while (0)

static void check_reduced(int root) {
  for (int i = 0; i < COUNT; i++) {
    int sum = 0;
    for (int rank = 0; rank < N; rank++) sum += input_of(rank, i);
    EXPECT(recv[root][i] == sum);
  }
  for (int rank = 0; rank < N; rank++) EXPECT(rank == root || recv[rank][0] == -1);
}

static void check_gathered(int root) {
  for (int from = 0; from < N; from++)
    for (int i = 0; i < COUNT; i++) EXPECT(recv[root][from * COUNT + i] == input_of(from, i));
  for (int rank = 0; rank < N; rank++) EXPECT(rank == root || recv[rank][0] == -1);
}

static void check_scattered(int root) {
  for (int to = 0; to < N; to++) {
    for (int i = 0; i < COUNT; i++) EXPECT(recv[to][i] == input_of(root, to * COUNT + i));
    EXPECT(recv[to][COUNT] == -1);
  }
}

static void check_exchanged(void) {
  for (int to = 0; to < N; to++)
    for (int from = 0; from < N; from++)
      for (int i = 0; i < COUNT; i++)
        EXPECT(recv[to][from * COUNT + i] == input_of(from, to * COUNT + i));
}

static void plain(int root) {
  fill();
  EACH(ncclReduce(send[rank], rank == root ? recv[rank] : NULL, COUNT, ncclInt, ncclSum, root,
                  comms[rank], NULL));
  check_reduced(root);
  fill();
  EACH(ncclGather(send[rank], rank == root ? recv[rank] : NULL, COUNT, ncclInt, root, comms[rank],
                  NULL));
  check_gathered(root);
  fill();
  EACH(ncclScatter(rank == root ? send[rank] : NULL, recv[rank], COUNT, ncclInt, root, comms[rank],
                   NULL));
  check_scattered(root);
  fill();
  EACH(ncclAlltoAll(send[rank], recv[rank], COUNT, ncclInt, comms[rank], NULL));
  check_exchanged();
}

static void in_place(int root) {
  fill();
  EACH(ncclReduce(send[rank], send[rank], COUNT, ncclInt, ncclMax, root, comms[rank], NULL));
  for (int i = 0; i < COUNT; i++) EXPECT(send[root][i] == input_of(N - 1, i));
  fill();
  memcpy(&recv[root][root * COUNT], send[root], COUNT * sizeof(int));
  EACH(ncclGather(rank == root ? &recv[rank][rank * COUNT] : send[rank], recv[rank], COUNT, ncclInt,
                  root, comms[rank], NULL));
  check_gathered(root);
  fill();
  EACH(ncclScatter(send[rank], rank == root ? &send[rank][rank * COUNT] : recv[rank], COUNT,
                   ncclInt, root, comms[rank], NULL));
  for (int to = 0; to < N; to++)
    for (int i = 0; i < COUNT; i++)
      EXPECT((to == root ? send[to][to * COUNT + i] : recv[to][i]) ==
             input_of(root, to * COUNT + i));
}

static void configured(int root) {
  ncclCollConfig_t config = NCCL_COLLCONFIG_INITIALIZER;
  config.minCTAs = 1;
  config.userProfilerTag = 42;
  for (int twice = 0; twice < 2; twice++) {
    const ncclCollConfig_t* with = twice ? &config : NULL;
    fill();
    EACH(ncclReduceConfig(send[rank], recv[rank], COUNT, ncclInt, ncclSum, root, comms[rank], NULL,
                          with));
    check_reduced(root);
    fill();
    EACH(ncclGatherConfig(send[rank], recv[rank], COUNT, ncclInt, root, comms[rank], NULL, with));
    check_gathered(root);
    fill();
    EACH(ncclScatterConfig(send[rank], recv[rank], COUNT, ncclInt, root, comms[rank], NULL, with));
    check_scattered(root);
    fill();
    EACH(ncclAlltoAllConfig(send[rank], recv[rank], COUNT, ncclInt, comms[rank], NULL, with));
    check_exchanged();
    fill();
    EACH(ncclAllGatherConfig(send[rank], recv[rank], COUNT, ncclInt, comms[rank], NULL, with));
    for (int rank = 0; rank < N; rank++) EXPECT(recv[rank][(N - 1) * COUNT] == input_of(N - 1, 0));
    EACH(ncclAllReduceConfig(send[rank], recv[rank], COUNT, ncclInt, ncclMin, comms[rank], NULL,
                             with));
    for (int rank = 0; rank < N; rank++) EXPECT(recv[rank][COUNT - 1] == input_of(0, COUNT - 1));
    EACH(ncclReduceScatterConfig(send[rank], recv[rank], COUNT, ncclInt, ncclMax, comms[rank], NULL,
                                 with));
    for (int rank = 0; rank < N; rank++) EXPECT(recv[rank][0] == input_of(N - 1, rank * COUNT));
    EACH(
        ncclBroadcastConfig(send[rank], recv[rank], COUNT, ncclInt, root, comms[rank], NULL, with));
    for (int rank = 0; rank < N; rank++) EXPECT(recv[rank][1] == input_of(root, 1));
  }
}

/* Calls by the algorithm that they name, alternating with the usual one. */
static void selected(void) {
  static const char* const names[] = {"oneshot", "ring", "RING_SIMPLE,tree"};
  ncclCollConfig_t config = NCCL_COLLCONFIG_INITIALIZER;
  for (int turn = 0; turn < 6; turn++) {
    config.algSelection = names[turn % 3];
    fill();
    EACH(ncclAllReduceConfig(send[rank], recv[rank], COUNT, ncclInt, ncclMax, comms[rank], NULL,
                             turn == 4 ? NULL : &config));
    for (int rank = 0; rank < N; rank++)
      for (int i = 0; i < COUNT; i++) EXPECT(recv[rank][i] == input_of(N - 1, i));
  }
  config.algSelection = "no_such_algorithm";
  EXPECT(ncclAllReduceConfig(send[0], recv[0], COUNT, ncclInt, ncclMax, comms[0], NULL, &config) ==
         ncclInvalidUsage);
  /* An algorithm of another collective. */
  config.algSelection = "pat";
  EXPECT(ncclAllReduceConfig(send[0], recv[0], COUNT, ncclInt, ncclMax, comms[0], NULL, &config) ==
         ncclInvalidUsage);
  /* LL messages alone, which the buffer does not fit. */
  static int long_send[1 << 16], long_recv[1 << 16];
  config.algSelection = "ring_LL";
  EXPECT(ncclAllReduceConfig(long_send, long_recv, 1 << 16, ncclInt, ncclMax, comms[0], NULL,
                             &config) == ncclInvalidUsage);
  EACH(
      ncclAllReduceConfig(send[rank], recv[rank], 2, ncclInt, ncclMax, comms[rank], NULL, &config));
  for (int rank = 0; rank < N; rank++) EXPECT(recv[rank][1] == input_of(N - 1, 1));
  /* The refused calls had no effect. */
  plain(1);
}

/* Vector collectives; block r has 10 * r elements. */
static void vector_collectives(int root) {
  size_t counts[N], places[N], sends[N][N], total = 0;
  for (int r = 0; r < N; r++) {
    counts[r] = r * 10;
    places[r] = total;
    total += counts[r];
    for (int to = 0; to < N; to++) sends[r][to] = (r + to) * 3;
  }
  fill();
  EACH(maypoleAllGatherV(send[rank], counts[rank], recv[rank], counts, NULL, ncclInt, comms[rank],
                         NULL));
  for (int rank = 0; rank < N; rank++)
    for (int from = 0; from < N; from++)
      for (size_t i = 0; i < counts[from]; i++)
        EXPECT(recv[rank][places[from] + i] == input_of(from, i));
  fill();
  EACH(maypoleReduceScatterV(send[rank], counts, places, recv[rank], counts[rank], ncclInt, ncclMax,
                             comms[rank], NULL));
  for (int rank = 0; rank < N; rank++)
    for (size_t i = 0; i < counts[rank]; i++)
      EXPECT(recv[rank][i] == input_of(N - 1, places[rank] + i));
  fill();
  /* Ranks a and b send each other blocks of the same length. */
  EACH(maypoleAlltoAllV(send[rank], sends[rank], NULL, recv[rank], sends[rank], NULL, ncclInt,
                        comms[rank], NULL));
  for (int to = 0; to < N; to++) {
    size_t at = 0;
    for (int from = 0; from < N; from++) {
      size_t start = 0;
      for (int before = 0; before < to; before++) start += sends[from][before];
      for (size_t i = 0; i < sends[from][to]; i++)
        EXPECT(recv[to][at++] == input_of(from, start + i));
    }
  }
  fill();
  EACH(maypoleGatherV(send[rank], counts[rank], recv[rank], rank == root ? counts : NULL, NULL,
                      ncclInt, root, comms[rank], NULL));
  for (int from = 0; from < N; from++)
    for (size_t i = 0; i < counts[from]; i++)
      EXPECT(recv[root][places[from] + i] == input_of(from, i));
  fill();
  EACH(maypoleScatterV(rank == root ? send[rank] : NULL, rank == root ? counts : NULL, NULL,
                       recv[rank], counts[rank], ncclInt, root, comms[rank], NULL));
  for (int to = 0; to < N; to++)
    for (size_t i = 0; i < counts[to]; i++) EXPECT(recv[to][i] == input_of(root, places[to] + i));
  EACH(maypoleBarrier(comms[rank], NULL));
}

/* Each rank sends to each rank in one group, in an order that differs between ranks. An operator is
 * destroyed before its group runs. */
static void grouped(void) {
  ncclRedOp_t op;
  int factor = 3;
  fill();
  OK(ncclGroupStart());
  for (int rank = 0; rank < N; rank++) {
    for (int k = 0; k < N; k++) {
      int peer = (rank * 2 + k) % N, from = (rank + 3 * k) % N;
      OK(ncclSend(&send[rank][peer * COUNT], COUNT, ncclInt, peer, comms[rank], NULL));
      OK(ncclRecv(&recv[rank][from * COUNT], COUNT, ncclInt, from, comms[rank], NULL));
    }
  }
  OK(ncclGroupEnd());
  gpu_done();
  check_exchanged();
  fill();
  OK(ncclGroupStart());
  for (int rank = 0; rank < N; rank++) {
    OK(ncclRedOpCreatePreMulSum(&op, &factor, ncclInt, ncclScalarHostImmediate, comms[rank]));
    OK(ncclAllReduce(send[rank], recv[rank], COUNT, ncclInt, op, comms[rank], NULL));
    OK(ncclRedOpDestroy(op, comms[rank]));
  }
  OK(ncclGroupEnd());
  gpu_done();
  for (int rank = 0; rank < N; rank++) EXPECT(recv[rank][2] == 3 * (10 * 1000000 + 2 * N));
}

int main(void) {
  gpu_begin();
  GPU_PIN(send);
  GPU_PIN(recv);
  OK(ncclCommInitAll(comms, N, NULL));
  for (int root = 0; root < N; root += 2) {
    plain(root);
    in_place(root);
    configured(root);
    vector_collectives(root);
  }
  grouped();
  selected();
  for (int rank = 0; rank < N; rank++) OK(ncclCommDestroy(comms[rank]));
  return 0;
}
