// From a kind to its encoder. Kinds listed here are those that has_encoder() names.
#pragma once

#include "encode/fp4.hpp"
#include "encode/iq1.hpp"
#include "encode/iq2.hpp"
#include "encode/iq3.hpp"
#include "encode/iq4.hpp"
#include "encode/k_blocks.hpp"
#include "encode/ternary.hpp"
#include "encode/weighted.hpp"

namespace halfbyte {
namespace HB_ISA {

static void encode(Kind kind, const float* x, const float* importance, bool compat, int64_t rows,
                   int64_t columns, uint8_t* out) {
    switch (kind) {
        case Kind::float32:
            std::memcpy(out, x, static_cast<size_t>(4 * rows * columns));
            return;
        case Kind::float16:
            return encode_half(x, rows * columns, out);
        case Kind::bfloat16:
            return encode_bfloat(x, rows * columns, out);
        case Kind::Q4_0:
            return encode_kind<BlockQ4_0>(x, importance, rows, columns, out);
        case Kind::Q4_1:
            return encode_kind<BlockQ4_1>(x, importance, rows, columns, out);
        case Kind::Q5_0:
            return encode_kind<BlockQ5_0>(x, importance, rows, columns, out);
        case Kind::Q5_1:
            return encode_kind<BlockQ5_1>(x, importance, rows, columns, out);
        case Kind::Q8_0:
            return encode_blocks<BlockQ8_0>(x, rows * columns / kStep, out);
        case Kind::IQ2_XXS:
            return encode_grid_rows<SearchIQ2_XXS>(kind, x, importance, rows, columns, out);
        case Kind::IQ2_XS:
            return encode_grid_rows<SearchIQ2_XS>(kind, x, importance, rows, columns, out);
        case Kind::IQ2_S:
            return encode_grid_rows<SearchIQ2_S>(kind, x, importance, rows, columns, out);
        case Kind::IQ3_XXS:
            return encode_grid_rows<SearchIQ3_XXS>(kind, x, importance, rows, columns, out);
        case Kind::IQ3_S:
            return compat ? encode_grid_rows<SearchIQ3_S<true>>(kind, x, importance, rows, columns,
                                                                out)
                          : encode_grid_rows<SearchIQ3_S<false>>(kind, x, importance, rows, columns,
                                                                 out);
        case Kind::IQ1_S:
            return encode_grid_rows<SearchIQ1_S>(kind, x, importance, rows, columns, out);
        case Kind::IQ1_M:
            return encode_grid_rows<SearchIQ1_M>(kind, x, importance, rows, columns, out);
        case Kind::IQ4_NL:
            return encode_iq4_nl(x, importance, rows, columns, out);
        case Kind::IQ4_XS:
            return encode_iq4_xs(x, importance, rows, columns, out);
        case Kind::TQ1_0:
            return encode_whole_blocks<BlockTQ1_0>(x, rows * columns, out);
        case Kind::TQ2_0:
            return encode_whole_blocks<BlockTQ2_0>(x, rows * columns, out);
        case Kind::Q1_0:
            return encode_q1_0(x, rows * columns / Layout_Q1_0::kValues, out);
        case Kind::Q2_0:
            return encode_whole_blocks<BlockQ2_0>(x, rows * columns, out);
        case Kind::MXFP4:
            return encode_whole_blocks<BlockMXFP4>(x, rows * columns, out);
        case Kind::NVFP4: {
            const int64_t blocks = rows * columns / Layout_NVFP4::kValues;
            return compat ? encode_nvfp4<true>(x, blocks, out)
                          : encode_nvfp4<false>(x, blocks, out);
        }
        case Kind::Q2_K:
            return encode_k<Q2KType>(x, importance, rows, columns, out);
        case Kind::Q3_K:
            return encode_k<Q3KType>(x, importance, rows, columns, out);
        case Kind::Q4_K:
            return encode_k<Q4KType>(x, importance, rows, columns, out);
        case Kind::Q5_K:
            return encode_k<Q5KType>(x, importance, rows, columns, out);
        case Kind::Q6_K:
            return encode_k<Q6KType>(x, importance, rows, columns, out);
        default:
            return;
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
