// Checked access to the memory of Python arrays through the buffer protocol.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "types.hpp"

namespace halfbyte {

namespace nb = nanobind;

[[noreturn]] void reject(const char* where, const std::string& found);

// Holds a C-contiguous buffer of one element type; the owner cannot free or resize it meanwhile.
class Array {
  public:
    Array() { view_.obj = nullptr; }
    // `codes`: accepted buffer format characters, such as "f" or "ql". Throws
    // std::invalid_argument.
    Array(const char* where, const char* name, nb::handle object, const char* codes,
          bool writable = false);
    Array(Array&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
    Array& operator=(Array&& other) noexcept;
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array();

    template <class T>
    T* data() const {
        return static_cast<T*>(view_.buf);
    }
    bool present() const { return view_.obj != nullptr; }
    int dimensions() const { return view_.ndim; }
    int64_t shape(int axis) const { return view_.shape[axis < 0 ? view_.ndim + axis : axis]; }
    int64_t bytes() const { return view_.len; }
    int64_t size() const { return view_.len / view_.itemsize; }
    std::string describe() const;

  private:
    Py_buffer view_;
};

// Throws unless the array has `wanted` elements.
void require_size(const char* where, const char* name, const Array& array, int64_t wanted);

Array optional_array(const char* where, const char* name, nb::handle object, const char* codes);

// Bytes of one encoded row; `bits` counts for affine weights only.
int64_t bytes_per_row(Kind kind, int64_t columns, int bits = 0);

// Throws where rows of a block kind would end inside a block.
void require_whole_blocks(const char* where, Kind kind, int64_t columns);

// An encoded weight and the arrays that it points into.
class Weight {
  public:
    Weight(int kind, nb::object data, int64_t rows, int64_t columns, int bits, int64_t group_size,
           nb::object scales, int scale_type, nb::object zero_points, int zero_type,
           nb::object group_index);
    const WeightView& view() const { return view_; }

  private:
    void bind_affine(nb::handle scales, nb::handle zero_points, nb::handle group_index);

    Array data_, scales_, zero_points_, group_index_;
    WeightView view_;
};

void bind_linear(nb::module_& m);
void bind_codebooks(nb::module_& m);
void bind_encode(nb::module_& m);
void bind_nn(nb::module_& m);
void bind_integers(nb::module_& m);
void bind_conv(nb::module_& m);
void bind_product(nb::module_& m);
void bind_tensor(nb::module_& m);
void bind_select(nb::module_& m);
void bind_solve(nb::module_& m);

}  // namespace halfbyte
