// What the kernels of this folder begin with: vectors of this processor, and work for XLA's threads.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Numbers = ffi::Buffer<ffi::F32>;

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32, kRows = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16, kRows = 6;
#else  // 128 bits, as of Arm's Neon
constexpr int kLanes = 4, kRegisters = 32, kRows = 8;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

// Calls `work(unit)` once for every unit, on this thread and on XLA's others, and returns when all are done. Threads take
// units as they come, so that nothing waits for a thread that never starts; one that starts late finds none left.
template <typename Work>
void InParallel(ffi::ThreadPool& pool, int units, Work work) {
  struct Shared {
    Work work;
    int units;
    std::atomic<int> next{0}, done{0};
    Shared(Work work, int units) : work(std::move(work)), units(units) {}
    void Run() {
      for (int unit; (unit = next.fetch_add(1)) < units; done.fetch_add(1, std::memory_order_release)) work(unit);
    }
  };
  auto shared = std::make_shared<Shared>(std::move(work), units);
  const int others = std::min<int>(pool.num_threads(), units) - 1;
  for (int i = 0; i < others; i++) pool.Schedule([shared] { shared->Run(); });
  shared->Run();
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < units; spins++) {
    if (spins > 1000) std::this_thread::yield();
  }
}
