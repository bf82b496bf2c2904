#include "cpu/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

namespace fastnorm {

namespace {

// A cgroup's processor quota in cores, rounded up; 0 where there is none.
int quota_in_cores() {
    std::string quota;
    double period = 0;
    if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> quota >> period) {
        if (quota == "max" || period <= 0) return 0;
        return static_cast<int>(std::ceil(std::atof(quota.c_str()) / period));
    }
    std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    double microseconds = 0;
    if (v1_quota >> microseconds && v1_period >> period && microseconds > 0 && period > 0) {
        return static_cast<int>(std::ceil(microseconds / period));
    }
    return 0;
}

std::int64_t cache_bytes(int name, std::int64_t fallback) {
    const long bytes = sysconf(name);
    return bytes > 0 ? bytes : fallback;
}

}  // namespace

const Caches& caches() {
    static const Caches found{cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20),
                              cache_bytes(_SC_LEVEL3_CACHE_SIZE, 8 << 20)};
    return found;
}

int available_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    // More than 1024 processors make the call fail; the number online is then the best guess.
    int cores = sched_getaffinity(0, sizeof(set), &set) == 0
                    ? CPU_COUNT(&set)
                    : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
    if (const int quota = quota_in_cores(); quota > 0) cores = std::min(cores, quota);
    return std::max(cores, 1);
}

#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

}  // namespace fastnorm
