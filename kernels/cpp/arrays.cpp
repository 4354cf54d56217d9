#include "arrays.hpp"

#include <cstring>
#include <stdexcept>

namespace halfbyte {

void reject(const char* where, const std::string& found) {
    throw std::invalid_argument(std::string(where) + ": " + found);
}

namespace {

std::string type_name(const char* code) {
    switch (*code) {
        case 'f':
            return "float32";
        case 'B':
            return "uint8";
        case 'q':
        case 'l':
            return "int64";
        case 'i':
            return "int32";
        default:
            return std::string("format ") + code;
    }
}

}  // namespace

Array::Array(const char* where, const char* name, nb::handle object, const char* codes,
             bool writable) {
    view_.obj = nullptr;
    const std::string wanted =
        std::string(writable ? "writable " : "") + "C-contiguous " + type_name(codes);
    const std::string advice = ", required a " + wanted + " array; convert it with numpy first";
    const int flags = writable ? PyBUF_RECORDS : PyBUF_RECORDS_RO;
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) {
        PyErr_Clear();
        view_.obj = nullptr;
        reject(where, std::string(name) + " is a " + Py_TYPE(object.ptr())->tp_name +
                          " without such memory" + advice);
    }
    const char* format = view_.format ? view_.format : "B";
    const bool known = std::strlen(format) == 1 && std::strchr(codes, *format) != nullptr;
    if (!known || !PyBuffer_IsContiguous(&view_, 'C')) {
        const std::string found = known ? "not C-contiguous" : "of " + type_name(format);
        PyBuffer_Release(&view_);
        reject(where, std::string(name) + " is " + found + advice);
    }
}

Array& Array::operator=(Array&& other) noexcept {
    if (this == &other) return *this;
    if (view_.obj) PyBuffer_Release(&view_);
    view_ = other.view_;
    other.view_.obj = nullptr;
    return *this;
}

Array::~Array() {
    if (view_.obj) PyBuffer_Release(&view_);
}

std::string Array::describe() const {
    std::string text = "[";
    for (int i = 0; i < view_.ndim; ++i) text += (i ? ", " : "") + std::to_string(view_.shape[i]);
    return text + "]";
}

void require_size(const char* where, const char* name, const Array& array, int64_t wanted) {
    if (array.size() == wanted) return;
    reject(where, std::string(name) + " has shape " + array.describe() + ", required " +
                      std::to_string(wanted) + " elements; check the shapes");
}

Array optional_array(const char* where, const char* name, nb::handle object, const char* codes) {
    return object.is_none() ? Array() : Array(where, name, object, codes);
}

int64_t bytes_per_row(Kind kind, int64_t columns, int bits) {
    switch (kind) {
        case Kind::float32:
            return columns * Layout_float32::kBytes;
        case Kind::float16:
        case Kind::bfloat16:
            return columns * Layout_float16::kBytes;
        case Kind::float8_e4m3fn:
        case Kind::float8_e5m2:
            return columns;
        case Kind::Q4_0:
            return columns / kStep * Layout_Q4_0::kBytes;
        case Kind::Q4_1:
            return columns / kStep * Layout_Q4_1::kBytes;
        case Kind::Q5_0:
            return columns / kStep * Layout_Q5_0::kBytes;
        case Kind::Q5_1:
            return columns / kStep * Layout_Q5_1::kBytes;
        case Kind::Q8_0:
            return columns / kStep * Layout_Q8_0::kBytes;
        case Kind::Q2_K:
            return columns / Layout_Q2_K::kValues * Layout_Q2_K::kBytes;
        case Kind::Q3_K:
            return columns / Layout_Q3_K::kValues * Layout_Q3_K::kBytes;
        case Kind::Q4_K:
            return columns / Layout_Q4_K::kValues * Layout_Q4_K::kBytes;
        case Kind::Q5_K:
            return columns / Layout_Q5_K::kValues * Layout_Q5_K::kBytes;
        case Kind::Q6_K:
            return columns / Layout_Q6_K::kValues * Layout_Q6_K::kBytes;
        case Kind::affine:
            break;
    }
    return (columns * bits + 7) / 8;
}

void require_whole_blocks(const char* where, Kind kind, int64_t columns) {
    if (kind < Kind::Q4_0 || kind > Kind::Q6_K) return;
    const int64_t block = kind <= Kind::Q8_0 ? kStep : Layout_Q6_K::kValues;
    if (columns % block == 0) return;
    reject(where, std::to_string(columns) + " columns, required a multiple of the block of " +
                      std::to_string(block) + "; pad the rows");
}

Weight::Weight(int kind, nb::object data, int64_t rows, int64_t columns, int bits,
               int64_t group_size, nb::object scales, int scale_type, nb::object zero_points,
               int zero_type, nb::object group_index)
    : data_("LinearWeight", "data", data, "B") {
    view_.kind = static_cast<Kind>(kind);
    view_.rows = rows;
    view_.columns = columns;
    view_.bits = bits;
    view_.group_size = group_size;
    view_.scale_type = static_cast<Number>(scale_type);
    view_.zero_type = static_cast<Number>(zero_type);
    if (rows < 0 || columns <= 0) reject("LinearWeight", "rows and columns must be positive");
    require_whole_blocks("LinearWeight", view_.kind, columns);
    if (view_.kind == Kind::affine) bind_affine(scales, zero_points, group_index);
    view_.row_bytes = bytes_per_row(view_.kind, columns, bits);
    view_.data = data_.data<const uint8_t>();
    require_size("LinearWeight", "data", data_, rows * view_.row_bytes);
}

void Weight::bind_affine(nb::handle scales, nb::handle zero_points, nb::handle group_index) {
    const char* where = "LinearWeight";
    if (view_.bits < 1 || view_.bits > 8) reject(where, "bits must be 1 to 8 for an affine weight");
    if (view_.group_size < 1) reject(where, "group_size must be positive for an affine weight");
    view_.groups = (view_.columns + view_.group_size - 1) / view_.group_size;
    view_.implied_zero = static_cast<float>(1 << (view_.bits - 1));
    const int64_t count = view_.rows * view_.groups;
    const auto width = [](Number type) {
        return type == Number::float32 ? 4 : type == Number::uint8 ? 1 : 2;
    };
    scales_ = Array(where, "scales", scales, "B");
    require_size(where, "scales (as bytes)", scales_, count * width(view_.scale_type));
    view_.scales = scales_.data<const void>();
    if (view_.zero_type != Number::none) {
        zero_points_ = Array(where, "zero_points", zero_points, "B");
        require_size(where, "zero_points (as bytes)", zero_points_, count * width(view_.zero_type));
        view_.zero_points = zero_points_.data<const void>();
    }
    group_index_ = optional_array(where, "g_idx", group_index, "i");
    if (!group_index_.present()) return;
    require_size(where, "g_idx", group_index_, view_.columns);
    view_.group_index = group_index_.data<const int32_t>();
    for (int64_t i = 0; i < view_.columns; ++i) {
        if (view_.group_index[i] < 0 || view_.group_index[i] >= view_.groups) {
            reject(where, "g_idx holds a group outside [0, " + std::to_string(view_.groups) + ")");
        }
    }
}

}  // namespace halfbyte
