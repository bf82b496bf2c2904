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

DimOrder order_of_dims(const TensorView& x, const Norm& norm) {
    DimOrder order;
    int channel_axis = norm.channel_axis;
    bool broadcast = false;
    const auto add = [&](int axis) {
        order.axis[order.count++] = axis;
        broadcast |= x.strides[axis] == 0 && x.shape[axis] > 1;
    };
    if (norm.batch_axis >= 0 && x.shape[norm.batch_axis] != 1) {
        add(norm.batch_axis);
        order.batches = 1;
    }
    for (int axis = 0; axis < x.ndim; ++axis) {
        const bool left_out = axis != channel_axis && x.shape[axis] == 1;
        if (!left_out && axis != norm.batch_axis) add(axis);
    }
    int* const begin = order.axis + order.batches;
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
    order.channel = static_cast<int>(std::find(begin, end, channel_axis) - order.axis);
    return order;
}

View view_of(const TensorView& x, const Norm& norm, const DimOrder& order) {
    View view;
    view.batch = product_of_extents(x, order, 0, order.batches);
    view.outer = product_of_extents(x, order, order.batches, order.channel);
    view.stat = x.shape[order.axis[order.channel]];
    view.inner = product_of_extents(x, order, order.channel + 1, order.count);
    view.group = norm.group;
    // Lanes of their own are of no use to statistics of few values each.
    const bool apart = order.batches == 1 && view.outer == 1;
    view.traversal = view.inner < shortest_row && view.stat > 1 && !apart ? Traversal::columns
                                                                          : Traversal::rows;
    return view;
}

bool walkable(const TensorView& tensor, const View& view, const DimOrder& order) {
    const std::int64_t size = size_of(tensor.dtype);
    if (reinterpret_cast<std::uintptr_t>(tensor.data) % static_cast<std::uintptr_t>(size) != 0) {
        return false;
    }
    std::int64_t dense = size;
    for (int i = order.count - 1; i >= 0; --i) {
        const int axis = order.axis[i];
        if (tensor.strides[axis] % size != 0) return false;
        const bool within_run =
            i > order.channel || (i == order.channel && view.traversal == Traversal::columns);
        if (within_run && tensor.strides[axis] != dense) return false;
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
    const int channel_axis = order.axis[order.channel];
    for (int t = 0; t < count; ++t) {
        *operands[t] = Operand{};
        if (!tensors[t]->given()) continue;
        operands[t]->data = static_cast<char*>(tensors[t]->data);
        operands[t]->stat_stride = tensors[t]->strides[channel_axis];
        if (order.batches == 1) operands[t]->batch_stride = tensors[t]->strides[order.axis[0]];
    }
    view.outer_dims = 1;
    view.outer_extent[0] = 1;
    bool first = true;
    for (int i = order.batches; i < order.channel; ++i) {
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
