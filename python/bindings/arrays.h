// Arrays to tensor views, and new arrays for results. No mathematics and no shape rules: what is
// wrong with a view, validation says.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "cuda/machine.h"
#include "fastnorm/fastnorm.hpp"

namespace fastnorm::python {

namespace py = pybind11;

// The view of an array, its ndim beyond max_dims included. Throws TypeError ("op: argument is of
// type list, expected a NumPy array") for anything else, and for elements that no DType stands for.
TensorView view_of(const char* op, const char* argument, py::handle array);

// The view of a NumPy array or of one on a device, whose memory is neither read nor written.
TensorView layout_of(const char* op, const char* argument, py::handle array);

// The arrays of one call: views of those that the caller gave, and new ones for results, which are
// where x is.
class Arrays {
  public:
    // Of an op on x, on the caller's stream where x is on a device. Throws as view() does.
    Arrays(const char* op, py::handle x, py::handle stream);

    const TensorView& x() const { return x_; }
    CUstream_st* stream() const { return static_cast<CUstream_st*>(stream_); }

    // The view of a NumPy array or of one on a device; what that needs lives as long as this.
    TensorView view(const char* argument, py::handle array);
    // The same, and a view that is not given for None.
    TensorView optional(const char* argument, py::handle array);

    // What is done to arrays of our own on their own streams from now on happens after the call,
    // and others are kept until then where nobody knows in what stream they are given away.
    void finish();

    // New arrays, dense: of x's shape, dtype and order of dimensions, and of any other shape.
    py::object empty_like_x() const;
    py::object empty(DType dtype, const Extents& extents) const;

    // A new array as the caller's library has it, where that can take it.
    py::object handed_over(py::object array) const;

  private:
    // On a device: of the library's own memory if it has any to give, else ours.
    py::object empty_on_device(const TensorView& like) const;

    const char* op_;
    py::handle array_;  // x
    cuda::Stream stream_ = nullptr;
    bool outlive_call_ = false;  // x's library has a stream of its own that it does not tell
    std::vector<py::object> owners_;
    std::vector<std::pair<cuda::Stream, int>> own_streams_;  // and devices, of arrays of our own
    TensorView x_;
};

// A number, an integer, a bool. Throw TypeError for anything else, ValueError for a number that
// their types do not hold; an exception of the value's own (in __float__, __index__) passes.
double number_of(const char* op, const char* argument, py::handle value);
int integer_of(const char* op, const char* argument, py::handle value);
std::int64_t integer64_of(const char* op, const char* argument, py::handle value);
bool flag_of(const char* op, const char* argument, py::handle value);

// A new dense array of a view's shape, dtype and order of dimensions (C order where it is
// broadcast).
py::array empty_like(const TensorView& view);

// NumPy's dtype of a DType; that of ml_dtypes for bfloat16.
py::dtype numpy_dtype(DType dtype);

// (name, alpha, beta), as fastnorm.Activation has them, or None.
Activation activation_of(py::handle activation);

}  // namespace fastnorm::python
