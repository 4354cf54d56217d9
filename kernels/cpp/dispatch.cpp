#include "dispatch.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "encoders.hpp"
#include "integers.hpp"
#include "solvers.hpp"

#if defined(HB_HAS_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#if defined(HB_HAS_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace halfbyte {
namespace {

#if defined(HB_HAS_X86)
struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf) {
    Registers r{0, 0, 0, 0};
#if defined(_MSC_VER)
    int raw[4];
    __cpuidex(raw, static_cast<int>(leaf), 0);
    r = {unsigned(raw[0]), unsigned(raw[1]), unsigned(raw[2]), unsigned(raw[3])};
#else
    __get_cpuid_count(leaf, 0, &r.a, &r.b, &r.c, &r.d);
#endif
    return r;
}

bool bit(unsigned word, int index) { return (word >> index) & 1u; }

// Whether the operating system saves these register parts (XCR0).
bool system_saves(unsigned long long parts) {
    if (!bit(cpuid(1).c, 27)) return false;
#if defined(_MSC_VER)
    return (_xgetbv(0) & parts) == parts;
#else
    unsigned low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & parts) == parts;
#endif
}

bool has_avx2() {
    const Registers one = cpuid(1), seven = cpuid(7);
    const bool fma_f16c = bit(one.c, 12) && bit(one.c, 29);
    return fma_f16c && bit(seven.b, 3) && bit(seven.b, 5) && bit(seven.b, 8) && system_saves(0x6);
}

#if defined(HB_HAS_AVX512)
// F, DQ, BW, VL and VNNI.
bool has_avx512() {
    const Registers seven = cpuid(7);
    const bool base = bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
    return has_avx2() && base && bit(seven.c, 11) && system_saves(0xE6);
}
#endif
#endif

#if defined(HB_HAS_NEON)
bool has_dot_product() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return true;  // every macOS machine on aarch64 has it
#endif
}
#endif

const KernelTable* best_table() {
#if defined(HB_HAS_AVX512)
    if (has_avx512()) return &kAvx512Table;
#endif
#if defined(HB_HAS_X86)
    if (has_avx2()) return &kAvx2Table;
#endif
#if defined(HB_HAS_NEON)
    if (has_dot_product()) return &kNeonTable;
#endif
    return &kScalarTable;
}

const KernelTable* named_table(const std::string& name) {
    if (name == "scalar") return &kScalarTable;
#if defined(HB_HAS_X86)
    if (name == "avx2" && has_avx2()) return &kAvx2Table;
#if defined(HB_HAS_AVX512)
    if (name == "avx512" && has_avx512()) return &kAvx512Table;
#endif
#endif
#if defined(HB_HAS_NEON)
    if (name == "neon" && has_dot_product()) return &kNeonTable;
#endif
    throw std::invalid_argument(
        "HALFBYTE_ISA: " + name +
        " is not available, required scalar or a level of this machine (best: " +
        best_table()->name + "); unset it or choose another");
}

const KernelTable* choose_table() {
    const char* forced = std::getenv("HALFBYTE_ISA");
    return forced && *forced ? named_table(forced) : best_table();
}

// The other table of the same instruction set.
const NetTable* nets_beside(const KernelTable* table) {
#if defined(HB_HAS_X86)
    if (table == &kAvx2Table) return &kAvx2Nets;
#endif
#if defined(HB_HAS_AVX512)
    if (table == &kAvx512Table) return &kAvx512Nets;
#endif
#if defined(HB_HAS_NEON)
    if (table == &kNeonTable) return &kNeonNets;
#endif
    static_cast<void>(table);
    return &kScalarNets;
}

const IntegerTable* integers_beside(const KernelTable* table) {
#if defined(HB_HAS_X86)
    if (table == &kAvx2Table) return &kAvx2Integers;
#endif
#if defined(HB_HAS_AVX512)
    if (table == &kAvx512Table) return &kAvx512Integers;
#endif
#if defined(HB_HAS_NEON)
    if (table == &kNeonTable) return &kNeonIntegers;
#endif
    static_cast<void>(table);
    return &kScalarIntegers;
}

const EncoderTable* encoders_beside(const KernelTable* table) {
#if defined(HB_HAS_X86)
    if (table == &kAvx2Table) return &kAvx2Encoders;
#endif
#if defined(HB_HAS_AVX512)
    if (table == &kAvx512Table) return &kAvx512Encoders;
#endif
#if defined(HB_HAS_NEON)
    if (table == &kNeonTable) return &kNeonEncoders;
#endif
    static_cast<void>(table);
    return &kScalarEncoders;
}

const SolverTable* solvers_beside(const KernelTable* table) {
#if defined(HB_HAS_X86)
    if (table == &kAvx2Table) return &kAvx2Solvers;
#endif
#if defined(HB_HAS_AVX512)
    if (table == &kAvx512Table) return &kAvx512Solvers;
#endif
#if defined(HB_HAS_NEON)
    if (table == &kNeonTable) return &kNeonSolvers;
#endif
    static_cast<void>(table);
    return &kScalarSolvers;
}

}  // namespace

const KernelTable& kernels() {
    static const KernelTable* const table = choose_table();
    return *table;
}

const IntegerTable& integers() {
    static const IntegerTable* const table = integers_beside(&kernels());
    return *table;
}

const EncoderTable& encoders() {
    static const EncoderTable* const table = encoders_beside(&kernels());
    return *table;
}

const SolverTable& solvers() {
    static const SolverTable* const table = solvers_beside(&kernels());
    return *table;
}

const NetTable& nets() {
    static const NetTable* const table = nets_beside(&kernels());
    return *table;
}

}  // namespace halfbyte
