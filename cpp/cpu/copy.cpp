#include "cpu/copy.h"

#include <cstring>
#include <type_traits>

#include "core/dtypes.h"

namespace fastnorm {

namespace {

template <int size>
void copy_run(char* to, std::int64_t to_stride, const char* from, std::int64_t from_stride,
              std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::memcpy(to + i * to_stride, from + i * from_stride, size);
    }
}

}  // namespace

void copy_elements(const TensorView& to, const TensorView& from, const DimOrder& order) {
    const int last = order.axis[order.count - 1];
    std::int64_t index[max_dims] = {};
    auto* target = static_cast<char*>(to.data);
    const auto* source = static_cast<const char*>(from.data);
    for (;;) {
        const auto run = [&](auto size) {
            copy_run<size>(target, to.strides[last], source, from.strides[last], to.shape[last]);
        };
        switch (size_of(to.dtype)) {
            case 2: run(std::integral_constant<int, 2>{}); break;
            case 4: run(std::integral_constant<int, 4>{}); break;
            default: run(std::integral_constant<int, 8>{}); break;
        }
        int i = order.count - 2;
        for (; i >= 0; --i) {
            const int axis = order.axis[i];
            target += to.strides[axis];
            source += from.strides[axis];
            if (++index[i] < to.shape[axis]) break;
            target -= to.strides[axis] * to.shape[axis];
            source -= from.strides[axis] * to.shape[axis];
            index[i] = 0;
        }
        if (i < 0) return;
    }
}

}  // namespace fastnorm
