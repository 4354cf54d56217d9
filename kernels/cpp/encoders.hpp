// The encoders of one instruction set: rows of float32 to stored blocks.
#pragma once

#include "types.hpp"

namespace halfbyte {

struct EncoderTable {
    // importance: [columns] or null; compat: ggml's bytes also where they are a fault of ggml's.
    // Blocks go to out; every instruction set gives the same bytes.
    void (*encode)(Kind, const float* x, const float* importance, bool compat, int64_t rows,
                   int64_t columns, uint8_t* out);
};

// Whether `encode` takes the kind.
bool has_encoder(Kind kind);

const EncoderTable& encoders();

extern const EncoderTable kScalarEncoders;
#if defined(HB_HAS_X86)
extern const EncoderTable kAvx2Encoders;
#endif
#if defined(HB_HAS_AVX512)
extern const EncoderTable kAvx512Encoders;
#endif
#if defined(HB_HAS_NEON)
extern const EncoderTable kNeonEncoders;
#endif

}  // namespace halfbyte
