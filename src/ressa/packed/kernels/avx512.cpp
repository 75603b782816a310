// AVX-512 with VBMI, VBMI2, VNNI and BF16: Zen 4 and newer, Sapphire Rapids and newer.
#include "internal.h"

#ifdef RESSA_HAS_AVX512
namespace ressa {
const Isa avx512_isa = {"avx512", []() { return false; }, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
}  // namespace ressa
#endif
