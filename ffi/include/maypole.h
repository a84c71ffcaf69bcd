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

/* A host stream, to be given where a function of nccl.h or of this file takes a stream. On it calls return at once, and run in order
 * behind the caller's back; buffers are theirs until then. See docs/streams.md. */
typedef cudaStream_t maypoleStream_t;

/* result: ncclSuccess, or the first failure on the stream that nobody has synchronised for. */
typedef void (*maypoleCallback_t)(ncclResult_t result, void* data);

#ifdef __cplusplus
extern "C" {
#endif

ncclResult_t maypoleStreamCreate(maypoleStream_t* stream);
/* Waits as maypoleStreamSynchronize does, and returns what it would; the handle is none any more. NULL is fine. */
ncclResult_t maypoleStreamDestroy(maypoleStream_t stream);
/* Returns when all that is on the stream has ended: with the first failure since the last synchronisation, and clears it. */
ncclResult_t maypoleStreamSynchronize(maypoleStream_t stream);
/* ncclInProgress, or what maypoleStreamSynchronize would return, without clearing it. */
ncclResult_t maypoleStreamQuery(maypoleStream_t stream);
/* What is put on stream from now on waits for what is on other now. */
ncclResult_t maypoleStreamWaitStream(maypoleStream_t stream, maypoleStream_t other);
/* Calls back, on a thread of the library, when all that is on the stream now has ended; what is put there later waits for the callback. It
 * must not wait for streams, or for communicators that have calls on streams: such calls return ncclInvalidUsage. */
ncclResult_t maypoleStreamAddCallback(maypoleStream_t stream, maypoleCallback_t callback, void* data);
/* An eventfd of the stream, for poll and its kin: readable after a call, a group's calls on a communicator, or a callback
 * has ended since it was last read; a read of eight bytes gives how many. It is closed with the stream; ends before the first call of
 * this function are not counted. */
ncclResult_t maypoleStreamGetEventFd(maypoleStream_t stream, int* fd);

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
