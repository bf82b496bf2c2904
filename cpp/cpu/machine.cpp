#include "cpu/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif

namespace fastnorm {

namespace {

// A cgroup's processor quota in cores, rounded up; no_quota where it has none.
constexpr int no_quota = std::numeric_limits<int>::max();
int quota_of(const std::string& folder) {
    std::string quota;  // "max" or -1: none
    double period = 0;
    if (!(std::ifstream(folder + "/cpu.max") >> quota >> period)) {  // version 1 has two files
        std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
        std::ifstream(folder + "/cpu.cfs_period_us") >> period;
    }
    const double cores = period > 0 ? std::ceil(std::atof(quota.c_str()) / period) : 0;
    return cores > 0 && cores < no_quota ? static_cast<int>(cores) : no_quota;
}

// The smallest quota of a group ("/a/b") and of those that it lies in, up to the root. In a
// container the group may be named as its host sees it: then the root alone is there.
int smallest_quota(const std::string& root, std::string group) {
    int cores = quota_of(root + group);
    while (!group.empty()) {
        group.resize(std::min(group.rfind('/'), group.size() - 1));
        cores = std::min(cores, quota_of(root + group));
    }
    return cores;
}

// groups: a file of lines "<number>:<controllers>:<group>", version 2 has no controllers.
int quota_in_cores(const std::string& groups, const std::string& root) {
    std::string unified, cpu;
    std::ifstream file(groups);
    for (std::string number, controllers, group; std::getline(file, number, ':') &&
                                                 std::getline(file, controllers, ':') &&
                                                 std::getline(file, group);) {
        if (controllers.empty()) unified = group;
        if (("," + controllers + ",").find(",cpu,") != std::string::npos) cpu = group;
    }
    return std::min(smallest_quota(root, unified), smallest_quota(root + "/cpu", cpu));
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

// The kernel knows best: of some AMD processors glibc adds up the caches of all their parts, and on
// Arm it answers 0.
std::int64_t cache_bytes(int name, int level, std::int64_t fallback) {
    if (const std::int64_t bytes = sysfs_cache_bytes(level); bytes > 0) return bytes;
    const long bytes = sysconf(name);
    return bytes > 0 ? bytes : fallback;
}

// The register that says how the thread computes. MXCSR also holds the flags of what has happened.
#if defined(__x86_64__)
constexpr std::uint64_t control_bits = 0xffc0, default_control = 0x1f80;
std::uint64_t floating_point_control() { return _mm_getcsr(); }
void set_floating_point_control(std::uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
constexpr std::uint64_t control_bits = ~std::uint64_t{0}, default_control = 0;
std::uint64_t floating_point_control() {
    std::uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}
void set_floating_point_control(std::uint64_t value) { asm volatile("msr fpcr, %0" ::"r"(value)); }
#else
constexpr std::uint64_t control_bits = 0, default_control = 0;
std::uint64_t floating_point_control() { return 0; }
void set_floating_point_control(std::uint64_t) {}
#endif
bool differs(std::uint64_t control) { return (control & control_bits) != default_control; }

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
    const int cores = sched_getaffinity(0, sizeof(set), &set) == 0
                          ? CPU_COUNT(&set)
                          : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
    return std::max(std::min(cores, quota_in_cores("/proc/self/cgroup", "/sys/fs/cgroup")), 1);
}

#if defined(__x86_64__)
bool has_avx2() {
    // __builtin_cpu_supports knows "f16c" in GCC alone. AVX2 says that the system saves YMM.
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

DefaultFloatingPoint::DefaultFloatingPoint() : found_(floating_point_control()) {
    if (differs(found_)) set_floating_point_control(default_control);
}
DefaultFloatingPoint::~DefaultFloatingPoint() {
    if (differs(found_)) set_floating_point_control(found_);
}

}  // namespace fastnorm
