// The arrays that have one value per statistic: parameters, statistics, and their gradients.
#pragma once

#include <cstdint>

#include "core/dtypes.h"
#include "core/view.h"

namespace fastnorm {

// In any dtype and with any stride (in bytes). Absent if data is null.
struct PerStatistic {
    char* data = nullptr;
    DType dtype = DType::float32;
    std::int64_t stride = 0;

    FASTNORM_FN explicit operator bool() const { return data != nullptr; }

    // One value: fallback and nothing where absent.
    FASTNORM_FN double get(std::int64_t i, double fallback = 0.0) const {
        if (data == nullptr) return fallback;
        return with_dtype(dtype, [&](auto element) {
            return static_cast<double>(
                to_float(*reinterpret_cast<const decltype(element)*>(data + i * stride)));
        });
    }
    FASTNORM_FN void set(std::int64_t i, double value) const {
        if (data == nullptr) return;
        with_dtype(dtype, [&](auto element) {
            from_float(value, *reinterpret_cast<decltype(element)*>(data + i * stride));
        });
    }

    // The values of [from, from + count): fallback and nothing where absent.
    void load(std::int64_t from, std::int64_t count, double* to, double fallback = 0.0) const;
    void store(std::int64_t from, std::int64_t count, const double* values) const;
    // Those that statistics [from, from + count) of a view have as a parameter.
    void load_parameters(const View& view, std::int64_t from, std::int64_t count, double* to,
                         double fallback) const;
};

}  // namespace fastnorm
