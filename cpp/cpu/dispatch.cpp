#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/machine.h"

namespace fastnorm {

namespace baseline {
extern const KernelTable kernels;
}
#if defined(FASTNORM_HAVE_AVX2)
namespace avx2 {
extern const KernelTable kernels;
}
#endif
#if defined(FASTNORM_HAVE_AVX512)
namespace avx512 {
extern const KernelTable kernels;
}
#endif
#if defined(FASTNORM_HAVE_AVX2X2)
namespace avx2x2 {
extern const KernelTable kernels;
}
#endif
#if defined(FASTNORM_HAVE_NEON)
namespace neon {
extern const KernelTable kernels;
}
#endif

namespace {

struct Entry {
    const KernelTable* table;
    bool (*supported)();
};

// Best first. avx2x2 exists for tests and is never the first that a machine supports.
const Entry entries[] = {
#if defined(FASTNORM_HAVE_AVX512)
    {&avx512::kernels, has_avx512},
#endif
#if defined(FASTNORM_HAVE_AVX2)
    {&avx2::kernels, has_avx2},
#endif
#if defined(FASTNORM_HAVE_AVX2X2)
    {&avx2x2::kernels, has_avx2},
#endif
#if defined(FASTNORM_HAVE_NEON)
    {&neon::kernels, [] { return true; }},
#endif
    {&baseline::kernels, [] { return true; }},
};

std::atomic<const KernelTable*> active{nullptr};

// what: where the name comes from, for the message.
const KernelTable* named(const std::string& what, const std::string& name) {
    for (const Entry& entry : entries) {
        if (name == entry.table->name && entry.supported()) return entry.table;
    }
    std::string expected;
    for (const std::string& known : available_isas()) {
        expected += (expected.empty() ? "" : ", ") + known;
    }
    throw std::invalid_argument(what + " is '" + name + "', expected one of " + expected);
}

const KernelTable* choose() {
    const char* forced = std::getenv("FASTNORM_ISA");
    return named("FASTNORM_ISA",
                 forced != nullptr && *forced != '\0' ? forced : available_isas().front());
}

}  // namespace

const KernelTable& active_kernels() {
    const KernelTable* table = active.load(std::memory_order_acquire);
    if (table == nullptr) {
        table = choose();
        active.store(table, std::memory_order_release);
    }
    return *table;
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Entry& entry : entries) {
        if (entry.supported()) names.emplace_back(entry.table->name);
    }
    return names;
}

void activate_isa(const std::string& name) {
    active.store(named("set_isa: name", name), std::memory_order_release);
}

}  // namespace fastnorm
