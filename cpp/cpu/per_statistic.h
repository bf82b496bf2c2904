// The arrays that have one value per statistic: parameters, statistics, and their gradients.
#pragma once

#include <cstdint>

#include "core/view.h"

namespace fastnorm {

// In any dtype and with any stride (in bytes). Absent if data is null.
struct PerStatistic {
    char* data = nullptr;
    DType dtype = DType::float32;
    std::int64_t stride = 0;

    explicit operator bool() const { return data != nullptr; }
    // The values of [from, from + count): fallback and nothing where absent.
    void load(std::int64_t from, std::int64_t count, double* to, double fallback = 0.0) const;
    void store(std::int64_t from, std::int64_t count, const double* values) const;
    // Those that statistics [from, from + count) of a view have as a parameter.
    void load_parameters(const View& view, std::int64_t from, std::int64_t count, double* to,
                         double fallback) const;
};

}  // namespace fastnorm
