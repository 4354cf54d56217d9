// The kernels of the best instruction set that this machine has.
#pragma once

#include "types.hpp"

namespace halfbyte {

// Chosen once. HALFBYTE_ISA=scalar|avx2|avx512|neon forces a level.
// Throws std::invalid_argument if that level is unknown or this machine lacks it.
const KernelTable& kernels();

}  // namespace halfbyte
