// Operations, and the hardware queues that issue them.
//
// A device has CUDA_DEVICE_MAX_CONNECTIONS queues (8 unless set) and a stream is tied to one of
// them. A queue issues its operations in order, each when its dependencies have finished, and
// issues nothing behind an operation that has to wait. So a kernel that polls for a second kernel
// hangs if an operation that waits for the first kernel is queued before the second. A real device
// hangs too.
#include <time.h>

#include <deque>
#include <thread>

#include "sim.hpp"

static u64 now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (u64)t.tv_sec * 1000000000 + (u64)t.tv_nsec;
}

void Completion::finish() {
  std::vector<std::function<void()>> follow;
  {
    Lock guard(lock);
    done = true;
    nanoseconds = now();
    follow.swap(then);
    changed.notify_all();
  }
  for (auto& one : follow) one();
}
void Completion::wait() {
  Lock guard(lock);
  changed.wait(guard, [this] { return done; });
}
bool Completion::is_done() {
  Lock guard(lock);
  return done;
}

Operation simple(Kind kind, Device* device, std::function<void()> run) {
  return {kind, device, [run](const Done& done) {
            if (run) run();
            done->finish();
          }};
}

void begin(const Operation& operation, const Done& done) {
  if (operation.kind != Kind::ASIDE) return operation.start(done);
  std::thread([operation, done] { operation.start(done); }).detach();
}

// After an error of a kernel nothing runs any more, and all calls return that error.
void break_device(Device& device, CUresult error) {
  __atomic_store_n(&device.broken, error, __ATOMIC_RELEASE);
}

struct Queue {
  struct Entry {
    std::vector<Done> after;
    Operation operation;
    Done done;
  };
  std::mutex lock;
  std::condition_variable changed;
  std::deque<Entry> entries;

  void work(Device* device) {
    for (;;) {
      Lock guard(lock);
      changed.wait(guard, [this] { return !entries.empty(); });
      Entry entry = std::move(entries.front());
      entries.pop_front();
      guard.unlock();
      for (Done& one : entry.after) one->wait();
      jitter(device->jitter_us);
      begin(entry.operation, entry.done);
    }
  }
};

void issue(Device& device, unsigned number, std::vector<Done> after, Operation operation,
           Done done) {
  Queue* queue;
  {
    Lock guard(device.lock);
    if (device.queues.size() <= number) device.queues.resize(number + 1);
    Queue*& place = device.queues[number];
    if (!place) {
      place = new Queue;
      std::thread([place, &device] { place->work(&device); }).detach();
    }
    queue = place;
  }
  Lock guard(queue->lock);
  queue->entries.push_back({std::move(after), std::move(operation), std::move(done)});
  queue->changed.notify_all();
}
