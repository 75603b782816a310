// AVX2: products of panels of fixed stride (panels8.h), whose activations are permuted by the positions of the weights.
#include "internal.h"

#ifdef RESSA_HAS_AVX2
#include "avx2.h"

namespace ressa::avx2 {
namespace {

// ---- bfloat16: a dword has two weights of a row

struct Bf16Dense {
  static constexpr int COLS = 8, SLOTS = 8, INDEX = 0;
  INLINE __m256i read(const uint8_t*) { return _mm256_setzero_si256(); }
  INLINE __m256 x(const float* x, __m256i, int s) { return _mm256_broadcast_ss(x + s); }
};
struct Bf16Of4 {
  static constexpr int COLS = 32, SLOTS = 16, INDEX = 32;
  INLINE __m256i read(const uint8_t* at) { return bytes32(at); }
  INLINE __m256 x(const float* x, __m256i index, int s) {
    return _mm256_permutevar_ps(_mm256_broadcast_ps((const __m128*)(x + s / 2 * 4)), _mm256_srli_epi32(index, 2 * s));
  }
};
struct Bf16Quarter16 {
  static constexpr int COLS = 32, SLOTS = 8, INDEX = 32;
  INLINE __m256i read(const uint8_t* at) { return bytes32(at); }
  INLINE __m256 x(const float* x, __m256i index, int s) {
    const float* group = x + s / 4 * 16;
    const __m256i i = _mm256_srli_epi32(index, 4 * s);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(group), i),
                            _mm256_permutevar8x32_ps(_mm256_loadu_ps(group + 8), i), floats(_mm256_slli_epi32(i, 28)));
  }
};

template <class L, int T> void bf16(const Form& form, const uint8_t* at, const Work& work, int first, float* y) {
  constexpr int SUMS = CHAINS<T>;
  const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
  __m256 sum[T][SUMS];
  const float* x[T];
  clear<T>(sum);
  UNROLL for (int t = 0; t < T; t++) x[t] = work.x + (first + t) * work.stride;
  for (int64_t c = 0; c < form.cols; c += L::COLS, at += L::INDEX + 16 * L::SLOTS) {
    const __m256i index = L::read(at);
    ahead<L::INDEX + 16 * L::SLOTS>(at);
    UNROLL for (int s = 0; s < L::SLOTS; s += 2) {
      const __m256i both = bytes32(at + L::INDEX + 16 * s);
      const __m256 low = floats(_mm256_slli_epi32(both, 16)), high = floats(_mm256_and_si256(both, upper));
      UNROLL for (int t = 0; t < T; t++) {
        __m256 &a = sum[t][s % SUMS], &b = sum[t][(s + 1) % SUMS];
        a = _mm256_fmadd_ps(low, L::x(x[t] + c, index, s), a);
        b = _mm256_fmadd_ps(high, L::x(x[t] + c, index, s + 1), b);
      }
    }
  }
  UNROLL for (int t = 0; t < T; t++) _mm256_storeu_ps(y + t * panels8::ROWS, total_of<SUMS>(sum[t]));
}

// ---- integers: a dword has four weights of a row (int4: two steps of four)

struct Dense {
  static constexpr int STEPS4 = 8;  // of a block of int4
  INLINE __m256i index(const uint8_t*, int) { return _mm256_setzero_si256(); }
  INLINE __m256i x(const uint8_t* x, __m256i, int s) { return _mm256_set1_epi32(load<int>(x + 4 * s)); }
  static constexpr int cols(int steps) { return 4 * steps; }
  static constexpr int index_bytes(int) { return 0; }
};
struct Of4 {
  static constexpr int STEPS4 = 8;
  INLINE __m256i index(const uint8_t* at, int s) {
    const __m256i two = _mm256_and_si256(small(3), _mm256_srli_epi16(bytes32(at + s / 4 * 32), s % 4 * 2));
    return _mm256_or_si256(_mm256_set1_epi32(0x0c080400), two);
  }
  INLINE __m256i x(const uint8_t* x, __m256i index, int s) { return _mm256_shuffle_epi8(twice16(x + s / 2 * 16), index); }
  static constexpr int cols(int steps) { return 8 * steps; }
  static constexpr int index_bytes(int steps) { return 8 * steps; }
};
struct Quarter16 {
  static constexpr int STEPS4 = 4;
  INLINE __m256i index(const uint8_t* at, int s) {
    return _mm256_and_si256(small(15), _mm256_srli_epi16(bytes32(at + s / 2 * 32), s % 2 * 4));
  }
  INLINE __m256i x(const uint8_t* x, __m256i index, int s) { return _mm256_shuffle_epi8(twice16(x + s * 16), index); }
  static constexpr int cols(int steps) { return 16 * steps; }
  static constexpr int index_bytes(int steps) { return 16 * steps; }
};

