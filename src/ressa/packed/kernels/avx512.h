// What the files of AVX-512 share. It opens a part of the file whose functions use these instructions; avx512_end.h closes
// it. Only those files may use it, as of avx2.h.
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 says it of its own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "panels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx512bf16,bmi,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx512bf16,bmi,popcnt")
#endif

namespace ressa {

using panels::OF_16;
using panels::OF_4;

static inline __m512i load64(const void* at) { return _mm512_loadu_si512(at); }

}  // namespace ressa
