// Every check of an argument, and every message that a user reads. The functions throw
// std::invalid_argument (dtype_error for a wrong dtype) as "op: argument has what, expected what".
#pragma once

#include <string>

#include "api/overlap.h"
#include "core/view.h"
#include "fastnorm/fastnorm.hpp"

namespace fastnorm {

// What one value per channel does not do for.
enum class NeedsVariance { nothing, training, running_var };

class Validation {
  public:
    explicit Validation(const char* op) : op_(op) {}
    const char* op() const { return op_; }

    // What x and the arguments of an op say: data of one of the four dtypes, a size that arithmetic
    // on it cannot exceed, and axes that it has. Each remembers the shapes that follow.
    Norm batch_norm(const TensorView& x, int channel_axis);
    Norm instance_norm(const TensorView& x, int channel_axis);
    Norm group_norm(const TensorView& x, std::int64_t groups, int channel_axis);

    Norm features(const TensorView& x, int axis);

    // Of prenorm: the sum of x and the residual, and its gradient, for a backward pass that has
    // also been told of a residual behind the norm, or not.
    void sum_of(const TensorView& sum, const TensorView& residual) const;
    void sum_gradient(const TensorView& dsum, bool has_residual) const;
    void weight_offset(double offset) const;

    // What Python can say beside: a sum_out without prenorm, and of a residual that there was one.
    void sum_needs_prenorm(bool has_sum, bool prenorm) const;
    void residual_needs_values(bool has_values, bool recomputes) const;

    // Of x's shape and dtype.
    void like_data(const char* argument, const TensorView& tensor) const;

    // Of the parameters' shape, or that of the statistics; any of the four dtypes.
    void parameter(const char* argument, const TensorView& array) const;
    void statistic(const char* argument, const TensorView& array) const;
    void parameter_if_given(const char* argument, const TensorView& array) const {
        if (array.given()) parameter(argument, array);
    }
    void statistic_if_given(const char* argument, const TensorView& array) const {
        if (array.given()) statistic(argument, array);
    }

    void mask(const TensorView& mask, std::int64_t bytes, const Activation& of) const;
    // The signature found in a mask is that of this call.
    void mask_signature(std::uint64_t found, std::uint64_t expected) const;
    // Memory for a call on a device.
    void scratch(const TensorView& scratch) const;
    void scratch_holds(const TensorView& scratch, std::int64_t bytes) const;
    void given(const char* argument, const TensorView& tensor) const;
    void eps(double eps) const;
    void momentum(double momentum) const;
    void activation(const Activation& activation) const;
    // One value has no variance.
    void more_than_one_value(NeedsVariance what) const;

    // An input or output of the right shape: has memory, an output memory of its own for each
    // element. Remembers it for overlap() below.
    void reads(const char* argument, const TensorView& tensor);
    // allowed: an input that the output may coincide with, element by element.
    void writes(const char* argument, const TensorView& tensor,
                const TensorView* allowed = nullptr);
    void overlap() const;

    std::int64_t elements() const;
    const Extents& parameters() const { return parameters_; }
    const Extents& statistics() const { return statistics_; }

  private:
    struct Use {
        const char* argument;
        const TensorView* tensor;
        const TensorView* allowed;  // of a write
        bool write;
        ByteRange bytes;
    };
    static constexpr int most_uses = 16;  // more than any op has

    [[noreturn]] void fail(const std::string& what) const;
    void float_dtype(const char* argument, const TensorView& tensor) const;
    void shape(const char* argument, const TensorView& tensor, const std::int64_t* expected,
               int ndim) const;
    void small(const char* argument, const TensorView& array, const Extents& expected) const;
    void data(const TensorView& x, int least_dims);
    void extents() const;
    // The argument that axis_ is.
    const char* axis_name() const { return of_rows_ ? "axis" : "channel_axis"; }
    // Of x, from the first allowed one on; in [0, ndim).
    int axis(int given, int first) const;
    Norm of_samples(const TensorView& x, int least_dims, int channel_axis);
    void strides(const char* argument, const TensorView& tensor) const;
    void memory(const char* argument, const TensorView& tensor) const;
    void device(const char* argument, const TensorView& tensor) const;
    void remember(const Use& use);

    const char* op_;
    TensorView x_{};
    bool of_rows_ = false;  // all axes from axis_ on are normalized over; else channels lie on it
    int axis_ = 0;
    Extents parameters_, statistics_;
    Use uses_[most_uses];
    int use_count_ = 0;
};

// What is wrong with an activation's parameters ("clip has min 2 and max 1, expected min <= max";
// those that it does not have are 0), empty if nothing is. Its kind must be one.
std::string objection_to(const Activation& activation);

}  // namespace fastnorm
