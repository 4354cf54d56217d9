// All kernels of one instruction set. Compiled once per set with HB_ISA, HB_TABLE, HB_NAME and the
// set's own flags; everything inside is in namespace HB_ISA or static, so that the linker never
// mixes code of two sets.
#include <cstdint>
#include <cstring>

#if defined(_MSC_VER)
#define HB_INLINE __forceinline
#else
#define HB_INLINE inline __attribute__((always_inline))
#endif

// clang-format off
#include "types.hpp"
#include HB_SIMD
#include "unpack/rows.hpp"
#include "matmul/linear.hpp"
#include "nn/rows.hpp"
#include "nn/attention.hpp"
// clang-format on

namespace halfbyte {

const KernelTable HB_TABLE = {
    HB_NAME,
    HB_ISA::W * HB_ISA::kIntVectors,
    HB_ISA::decode,
    HB_ISA::pack_rows,
    HB_ISA::linear_task,
    HB_ISA::rms_norm,
    HB_ISA::add_values,
    HB_ISA::mul_values,
    HB_ISA::layer_norm,
    HB_ISA::rope,
    HB_ISA::attention_task,
    HB_ISA::silu,
    HB_ISA::swiglu,
    HB_ISA::gelu_erf,
    HB_ISA::gelu_tanh,
    HB_ISA::softmax,
    HB_ISA::fma_loop,
};

}  // namespace halfbyte
