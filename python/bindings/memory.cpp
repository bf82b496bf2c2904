// What Python asks of arrays' own memory.
#include <algorithm>
#include <map>
#include <string>

#include "api/validate.h"
#include "arrays.h"
#include "module.h"

namespace fastnorm::python {

namespace {

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

}  // namespace

void register_memory(py::module_& module) {
    using py::arg;
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
}

}  // namespace fastnorm::python
