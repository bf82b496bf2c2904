// Arrays of any library on CUDA devices, as views of their memory (DLPack,
// __cuda_array_interface__), and its streams.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "cuda/machine.h"
#include "fastnorm/fastnorm.hpp"

namespace fastnorm::python {

namespace py = pybind11;

// What both protocols call the legacy default stream.
inline constexpr std::intptr_t legacy_stream = 1;

// A view that is valid while `owner` lives.
struct Imported {
    TensorView view;
    py::object owner;
};

// Whether an object is an array on a CUDA device.
bool is_on_device(py::handle object);

// The view of one. What its library still does to it happens before what comes into the stream.
// Throws TypeError ("op: argument ...") for elements that no DType stands for.
// in_order: or else the library is not asked, since memory is neither read nor written.
Imported import_array(const char* op, const char* argument, py::handle object, cuda::Stream stream,
                      bool in_order = true);

// Keeps objects until what is in a stream by now is done: they are let go by a later call of this.
void keep_until_done(const char* op, int device, cuda::Stream stream,
                     std::vector<py::object> objects);

// The stream that the caller named: None, an integer, or an object with __cuda_stream__.
cuda::Stream stream_of(const char* op, py::handle stream);

}  // namespace fastnorm::python
