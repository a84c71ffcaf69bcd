/* Sums a vector over four ranks, one thread each. Buffers are ordinary memory of the host. */
#include <nccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { RANKS = 4 };
static ncclUniqueId id; /* its bytes may also travel to other processes */

static void check(ncclResult_t result) {
    if (result != ncclSuccess) {
        fprintf(stderr, "%s: %s\n", ncclGetErrorString(result), ncclGetLastError(NULL));
        exit(1);
    }
}

static void *work(void *argument) {
    int rank = *(int *)argument;
    ncclComm_t comm;
    check(ncclCommInitRank(&comm, RANKS, id, rank));
    float send[3] = {1, 2, (float)rank}, sum[3];
    check(ncclAllReduce(send, sum, 3, ncclFloat, ncclSum, comm, NULL));
    printf("rank %d: [%.1f, %.1f, %.1f]\n", rank, sum[0], sum[1], sum[2]);
    check(ncclCommDestroy(comm));
    return NULL;
}

int main(void) {
    pthread_t threads[RANKS];
    int ranks[RANKS];
    check(ncclGetUniqueId(&id));
    for (int rank = 0; rank < RANKS; rank++) {
        ranks[rank] = rank;
        pthread_create(&threads[rank], NULL, work, &ranks[rank]);
    }
    for (int rank = 0; rank < RANKS; rank++)
        pthread_join(threads[rank], NULL);
    return 0;
}
