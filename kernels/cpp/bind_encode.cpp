#include <string>

#include "arrays.hpp"
#include "codebooks.hpp"
#include "encoders.hpp"
#include "parallel_rows.hpp"

namespace halfbyte {

bool has_encoder(Kind kind) {
    switch (kind) {
        case Kind::float32:
        case Kind::float16:
        case Kind::bfloat16:
        case Kind::Q4_0:
        case Kind::Q4_1:
        case Kind::Q5_0:
        case Kind::Q5_1:
        case Kind::Q8_0:
        case Kind::Q2_K:
        case Kind::Q3_K:
        case Kind::Q4_K:
        case Kind::Q5_K:
        case Kind::Q6_K:
        case Kind::IQ2_XXS:
        case Kind::IQ2_XS:
        case Kind::IQ2_S:
        case Kind::IQ3_XXS:
        case Kind::IQ3_S:
        case Kind::IQ1_S:
        case Kind::IQ1_M:
        case Kind::IQ4_NL:
        case Kind::IQ4_XS:
        case Kind::TQ1_0:
        case Kind::TQ2_0:
        case Kind::Q1_0:
        case Kind::Q2_0:
        case Kind::MXFP4:
        case Kind::NVFP4:
            return true;
        default:
            return false;
    }
}

namespace {

constexpr int64_t kTaskValues = 1 << 16;

bool needs_importance(Kind kind) {
    return kind == Kind::IQ2_XXS || kind == Kind::IQ2_XS || kind == Kind::IQ1_S;
}

void encode(int kind_index, nb::object rows, nb::object importance, nb::object out, bool compat) {
    const Kind kind = static_cast<Kind>(kind_index);
    if (!has_encoder(kind)) reject("encode", "no encoder for this kind");
    require_codebook("encode", kind);
    const Array source("encode", "rows", rows, "f");
    if (source.dimensions() != 2) reject("encode", "rows must be [rows, columns]");
    const int64_t count = source.shape(0), columns = source.shape(1);
    require_whole_blocks("encode", kind, columns);
    const Array weights = optional_array("encode", "importance", importance, "f");
    if (weights.present())
        require_size("encode", "importance", weights, columns);
    else if (needs_importance(kind))
        reject("encode", "this kind needs an importance");
    const Array target("encode", "out", out, "B", true);
    const int64_t row_bytes = bytes_per_row(kind, columns);
    require_size("encode", "out", target, count * row_bytes);
    if (source.size() == 0) return;
    const float* w = weights.present() ? weights.data<const float>() : nullptr;
    const nb::gil_scoped_release release;
    parallel_rows(count, columns, kTaskValues, [&](int64_t from, int64_t to) {
        encoders().encode(kind, source.data<const float>() + from * columns, w, compat, to - from,
                          columns, target.data<uint8_t>() + from * row_bytes);
    });
}

}  // namespace

void bind_encode(nb::module_& m) {
    m.def("encode", &encode, nb::arg("kind"), nb::arg("rows"), nb::arg("importance").none(),
          nb::arg("out"), nb::arg("compat") = false);
}

}  // namespace halfbyte
