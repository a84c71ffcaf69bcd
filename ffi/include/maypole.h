/*
 * maypole.h: what Maypole has beyond NCCL. The functions are used like those of nccl.h, in groups
 * too, on any communicator.
 *
 * In a vector collective the blocks differ in length from rank to rank. Where a collective of NCCL
 * takes one count, it takes two arrays with an element per rank: the count of each rank's block,
 * and the place at which the block begins in the buffer, both in elements. NULL as places means
 * that the blocks lie one after the other. All ranks must agree on how many elements each two of
 * them exchange; if they do not, the error names two of them.
 */
#ifndef MAYPOLE_H_
#define MAYPOLE_H_

#include "nccl.h"

#define MAYPOLE 1

/* A host stream, for functions of nccl.h and of this file that take a stream. Calls on it return at
 * once and run later, in order, on other threads. Their buffers must not be used until they have
 * ended. See docs/streams.md. */
typedef cudaStream_t maypoleStream_t;

/* result is ncclSuccess, or the first failure on the stream since its last synchronisation. */
typedef void (*maypoleCallback_t)(ncclResult_t result, void* data);

#ifdef __cplusplus
extern "C" {
#endif

ncclResult_t maypoleStreamCreate(maypoleStream_t* stream);
/* Waits as maypoleStreamSynchronize does and returns the same. The handle is refused from then on.
 * NULL is allowed. */
ncclResult_t maypoleStreamDestroy(maypoleStream_t stream);
/* Returns when all work on the stream has ended. Returns the first failure since the last
 * synchronisation, and clears it. */
ncclResult_t maypoleStreamSynchronize(maypoleStream_t stream);
/* Returns ncclInProgress, or what maypoleStreamSynchronize would return, without clearing it. */
ncclResult_t maypoleStreamQuery(maypoleStream_t stream);
/* Later work on stream waits for the work that is on other now. */
ncclResult_t maypoleStreamWaitStream(maypoleStream_t stream, maypoleStream_t other);
/* A thread of the library calls the callback when all work that is on the stream now has ended.
 * Later work on the stream waits for the callback. The callback must not wait for streams, nor for
 * communicators that have calls on streams: such a wait returns ncclInvalidUsage. */
ncclResult_t maypoleStreamAddCallback(maypoleStream_t stream, maypoleCallback_t callback,
                                      void* data);
/* An eventfd of the stream, for poll, select and epoll. It is readable after a call, the calls of a
 * group on one communicator, or a callback has ended since the last read. A read of eight bytes
 * gives how many have. What ended before the first call of this function is not counted. The stream
 * owns and closes the descriptor. */
ncclResult_t maypoleStreamGetEventFd(maypoleStream_t stream, int* fd);

/* Returns when all ranks have called it. */
ncclResult_t maypoleBarrier(ncclComm_t comm, cudaStream_t stream);

/* It works in place if sendbuff is the rank's own block of recvbuff. */
ncclResult_t maypoleAllGatherV(const void* sendbuff, size_t sendcount, void* recvbuff,
                               const size_t* recvcounts, const size_t* recvplaces,
                               ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream);
/* It works in place if recvbuff is the rank's own block of sendbuff. */
ncclResult_t maypoleReduceScatterV(const void* sendbuff, const size_t* sendcounts,
                                   const size_t* sendplaces, void* recvbuff, size_t recvcount,
                                   ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                                   cudaStream_t stream);
ncclResult_t maypoleAlltoAllV(const void* sendbuff, const size_t* sendcounts,
                              const size_t* sendplaces, void* recvbuff, const size_t* recvcounts,
                              const size_t* recvplaces, ncclDataType_t datatype, ncclComm_t comm,
                              cudaStream_t stream);
/* recvbuff, recvcounts and recvplaces are used on the root alone. */
ncclResult_t maypoleGatherV(const void* sendbuff, size_t sendcount, void* recvbuff,
                            const size_t* recvcounts, const size_t* recvplaces,
                            ncclDataType_t datatype, int root, ncclComm_t comm,
                            cudaStream_t stream);
/* sendbuff, sendcounts and sendplaces are used on the root alone. */
ncclResult_t maypoleScatterV(const void* sendbuff, const size_t* sendcounts,
                             const size_t* sendplaces, void* recvbuff, size_t recvcount,
                             ncclDataType_t datatype, int root, ncclComm_t comm,
                             cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
