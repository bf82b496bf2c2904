#include "api/validate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

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

std::string text(const Device& device) {
    return device.kind == DeviceKind::cpu ? "the CPU" : "cuda:" + std::to_string(device.index);
}

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

}  // namespace

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

void Validation::device(const char* argument, const TensorView& tensor) const {
    if (tensor.device != x_.device) {
        fail(std::string(argument) + " is on " + text(tensor.device) + ", expected " +
             text(x_.device) + " as x is");
    }
    const auto size = static_cast<std::uintptr_t>(size_of(tensor.dtype));
    if (tensor.device.kind == DeviceKind::cpu || bytes_of(tensor).empty()) return;
    bool aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % size == 0;
    for (int i = 0; i < tensor.ndim; ++i) {
        aligned &= tensor.strides[i] % static_cast<std::int64_t>(size) == 0 || tensor.shape[i] == 1;
    }
    if (!aligned) {
        fail(std::string(argument) + " is not aligned to its elements, expected it to be on " +
             text(tensor.device));
    }
}

void Validation::memory(const char* argument, const TensorView& tensor) const {
    if (tensor.data != nullptr || bytes_of(tensor).empty()) return;
    fail(std::string(argument) + " has no memory (null), expected an array of shape " +
         text(tensor.shape, tensor.ndim));
}

void Validation::data(const TensorView& x, int least_dims) {
    given("x", x);
    float_dtype("x", x);
    if (x.ndim < least_dims || x.ndim > max_dims) {
        fail("x has " + std::to_string(x.ndim) + (x.ndim == 1 ? " dimension" : " dimensions") +
             ", expected " + std::to_string(least_dims) + " to " + std::to_string(max_dims));
    }
    x_ = x;
}

int Validation::axis(int given, int first) const {
    const TensorView& x = x_;
    const int axis = given < 0 ? given + x.ndim : given;
    if (axis >= first && axis < x.ndim) return axis;
    const auto range = [](int from, int to) {
        return std::to_string(from) + (from == to ? "" : " to " + std::to_string(to));
    };
    const std::string expected =
        first == 0 ? range(-x.ndim, x.ndim - 1)
                   : range(first - x.ndim, -1) + " or " + range(first, x.ndim - 1);
    fail(std::string(axis_name()) + " is " + std::to_string(given) + ", expected " + expected +
         " for an x with shape " + text(x.shape, x.ndim));
}

void Validation::extents() const {
    const TensorView& x = x_;
    for (int i = 0; i < x.ndim; ++i) {
        if (x.shape[i] < 0) {
            fail("x has shape " + text(x.shape, x.ndim) + ", expected extents >= 0");
        }
    }
    if (!size_is_possible(x)) {
        fail("x has shape " + text(x.shape, x.ndim) + ", expected fewer elements");
    }
    strides("x", x);
    device("x", x);
}

Norm Validation::batch_norm(const TensorView& x, int channel_axis) {
    data(x, 2);
    axis_ = axis(channel_axis, 0);
    extents();
    parameters_ = statistics_ = {1, {x.shape[axis_]}};
    return {axis_, -1, 1};
}

Norm Validation::of_samples(const TensorView& x, int least_dims, int channel_axis) {
    data(x, least_dims);
    axis_ = axis(channel_axis, 1);
    extents();
    parameters_ = {1, {x.shape[axis_]}};
    statistics_ = {2, {x.shape[0], x.shape[axis_]}};
    return {axis_, 0, 1};
}

Norm Validation::instance_norm(const TensorView& x, int channel_axis) {
    return of_samples(x, 3, channel_axis);
}

Norm Validation::group_norm(const TensorView& x, std::int64_t groups, int channel_axis) {
    Norm norm = of_samples(x, 2, channel_axis);
    const std::int64_t channels = x.shape[axis_];
    if (groups < 1 || channels % groups != 0) {
        fail("groups is " + std::to_string(groups) + ", expected a divisor of the " +
             std::to_string(channels) + " channels that an x with shape " + text(x.shape, x.ndim) +
             " has on axis " + std::to_string(axis_));
    }
    statistics_.extent[1] = groups;
    norm.group = std::max<std::int64_t>(channels / groups, 1);
    return norm;
}

