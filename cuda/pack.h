// 16 bytes of elements, the unit in which kernels move memory, and the sizes that follow from it.
#pragma once

#include "core/dtypes.h"

namespace fastnorm::cuda {

template <class T>
inline constexpr int pack_elements = 16 / static_cast<int>(sizeof(T));

template <class T>
struct alignas(16) Pack {
    T element[pack_elements<T>];
};

inline constexpr int warp_size = 32;

// As many warps as registers suffice for: of a multiprocessor on chip, of a block in two passes.
inline constexpr int warps_on_chip(int width) { return width > 1 ? 8 : 12; }
inline constexpr int most_warps_of_pass = 8;

// Of a block that adds up what features have for their parameters.
inline constexpr int warps_of_features = 8;

// A lane's elements in a chunk: one bit each makes a word of the mask.
inline constexpr int lane_elements = 32;
// A lane's packs in a chunk, of which each has one element or a pack's worth for a statistic.
template <class T, int width = 1>
inline constexpr int lane_packs = lane_elements * width / pack_elements<T>;

}  // namespace fastnorm::cuda
