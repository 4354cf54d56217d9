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

// scale: [groups, candidates] float32, or None with `first`: [groups] uint16 bits of float16.
void least_error(nb::object x, nb::object w, nb::object scale, nb::object minimum, nb::object first,
                 int64_t candidates, bool both_signs, nb::object levels, bool plain_levels,
                 nb::object chosen, nb::object error) {
    const char* where = "least_error";
    const Array values(where, "x", x, "f"), weights(where, "w", w, "f");
    if (values.dimensions() != 2) reject(where, "x must be [groups, values]");
    const int64_t groups = values.shape(0);
    require_size(where, "w", weights, values.size());
    if (candidates < 1) reject(where, "at least one candidate is required");
    const Array scales = optional_array(where, "scale", scale, "f");
    const Array minimums = optional_array(where, "minimum", minimum, "f");
    const Array bits = optional_array(where, "first", first, "H");
    const Array grid(where, "levels", levels, "f");
    const Array index(where, "chosen", chosen, "i", true), found(where, "error", error, "f", true);
    if (scales.present() == bits.present()) reject(where, "give either scale or first");
    if (scales.present()) require_size(where, "scale", scales, groups * candidates);
    if (minimums.present()) require_size(where, "minimum", minimums, groups * candidates);
    if (bits.present()) require_size(where, "first", bits, groups);
    if (grid.size() < 2) reject(where, "at least two levels are required");
    require_size(where, "chosen", index, groups);
    require_size(where, "error", found, groups);
    LeastErrorJob job;
    job.x = values.data<const float>();
    job.w = weights.data<const float>();
    job.values = values.shape(1);
    job.candidates = candidates;
    if (scales.present()) job.scale = scales.data<const float>();
    if (minimums.present()) job.minimum = minimums.data<const float>();
    if (bits.present()) job.first = bits.data<const uint16_t>();
    job.both_signs = both_signs;
    job.levels = grid.data<const float>();
    job.level_count = grid.size();
    job.plain_levels = plain_levels;
    job.chosen = index.data<int32_t>();
    job.error = found.data<float>();
    if (groups == 0) return;
    const nb::gil_scoped_release release;
    parallel_rows(groups, job.values * candidates, kTaskValues,
                  [&](int64_t from, int64_t to) { encoders().least_error(job, from, to); });
}

}  // namespace

void bind_encode(nb::module_& m) {
    m.def("encode", &encode, nb::arg("kind"), nb::arg("rows"), nb::arg("importance").none(),
          nb::arg("out"), nb::arg("compat") = false);
    m.def("least_error", &least_error, nb::arg("x"), nb::arg("w"), nb::arg("scale").none(),
          nb::arg("minimum").none(), nb::arg("first").none(), nb::arg("candidates"),
          nb::arg("both_signs"), nb::arg("levels"), nb::arg("plain_levels"), nb::arg("chosen"),
          nb::arg("error"));
}

}  // namespace halfbyte
