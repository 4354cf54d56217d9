// Codebooks of the IQ kinds. Their points come from Python before the first use of such a kind.
#pragma once

#include <vector>

#include "types.hpp"

namespace halfbyte {

struct Codebook {
    int group = 0;                // values of a point
    int64_t size = 0;             // points; 0 until they are set
    std::vector<uint8_t> digits;  // [size, group]: level numbers
    std::vector<int8_t> levels;   // what each level number means to a decoder
    std::vector<int8_t> values;   // [size, group]: levels of the digits
};

// Whether the kind stores indices of points.
bool has_codebook(Kind kind);

// The codebook of a kind for which has_codebook holds; IQ1_M shares that of IQ1_S.
const Codebook& codebook(Kind kind);

// Throws std::invalid_argument where a kind with a codebook has none yet.
void require_codebook(const char* where, Kind kind);

}  // namespace halfbyte
