#include <algorithm>
#include <string>

#include "arrays.hpp"
#include "codebooks.hpp"
#include "dispatch.hpp"
#include "encoders.hpp"
#include "half.hpp"
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
constexpr int64_t kPieceValues = 1 << 14;  // float32 that stays in the first caches

bool needs_importance(Kind kind) {
    return kind == Kind::IQ2_XXS || kind == Kind::IQ2_XS || kind == Kind::IQ1_S;
}

// What both entry points check: the kind, its importance and the size of the output.
struct Request {
    Kind kind;
    Array weights, target;
    int64_t row_bytes;

    Request(const char* where, int kind_index, int64_t rows, int64_t columns, nb::handle importance,
            nb::handle out)
        : kind(static_cast<Kind>(kind_index)),
          weights(optional_array(where, "importance", importance, "f")),
          target(where, "out", out, "B", true) {
        if (!has_encoder(kind)) reject(where, "no encoder for this kind");
        require_codebook(where, kind);
        require_whole_blocks(where, kind, columns);
        if (weights.present()) {
            require_size(where, "importance", weights, columns);
        } else if (needs_importance(kind)) {
            reject(where, "this kind needs an importance");
        }
        row_bytes = bytes_per_row(kind, columns);
        require_size(where, "out", target, rows * row_bytes);
    }
    const float* importance() const {
        return weights.present() ? weights.data<const float>() : nullptr;
    }
    uint8_t* row(int64_t r) const { return target.data<uint8_t>() + r * row_bytes; }
};

void encode(int kind_index, nb::object rows, nb::object importance, nb::object out, bool compat) {
    const Array source("encode", "rows", rows, "f");
    if (source.dimensions() != 2) reject("encode", "rows must be [rows, columns]");
    const int64_t count = source.shape(0), columns = source.shape(1);
    const Request request("encode", kind_index, count, columns, importance, out);
    if (source.size() == 0) return;
    const float* w = request.importance();
    const nb::gil_scoped_release release;
    parallel_rows(count, columns, kTaskValues, [&](int64_t from, int64_t to) {
        encoders().encode(request.kind, source.data<const float>() + from * columns, w, compat,
                          to - from, columns, request.row(from));
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

// Below 2^40: squares stay in float32's range, and more is in reach of no scale of float16.
bool all_moderate(const float* x, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, float_to_bits(x[i]) & 0x7FFFFFFFu);
    return largest < 0x53800000u;
}

// Rows pass through a few kilobytes of float32; false where one is too large, infinite or NaN.
bool reencode(const Weight& weight, int kind_index, nb::object importance, nb::object out,
              bool compat) {
    const WeightView& source = weight.view();
    const int64_t columns = source.columns;
    const Request request("reencode", kind_index, source.rows, columns, importance, out);
    const float* w = request.importance();
    const nb::gil_scoped_release release;
    const int64_t step = std::max<int64_t>(1, kPieceValues / columns);
    auto* values = static_cast<float*>(thread_scratch(Scratch::packed, 4 * step * columns));
    for (int64_t from = 0; from < source.rows; from += step) {
        const int64_t to = std::min(source.rows, from + step);
        kernels().decode(source, from, to, values);
        if (!all_moderate(values, (to - from) * columns)) return false;
        encoders().encode(request.kind, values, w, compat, to - from, columns, request.row(from));
    }
    return true;
}

}  // namespace

void bind_encode(nb::module_& m) {
    m.def("encode", &encode, nb::arg("kind"), nb::arg("rows"), nb::arg("importance").none(),
          nb::arg("out"), nb::arg("compat") = false);
    m.def("least_error", &least_error, nb::arg("x"), nb::arg("w"), nb::arg("scale").none(),
          nb::arg("minimum").none(), nb::arg("first").none(), nb::arg("candidates"),
          nb::arg("both_signs"), nb::arg("levels"), nb::arg("plain_levels"), nb::arg("chosen"),
          nb::arg("error"));
    m.def("reencode", &reencode, nb::arg("weight"), nb::arg("kind"), nb::arg("importance").none(),
          nb::arg("out"), nb::arg("compat") = false);
}

}  // namespace halfbyte
