// The structs of DLPack's ABI (https://dmlc.github.io/dlpack/latest/c_api.html), by which array
// libraries hand memory to each other: version 1, and the one before it, which had no number.
#pragma once

#include <cstdint>

namespace fastnorm::python::dlpack {

enum DeviceType : std::int32_t { cpu = 1, cuda = 2, cuda_managed = 13 };
enum TypeCode : std::uint8_t { unsigned_integer = 1, floating = 2, bfloat = 4 };

struct Device {
    std::int32_t type;
    std::int32_t id;
};

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null: dense, in C order
    std::uint64_t byte_offset;
};

struct Managed {
    Tensor tensor;
    void* context;
    void (*deleter)(Managed* self);
};

inline constexpr std::uint64_t read_only = 1;

struct VersionedManaged {
    std::uint32_t major, minor;
    void* context;
    void (*deleter)(VersionedManaged* self);
    std::uint64_t flags;
    Tensor tensor;
};

// A capsule that has been taken by a consumer is renamed, and then the consumer calls the deleter.
inline constexpr const char* capsule_name = "dltensor";
inline constexpr const char* used_name = "used_dltensor";
inline constexpr const char* versioned_name = "dltensor_versioned";
inline constexpr const char* used_versioned_name = "used_dltensor_versioned";

}  // namespace fastnorm::python::dlpack
