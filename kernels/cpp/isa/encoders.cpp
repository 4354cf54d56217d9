// The encoders of one instruction set; as kernels.cpp.
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(_MSC_VER)
#define HB_INLINE __forceinline
#else
#define HB_INLINE inline __attribute__((always_inline))
#endif

// clang-format off
#include "encoders.hpp"
#include HB_SIMD
#include "encode/dispatch.hpp"
#include "encode/least_error.hpp"
// clang-format on

namespace halfbyte {

const EncoderTable HB_ENCODERS = {
    HB_ISA::encode,
    HB_ISA::least_error,
};

}  // namespace halfbyte
