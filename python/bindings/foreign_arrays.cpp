#include "foreign_arrays.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <utility>

#include "arrays.h"
#include "core/dtypes.h"
#include "device_arrays.h"
#include "dlpack.h"

namespace fastnorm::python {

namespace {

[[noreturn]] void wrong_array(const char* op, const char* argument, const std::string& what) {
    throw py::type_error(std::string(op) + ": " + argument + " " + what);
}

[[noreturn]] void wrong_dtype(const char* op, const char* argument, const std::string& dtype) {
    const bool is_mask = std::string(argument) == "mask";
    wrong_array(op, argument,
                "has dtype " + dtype + ", expected " +
                    (is_mask ? "uint8" : "float32, float64, float16 or bfloat16"));
}

DType dtype_of(const dlpack::DataType& type) {
    if (type.lanes != 1) return DType::unsupported;
    switch (type.code << 8 | type.bits) {
        case dlpack::floating << 8 | 16: return DType::float16;
        case dlpack::floating << 8 | 32: return DType::float32;
        case dlpack::floating << 8 | 64: return DType::float64;
        case dlpack::bfloat << 8 | 16: return DType::bfloat16;
        case dlpack::unsigned_integer << 8 | 8: return DType::uint8;
        default: return DType::unsupported;
    }
}

void set_c_strides(TensorView& view) {
    std::int64_t stride = size_of(view.dtype);
    for (int i = std::min(view.ndim, max_dims) - 1; i >= 0; --i) {
        view.strides[i] = stride;
        stride *= std::max<std::int64_t>(view.shape[i], 1);
    }
}

TensorView view_of_dlpack(const char* op, const char* argument, const dlpack::Tensor& t) {
    TensorView view;
    view.dtype = dtype_of(t.dtype);
    if (view.dtype == DType::unsupported) {
        wrong_dtype(op, argument,
                    "of DLPack code " + std::to_string(t.dtype.code) + " and " +
                        std::to_string(t.dtype.bits) + " bits");
    }
    view.data = t.data == nullptr ? nullptr : static_cast<char*>(t.data) + t.byte_offset;
    view.ndim = t.ndim;
    view.device = Device::cuda(t.device.id);
    const int extents = std::min(view.ndim, max_dims);
    std::copy_n(t.shape, extents, view.shape);
    set_c_strides(view);
    for (int i = 0; i < extents && t.strides != nullptr; ++i) {
        view.strides[i] = t.strides[i] * size_of(view.dtype);
    }
    return view;
}

// Takes a capsule's tensor and gives it back to its library with the returned object.
template <class Managed>
py::object take(const py::capsule& capsule, Managed*& managed, const char* name,
                const char* used_name) {
    managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), name));
    if (managed == nullptr || PyCapsule_SetName(capsule.ptr(), used_name) != 0) {
        throw py::error_already_set();
    }
    return py::capsule(managed, [](void* taken) {
        auto* const last = static_cast<Managed*>(taken);
        if (last->deleter != nullptr) last->deleter(last);
    });
}

Imported import_dlpack(const char* op, const char* argument, py::handle object, cuda::Stream stream,
                       bool in_order) {
    const auto number = reinterpret_cast<std::intptr_t>(stream);
    const py::object on_stream = py::int_(!in_order ? -1 : number == 0 ? legacy_stream : number);
    py::object exported;
    try {
        exported = object.attr("__dlpack__")(py::arg("stream") = on_stream,
                                             py::arg("max_version") = py::make_tuple(1, 0));
    } catch (py::error_already_set& error) {  // a library that knows no versions
        if (!error.matches(PyExc_TypeError)) throw;
        exported = object.attr("__dlpack__")(py::arg("stream") = on_stream);
    }
    const auto capsule = py::reinterpret_borrow<py::capsule>(exported);
    Imported result;
    if (PyCapsule_IsValid(capsule.ptr(), dlpack::versioned_name) != 0) {
        dlpack::VersionedManaged* managed = nullptr;
        result.owner = take(capsule, managed, dlpack::versioned_name, dlpack::used_versioned_name);
        if (managed->major != 1) wrong_array(op, argument, "has an unknown version of DLPack");
        result.view = view_of_dlpack(op, argument, managed->tensor);
        result.view.writable = (managed->flags & dlpack::read_only) == 0;
    } else {
        dlpack::Managed* managed = nullptr;
        result.owner = take(capsule, managed, dlpack::capsule_name, dlpack::used_name);
        result.view = view_of_dlpack(op, argument, managed->tensor);
    }
    return result;
}

