// The kernels of general graphs for one instruction set; as kernels.cpp.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(_MSC_VER)
#define HB_INLINE __forceinline
#else
#define HB_INLINE inline __attribute__((always_inline))
#endif

// clang-format off
#include "nets.hpp"
#include HB_SIMD
#include "conv/gemm_conv.hpp"
#include "conv/pixel_rows.hpp"
#include "conv/depthwise.hpp"
#include "conv/winograd.hpp"
#include "conv/transposed.hpp"
#include "nn/pooling.hpp"
#include "nn/recurrent.hpp"
#include "nn/reduce.hpp"
// clang-format on

namespace halfbyte {

const NetTable HB_NETS = {
    HB_ISA::W,
    HB_ISA::kGemmRows,
    HB_ISA::kGemmColumns,
    HB_ISA::packed_a_size,
    HB_ISA::packed_b_size,
    HB_ISA::pack_a,
    HB_ISA::pack_b,
    HB_ISA::product_task,
    HB_ISA::conv_gemm_task,
    HB_ISA::conv_rows_task,
    HB_ISA::depthwise_task,
    HB_ISA::winograd_weights,
    HB_ISA::winograd_task,
    HB_ISA::transposed_task,
    HB_ISA::unary,
    HB_ISA::binary,
    HB_ISA::finish,
    HB_ISA::pool_task,
    HB_ISA::lstm,
    HB_ISA::gru,
    HB_ISA::reduce,
    HB_ISA::softmax_columns,
    HB_ISA::normalize,
    HB_ISA::transpose,
    HB_ISA::resample,
};

}  // namespace halfbyte
