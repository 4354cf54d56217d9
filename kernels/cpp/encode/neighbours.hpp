// Near points of every point that a codebook lacks, for the searches of the IQ encoders.
#pragma once

#include <cstdint>
#include <vector>

#include "types.hpp"

namespace halfbyte {

// A point is packed into 16 bits, 2 bits a digit for points of 8 values and 3 bits for points of 4,
// value 0 lowest.
struct NeighbourTable {
    // By packed point: -1 - index of a point of the codebook, else (start << 8 | length) of its
    // list, both in units of 8 points. Digits that no level has count as index 0.
    std::vector<int32_t> entries;
    // Lists: packed points by (squared distance, index) up to the last wanted distance, filled up
    // with copies of the last one.
    std::vector<uint16_t> points;
    std::vector<uint16_t> codebook;  // the codebook's points, packed
};

// Built on the first call; the codebook must be set. IQ1_M shares the table of IQ1_S.
const NeighbourTable& neighbour_table(Kind kind);

}  // namespace halfbyte