// https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, version 3
Imported import_interface(const char* op, const char* argument, py::handle object,
                          cuda::Stream stream, bool in_order) {
    const py::dict interface = object.attr("__cuda_array_interface__");
    Imported result;
    TensorView& view = result.view;
    const auto type = py::cast<std::string>(interface["typestr"]);
    view.dtype = type == "<f4"                    ? DType::float32
                 : type == "<f8"                  ? DType::float64
                 : type == "<f2"                  ? DType::float16
                 : type == "|u1" || type == "<u1" ? DType::uint8
                                                  : DType::unsupported;
    if (view.dtype == DType::unsupported) wrong_dtype(op, argument, type);
    if (interface.contains("mask") && !interface["mask"].is_none()) {
        wrong_array(op, argument, "is a masked array, expected all elements to count");
    }
    const py::tuple data = interface["data"];
    view.data = reinterpret_cast<void*>(py::cast<std::uintptr_t>(data[0]));
    view.writable = !py::cast<bool>(data[1]);
    const py::tuple shape = interface["shape"];
    view.ndim = static_cast<int>(shape.size());
    const auto extents = static_cast<std::size_t>(std::min(view.ndim, max_dims));
    for (std::size_t i = 0; i < extents; ++i) view.shape[i] = py::cast<std::int64_t>(shape[i]);
    set_c_strides(view);
    if (interface.contains("strides") && !interface["strides"].is_none()) {
        const py::tuple strides = interface["strides"];
        for (std::size_t i = 0; i < extents; ++i) {
            view.strides[i] = py::cast<std::int64_t>(strides[i]);
        }
    }
    view.device = Device::cuda(cuda::device_of(view.data));
    if (interface.contains("stream") && !interface["stream"].is_none()) {
        const auto number = py::cast<std::intptr_t>(interface["stream"]);
        const auto producer = reinterpret_cast<cuda::Stream>(number == legacy_stream ? 0 : number);
        if (in_order && producer != stream) {
            const cuda::OnDevice on_device(op, view.device.index);
            cuda::order(stream, producer);
        }
    }
    result.owner = py::reinterpret_borrow<py::object>(object);
    return result;
}

}  // namespace

bool is_on_device(py::handle object) {
    if (py::hasattr(object, "__dlpack_device__") && py::hasattr(object, "__dlpack__")) {
        const py::tuple device = object.attr("__dlpack_device__")();
        const int type = py::cast<int>(device[0]);
        return type == dlpack::cuda || type == dlpack::cuda_managed;
    }
    return py::hasattr(object, "__cuda_array_interface__");
}

Imported import_array(const char* op, const char* argument, py::handle object, cuda::Stream stream,
                      bool in_order) {
    if (py::isinstance<DeviceArray>(object)) {
        const auto& array = object.cast<const DeviceArray&>();
        if (in_order && array.stream() != stream) {
            const cuda::OnDevice on_device(op, array.view().device.index);
            cuda::order(stream, array.stream());
        }
        return {array.view(), py::reinterpret_borrow<py::object>(object)};
    }
    return py::hasattr(object, "__dlpack__")
               ? import_dlpack(op, argument, object, stream, in_order)
               : import_interface(op, argument, object, stream, in_order);
}

void keep_until_done(const char* op, int device, cuda::Stream stream,
                     std::vector<py::object> objects) {
    struct Kept {
        std::unique_ptr<cuda::Event> done;
        std::vector<py::object> objects;
    };
    // Under the GIL. What is kept when the process ends is not given back: nobody is there to.
    static auto& kept = *new std::vector<Kept>;
    const auto done = std::partition(kept.begin(), kept.end(),
                                     [](const Kept& one) { return !one.done->has_passed(); });
    // Given back at the end: an array's own code may call this again.
    const std::vector<Kept> given_back(std::make_move_iterator(done),
                                       std::make_move_iterator(kept.end()));
    kept.erase(done, kept.end());
    const cuda::OnDevice on_device(op, device);
    kept.push_back({std::make_unique<cuda::Event>(stream), std::move(objects)});
}

cuda::Stream stream_of(const char* op, py::handle stream) {
    if (stream.is_none()) return nullptr;
    py::object number = py::reinterpret_borrow<py::object>(stream);
    if (py::hasattr(stream, "__cuda_stream__")) {
        // (version of the protocol, the stream)
        py::object named = stream.attr("__cuda_stream__");
        if (PyCallable_Check(named.ptr()) != 0) named = named();
        number = py::tuple(named)[1];
    }
    const std::int64_t value = integer64_of(op, "stream", number);
    if (value < 0) {
        throw py::value_error(std::string(op) + ": stream is " + std::to_string(value) +
                              ", expected a stream's number, or an object with __cuda_stream__");
    }
    return reinterpret_cast<cuda::Stream>(value == legacy_stream ? 0 : value);
}

}  // namespace fastnorm::python
