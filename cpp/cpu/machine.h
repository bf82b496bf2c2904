// What the machine offers: instruction sets, caches, cores.
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

}  // namespace fastnorm
