#include "core/per_statistic.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/dtypes.h"

namespace fastnorm {

namespace {

// Calls f with the step from one value to the next, in bytes: a constant where they lie side by
// side, for compilers to make vectors of it.
template <std::int64_t size, class F>
void with_step(std::int64_t stride, F&& f) {
    if (stride == size) return f(std::integral_constant<std::int64_t, size>{});
    f(stride);
}

}  // namespace

void PerStatistic::load(std::int64_t from, std::int64_t count, double* to, double fallback) const {
    if (data == nullptr) {
        std::fill_n(to, count, fallback);
        return;
    }
    with_dtype(dtype, [&](auto element) {
        with_step<sizeof(element)>(stride, [=, this](auto step) {
            for (std::int64_t i = 0; i < count; ++i) {
                auto value = element;
                std::memcpy(&value, data + (from + i) * step, sizeof(value));
                to[i] = static_cast<double>(to_float(value));
            }
        });
    });
}

void PerStatistic::store(std::int64_t from, std::int64_t count, const double* values) const {
    if (data == nullptr) return;
    with_dtype(dtype, [&](auto element) {
        // Bytes may be anything, this object too, as far as compilers know: the address is a copy.
        with_step<sizeof(element)>(stride, [=, to = data](auto step) {
            for (std::int64_t i = 0; i < count; ++i) {
                auto value = element;
                from_float(values[i], value);
                std::memcpy(to + (from + i) * step, &value, sizeof(value));
            }
        });
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
