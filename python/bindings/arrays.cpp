#include "arrays.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "buffers.h"
#include "core/dtypes.h"
#include "device_arrays.h"
#include "foreign_arrays.h"

namespace fastnorm::python {

namespace {

using py::detail::npy_api;

// NumPy's number of ml_dtypes.bfloat16, once an array of it has been seen.
int bfloat16_number = -1;

DType dtype_of(const py::dtype& dtype) {
    switch (dtype.num()) {
        case npy_api::NPY_FLOAT_: return DType::float32;
        case npy_api::NPY_DOUBLE_: return DType::float64;
        case 23: return DType::float16;  // NPY_HALF, which pybind11 does not name
        case npy_api::NPY_UBYTE_: return DType::uint8;
        default: break;
    }
    if (dtype.num() == bfloat16_number) return DType::bfloat16;
    if (dtype.num() > 23 && dtype.itemsize() == 2 &&
        std::string(py::str(dtype.attr("name"))) == "bfloat16") {
        bfloat16_number = dtype.num();
        return DType::bfloat16;
    }
    return DType::unsupported;
}

[[noreturn]] void wrong_type(const char* op, const char* argument, const std::string& what) {
    throw py::type_error(std::string(op) + ": " + argument + " " + what);
}

[[noreturn]] void wrong_type(const char* op, const char* argument, py::handle found,
                             const char* expected) {
    wrong_type(
        op, argument,
        "is of type " + std::string(Py_TYPE(found.ptr())->tp_name) + ", expected " + expected);
}

// After a conversion that failed with a Python error: a TypeError gets our words, others pass.
[[noreturn]] void not_converted(const char* op, const char* argument, py::handle found,
                                const char* expected) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();
    wrong_type(op, argument, found, expected);
}

[[noreturn]] void out_of_range(const char* op, const char* argument, const char* expected) {
    PyErr_Clear();
    throw py::value_error(std::string(op) + ": " + argument + " is out of range, expected " +
                          expected);
}

// A dense array; a large one on memory that goes back to the buffers with the last view of it.
py::array uninitialized(const py::dtype& dtype, std::vector<py::ssize_t> shape,
                        std::vector<py::ssize_t> strides) {
    auto bytes = static_cast<std::size_t>(dtype.itemsize());
    for (const py::ssize_t extent : shape) bytes *= static_cast<std::size_t>(extent);
    if (bytes < Buffers::least_bytes) {
        return py::array(dtype, std::move(shape), std::move(strides));
    }
    struct Lent {
        Buffers::Block block;
        explicit Lent(std::size_t size) : block(Buffers::instance().take(size)) {}
        Lent(const Lent&) = delete;
        Lent& operator=(const Lent&) = delete;
        ~Lent() { Buffers::instance().give(block); }
    };
    auto lent = std::make_unique<Lent>(bytes);
    void* const data = lent->block.data;
    const py::capsule owner(lent.get(), [](void* last) { delete static_cast<Lent*>(last); });
    lent.release();
    return py::array(dtype, std::move(shape), std::move(strides), data, owner);
}

}  // namespace

Arrays::Arrays(const char* op, py::handle x, py::handle stream) : op_(op), array_(x) {
    if (!stream.is_none()) {
        stream_ = stream_of(op, stream);
    } else if (!py::isinstance<py::array>(x) && is_on_device(x)) {
        const py::object own = py::module_::import("fastnorm.cuda").attr("current_stream")(x);
        stream_ = stream_of(op, own);
        outlive_call_ = own.is_none() && !py::isinstance<DeviceArray>(x);
    }
    x_ = view("x", x);
    if (!stream.is_none() && x_.device.kind == DeviceKind::cpu) {
        throw py::value_error(std::string(op) +
                              ": stream is given, expected None for arrays on the CPU");
    }
}

TensorView Arrays::view(const char* argument, py::handle array) {
    if (!py::isinstance<py::array>(array) && is_on_device(array)) {
        Imported imported = import_array(op_, argument, array, stream_);
        if (py::isinstance<DeviceArray>(array)) {
            const auto& own = array.cast<const DeviceArray&>();
            const std::pair at(own.stream(), own.view().device.index);
            const auto end = own_streams_.end();
            if (own.stream() != stream_ && std::find(own_streams_.begin(), end, at) == end) {
                own_streams_.push_back(at);
            }
        }
        owners_.push_back(std::move(imported.owner));
        return imported.view;
    }
    return view_of(op_, argument, array);
}

TensorView Arrays::optional(const char* argument, py::handle array) {
    return array.is_none() ? TensorView{} : view(argument, array);
}

void Arrays::finish() {
    if (outlive_call_) keep_until_done(op_, x_.device.index, stream_, std::move(owners_));
    for (const auto& [stream, device] : own_streams_) {
        const cuda::OnDevice on_device(op_, device);
        cuda::order(stream, stream_);
    }
}

py::object Arrays::empty_like_x() const {
    if (x_.device.kind == DeviceKind::cpu) {
        return fastnorm::python::empty_like(x_);
    }
    return empty_on_device(x_);
}

py::object Arrays::empty(DType dtype, const Extents& extents) const {
    const TensorView view(nullptr, dtype, extents.ndim, extents.extent);
    if (x_.device.kind == DeviceKind::cpu) return fastnorm::python::empty_like(view);
    return empty_on_device(view.on(x_.device));
}