Norm Validation::features(const TensorView& x, int axis) {
    data(x, 1);
    of_rows_ = true;
    axis_ = this->axis(axis, 0);
    extents();
    for (int i = 0; i < x.ndim; ++i) {
        Extents& of = i < axis_ ? statistics_ : parameters_;
        of.extent[of.ndim++] = x.shape[i];
    }
    Norm norm;
    norm.feature_axis = axis_;
    return norm;
}

void Validation::sum_of(const TensorView& sum, const TensorView& residual) const {
    if (!residual.given()) fail("residual is missing, expected an array: prenorm adds it to x");
    like_data("sum_out", sum);
}

void Validation::sum_gradient(const TensorView& dsum, bool has_residual) const {
    if (has_residual) {
        fail(
            "dsum is given, expected none beside a residual that is added behind the norm: "
            "prenorm's is part of x, and dx its gradient too");
    }
    like_data("dsum", dsum);
}

void Validation::weight_offset(double offset) const {
    const bool wide = x_.dtype == DType::float64;  // else it is added in float32
    const double most =
        wide ? std::numeric_limits<double>::max() : double{std::numeric_limits<float>::max()};
    if (std::abs(offset) <= most) return;
    fail("weight_offset is " + text(offset) + ", expected a finite number" +
         (wide ? "" : " of float32"));
}

void Validation::sum_needs_prenorm(bool has_sum, bool prenorm) const {
    if (has_sum && !prenorm) fail("sum_out is given, expected None without prenorm");
}

void Validation::residual_needs_values(bool has_values, bool recomputes) const {
    if (has_values || !recomputes) return;
    fail(
        "residual is True, expected the array: without a mask, the activation's input is "
        "recomputed from it");
}

void Validation::like_data(const char* argument, const TensorView& tensor) const {
    given(argument, tensor);
    if (tensor.dtype != x_.dtype) {
        throw dtype_error(std::string(op_) + ": " + argument + " has " + dtype_text(tensor.dtype) +
                          ", expected " + name_of(x_.dtype) + " as x has it");
    }
    shape(argument, tensor, x_.shape, x_.ndim);
    device(argument, tensor);
}

void Validation::small(const char* argument, const TensorView& array,
                       const Extents& expected) const {
    given(argument, array);
    float_dtype(argument, array);
    const bool same = array.ndim == expected.ndim &&
                      std::equal(array.shape, array.shape + array.ndim, expected.extent);
    const bool sayable = array.ndim >= 0 && array.ndim <= max_dims;
    if (!same && sayable && (array.ndim == expected.ndim || of_rows_)) {  // maybe the axis is wrong
        fail(std::string(argument) + " has shape " + text(array.shape, array.ndim) + ", expected " +
             text(expected.extent, expected.ndim) + ": " + axis_name() + " is " +
             std::to_string(axis_) + ", x has shape " + text(x_.shape, x_.ndim));
    }
    shape(argument, array, expected.extent, expected.ndim);
    device(argument, array);
}

void Validation::parameter(const char* argument, const TensorView& array) const {
    small(argument, array, parameters_);
}

void Validation::statistic(const char* argument, const TensorView& array) const {
    small(argument, array, statistics_);
}

void Validation::mask(const TensorView& mask, std::int64_t bytes, const Activation& of) const {
    if (of.kind == ActivationKind::identity) {
        fail("mask is given, expected none without an activation");
    }
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
    device("mask", mask);
    if (mask.device.kind != DeviceKind::cpu &&
        reinterpret_cast<std::uintptr_t>(mask.data) % 4 != 0) {
        fail("mask is not aligned to 4 bytes, expected the memory that the forward pass wrote");
    }
}

