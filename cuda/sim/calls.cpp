// Every call of the driver passes through `enter`: it is counted by name, may be made to fail
// (SIMCUDA_FAIL=name:n:error, several with commas: the n-th call from the start of the process,
// "kernel" for the execution of the n-th kernel), and may be delayed.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <string>

#include "sim.hpp"

namespace {

struct Order {
  std::string name;
  u64 nth;
  CUresult error;
};
struct Calls {
  std::mutex lock;
  std::map<std::string, u64> since_reset, ever;
  std::vector<Order> orders;

  Calls() {
    const char* text = getenv("SIMCUDA_FAIL");
    for (std::string rest = text ? text : ""; !rest.empty();) {
      const size_t comma = rest.find(',');
      std::string one = rest.substr(0, comma);
      rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
      char name[128];
      unsigned long long nth;
      int error;
      if (sscanf(one.c_str(), "%127[^:]:%llu:%d", name, &nth, &error) != 3) {
        fprintf(stderr, "simcuda: SIMCUDA_FAIL wants name:n:error, not \"%s\"\n", one.c_str());
        abort();
      }
      orders.push_back({name, nth, error});
    }
  }
};
Calls& calls() {
  static Calls* all = new Calls;  // never destroyed: threads of the simulator outlive main
  return *all;
}

}  // namespace

CUresult enter(const char* name) {
  static const unsigned delay = (unsigned)setting("SIMCUDA_CALL_JITTER_US", 0);
  jitter(delay);
  Calls& all = calls();
  Lock guard(all.lock);
  all.since_reset[name]++;
  const u64 n = ++all.ever[name];
  for (const Order& order : all.orders)
    if (order.nth == n && order.name == name) return order.error;
  return CUDA_SUCCESS;
}

int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}

void jitter(unsigned jitter_us) {
  if (!jitter_us) return;
  static const unsigned seed = (unsigned)setting("SIMCUDA_SEED", (int)getpid());
  static std::atomic<unsigned> threads{0};
  static thread_local unsigned state = (seed + threads++ * 0x9e3779b9u) * 2654435761u;
  state = state * 1664525 + 1013904223;
  if (state >> 28 == 0) usleep((state >> 8) % jitter_us);
}

// ---- functions that only the simulator has

#define SIMULATOR_API extern "C" __attribute__((visibility("default")))

// The number of calls of `name` since the last reset.
SIMULATOR_API u64 simCalls(const char* name) {
  Lock guard(calls().lock);
  auto found = calls().since_reset.find(name);
  return found == calls().since_reset.end() ? 0 : found->second;
}
// The number of all calls since the last reset.
SIMULATOR_API u64 simCallsTotal() {
  Lock guard(calls().lock);
  u64 total = 0;
  for (auto& one : calls().since_reset)
    if (one.first.compare(0, 2, "cu") == 0) total += one.second;
  return total;
}
// Writes lines of "name count" to `text`; returns the length of all lines.
SIMULATOR_API size_t simCallsReport(char* text, size_t bytes) {
  Lock guard(calls().lock);
  std::string all;
  for (auto& one : calls().since_reset) all += one.first + " " + std::to_string(one.second) + "\n";
  if (bytes) {
    const size_t n = all.size() < bytes - 1 ? all.size() : bytes - 1;
    memcpy(text, all.data(), n);
    text[n] = 0;
  }
  return all.size();
}
SIMULATOR_API void simCallsReset() {
  Lock guard(calls().lock);
  calls().since_reset.clear();
}
// Makes the n-th call of `name` from now on fail; n = 0 removes all such requests.
SIMULATOR_API void simFail(const char* name, u64 n, CUresult error) {
  Lock guard(calls().lock);
  if (n == 0)
    calls().orders.clear();
  else
    calls().orders.push_back({name, calls().ever[name] + n, error});
}
