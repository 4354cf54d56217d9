#include "arrays.hpp"

#include <cstring>
#include <stdexcept>

#include "codebooks.hpp"

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
        case 'b':
            return "int8";
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

namespace {

struct BlockSize {
    int64_t values, bytes;
};

template <class Layout>
constexpr BlockSize size_of() {
    return {Layout::kValues, Layout::kBytes};
}

// Values and bytes of a block; {0, 0} for kinds without blocks.
BlockSize block_size(Kind kind) {
    switch (kind) {
        case Kind::Q4_0:
            return size_of<Layout_Q4_0>();
        case Kind::Q4_1:
            return size_of<Layout_Q4_1>();
        case Kind::Q5_0:
            return size_of<Layout_Q5_0>();
        case Kind::Q5_1:
            return size_of<Layout_Q5_1>();
        case Kind::Q8_0:
            return size_of<Layout_Q8_0>();
        case Kind::Q2_K:
            return size_of<Layout_Q2_K>();
        case Kind::Q3_K:
            return size_of<Layout_Q3_K>();
        case Kind::Q4_K:
            return size_of<Layout_Q4_K>();
        case Kind::Q5_K:
            return size_of<Layout_Q5_K>();
        case Kind::Q6_K:
            return size_of<Layout_Q6_K>();
        case Kind::Q1_0:
            return size_of<Layout_Q1_0>();
        case Kind::Q2_0:
            return size_of<Layout_Q2_0>();
        case Kind::TQ1_0:
            return size_of<Layout_TQ1_0>();
        case Kind::TQ2_0:
            return size_of<Layout_TQ2_0>();
        case Kind::MXFP4:
            return size_of<Layout_MXFP4>();
        case Kind::NVFP4:
            return size_of<Layout_NVFP4>();
        case Kind::IQ4_NL:
            return size_of<Layout_IQ4_NL>();
        case Kind::IQ4_XS:
            return size_of<Layout_IQ4_XS>();
        case Kind::IQ2_XXS:
            return size_of<Layout_IQ2_XXS>();
        case Kind::IQ2_XS:
            return size_of<Layout_IQ2_XS>();
        case Kind::IQ2_S:
            return size_of<Layout_IQ2_S>();
        case Kind::IQ3_XXS:
            return size_of<Layout_IQ3_XXS>();
        case Kind::IQ3_S:
            return size_of<Layout_IQ3_S>();
        case Kind::IQ1_S:
            return size_of<Layout_IQ1_S>();
        case Kind::IQ1_M:
            return size_of<Layout_IQ1_M>();
        default:
            return {0, 0};
    }
}

}  // namespace

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
        case Kind::affine:
            return (columns * bits + 7) / 8;
        default:
            return columns / block_size(kind).values * block_size(kind).bytes;
    }
}

void require_whole_blocks(const char* where, Kind kind, int64_t columns) {
    const int64_t block = block_size(kind).values;
    if (block == 0 || columns % block == 0) return;
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
    require_codebook("LinearWeight", view_.kind);
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
