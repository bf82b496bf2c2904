#include "api/overlap.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "core/dtypes.h"

namespace fastnorm {

namespace {

// One step of an equation sum(k_i * stride_i) = target with 0 <= k_i <= most_i, strides positive
// and in descending order.
struct Step {
    std::int64_t stride;
    std::int64_t most;
};

// Those of one tensor or two. No memory is allocated for them: every call of every op is checked.
class Steps {
  public:
    void add(Step step) { items_[count_++] = step; }

    void sort() {
        std::sort(items_, items_ + count_,
                  [](const Step& p, const Step& q) { return p.stride > q.stride; });
    }

    // Steps along one stride are one step: two views of the same array have their strides in
    // common, and every distribution of the same sum over both would be looked at.
    void merge_equal() {
        int last = 0;
        for (int i = 1; i < count_; ++i) {
            if (items_[i].stride == items_[last].stride) {
                items_[last].most += items_[i].most;
            } else {
                items_[++last] = items_[i];
            }
        }
        if (count_ > 0) count_ = last + 1;
    }

    int count() const { return count_; }
    const Step& operator[](int i) const { return items_[i]; }

  private:
    Step items_[2 * max_dims];
    int count_ = 0;
};

// Whether target less a sum of steps[i..] can come within (-below, above). Large strides first
// leave few choices for each; budget bounds the search where they do not.
bool reaches(const Steps& steps, int i, std::int64_t target, std::int64_t below, std::int64_t above,
             int& budget) {
    if (--budget < 0) return true;
    if (i == steps.count()) return -below < target && target < above;
    std::int64_t rest = 0;
    std::int64_t divisor = steps[i].stride;
    for (int j = i + 1; j < steps.count(); ++j) {
        rest += steps[j].stride * steps[j].most;
        divisor = std::gcd(divisor, steps[j].stride);
    }
    // All sums are multiples of the strides' divisor: even columns never meet odd ones.
    const std::int64_t least = ((target + below - 1) % divisor + divisor) % divisor - below + 1;
    if (least >= above) return false;
    const auto [stride, most] = steps[i];
    // k * stride must lie in [target - rest - above, target + below].
    const std::int64_t low = target - rest - above;
    const std::int64_t high = target + below;
    const std::int64_t from = std::max<std::int64_t>(0, low <= 0 ? 0 : (low + stride - 1) / stride);
    const std::int64_t to = high < 0 ? -1 : std::min(most, high / stride);
    for (std::int64_t k = from; k <= to; ++k) {
        if (reaches(steps, i + 1, target - k * stride, below, above, budget)) return true;
    }
    return false;
}

// Nodes of a search with reaches().
constexpr int search_budget = 20000;

}  // namespace

ByteRange bytes_of(const TensorView& tensor) {
    const auto data = reinterpret_cast<std::intptr_t>(tensor.data);
    ByteRange range{data, data};
    std::intptr_t last = size_of(tensor.dtype);
    for (int i = 0; i < tensor.ndim; ++i) {
        if (tensor.shape[i] == 0) return {data, data};
        const std::int64_t reach = tensor.strides[i] * (tensor.shape[i] - 1);
        (reach < 0 ? range.begin : last) += reach;
    }
    range.end += last;
    return range;
}

bool overlaps(const TensorView& a, const TensorView& b) {
    const ByteRange range_a = bytes_of(a), range_b = bytes_of(b);
    if (!range_a.meets(range_b)) return false;
    // Addresses of a: begin_a + sum(k_i * |stride_i|). With the indices of b counted from their far
    // end, a byte is shared where the two sums make up for the distance between the arrays.
    Steps steps;
    for (const TensorView* t : {&a, &b}) {
        for (int i = 0; i < t->ndim; ++i) {
            if (t->shape[i] > 1 && t->strides[i] != 0) {
                steps.add({std::abs(t->strides[i]), t->shape[i] - 1});
            }
        }
    }
    steps.sort();
    steps.merge_equal();
    // address_b - address_a = (the last of b - the first of a) - sum, to lie in (-size_b, size_a).
    const std::int64_t size_a = size_of(a.dtype), size_b = size_of(b.dtype);
    int budget = search_budget;
    return reaches(steps, 0, range_b.end - size_b - range_a.begin, size_b, size_a, budget);
}

bool overlaps_itself(const TensorView& tensor) {
    if (bytes_of(tensor).empty()) return false;
    const std::int64_t size = size_of(tensor.dtype);
    Steps steps;
    for (int i = 0; i < tensor.ndim; ++i) {
        const std::int64_t most = tensor.shape[i] - 1;
        if (most > 0) steps.add({std::abs(tensor.strides[i]), most});
    }
    steps.sort();
    int budget = search_budget;
    std::int64_t reach = 0;  // of the dimensions with smaller strides
    for (int i = steps.count(); i-- > 0;) {
        const auto [stride, most] = steps[i];
        if (stride == 0) return true;
        if (stride < reach + size) {
            // Two elements 1 + k steps apart along this dimension, and any number of steps, counted
            // from the far end, along those with smaller strides; their distance is to lie in
            // (-size, size).
            Steps apart;
            apart.add({stride, most - 1});
            for (int j = i + 1; j < steps.count(); ++j) {
                apart.add({steps[j].stride, 2 * steps[j].most});
            }
            if (reaches(apart, 0, reach - stride, size, size, budget)) return true;
        }
        reach += stride * most;
    }
    return false;
}

}  // namespace fastnorm
