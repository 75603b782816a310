// AVX2: products of panels of 8:16 (HALF16 of panels8.h), whose positions are bits: tables make columns of them, by which
// the activations are permuted. The bytes of a row lie together: a vector has four rows of a group, of bfloat16 one.
#include "internal.h"

#ifdef RESSA_HAS_AVX2
#include "expand.h"

#include "avx2.h"

namespace ressa::avx2 {
namespace {

constexpr int GROUPS = 4, COLS = 16 * GROUPS, BITS = 16 * GROUPS;  // of a block, its columns, the bytes of their bits

// The columns of the 8 slots of the row whose 16 bits are there.
INLINE __m128i columns(const uint8_t* bits) {
  const __m128i low = _mm_loadl_epi64((const __m128i*)HALVES.low[bits[0]]);
  return _mm_or_si128(low, _mm_loadl_epi64((const __m128i*)HALVES.high[bits[1]]));
}
INLINE __m256i columns4(const uint8_t* bits) {  // of four rows
  __m128i low[2], high[2];
  UNROLL for (int i = 0; i < 2; i++, bits += 4) {
    low[i] = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)HALVES.low[bits[0]]), _mm_loadl_epi64((const __m128i*)HALVES.low[bits[2]]));
    high[i] = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)HALVES.high[bits[1]]), _mm_loadl_epi64((const __m128i*)HALVES.high[bits[3]]));
  }
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_or_si128(low[0], high[0])), _mm_or_si128(low[1], high[1]), 1);
}

// Rows 0 to 3 and 4 to 7, two lanes each, become one lane each.
INLINE __m256 rows_of(__m256 first, __m256 second) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_hadd_ps(first, second)), 0xd8));
}

template <int T> void bf16(const Form& form, const uint8_t* at, const Work& work, int first, float* y) {
  constexpr int BYTES = BITS + 128 * GROUPS;
  __m256 sum[T][panels8::ROWS];
  UNROLL for (int t = 0; t < T; t++) UNROLL for (int r = 0; r < panels8::ROWS; r++) sum[t][r] = _mm256_setzero_ps();
  const float* x = work.x + first * work.stride;
  for (int64_t c = 0; c < form.cols; c += COLS, x += COLS, at += BYTES) {
    ahead<BYTES>(at);
    UNROLL for (int r = 0; r < panels8::ROWS; r++)
      UNROLL for (int g = 0; g < GROUPS; g++) {
        const __m256i index = _mm256_cvtepu8_epi32(columns(at + 16 * g + 2 * r)), upper = _mm256_slli_epi32(index, 28);
        const __m128i kept = _mm_loadu_si128((const __m128i*)(at + BITS + 128 * g + 16 * r));
        const __m256 weight = floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(kept), 16));
        UNROLL for (int t = 0; t < T; t++) {
          const float* group = x + t * work.stride + 16 * g;
          const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(group), index);
          const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(group + 8), index);
          sum[t][r] = _mm256_fmadd_ps(weight, _mm256_blendv_ps(low, high, floats(upper)), sum[t][r]);
        }
      }
  }
  for (int t = 0; t < T; t++)
    UNROLL for (int r = 0; r < panels8::ROWS; r++) y[t * panels8::ROWS + r] = sum_of(sum[t][r]);
}

template <int T> void int8(const Form& form, const uint8_t* at, const Work& work, int first, float* y) {
  constexpr int BYTES = BITS + 64 * GROUPS;
  const __m256 scale = _mm256_loadu_ps((const float*)at);
  __m256i sum[T][2];
  UNROLL for (int t = 0; t < T; t++) sum[t][0] = sum[t][1] = _mm256_setzero_si256();
  at += 32;
  for (int64_t c = 0; c < form.cols; c += COLS, at += BYTES) {
    ahead<BYTES>(at);
    UNROLL for (int g = 0; g < GROUPS; g++)
      UNROLL for (int half = 0; half < 2; half++) {
        const __m256i index = columns4(at + 16 * g + 8 * half), weight = bytes32(at + BITS + 64 * g + 32 * half);
        UNROLL for (int t = 0; t < T; t++)
          sum[t][half] = dot8(sum[t][half], _mm256_shuffle_epi8(twice16(work.of(first + t) + c + 16 * g), index), weight);
      }
  }
  UNROLL for (int t = 0; t < T; t++) {
    const __m256 all = rows_of(_mm256_cvtepi32_ps(sum[t][0]), _mm256_cvtepi32_ps(sum[t][1]));
    _mm256_storeu_ps(y + t * panels8::ROWS, _mm256_mul_ps(all, _mm256_mul_ps(scale, _mm256_set1_ps(work.scale[first + t]))));
  }
}

