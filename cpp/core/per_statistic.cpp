#include "core/per_statistic.h"

#include <algorithm>
#include <cstring>

#include "core/dtypes.h"

namespace fastnorm {

void PerStatistic::load(std::int64_t from, std::int64_t count, double* to, double fallback) const {
    if (data == nullptr) {
        std::fill_n(to, count, fallback);
        return;
    }
    with_dtype(dtype, [&](auto element) {
        const auto load_all = [&](std::int64_t step) {
            for (std::int64_t i = 0; i < count; ++i) {
                std::memcpy(&element, data + (from + i) * step, sizeof(element));
                to[i] = static_cast<double>(to_float(element));
            }
        };
        // A constant step makes vectors of it.
        stride == sizeof(element) ? load_all(sizeof(element)) : load_all(stride);
    });
}

void PerStatistic::store(std::int64_t from, std::int64_t count, const double* values) const {
    if (data == nullptr) return;
    with_dtype(dtype, [&](auto element) {
        // What is written may be anything, as far as compilers know: also this object.
        const auto store_all = [=, to = data](std::int64_t step) {
            for (std::int64_t i = 0; i < count; ++i) {
                auto stored = element;
                from_float(values[i], stored);
                std::memcpy(to + (from + i) * step, &stored, sizeof(stored));
            }
        };
        stride == sizeof(element) ? store_all(sizeof(element)) : store_all(stride);
    });
}

void PerStatistic::load_parameters(const View& view, std::int64_t from, std::int64_t count,
                                   double* to, double fallback) const {
    if (view.traversal == Traversal::features) {  // parameters are not theirs
        std::fill_n(to, count, fallback);
        return;
    }
    while (count > 0) {
        const std::int64_t first = view.parameter(from);
        const std::int64_t here = std::min(count, view.parameters() - first);
        load(first, here, to, fallback);
        from += here;
        to += here;
        count -= here;
    }
}

}  // namespace fastnorm
