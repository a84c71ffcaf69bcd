// Ranks as threads in C++11, with both headers of NCCL and the one of Maypole.
#include <maypole.h>
#include <nccl.h>
#include <nccl_device.h>

#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "../loaded_library.h"

namespace {

constexpr int kRanks = 3;
constexpr int kCount = 1003;

int oneRank(int rank, ncclUniqueId id) {
  ncclComm_t comm = nullptr;
  if (ncclCommInitRank(&comm, kRanks, id, rank) != ncclSuccess) return 10;
  std::vector<int64_t> send(kCount), all(kRanks * kCount);
  std::iota(send.begin(), send.end(), int64_t{rank} * 1000);
  if (ncclAllGather(send.data(), all.data(), send.size(), ncclInt64, comm, nullptr) != ncclSuccess)
    return 11;
  for (int i = 0; i < kRanks * kCount; i++)
    if (all[i] != 1000 * (i / kCount) + i % kCount) return 12;
  ncclCommProperties_t properties = NCCL_COMM_PROPERTIES_INITIALIZER;
  if (ncclCommQueryProperties(comm, &properties) != ncclSuccess || properties.nRanks != kRanks)
    return 13;
  if (maypoleBarrier(comm, nullptr) != ncclSuccess) return 14;
  return ncclCommDestroy(comm) == ncclSuccess ? 0 : 15;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  ncclUniqueId id;
  if (ncclGetUniqueId(&id) != ncclSuccess) return 3;
  std::vector<int> codes(kRanks, -1);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; rank++)
    threads.emplace_back([rank, id, &codes] { codes[rank] = oneRank(rank, id); });
  for (std::thread& thread : threads) thread.join();
  for (int code : codes)
    if (code != 0) return code;
  return only_our_library_is_loaded(!std::strcmp(argv[1], "shared"));
}