template <class L, int STEPS, int T> void int8(const Form& form, const uint8_t* at, const Work& work, int first, float* y) {
  const __m256 scale = _mm256_loadu_ps((const float*)at);
  __m256i sum[T][2];
  const uint8_t* x[T];
  UNROLL for (int t = 0; t < T; t++) x[t] = work.of(first + t), sum[t][0] = sum[t][1] = _mm256_setzero_si256();
  constexpr int BYTES = L::index_bytes(STEPS) + 32 * STEPS;
  at += 32;
  for (int64_t c = 0; c < form.cols; c += L::cols(STEPS), at += BYTES) {
    ahead<BYTES>(at);
    UNROLL for (int s = 0; s < STEPS; s++) {
      const __m256i index = L::index(at, s), weight = bytes32(at + L::index_bytes(STEPS) + 32 * s);
      UNROLL for (int t = 0; t < T; t++) sum[t][s % 2] = dot8(sum[t][s % 2], L::x(x[t] + c, index, s), weight);
    }
  }
  UNROLL for (int t = 0; t < T; t++) {
    const __m256 all = _mm256_cvtepi32_ps(_mm256_add_epi32(sum[t][0], sum[t][1]));
    _mm256_storeu_ps(y + t * panels8::ROWS, _mm256_mul_ps(all, _mm256_mul_ps(scale, _mm256_set1_ps(work.scale[first + t]))));
  }
}

// The steps of a block of int4, whose sums fit 16 bits: 8 * 2 * 255 * 8 < 2^15.
template <class L, int T> INLINE void int4_block(const uint8_t* at, const uint8_t* const* x, int64_t col, __m256i* sum) {
  __m256i pairs[T];
  UNROLL for (int t = 0; t < T; t++) pairs[t] = _mm256_setzero_si256();
  UNROLL for (int s = 0; s < L::STEPS4; s++) {
    const __m256i both = bytes32(at + L::index_bytes(L::STEPS4) + s / 2 * 32), index = L::index(at, s);
    const __m256i plus8 = _mm256_and_si256(small(15), s % 2 ? _mm256_srli_epi16(both, 4) : both);
    const __m256i weight = _mm256_sub_epi8(plus8, small(8));
    UNROLL for (int t = 0; t < T; t++)
      pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(L::x(x[t] + col, index, s), weight));
  }
  UNROLL for (int t = 0; t < T; t++) sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(pairs[t], _mm256_set1_epi16(1)));
}

template <class L, int T> void int4(const Form& form, const uint8_t* at, const Work& work, int first, float* y) {
  constexpr int BYTES = L::index_bytes(L::STEPS4) + 16 * L::STEPS4, COLS = L::cols(L::STEPS4);
  const int unit = panels8::unit(form, panels8::block(form.kind, form.layout));
  const uint8_t* x[T];
  __m256 total[T];  // begins with what activations plus 128 count too much
  UNROLL for (int t = 0; t < T; t++) x[t] = work.of(first + t), total[t] = _mm256_loadu_ps((const float*)at);
  at += 32;
  for (int64_t c = 0; c < form.cols;) {
    const __m256 scale = scales8(at);
    __m256i sum[T];
    UNROLL for (int t = 0; t < T; t++) sum[t] = _mm256_setzero_si256();
    at += 16;
    for (int i = 0; i < unit && c < form.cols; i++, c += COLS, at += BYTES) {
      ahead<BYTES>(at);
      int4_block<L, T>(at, x, c, sum);
    }
    UNROLL for (int t = 0; t < T; t++) total[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]), scale, total[t]);
  }
  UNROLL for (int t = 0; t < T; t++)
    _mm256_storeu_ps(y + t * panels8::ROWS, _mm256_mul_ps(total[t], _mm256_set1_ps(work.scale[first + t])));
}

template <int T> void of_tokens(const Form& form, const uint8_t* at, const Work& work, int first, float* y) {
  if (form.layout == panels8::HALF16) return half16<T>(form, at, work, first, y);
  const int which = form.kind * 8 + form.layout;
  switch (which) {
    case RESSA_BF16 * 8 + panels8::DENSE: return bf16<Bf16Dense, T>(form, at, work, first, y);
    case RESSA_BF16 * 8 + panels8::OF4: return bf16<Bf16Of4, T>(form, at, work, first, y);
    case RESSA_BF16 * 8 + panels8::QUARTER16: return bf16<Bf16Quarter16, T>(form, at, work, first, y);
    case RESSA_INT8 * 8 + panels8::DENSE: return int8<Dense, 4, T>(form, at, work, first, y);
    case RESSA_INT8 * 8 + panels8::OF4: return int8<Of4, 4, T>(form, at, work, first, y);
    case RESSA_INT8 * 8 + panels8::QUARTER16: return int8<Quarter16, 2, T>(form, at, work, first, y);
    case RESSA_INT4 * 8 + panels8::DENSE: return int4<Dense, T>(form, at, work, first, y);
    case RESSA_INT4 * 8 + panels8::OF4: return int4<Of4, T>(form, at, work, first, y);
    case RESSA_INT4 * 8 + panels8::QUARTER16: return int4<Quarter16, T>(form, at, work, first, y);
  }
}

}  // namespace

void fixed_stride(const Form& form, const uint8_t* panel, const Work& work, int tokens, float* y) {
  by_tokens(tokens, [&](int t) { of_tokens<4>(form, panel, work, t, y + t * panels8::ROWS); },
            [&](int t) { of_tokens<2>(form, panel, work, t, y + t * panels8::ROWS); },
            [&](int t) { of_tokens<1>(form, panel, work, t, y + t * panels8::ROWS); });
}

}  // namespace ressa::avx2

#include "avx2_end.h"
#endif
