// The kernels of the best instruction set that this machine has.
#pragma once

#include "nets.hpp"
#include "types.hpp"

namespace halfbyte {

// Chosen once. HALFBYTE_ISA=scalar|avx2|avx512|neon forces a level.
// Throws std::invalid_argument if that level is unknown or this machine lacks it.
const KernelTable& kernels();

// The kernels for general graphs of the same instruction set.
const NetTable& nets();

}  // namespace halfbyte