// Half of the rows of one block, whose sums fit 16 bits: 4 * 2 * 255 * 8 < 2^15.
template <int T> INLINE void int4_half(const uint8_t* at, int half, const Work& work, int first, int64_t col, __m256i (*sum)[2]) {
  __m256i pairs[T];
  UNROLL for (int t = 0; t < T; t++) pairs[t] = _mm256_setzero_si256();
  UNROLL for (int g = 0; g < GROUPS; g++) {
    const __m256i both = bytes32(at + BITS + g / 2 * 64 + 32 * half), index = columns4(at + 16 * g + 8 * half);
    const __m256i plus8 = _mm256_and_si256(small(15), g % 2 ? _mm256_srli_epi16(both, 4) : both);
    const __m256i weight = _mm256_sub_epi8(plus8, small(8));
    UNROLL for (int t = 0; t < T; t++) {
      const __m256i x = _mm256_shuffle_epi8(twice16(work.of(first + t) + col + 16 * g), index);
      pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(x, weight));
    }
  }
  UNROLL for (int t = 0; t < T; t++)
    sum[t][half] = _mm256_add_epi32(sum[t][half], _mm256_madd_epi16(pairs[t], _mm256_set1_epi16(1)));
}

template <int T> void int4(const Form& form, const uint8_t* at, const Work& work, int first, float* y) {
  constexpr int BYTES = BITS + 32 * GROUPS;
  const int unit = panels8::unit(form, panels8::block(form.kind, form.layout));
  const __m256 start = _mm256_loadu_ps((const float*)at);  // what activations plus 128 count too much
  const __m256i twice[2] = {_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)};
  __m256 total[T][2];
  UNROLL for (int t = 0; t < T; t++) total[t][0] = total[t][1] = _mm256_setzero_ps();
  at += 32;
  for (int64_t c = 0; c < form.cols;) {
    const __m256 scale = scales8(at);
    __m256i sum[T][2];
    UNROLL for (int t = 0; t < T; t++) sum[t][0] = sum[t][1] = _mm256_setzero_si256();
    at += 16;
    for (int i = 0; i < unit && c < form.cols; i++, c += COLS, at += BYTES) {
      ahead<BYTES>(at);
      int4_half<T>(at, 0, work, first, c, sum);
      int4_half<T>(at, 1, work, first, c, sum);
    }
    UNROLL for (int t = 0; t < T; t++) UNROLL for (int half = 0; half < 2; half++)
      total[t][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t][half]), _mm256_permutevar8x32_ps(scale, twice[half]), total[t][half]);
  }
  UNROLL for (int t = 0; t < T; t++) {
    const __m256 all = _mm256_add_ps(start, rows_of(total[t][0], total[t][1]));
    _mm256_storeu_ps(y + t * panels8::ROWS, _mm256_mul_ps(all, _mm256_set1_ps(work.scale[first + t])));
  }
}

}  // namespace

template <int T> void half16(const Form& form, const uint8_t* panel, const Work& work, int first, float* y) {
  (form.kind == RESSA_BF16 ? bf16<T> : form.kind == RESSA_INT8 ? int8<T> : int4<T>)(form, panel, work, first, y);
}
template void half16<1>(const Form&, const uint8_t*, const Work&, int, float*);
template void half16<2>(const Form&, const uint8_t*, const Work&, int, float*);
template void half16<4>(const Form&, const uint8_t*, const Work&, int, float*);

}  // namespace ressa::avx2

#include "avx2_end.h"
#endif
