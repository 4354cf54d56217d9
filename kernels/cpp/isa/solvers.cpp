// The kernels of calibrated quantization for one instruction set; as kernels.cpp.
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(_MSC_VER)
#define HB_INLINE __forceinline
#else
#define HB_INLINE inline __attribute__((always_inline))
#endif

// clang-format off
#include "solvers.hpp"
#include HB_SIMD
#include "solve/gram.hpp"
#include "solve/factor.hpp"
#include "solve/sweep.hpp"
#include "solve/descend.hpp"
// clang-format on

namespace halfbyte {

const SolverTable HB_SOLVERS = {
    HB_ISA::kPanelOf<HB_ISA::FloatLanes>,
    HB_ISA::kDescendRows,
    HB_ISA::pack_float,
    HB_ISA::pack_double,
    HB_ISA::gram_task,
    HB_ISA::factor_block,
    HB_ISA::factor_panel_task,
    HB_ISA::factor_update_task,
    HB_ISA::double_product_task,
    HB_ISA::sweep_task,
    HB_ISA::descend_task,
};

}  // namespace halfbyte
