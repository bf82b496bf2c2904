#include "device_arrays.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <numeric>
#include <string>

#include "api/validate.h"
#include "arrays.h"
#include "core/dtypes.h"
#include "cuda/driver.h"
#include "dlpack.h"
#include "module.h"

namespace fastnorm::python {

namespace {

// What both protocols call the legacy default stream.
constexpr std::intptr_t legacy_stream = 1;

constexpr const char* own_name = "cuda.Array";  // in errors

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

dlpack::DataType dlpack_type(DType dtype) {
    const auto bits = static_cast<std::uint8_t>(8 * size_of(dtype));
    const auto code = dtype == DType::bfloat16 ? dlpack::bfloat
                      : dtype == DType::uint8  ? dlpack::unsigned_integer
                                               : dlpack::floating;
    return {code, bits, 1};
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

// --- fastnorm.cuda.Array

const char* typestr_of(DType dtype) {
    switch (dtype) {
        case DType::float32: return "<f4";
        case DType::float64: return "<f8";
        case DType::float16: return "<f2";
        case DType::uint8: return "|u1";
        default: return nullptr;
    }
}

// Both structs of DLPack begin or end with a tensor that refers to these extents.
template <class Managed>
struct Export {
    Managed managed{};
    std::shared_ptr<char> memory;
    std::int64_t shape[max_dims], strides[max_dims];

    explicit Export(const DeviceArray& array) : memory(array.memory()) {
        const TensorView& view = array.view();
        for (int i = 0; i < view.ndim; ++i) {
            shape[i] = view.shape[i];
            strides[i] = view.strides[i] / size_of(view.dtype);
        }
        managed.tensor = {view.data, {dlpack::cuda, view.device.index},
                          view.ndim, dlpack_type(view.dtype),
                          shape,     strides,
                          0};
        managed.context = this;
        managed.deleter = [](Managed* self) { delete static_cast<Export*>(self->context); };
    }
};

template <class Managed>
py::object exported(std::unique_ptr<Export<Managed>> made, const char* name) {
    const py::capsule capsule(&made->managed, name, [](PyObject* unused) {
        for (const char* own : {dlpack::capsule_name, dlpack::versioned_name}) {
            if (PyCapsule_IsValid(unused, own) == 0) continue;  // a consumer has taken it
            auto* const managed = static_cast<Managed*>(PyCapsule_GetPointer(unused, own));
            managed->deleter(managed);
        }
    });
    made.release();
    return capsule;
}

py::object to_dlpack(const DeviceArray& array, const py::object& stream,
                     const py::object& max_version, const py::object& device,
                     const py::object& copy) {
    if (!device.is_none() &&
        !device.equal(py::make_tuple(int{dlpack::cuda}, array.view().device.index))) {
        throw py::buffer_error(std::string(own_name) +
                               ": it can be exported to its own device alone");
    }
    if (!copy.is_none() && py::cast<bool>(copy)) {
        throw py::buffer_error(std::string(own_name) + ": it is exported without a copy");
    }
    // The consumer's stream; -1: it will see to it itself.
    const auto number = stream.is_none() ? legacy_stream : py::cast<std::intptr_t>(stream);
    if (number != -1) {
        const auto consumer = reinterpret_cast<cuda::Stream>(number == legacy_stream ? 0 : number);
        if (consumer != array.stream()) {
            const cuda::OnDevice on_device(own_name, array.view().device.index);
            cuda::order(consumer, array.stream());
        }
    }
    if (!max_version.is_none() && py::cast<int>(py::tuple(max_version)[0]) >= 1) {
        auto made = std::make_unique<Export<dlpack::VersionedManaged>>(array);
        made->managed.major = 1;
        return exported(std::move(made), dlpack::versioned_name);
    }
    return exported(std::make_unique<Export<dlpack::Managed>>(array), dlpack::capsule_name);
}

py::dict to_interface(const DeviceArray& array) {
    const TensorView& view = array.view();
    const char* const type = typestr_of(view.dtype);
    if (type == nullptr) {
        throw py::attribute_error("__cuda_array_interface__ does not know bfloat16, use DLPack");
    }
    py::tuple shape(view.ndim), strides(view.ndim);
    for (int i = 0; i < view.ndim; ++i) {
        shape[static_cast<std::size_t>(i)] = view.shape[i];
        strides[static_cast<std::size_t>(i)] = view.strides[i];
    }
    const auto stream = reinterpret_cast<std::intptr_t>(array.stream());
    py::dict result;
    result["shape"] = shape;
    result["typestr"] = type;
    result["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(view.data), false);
    result["strides"] = strides;
    result["version"] = 3;
    result["stream"] = stream == 0 ? legacy_stream : stream;
    return result;
}

// What an op would say of its arguments' own memory, where it is to work on copies of them. arrays:
// NumPy's, by the arguments' names; written: those that it writes, each with the name of the input
// that it may be the very same array as, or None.
void check_memory(const std::string& op, const py::dict& arrays, const py::dict& written) {
    std::map<std::string, TensorView> views;
    for (const auto& [name, array] : arrays) {
        const auto argument = py::cast<std::string>(name);
        const TensorView view = view_of(op.c_str(), argument.c_str(), array);
        if (view.ndim <= max_dims) views[argument] = view;  // else the op says so
    }
    Validation check(op.c_str());
    for (const auto& [argument, view] : views) {
        if (!written.contains(argument)) {
            check.reads(argument.c_str(), view);
            continue;
        }
        const py::object source = written[argument.c_str()];
        const auto found =
            source.is_none() ? views.end() : views.find(py::cast<std::string>(source));
        check.writes(argument.c_str(), view, found == views.end() ? nullptr : &found->second);
    }
    check.overlap();
}

// A NumPy array's elements in new memory on a device, in the same order of dimensions.
DeviceArray from_numpy(const py::object& array, const py::object& device,
                       const py::object& stream) {
    constexpr const char* op = "cuda.asarray";
    const cuda::Stream on = stream_of(op, stream);
    TensorView view = view_of(op, "array", array);
    if (view.ndim > max_dims) {
        throw py::value_error(std::string(op) + ": array has " + std::to_string(view.ndim) +
                              " dimensions, expected at most " + std::to_string(max_dims));
    }
    // Dense memory goes as it is; anything else is made so first.
    py::array dense = py::reinterpret_borrow<py::array>(array);
    const py::array order = empty_like(view);
    if (!std::equal(dense.strides(), dense.strides() + dense.ndim(), order.strides())) {
        order.attr("__setitem__")(py::ellipsis(), dense);
        dense = order;
    }
    std::copy_n(dense.strides(), view.ndim, view.strides);
    view.device = Device::cuda(integer_of(op, "device", device));
    DeviceArray result(op, view, on);
    const py::gil_scoped_release release;
    const cuda::OnDevice on_device(op, view.device.index);
    cuda::upload(result.view().data, dense.data(), static_cast<std::size_t>(result.bytes()), on);
    return result;
}

DeviceArray copy_of(const DeviceArray& array) {
    const TensorView& view = array.view();
    const py::gil_scoped_release release;
    DeviceArray copy(own_name, view, array.stream());
    cuda::copy_elements({own_name, view.device.index, array.stream()}, copy.view(), view);
    return copy;
}

// 1 / sqrt(var + eps) in float64, where var is, for work in a stream.
DeviceArray rstd_of(const DeviceArray& var, double eps, const py::object& stream) {
    constexpr const char* op = "cuda.rstd_of";
    const cuda::Stream on = stream_of(op, stream);
    TensorView like = var.view();
    like.dtype = DType::float64;
    const py::gil_scoped_release release;
    const cuda::OnDevice on_device(op, like.device.index);
    DeviceArray result(op, like, on);
    if (on != var.stream()) cuda::order(on, var.stream());
    const auto vector = [](const DeviceArray& array) {
        const TensorView& view = array.view();
        return PerStatistic{static_cast<char*>(view.data), view.dtype, size_of(view.dtype)};
    };
    cuda::rstd_of({op, like.device.index, on}, vector(result), vector(var),
                  var.bytes() / size_of(var.view().dtype), eps);
    if (on != var.stream()) cuda::order(var.stream(), on);
    return result;
}

// The elements of a NumPy array of this one's shape and dtype into its memory.
void assign(const DeviceArray& array, const py::object& values) {
    const TensorView& view = array.view();
    const TensorView given = view_of("cuda.Array.assign", "values", values);
    if (given.dtype != view.dtype) {
        throw py::type_error(std::string("cuda.Array.assign: values has dtype ") +
                             name_of(given.dtype) + ", expected " + name_of(view.dtype));
    }
    if (given.ndim != view.ndim || !std::equal(view.shape, view.shape + view.ndim, given.shape)) {
        throw py::value_error("cuda.Array.assign: values has another shape than the array");
    }
    py::array dense = empty_like(view);
    dense.attr("__setitem__")(py::ellipsis(), values);
    const py::gil_scoped_release release;
    const cuda::OnDevice on_device(own_name, view.device.index);
    cuda::upload(view.data, dense.data(), static_cast<std::size_t>(array.bytes()), array.stream());
}

py::array to_numpy(const DeviceArray& array) {
    const TensorView& view = array.view();
    py::array result = empty_like(view);
    void* const to = result.mutable_data();
    const py::gil_scoped_release release;
    const cuda::OnDevice on_device(own_name, view.device.index);
    cuda::download(to, view.data, static_cast<std::size_t>(array.bytes()), array.stream());
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
            const cuda::OnDevice on_device(own_name, array.view().device.index);
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

TensorView dense_in_order(const TensorView& like) {
    std::vector<int> order(static_cast<std::size_t>(like.ndim));
    std::iota(order.begin(), order.end(), 0);
    const auto stride_of = [&](int axis) { return std::abs(like.strides[axis]); };
    const bool broadcast = std::any_of(order.begin(), order.end(), [&](int axis) {
        return stride_of(axis) == 0 && like.shape[axis] > 1;
    });
    if (!broadcast) {  // strides of 0 say nothing about an order
        std::stable_sort(order.begin(), order.end(),
                         [&](int a, int b) { return stride_of(a) > stride_of(b); });
    }
    TensorView dense = like;
    dense.data = nullptr;
    dense.writable = true;
    std::int64_t stride = size_of(like.dtype);
    for (std::size_t i = order.size(); i-- > 0;) {
        dense.strides[order[i]] = stride;
        stride *= std::max<std::int64_t>(like.shape[order[i]], 1);
    }
    return dense;
}

DeviceArray::DeviceArray(const char* op, const TensorView& like, cuda::Stream stream)
    : view_(dense_in_order(like)), stream_(stream) {
    const cuda::OnDevice on_device(op, like.device.index);
    const auto memory = std::make_shared<cuda::Memory>(
        static_cast<std::size_t>(std::max<std::int64_t>(bytes(), 1)), stream);
    memory_ = {memory, memory->data()};
    view_.data = memory->data();
}

std::int64_t DeviceArray::bytes() const {
    std::int64_t bytes = size_of(view_.dtype);
    for (int i = 0; i < view_.ndim; ++i) bytes *= view_.shape[i];
    return bytes;
}

void register_device_arrays(py::module_& module) {
    using py::arg;
    const py::object none = py::none();
    // Of the plain metaclass: a class that is no more than its methods.
    py::class_<DeviceArray> array(module, "Array",
                                  py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)),
                                  "Dense memory on a CUDA device, of 0 to 5 dimensions.\n\n"
                                  "Made by `asarray`, and by the ops where x's library has none to "
                                  "give. Exports DLPack\nand ``__cuda_array_interface__``, so that "
                                  "other libraries can use it without a copy.");
    array.attr("__module__") = "fastnorm.cuda";
    array
        .def_property_readonly("shape",
                               [](const DeviceArray& array) {
                                   const TensorView& view = array.view();
                                   py::tuple shape(view.ndim);
                                   for (int i = 0; i < view.ndim; ++i) {
                                       shape[static_cast<std::size_t>(i)] = view.shape[i];
                                   }
                                   return shape;
                               })
        .def_property_readonly("strides",
                               [](const DeviceArray& array) {
                                   const TensorView& view = array.view();
                                   py::tuple strides(view.ndim);
                                   for (int i = 0; i < view.ndim; ++i) {
                                       strides[static_cast<std::size_t>(i)] = view.strides[i];
                                   }
                                   return strides;
                               })
        .def_property_readonly("ndim", [](const DeviceArray& array) { return array.view().ndim; })
        .def_property_readonly("nbytes", &DeviceArray::bytes)
        .def_property_readonly(
            "dtype", [](const DeviceArray& array) { return numpy_dtype(array.view().dtype); })
        .def_property_readonly("device",
                               [](const DeviceArray& array) { return array.view().device.index; })
        .def("numpy", &to_numpy,
             "A copy as a NumPy array, when all work on this one's stream is done.")
        .def("copy", &copy_of, "A copy on the same device and stream.")
        .def("assign", &assign, arg("values"),
             "Copy the elements of a NumPy array of the same shape and dtype into this one.")
        .def("__repr__",
             [](const py::object& self) {
                 return py::str("fastnorm.cuda.Array(shape={}, dtype={}, device={})")
                     .format(self.attr("shape"), self.attr("dtype"), self.attr("device"));
             })
        .def("__dlpack__", &to_dlpack, py::kw_only(), arg("stream") = none,
             arg("max_version") = none, arg("dl_device") = none, arg("copy") = none)
        .def("__dlpack_device__",
             [](const DeviceArray& array) {
                 return py::make_tuple(int{dlpack::cuda}, array.view().device.index);
             })
        .def_property_readonly("__cuda_array_interface__", &to_interface);
    module.def("cuda_asarray", &from_numpy, arg("array"), arg("device"), arg("stream"));
    module.def("cuda_rstd_of", &rstd_of, arg("var"), arg("eps"), arg("stream"));
    // Whether two arrays begin at the same place, and have memory there.
    module.def(
        "same_memory",
        [](const py::object& a, const py::object& b) {
            const auto begin = [](const py::object& array) -> const void* {
                const TensorView view = layout_of("same_memory", "array", array);
                const bool empty = std::count(view.shape, view.shape + view.ndim, 0) > 0;
                return empty ? nullptr : view.data;
            };
            const void* const place = begin(a);
            return place != nullptr && place == begin(b);
        },
        arg("a"), arg("b"));
    module.def("check_memory", &check_memory, arg("op"), arg("arrays"), arg("written"));
    module.def("cuda_device_count", &cuda::device_count);
    module.def("cuda_why_unavailable", &cuda::why_unavailable);
}

}  // namespace fastnorm::python