py::object Arrays::empty_on_device(const TensorView& like) const {
    if (py::isinstance<DeviceArray>(array_)) return py::cast(DeviceArray(op_, like, stream_));
    const TensorView dense = dense_in_order(like);
    py::tuple shape(dense.ndim), strides(dense.ndim);
    for (int i = 0; i < dense.ndim; ++i) {
        shape[static_cast<std::size_t>(i)] = dense.shape[i];
        strides[static_cast<std::size_t>(i)] = dense.strides[i] / size_of(dense.dtype);
    }
    py::object made = py::module_::import("fastnorm.cuda")
                          .attr("new_array")(array_, shape, strides, name_of(dense.dtype),
                                             reinterpret_cast<std::intptr_t>(stream_));
    return made.is_none() ? py::cast(DeviceArray(op_, like, stream_)) : made;
}

py::object Arrays::handed_over(py::object array) const {
    if (x_.device.kind == DeviceKind::cpu || !py::isinstance<DeviceArray>(array) ||
        py::isinstance<DeviceArray>(array_)) {
        return array;
    }
    return py::module_::import("fastnorm.cuda").attr("hand_over")(array_, array);
}

py::dtype numpy_dtype(DType dtype) {
    switch (dtype) {
        case DType::float32: return py::dtype(npy_api::NPY_FLOAT_);
        case DType::float64: return py::dtype(npy_api::NPY_DOUBLE_);
        case DType::float16: return py::dtype(23);
        case DType::bfloat16:
            // Of an array of another library nothing has told NumPy's number yet.
            if (bfloat16_number < 0) {
                bfloat16_number =
                    py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")).num();
            }
            return py::dtype(bfloat16_number);
        default: return py::dtype(npy_api::NPY_UBYTE_);
    }
}

double number_of(const char* op, const char* argument, py::handle value) {
    const double number = PyFloat_AsDouble(value.ptr());
    if (number == -1.0 && PyErr_Occurred() != nullptr) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            out_of_range(op, argument, "a number that a float holds");
        }
        not_converted(op, argument, value, "a number");
    }
    return number;
}

std::int64_t integer64_of(const char* op, const char* argument, py::handle value) {
    // A bool is an integer to Python: as one it is a mistake.
    if (PyBool_Check(value.ptr()) != 0) wrong_type(op, argument, value, "an integer");
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!index) not_converted(op, argument, value, "an integer");
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
    if (overflow != 0) out_of_range(op, argument, "one of 64 bits");
    return number;
}

int integer_of(const char* op, const char* argument, py::handle value) {
    const std::int64_t number = integer64_of(op, argument, value);
    if (number != static_cast<int>(number)) out_of_range(op, argument, "one of 32 bits");
    return static_cast<int>(number);
}

bool flag_of(const char* op, const char* argument, py::handle value) {
    if (!PyBool_Check(value.ptr()) &&
        std::string(Py_TYPE(value.ptr())->tp_name).rfind("numpy.bool", 0) != 0) {
        wrong_type(op, argument, value, "a bool");
    }
    return PyObject_IsTrue(value.ptr()) == 1;
}

TensorView view_of(const char* op, const char* argument, py::handle object) {
    TensorView view;
    // Of a masked array not all elements count.
    const bool plain = Py_TYPE(object.ptr()) == py::detail::npy_api::get().PyArray_Type_;
    const bool is_array = py::isinstance<py::array>(object);
    if (!is_array || (!plain && py::hasattr(object, "filled"))) {
        const bool exports = !is_array && py::hasattr(object, "__dlpack__");
        const char* const hint = exports ? " (numpy.from_dlpack makes one of it)" : "";
        wrong_type(op, argument, object,
                   (std::string("a NumPy array") + hint + ", or one on a CUDA device").c_str());
    }
    const auto array = py::reinterpret_borrow<py::array>(object);
    const py::dtype dtype = array.dtype();
    view.dtype = dtype_of(dtype);
    // Which of a view's dtypes an argument may have is validation's to say; these are none.
    if (view.dtype == DType::unsupported) {
        const bool is_mask = std::strcmp(argument, "mask") == 0;
        wrong_type(op, argument,
                   "has dtype " + std::string(py::str(dtype)) + ", expected " +
                       (is_mask ? "uint8" : "float32, float64, float16 or bfloat16"));
    }
    const char order = dtype.byteorder();
    if (order != '=' && order != '|') {
        wrong_type(op, argument,
                   "has dtype " + std::string(py::str(dtype.attr("str"))) +
                       ", expected native byte order");
    }
    view.data = const_cast<void*>(array.data());
    view.ndim = static_cast<int>(array.ndim());
    view.writable = array.writeable();
    const int extents = std::min(view.ndim, max_dims);
    std::copy_n(array.shape(), extents, view.shape);
    std::copy_n(array.strides(), extents, view.strides);
    return view;
}

TensorView layout_of(const char* op, const char* argument, py::handle array) {
    if (py::isinstance<py::array>(array) || !is_on_device(array)) {
        return view_of(op, argument, array);
    }
    return import_array(op, argument, array, nullptr, false).view;
}

py::array empty_like(const TensorView& view) {
    const TensorView dense = dense_in_order(view);
    const int ndim = dense.ndim;
    return uninitialized(numpy_dtype(dense.dtype),
                         std::vector<py::ssize_t>(dense.shape, dense.shape + ndim),
                         std::vector<py::ssize_t>(dense.strides, dense.strides + ndim));
}

Activation activation_of(py::handle activation) {
    if (activation.is_none()) return {};
    Activation result = Activation::named(py::cast<std::string>(activation.attr("name")));
    result.alpha = py::cast<double>(activation.attr("alpha"));
    result.beta = py::cast<double>(activation.attr("beta"));
    return result;
}

}  // namespace fastnorm::python