void Validation::scratch(const TensorView& scratch) const {
    if (x_.device.kind == DeviceKind::cpu) {
        fail("scratch is given, expected none: on the CPU each thread keeps its own");
    }
    if (scratch.dtype != DType::uint8) {
        throw dtype_error(std::string(op_) + ": scratch has " + dtype_text(scratch.dtype) +
                          ", expected uint8");
    }
    if (scratch.ndim != 1 || scratch.shape[0] < 0) {
        fail("scratch has shape " + text(scratch.shape, std::clamp(scratch.ndim, 0, max_dims)) +
             ", expected one dimension");
    }
    if (scratch.strides[0] != 1) fail("scratch has strides, expected a contiguous array");
    memory("scratch", scratch);
    device("scratch", scratch);
    if (reinterpret_cast<std::uintptr_t>(scratch.data) % 16 != 0) {
        fail("scratch is not aligned to 16 bytes");
    }
}

void Validation::scratch_holds(const TensorView& scratch, std::int64_t bytes) const {
    if (scratch.shape[0] >= bytes) return;
    fail("scratch has " + std::to_string(scratch.shape[0]) + " bytes, expected at least " +
         std::to_string(bytes));
}

void Validation::mask_signature(std::uint64_t found, std::uint64_t expected) const {
    if (found == expected) return;
    fail(
        "mask was made for another shape, memory layout, axis or activation, expected the "
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

void Validation::more_than_one_value(NeedsVariance what) const {
    if (what == NeedsVariance::nothing) return;
    std::int64_t statistics = 1;
    for (int i = 0; i < statistics_.ndim; ++i) statistics *= statistics_.extent[i];
    if (elements() == 0 || elements() != statistics) return;
    fail("x has shape " + text(x_.shape, x_.ndim) + ", 1 value per channel, expected more than 1 " +
         (what == NeedsVariance::training ? "in training" : "for an unbiased running_var"));
}

void Validation::reads(const char* argument, const TensorView& tensor) {
    if (!tensor.given()) return;
    strides(argument, tensor);
    memory(argument, tensor);
    remember({argument, &tensor, nullptr, false, bytes_of(tensor)});
}

void Validation::writes(const char* argument, const TensorView& tensor, const TensorView* allowed) {
    if (!tensor.given()) return;
    if (!tensor.writable) fail(std::string(argument) + " is read-only, expected a writable array");
    strides(argument, tensor);
    memory(argument, tensor);
    for (int i = 0; i < tensor.ndim && !bytes_of(tensor).empty(); ++i) {
        if (tensor.strides[i] == 0 && tensor.shape[i] > 1) {
            fail(std::string(argument) + " is broadcast along axis " + std::to_string(i) +
                 ", expected an array whose elements have memory of their own");
        }
    }
    if (overlaps_itself(tensor)) {
        fail(std::string(argument) +
             " overlaps itself, expected an array whose elements have memory of their own");
    }
    remember({argument, &tensor, allowed, true, bytes_of(tensor)});
}

void Validation::remember(const Use& use) {
    if (use_count_ == most_uses) throw std::logic_error("an op with more arrays than are checked");
    uses_[use_count_++] = use;
}

void Validation::overlap() const {
    for (int i = 0; i < use_count_; ++i) {
        const Use& output = uses_[i];
        for (int j = 0; j < use_count_ && output.write; ++j) {
            const Use& other = uses_[j];
            if (i == j || (other.write && j < i) || !output.bytes.meets(other.bytes)) continue;
            const bool may_coincide = output.allowed != nullptr && output.allowed == other.tensor;
            if (may_coincide && same_elements(*output.tensor, *other.tensor)) continue;
            if (overlaps(*output.tensor, *other.tensor)) {
                fail(std::string(output.argument) + " overlaps " + other.argument + ", expected " +
                     (may_coincide ? "either the very same array or " : "") + "memory of its own");
            }
        }
    }
}

}  // namespace fastnorm
