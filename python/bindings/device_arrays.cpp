#include "device_arrays.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string>

#include "arrays.h"
#include "core/dtypes.h"
#include "cuda/driver.h"
#include "dlpack.h"
#include "foreign_arrays.h"
#include "module.h"

namespace fastnorm::python {

namespace {

constexpr const char* own_name = "cuda.Array";  // in errors

dlpack::DataType dlpack_type(DType dtype) {
    const auto bits = static_cast<std::uint8_t>(8 * size_of(dtype));
    const auto code = dtype == DType::bfloat16 ? dlpack::bfloat
                      : dtype == DType::uint8  ? dlpack::unsigned_integer
                                               : dlpack::floating;
    return {code, bits, 1};
}

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

// A NumPy array's elements in new memory on a device, in the same order of dimensions: argument of
// op, for its errors.
DeviceArray from_numpy(const py::object& array, const py::object& device, const py::object& stream,
                       const std::string& op_name, const std::string& argument) {
    const char* const op = op_name.c_str();
    const cuda::Stream on = stream_of(op, stream);
    TensorView view = view_of(op, argument.c_str(), array);
    if (view.ndim > max_dims) {
        throw py::value_error(std::string(op) + ": " + argument + " has " +
                              std::to_string(view.ndim) + " dimensions, expected at most " +
                              std::to_string(max_dims));
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
    module.def("cuda_asarray", &from_numpy, arg("array"), arg("device"), arg("stream"), arg("op"),
               arg("argument"));
    module.def("cuda_rstd_of", &rstd_of, arg("var"), arg("eps"), arg("stream"));
    module.def("cuda_device_count", &cuda::device_count);
    module.def("cuda_why_unavailable", &cuda::why_unavailable);
}

}  // namespace fastnorm::python
