// The encoders of one instruction set: rows of float32 to stored blocks.
#pragma once

#include "types.hpp"

namespace halfbyte {

// Groups [groups, values] whose best scale is looked for; see encode/least_error.hpp.
struct LeastErrorJob {
    const float* x = nullptr;
    const float* w = nullptr;
    int64_t values = 0, candidates = 0;
    const float* scale = nullptr;     // [groups, candidates], or null with `first`
    const float* minimum = nullptr;   // [groups, candidates], or null for 0
    const uint16_t* first = nullptr;  // [groups]: bits of the first float16 scale
    bool both_signs = false;
    const float* levels = nullptr;  // ascending
    int64_t level_count = 0;
    bool plain_levels = false;  // levels are consecutive integers
    int32_t* chosen = nullptr;  // [groups]
    float* error = nullptr;     // [groups]
};

struct EncoderTable {
    // importance: [columns] or null; compat: ggml's bytes also where they are a fault of ggml's.
    // Blocks go to out; every instruction set gives the same bytes.
    void (*encode)(Kind, const float* x, const float* importance, bool compat, int64_t rows,
                   int64_t columns, uint8_t* out);
    void (*least_error)(const LeastErrorJob&, int64_t from, int64_t to);
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
