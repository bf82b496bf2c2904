// The one idea below every op: an input collapses to [batch, outer, stat, inner]; sums are taken
// over outer and inner and kept per (batch, stat), and `group` neighbours along stat are one
// statistic. Below the functions of this file nobody knows an op's name or a layout.
#pragma once

#include <cstdint>
#include <numeric>

#include "core/portable.h"
#include "fastnorm/fastnorm.hpp"

namespace fastnorm {

enum class Traversal : int {
    rows,      // inner is long and contiguous: vectors run along it
    columns,   // inner is 1 or short: vectors run along stat * inner, one accumulator a lane
    features,  // rows, whose weights and biases belong to the elements of inner
};

inline const char* name_of(Traversal traversal) {
    constexpr const char* names[] = {"rows", "columns", "features"};
    return names[static_cast<int>(traversal)];
}

inline constexpr int max_outer_dims = max_dims - 1;

struct View {
    Traversal traversal = Traversal::rows;
    std::int64_t batch = 1;
    std::int64_t outer = 1;
    std::int64_t stat = 1;
    std::int64_t inner = 1;
    // So many neighbours along stat have one mean and one variance, and weights of their own.
    std::int64_t group = 1;
    // outer as a nest of dimensions, outermost first: their strides differ between operands.
    int outer_dims = 1;
    std::int64_t outer_extent[max_outer_dims] = {1};

    std::int64_t elements() const { return batch * outer * stat * inner; }
    std::int64_t stats() const { return batch * stat; }
    std::int64_t means() const { return stats() / group; }
    std::int64_t reduced() const { return group * outer * inner; }  // values per mean
    // Weights and biases: of a stat, the same ones for every batch index, or of inner.
    std::int64_t parameters() const { return traversal == Traversal::features ? inner : stat; }
    std::int64_t parameter(std::int64_t statistic) const { return statistic % stat; }
    // What is contiguous in every operand, and so one row of the mask.
    std::int64_t run() const { return traversal == Traversal::columns ? stat * inner : inner; }
    std::int64_t runs() const { return elements() / (run() > 0 ? run() : 1); }
    std::int64_t mask_row_bytes() const { return (run() + 7) / 8; }
    // Short rows under columns are taken several at a time where they lie side by side, as one row
    // whose coefficients repeat: this many, if there are rows enough to make up for the
    // coefficients; whole packs if so many rows can be that.
    std::int64_t rows_together() const {
        if (traversal != Traversal::columns || run() > 128) return 1;
        const std::int64_t rows = 256 / run();
        if (outer < 64 * rows) return 1;
        constexpr std::int64_t pack = 32;  // lanes; in double two packs
        const std::int64_t whole_packs = pack / std::gcd(run(), pack);
        return rows < whole_packs ? rows : rows / whole_packs * whole_packs;
    }
    // Whether rows that are taken together end within a byte of the mask, but are so short that one
    // by one they would take longer than their bits do.
    bool mask_is_ragged() const { return run() % 8 != 0 && run() < 32 && rows_together() > 1; }
    // Under columns a row's coefficients repeat: for each of the rows taken together, and once more
    // for large tensors, whose maps may start anywhere in a row.
    std::int64_t coefficient_rows() const {
        return rows_together() + (elements() >= 1 << 17 ? 1 : 0);
    }
    // Of each of the maps' coefficients: one a lane under columns, else one a statistic.
    std::int64_t coefficients() const {
        return traversal == Traversal::columns ? batch * run() * coefficient_rows() : stats();
    }
};

// Where one tensor lies under a view. Strides are in bytes. Inner elements are contiguous, and
// under columns stat * inner are.
struct Operand {
    char* data = nullptr;
    std::int64_t batch_stride = 0;
    std::int64_t stat_stride = 0;
    std::int64_t outer_stride[max_outer_dims] = {};

    FASTNORM_FN explicit operator bool() const { return data != nullptr; }
};

// How a norm sees an x: the axes in [0, x.ndim) that its statistics are kept for.
struct Norm {
    int channel_axis = 1;
    int batch_axis = -1;     // of a norm of each sample by itself, else none
    std::int64_t group = 1;  // channels that share a statistic
    int feature_axis = -1;   // of a norm over all axes from this one on, else none
    bool centred = true;     // else the mean counts as 0
};

// An order of a tensor's dimensions, outermost first: those of the view's batch, then those of
// outer, stat and inner. Those of outer and inner are in the order of memory. Dimensions of extent
// 1 are left out, the channel excepted.
struct DimOrder {
    int count = 0;
    int axis[max_dims] = {};
    int outer = 0, stat = 0, inner = 0;  // where theirs begin
};

DimOrder order_of_dims(const TensorView& x, const Norm& norm);

// [batch, what lies outside the channel, channels, what lies inside]; of features [rows, 1, rows,
// features], with two extents for rows whose strides are not those of one.
View view_of(const TensorView& x, const Norm& norm, const DimOrder& order);

// Whether a tensor of x's shape can be walked in place under the view; otherwise it is copied to
// dense_like(x, order).
bool walkable(const TensorView& tensor, const View& view, const DimOrder& order);

// The dense layout with the given order of dimensions (data left null).
TensorView dense_like(const TensorView& x, const DimOrder& order);

// Collapses the outer dimensions as far as all tensors allow and fills their operands. An absent
// tensor gives an empty operand.
void bind_operands(View& view, const DimOrder& order, const TensorView* const* tensors,
                   Operand* const* operands, int count);

}  // namespace fastnorm
