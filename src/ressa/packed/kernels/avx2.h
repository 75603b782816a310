// What the files of AVX2 share. It opens a part of the file whose functions use these instructions; avx2_end.h closes it.
#pragma once
#include <immintrin.h>

#include "panels8.h"

// Only the files of AVX2 may use them: what other headers define may be shared with files that run anywhere.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,popcnt,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt,bmi,bmi2")
#endif

#define UNROLL _Pragma("GCC unroll 32")
#define NOINLINE __attribute__((noinline))
#define INLINE_MEMBER __attribute__((always_inline)) inline
#define INLINE static inline __attribute__((always_inline))

namespace ressa::avx2 {

using panels8::Work;

// y (tokens, 8) of one panel of fixed stride.
void fixed_stride(const Form&, const uint8_t* panel, const Work&, int tokens, float* y);
// The same of HALF16 for 1, 2 or 4 tokens from `first` on; y (T, 8).
template <int T> void half16(const Form&, const uint8_t* panel, const Work&, int first, float* y);
// y (tokens, 16), of which it writes column 0, of the row at `at`, which is moved behind it.
void one_row(const Form&, const uint8_t*& at, const Work&, int tokens, float* y);

INLINE __m256i bytes32(const void* at) { return _mm256_loadu_si256((const __m256i*)at); }
INLINE __m256i twice16(const void* at) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)at)); }
INLINE __m256 floats(__m256i v) { return _mm256_castsi256_ps(v); }
INLINE __m256i small(int value) { return _mm256_set1_epi8((char)value); }
INLINE __m256 scales8(const uint8_t* at) {  // of int4, one for each row
  return floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)at)), 16));
}
// Two products of at most 127 * 127 fit 16 bits; with activations plus 128 they would not.
INLINE __m256i dot8(__m256i sum, __m256i x, __m256i weight) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(weight, x));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// Weights come in one stream, which the processor's own prefetching does not follow far enough. Twice as far was slower.
template <int BYTES> INLINE void ahead(const uint8_t* at) { UNROLL for (int i = 0; i < BYTES; i += 64) _mm_prefetch((const char*)at + 2048 + i, _MM_HINT_T0); }

template <int T> constexpr int CHAINS = T == 1 ? 8 : T == 2 ? 4 : 2;  // sums of a token: an FMA waits four cycles for the one before
template <int T> INLINE void clear(__m256 (*sum)[CHAINS<T>]) {
  UNROLL for (int t = 0; t < T; t++) UNROLL for (int i = 0; i < CHAINS<T>; i++) sum[t][i] = _mm256_setzero_ps();
}
template <int N> INLINE __m256 total_of(__m256* sum) {
  UNROLL for (int half = N / 2; half; half /= 2) UNROLL for (int i = 0; i < half; i++) sum[i] = _mm256_add_ps(sum[i], sum[i + half]);
  return sum[0];
}
INLINE float sum_of(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// Four, two or one token at once: as many as there are registers for.
template <class Four, class Two, class One> INLINE void by_tokens(int tokens, const Four& four, const Two& two, const One& one) {
  int t = 0;
  for (; tokens - t >= 4; t += 4) four(t);
  if (tokens - t >= 2) two(t), t += 2;
  if (tokens - t) one(t);
}

}  // namespace ressa::avx2
