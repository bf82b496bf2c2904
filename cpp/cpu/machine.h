// What the machine offers: instruction sets, caches, cores, and how its threads compute.
#pragma once

#include <cstdint>

namespace fastnorm {

struct Caches {
    std::int64_t l2 = 0;  // bytes, of one core
    std::int64_t l3 = 0;  // bytes, shared
};
const Caches& caches();

// The cores that this process may use: its affinity, further limited by the cgroup's quota.
int available_cores();

bool has_avx2();
bool has_avx512();

// While one lives, its thread computes as IEEE 754 does by default: it rounds to nearest, keeps
// denormals and does not trap, whatever the caller (or a library built with -ffast-math) has set.
// Threads inherit what their creator had, so that results would depend on who computes what.
class DefaultFloatingPoint {
  public:
    DefaultFloatingPoint();
    ~DefaultFloatingPoint();
    DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
    DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

  private:
    std::uint64_t found_;
};

}  // namespace fastnorm
