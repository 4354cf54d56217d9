// The integer kernels of general graphs for one instruction set; as kernels.cpp.
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(_MSC_VER)
#define HB_INLINE __forceinline
#else
#define HB_INLINE inline __attribute__((always_inline))
#endif

// clang-format off
#include "integers.hpp"
#include HB_SIMD
#include "int8/recurrent.hpp"
// clang-format on

namespace halfbyte {

// clang-format off
const IntegerTable HB_INTEGERS = {
    HB_ISA::kPanel,
    HB_ISA::kShift,
#if defined(HB_SATURATES)
    true,
#else
    false,
#endif
    HB_ISA::pack_byte_panels,
    HB_ISA::byte_product_task,
    HB_ISA::byte_conv_input_task,
    HB_ISA::byte_conv_task,
    HB_ISA::byte_depthwise_task,
    HB_ISA::quantize_bytes,
    HB_ISA::dequantize_bytes,
    HB_ISA::value_range,
    HB_ISA::add_bytes,
    HB_ISA::look_up_bytes,
    HB_ISA::byte_lstm,
};
// clang-format on

}  // namespace halfbyte
