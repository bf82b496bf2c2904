// Whether tensors share memory, element by element: two that lie interleaved in one array do not.
#pragma once

#include <cstdint>

#include "fastnorm/fastnorm.hpp"

namespace fastnorm {

// The bytes from a tensor's first element to the end of its last.
struct ByteRange {
    std::intptr_t begin = 0, end = 0;

    bool empty() const { return begin == end; }
    bool meets(const ByteRange& other) const {
        return begin < other.end && other.begin < end && !empty() && !other.empty();
    }
};
ByteRange bytes_of(const TensorView& tensor);

// Whether any byte belongs to an element of both. Never a wrong no; a needless yes only where a
// bounded search does not end, for strides that have little in common.
bool overlaps(const TensorView& a, const TensorView& b);

// Whether any byte belongs to two elements of a tensor, likewise.
bool overlaps_itself(const TensorView& tensor);

}  // namespace fastnorm
