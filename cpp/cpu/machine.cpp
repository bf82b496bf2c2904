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

// What the kernel says of the first processor's data cache of a level; 0 if it says nothing.
std::int64_t sysfs_cache_bytes(int level) {
    for (int i = 0; i < 8; ++i) {
        const std::string folder =
            "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/";
        int found_level = 0;
        std::string type;
        std::int64_t kilobytes = 0;  // "2048K"
        std::ifstream(folder + "level") >> found_level;
        std::ifstream(folder + "type") >> type;
        std::ifstream(folder + "size") >> kilobytes;
        if (found_level == level && type != "Instruction") return kilobytes * 1024;
    }
    return 0;
}

// glibc knows the caches of x86, on Arm it answers 0.
std::int64_t cache_bytes(int name, int level, std::int64_t fallback) {
    if (const long bytes = sysconf(name); bytes > 0) return bytes;
    const std::int64_t bytes = sysfs_cache_bytes(level);
    return bytes > 0 ? bytes : fallback;
}

}  // namespace

const Caches& caches() {
    static const Caches found{cache_bytes(_SC_LEVEL2_CACHE_SIZE, 2, 1 << 20),
                              cache_bytes(_SC_LEVEL3_CACHE_SIZE, 3, 8 << 20)};
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
