/*
 * maypole.h: what Maypole has beyond NCCL. Used like the functions of nccl.h: in groups, on any communicator.
 *
 * Collectives whose blocks differ in length from rank to rank take, where NCCL has one count, a count of each rank's block and
 * its place in the buffer, both in elements and as many as there are ranks. NULL as places: the blocks lie one after the
 * other. All ranks must agree on what a pair of them exchanges; if they do not, the error names two of them.
 */
#ifndef MAYPOLE_H_
#define MAYPOLE_H_

#include "nccl.h"

#define MAYPOLE 1

#ifdef __cplusplus
extern "C" {
#endif

/* Returns when all ranks have called it. */
ncclResult_t maypoleBarrier(ncclComm_t comm, cudaStream_t stream);

/* In place: sendbuff is the rank's own block of recvbuff. */
ncclResult_t maypoleAllGatherV(const void* sendbuff, size_t sendcount, void* recvbuff, const size_t* recvcounts,
                               const size_t* recvplaces, ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream);
/* In place: recvbuff is the rank's own block of sendbuff. */
ncclResult_t maypoleReduceScatterV(const void* sendbuff, const size_t* sendcounts, const size_t* sendplaces,
                                   void* recvbuff, size_t recvcount, ncclDataType_t datatype, ncclRedOp_t op,
                                   ncclComm_t comm, cudaStream_t stream);
ncclResult_t maypoleAlltoAllV(const void* sendbuff, const size_t* sendcounts, const size_t* sendplaces, void* recvbuff,
                              const size_t* recvcounts, const size_t* recvplaces, ncclDataType_t datatype,
                              ncclComm_t comm, cudaStream_t stream);
/* recvbuff, recvcounts and recvplaces are used on the root alone. */
ncclResult_t maypoleGatherV(const void* sendbuff, size_t sendcount, void* recvbuff, const size_t* recvcounts,
                            const size_t* recvplaces, ncclDataType_t datatype, int root, ncclComm_t comm,
                            cudaStream_t stream);
/* sendbuff, sendcounts and sendplaces are used on the root alone. */
ncclResult_t maypoleScatterV(const void* sendbuff, const size_t* sendcounts, const size_t* sendplaces, void* recvbuff,
                             size_t recvcount, ncclDataType_t datatype, int root, ncclComm_t comm,
                             cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
