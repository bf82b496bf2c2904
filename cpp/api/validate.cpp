#include "api/validate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "core/activations.h"
#include "core/dtypes.h"

namespace fastnorm {

namespace {

std::string text(const std::int64_t* shape, int ndim) {
    std::string result = "(";
    for (int i = 0; i < ndim; ++i) {
        result += std::to_string(shape[i]);
        result += i + 1 < ndim ? ", " : ndim == 1 ? "," : "";
    }
    return result + ")";
}

std::string text(double value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
    char shortest[32];
    std::snprintf(shortest, sizeof(shortest), "%g", value);
    return shortest;
}

// No machine addresses more, and a few such numbers can be added.
constexpr std::int64_t most_bytes = std::int64_t{1} << 60;

std::string dtype_text(DType dtype) {
    const std::string name = name_of(dtype);
    return (dtype >= DType::float32 && dtype < DType::unsupported ? "dtype " : "") + name;
}

bool is_float(DType dtype) {
    return dtype == DType::float32 || dtype == DType::float64 || dtype == DType::float16 ||
           dtype == DType::bfloat16;
}

bool same_shape(const TensorView& a, const TensorView& b) {
    return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

bool same_elements(const TensorView& a, const TensorView& b) {
    if (a.data != b.data || a.dtype != b.dtype || !same_shape(a, b)) return false;
    for (int i = 0; i < a.ndim; ++i) {
        if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
    }
    return true;
}

bool is_empty(const TensorView& t) {
    return std::find(t.shape, t.shape + t.ndim, 0) != t.shape + t.ndim;
}

// Whether all extents' product is a number of bytes. An extent of 0 counts as 1: what is computed
// from the other extents must not overflow either.
bool size_is_possible(const TensorView& t) {
    std::int64_t bytes = size_of(t.dtype);
    for (int i = 0; i < t.ndim; ++i) {
        const std::int64_t extent = std::max<std::int64_t>(t.shape[i], 1);
        if (__builtin_mul_overflow(bytes, extent, &bytes) || bytes > most_bytes) return false;
    }
    return true;
}

// Whether the elements lie within most_bytes. The stride along an extent of 1 means nothing.
bool reach_is_possible(const TensorView& t) {
    std::int64_t total = 0;
    for (int i = 0; i < t.ndim; ++i) {
        if (t.shape[i] == 1) continue;
        const std::int64_t steps = std::max<std::int64_t>(t.shape[i] - 1, 1);
        std::int64_t reach;
        if (__builtin_mul_overflow(t.strides[i], steps, &reach)) return false;
        if (reach > most_bytes || reach < -most_bytes) return false;
        total += std::abs(reach);
    }
    return total <= most_bytes;
}

// One step of an equation sum(k_i * stride_i) = target with 0 <= k_i <= most_i, strides positive
// and in descending order.
struct Step {
    std::int64_t stride;
    std::int64_t most;
};

void largest_first(std::vector<Step>& steps) {
    std::sort(steps.begin(), steps.end(),
              [](const Step& p, const Step& q) { return p.stride > q.stride; });
}

// Steps along one stride are one step: two views of the same array have their strides in common,
// and every distribution of the same sum over both would be looked at.
void merge_equal(std::vector<Step>& sorted) {
    std::size_t last = 0;
    for (std::size_t i = 1; i < sorted.size(); ++i) {
        if (sorted[i].stride == sorted[last].stride) {
            sorted[last].most += sorted[i].most;
        } else {
            sorted[++last] = sorted[i];
        }
    }
    if (!sorted.empty()) sorted.resize(last + 1);
}

// Whether target less a sum of steps[i..] can come within (-below, above). Large strides first
// leave few choices for each; budget bounds the search where they do not.
bool reaches(const std::vector<Step>& steps, std::size_t i, std::int64_t target, std::int64_t below,
             std::int64_t above, int& budget) {
    if (--budget < 0) return true;
    if (i == steps.size()) return -below < target && target < above;
    std::int64_t rest = 0;
    std::int64_t divisor = steps[i].stride;
    for (std::size_t j = i + 1; j < steps.size(); ++j) {
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

bool overlaps(const TensorView& a, const TensorView& b) {
    if (is_empty(a) || is_empty(b)) return false;
    const std::int64_t size_a = size_of(a.dtype);
    const std::int64_t size_b = size_of(b.dtype);
    // Addresses of a: low_a + sum(k_i * |stride_i|). With the indices of b counted from their far
    // end, a byte is shared where the two sums make up for the distance between the arrays.
    std::vector<Step> steps;
    const auto span = [&](const TensorView& t) {
        std::intptr_t low = reinterpret_cast<std::intptr_t>(t.data);
        std::intptr_t high = low;
        for (int i = 0; i < t.ndim; ++i) {
            const std::int64_t reach = t.strides[i] * (t.shape[i] - 1);
            (reach < 0 ? low : high) += reach;
            if (reach != 0) steps.push_back({std::abs(t.strides[i]), t.shape[i] - 1});
        }
        return std::pair{low, high};
    };
    const auto [low_a, high_a] = span(a);
    const auto [low_b, high_b] = span(b);
    if (high_a + size_a <= low_b || high_b + size_b <= low_a) return false;
    largest_first(steps);
    merge_equal(steps);
    // address_b - address_a = (high_b - low_a) - sum, to lie in (-size_b, size_a).
    int budget = search_budget;
    return reaches(steps, 0, high_b - low_a, size_b, size_a, budget);
}

bool overlaps_itself(const TensorView& tensor) {
    if (is_empty(tensor)) return false;
    const std::int64_t size = size_of(tensor.dtype);
    std::vector<Step> steps;
    for (int i = 0; i < tensor.ndim; ++i) {
        const std::int64_t most = tensor.shape[i] - 1;
        if (most > 0) steps.push_back({std::abs(tensor.strides[i]), most});
    }
    largest_first(steps);
    int budget = search_budget;
    std::int64_t reach = 0;  // of the dimensions with smaller strides
    for (std::size_t i = steps.size(); i-- > 0;) {
        const auto [stride, most] = steps[i];
        if (stride == 0) return true;
        if (stride < reach + size) {
            // Two elements 1 + k steps apart along this dimension, and any number of steps, counted
            // from the far end, along those with smaller strides; their distance is to lie in
            // (-size, size).
            std::vector<Step> apart = {{stride, most - 1}};
            for (std::size_t j = i + 1; j < steps.size(); ++j) {
                apart.push_back({steps[j].stride, 2 * steps[j].most});
            }
            if (reaches(apart, 0, reach - stride, size, size, budget)) return true;
        }
        reach += stride * most;
    }
    return false;
}

void Validation::fail(const std::string& what) const {
    throw std::invalid_argument(std::string(op_) + ": " + what);
}

void Validation::given(const char* argument, const TensorView& tensor) const {
    if (!tensor.given()) fail(std::string(argument) + " is missing, expected an array");
}

void Validation::float_dtype(const char* argument, const TensorView& tensor) const {
    if (is_float(tensor.dtype)) return;
    throw dtype_error(std::string(op_) + ": " + argument + " has " + dtype_text(tensor.dtype) +
                      ", expected float32, float64, float16 or bfloat16");
}

void Validation::shape(const char* argument, const TensorView& tensor, const std::int64_t* expected,
                       int ndim) const {
    if (tensor.ndim < 0 || tensor.ndim > max_dims) {  // more than a view can say
        fail(std::string(argument) + " has " + std::to_string(tensor.ndim) +
             " dimensions, expected shape " + text(expected, ndim));
    }
    if (tensor.ndim != ndim || !std::equal(expected, expected + ndim, tensor.shape)) {
        fail(std::string(argument) + " has shape " + text(tensor.shape, tensor.ndim) +
             ", expected " + text(expected, ndim));
    }
}

void Validation::strides(const char* argument, const TensorView& tensor) const {
    if (reach_is_possible(tensor)) return;
    fail(std::string(argument) + " has strides " + text(tensor.strides, tensor.ndim) +
         ", expected its elements within 2^60 bytes");
}

void Validation::memory(const char* argument, const TensorView& tensor) const {
    if (tensor.data != nullptr || is_empty(tensor)) return;
    fail(std::string(argument) + " has no memory (null), expected an array of shape " +
         text(tensor.shape, tensor.ndim));
}

int Validation::data(const TensorView& x, int channel_axis) {
    given("x", x);
    float_dtype("x", x);
    if (x.ndim < 2 || x.ndim > max_dims) {
        fail("x has " + std::to_string(x.ndim) + (x.ndim == 1 ? " dimension" : " dimensions") +
             ", expected 2 to " + std::to_string(max_dims));
    }
    if (channel_axis < -x.ndim || channel_axis >= x.ndim) {
        fail("channel_axis is " + std::to_string(channel_axis) + ", expected " +
             std::to_string(-x.ndim) + " to " + std::to_string(x.ndim - 1) +
             " for an x with shape " + text(x.shape, x.ndim));
    }
    for (int i = 0; i < x.ndim; ++i) {
        if (x.shape[i] < 0) {
            fail("x has shape " + text(x.shape, x.ndim) + ", expected extents >= 0");
        }
    }
    if (!size_is_possible(x)) {
        fail("x has shape " + text(x.shape, x.ndim) + ", expected fewer elements");
    }
    strides("x", x);
    x_ = x;
    channel_axis_ = channel_axis < 0 ? channel_axis + x.ndim : channel_axis;
    return channel_axis_;
}

void Validation::like_data(const char* argument, const TensorView& tensor) const {
    given(argument, tensor);
    if (tensor.dtype != x_.dtype) {
        throw dtype_error(std::string(op_) + ": " + argument + " has " + dtype_text(tensor.dtype) +
                          ", expected " + name_of(x_.dtype) + " as x has it");
    }
    shape(argument, tensor, x_.shape, x_.ndim);
}

void Validation::per_channel(const char* argument, const TensorView& vector) const {
    given(argument, vector);
    float_dtype(argument, vector);
    const std::int64_t expected = channels();
    if (vector.ndim == 1 &&
        vector.shape[0] != expected) {  // maybe it is channel_axis that is wrong
        fail(std::string(argument) + " has shape " + text(vector.shape, 1) + ", expected " +
             text(&expected, 1) + ": channel_axis is " + std::to_string(channel_axis_) +
             ", x has shape " + text(x_.shape, x_.ndim));
    }
    shape(argument, vector, &expected, 1);
}

void Validation::mask(const TensorView& mask, std::int64_t bytes, const Activation& of) const {
    if (!saves_mask(of)) {
        fail(std::string("mask is given, expected none: activation ") +
             kActivations[static_cast<int>(of.kind)].name + " does not have one");
    }
    if (mask.dtype != DType::uint8) {
        throw dtype_error(std::string(op_) + ": mask has " + dtype_text(mask.dtype) +
                          ", expected uint8");
    }
    shape("mask", mask, &bytes, 1);
    if (mask.strides[0] != 1) {
        fail("mask has strides, expected a contiguous array as the forward pass made it");
    }
    memory("mask", mask);
}

void Validation::mask_signature(std::uint64_t found, std::uint64_t expected) const {
    if (found == expected) return;
    fail(
        "mask was made for another shape, memory layout, channel_axis or activation, expected the "
        "one that the forward pass returned for this x");
}

void Validation::eps(double eps) const {
    if (!(eps >= 0)) fail("eps is " + text(eps) + ", expected a number >= 0");
}

void Validation::momentum(double momentum) const {
    if (!(momentum >= 0 && momentum <= 1)) {
        fail("momentum is " + text(momentum) + ", expected a number from 0 to 1");
    }
}

void Validation::activation(const Activation& activation) const {
    const int kind = static_cast<int>(activation.kind);
    if (kind < 0 || kind >= kActivationCount) {
        fail("activation is of kind " + std::to_string(kind) + ", expected 0 to " +
             std::to_string(kActivationCount - 1));
    }
    const std::string objection = objection_to(activation);
    if (!objection.empty()) fail("activation " + objection);
}

bool saves_mask(const Activation& activation) {
    const int kind = static_cast<int>(activation.kind);
    return kind >= 0 && kind < kActivationCount && kActivations[kind].piecewise;
}

std::string objection_to(const Activation& activation) {
    const ActivationInfo& info = kActivations[static_cast<int>(activation.kind)];
    const char* fields[] = {"alpha", "beta"};
    const double values[] = {activation.alpha, activation.beta};
    for (int i = info.parameters; i < 2; ++i) {
        if (values[i] == 0) continue;
        return std::string(info.name) + " has " + fields[i] + " " + text(values[i]) +
               ", expected 0: it has " +
               (i == 0 ? "no parameters" : std::string(info.alpha.name) + " alone");
    }
    const char* expected = info.expected(activation.alpha, activation.beta);
    if (expected == nullptr) return {};
    std::string got =
        std::string(info.name) + " has " + info.alpha.name + " " + text(activation.alpha);
    if (info.parameters > 1) {
        got += std::string(" and ") + info.beta.name + " " + text(activation.beta);
    }
    return got + ", expected " + expected;
}

std::int64_t Validation::elements() const {
    std::int64_t product = 1;
    for (int i = 0; i < x_.ndim; ++i) product *= x_.shape[i];
    return product;
}

void Validation::more_than_one_value() const {
    if (elements() != 0 && elements() == channels()) {
        fail("x has shape " + text(x_.shape, x_.ndim) +
             ", 1 value per channel, expected more than 1 in training");
    }
}

void Validation::reads(const char* argument, const TensorView& tensor) {
    if (!tensor.given()) return;
    strides(argument, tensor);
    memory(argument, tensor);
    uses_.push_back({argument, &tensor, nullptr, false});
}

void Validation::writes(const char* argument, const TensorView& tensor, const TensorView* allowed) {
    if (!tensor.given()) return;
    if (!tensor.writable) fail(std::string(argument) + " is read-only, expected a writable array");
    strides(argument, tensor);
    memory(argument, tensor);
    for (int i = 0; i < tensor.ndim && !is_empty(tensor); ++i) {
        if (tensor.strides[i] == 0 && tensor.shape[i] > 1) {
            fail(std::string(argument) + " is broadcast along axis " + std::to_string(i) +
                 ", expected an array whose elements have memory of their own");
        }
    }
    if (overlaps_itself(tensor)) {
        fail(std::string(argument) +
             " overlaps itself, expected an array whose elements have memory of their own");
    }
    uses_.push_back({argument, &tensor, allowed, true});
}

void Validation::overlap() const {
    for (std::size_t i = 0; i < uses_.size(); ++i) {
        for (std::size_t j = 0; j < uses_.size(); ++j) {
            const Use& output = uses_[i];
            const Use& other = uses_[j];
            if (i == j || !output.write || (other.write && j < i)) continue;
            const bool in_place = output.allowed == other.tensor && output.allowed != nullptr &&
                                  same_elements(*output.tensor, *other.tensor);
            if (!in_place && overlaps(*output.tensor, *other.tensor)) {
                fail(std::string(output.argument) + " overlaps " + other.argument + ", expected " +
                     (output.allowed == other.tensor && output.allowed != nullptr
                          ? std::string("either the very same array or ")
                          : std::string()) +
                     "memory of its own");
            }
        }
    }
}

}  // namespace fastnorm
