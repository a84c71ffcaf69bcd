/* Times all-reduces of an MPI in the way in which all_reduce_perf times Maypole's. Each line has:
   library, bytes, microseconds of the slowest rank. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef OPEN_MPI
#define NAME "openmpi"
#else
#define NAME "mpich"
#endif

int main(int argc, char** argv) {
  int rank;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (long bytes = 8; bytes <= 32L << 20; bytes *= 16) {
    int count = (int)(bytes / sizeof(float)), warmup = 50, calls = 200;
    float *send = malloc(bytes), *recv = malloc(bytes);
    for (int i = 0; i < count; i++) send[i] = (float)(i % 7), recv[i] = 0;
    for (int i = 0; i < warmup; i++)
      MPI_Allreduce(send, recv, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
    double start = MPI_Wtime(), mine, slowest;
    for (int i = 0; i < calls; i++)
      MPI_Allreduce(send, recv, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    mine = (MPI_Wtime() - start) / calls * 1e6;
    MPI_Reduce(&mine, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (rank == 0) printf(NAME " %ld %.2f\n", bytes, slowest);
    free(send);
    free(recv);
  }
  MPI_Finalize();
  return 0;
}
