#include "core/view.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "core/dtypes.h"

namespace fastnorm {

namespace {

// Below this many contiguous inner elements the lanes of a vector are better spent on several
// statistics at once.
constexpr std::int64_t shortest_row = 32;

std::int64_t product_of_extents(const TensorView& x, const DimOrder& order, int from, int to) {
    std::int64_t product = 1;
    for (int i = from; i < to; ++i) product *= x.shape[order.axis[i]];
    return product;
}

// By insertion: there are five at most.
template <class Before>
void sort_few(int* begin, int* end, Before&& before) {
    for (int* i = begin; i < end; ++i) {
        for (int* j = i; j > begin && before(*j, j[-1]); --j) std::swap(*j, j[-1]);
    }
}

}  // namespace

namespace {

// Whether dimensions [from, to) are one, of the last one's stride.
bool collapse(const TensorView& x, const DimOrder& order, int from, int to) {
    for (int i = from; i + 1 < to; ++i) {
        const int axis = order.axis[i], next = order.axis[i + 1];
        if (x.strides[axis] != x.strides[next] * x.shape[next]) return false;
    }
    return true;
}

// Rows are numbered as mean and rstd have them, so their dimensions keep their order.
DimOrder order_of_features(const TensorView& x, int feature_axis) {
    DimOrder order;
    for (int axis = 0; axis < x.ndim; ++axis) {
        if (axis == feature_axis) order.inner = order.count;
        if (x.shape[axis] != 1) order.axis[order.count++] = axis;
    }
    // As few rows under batch as x's strides allow, if they allow it at all.
    while (!collapse(x, order, order.stat, order.inner)) ++order.stat;
    if (!collapse(x, order, 0, order.stat)) order.stat = 0;
    order.outer = order.stat;
    return order;
}

DimOrder order_around_channel(const TensorView& x, const Norm& norm) {
    DimOrder order;
    int channel_axis = norm.channel_axis;
    bool broadcast = false;
    const auto add = [&](int axis) {
        order.axis[order.count++] = axis;
        broadcast |= x.strides[axis] == 0 && x.shape[axis] > 1;
    };
    if (norm.batch_axis >= 0 && x.shape[norm.batch_axis] != 1) {
        add(norm.batch_axis);
        order.outer = 1;
    }
    for (int axis = 0; axis < x.ndim; ++axis) {
        const bool left_out = axis != channel_axis && x.shape[axis] == 1;
        if (!left_out && axis != norm.batch_axis) add(axis);
    }
    int* const begin = order.axis + order.outer;
    int* const end = order.axis + order.count;
    const auto outer_first = [&](int a, int b) {
        const std::int64_t stride_a = std::abs(x.strides[a]), stride_b = std::abs(x.strides[b]);
        return stride_a != stride_b ? stride_a > stride_b : a < b;
    };
    if (x.shape[channel_axis] == 1) {
        // A single channel lies nowhere: put it outermost, and all the rest is one long row.
        std::rotate(begin, std::find(begin, end, channel_axis),
                    std::find(begin, end, channel_axis) + 1);
        channel_axis = *begin;
        if (!broadcast) {
            sort_few(begin + 1, end, outer_first);
        }
    } else if (!broadcast) {  // strides of 0 say nothing about an order
        sort_few(begin, end, outer_first);
    }
    order.stat = static_cast<int>(std::find(begin, end, channel_axis) - order.axis);
    order.inner = order.stat + 1;
    return order;
}

}  // namespace

DimOrder order_of_dims(const TensorView& x, const Norm& norm) {
    return norm.feature_axis >= 0 ? order_of_features(x, norm.feature_axis)
                                  : order_around_channel(x, norm);
}

View view_of(const TensorView& x, const Norm& norm, const DimOrder& order) {
    View view;
    view.batch = product_of_extents(x, order, 0, order.outer);
    view.outer = product_of_extents(x, order, order.outer, order.stat);
    view.stat = product_of_extents(x, order, order.stat, order.inner);
    view.inner = product_of_extents(x, order, order.inner, order.count);
    view.group = norm.group;
    if (norm.feature_axis >= 0) {
        view.traversal = Traversal::features;
        return view;
    }
    // Lanes of their own are of no use to statistics of a few values each.
    const bool apart = order.outer == 1 && view.outer == 1 && view.inner > 1;
    view.traversal =
        view.inner < shortest_row && view.stat > 1 && !apart ? Traversal::columns : Traversal::rows;
    return view;
}

bool walkable(const TensorView& tensor, const View& view, const DimOrder& order) {
    const std::int64_t size = size_of(tensor.dtype);
    if (reinterpret_cast<std::uintptr_t>(tensor.data) % static_cast<std::uintptr_t>(size) != 0) {
        return false;
    }
    if (!collapse(tensor, order, 0, order.outer)) return false;
    if (!collapse(tensor, order, order.stat, order.inner)) return false;
    const int run = view.traversal == Traversal::columns ? order.stat : order.inner;
    std::int64_t dense = size;
    for (int i = order.count - 1; i >= 0; --i) {
        const int axis = order.axis[i];
        if (tensor.strides[axis] % size != 0) return false;
        if (i >= run && tensor.strides[axis] != dense) return false;
        dense *= tensor.shape[axis];
    }
    return true;
}

TensorView dense_like(const TensorView& x, const DimOrder& order) {
    TensorView dense = x;
    dense.data = nullptr;
    dense.writable = true;
    std::int64_t stride = size_of(x.dtype);
    for (int axis = 0; axis < x.ndim; ++axis) dense.strides[axis] = stride;
    for (int i = order.count - 1; i >= 0; --i) {
        dense.strides[order.axis[i]] = stride;
        stride *= x.shape[order.axis[i]];
    }
    return dense;
}

void bind_operands(View& view, const DimOrder& order, const TensorView* const* tensors,
                   Operand* const* operands, int count) {
    const auto stride_of = [&](const TensorView& tensor, int from, int to) {
        return from < to ? tensor.strides[order.axis[to - 1]] : 0;
    };
    for (int t = 0; t < count; ++t) {
        *operands[t] = Operand{};
        if (!tensors[t]->given()) continue;
        operands[t]->data = static_cast<char*>(tensors[t]->data);
        operands[t]->stat_stride = stride_of(*tensors[t], order.stat, order.inner);
        operands[t]->batch_stride = stride_of(*tensors[t], 0, order.outer);
    }
    view.outer_dims = 1;
    view.outer_extent[0] = 1;
    bool first = true;
    for (int i = order.outer; i < order.stat; ++i) {
        const int axis = order.axis[i];
        const std::int64_t extent = tensors[0]->shape[axis];
        bool collapses = !first;
        for (int t = 0; t < count && collapses; ++t) {
            if (!*operands[t]) continue;
            collapses = operands[t]->outer_stride[view.outer_dims - 1] ==
                        tensors[t]->strides[axis] * extent;
        }
        if (!first && !collapses) ++view.outer_dims;
        const int dim = view.outer_dims - 1;
        view.outer_extent[dim] = collapses ? view.outer_extent[dim] * extent : extent;
        for (int t = 0; t < count; ++t) {
            if (*operands[t]) operands[t]->outer_stride[dim] = tensors[t]->strides[axis];
        }
        first = false;
    }
}

}  // namespace fastnorm
