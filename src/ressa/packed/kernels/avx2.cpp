// AVX2 with FMA: panels of fixed stride (panels8.h) with permuted activations, and rows with bits expanded by a table.
// In panels, products of int8 and int4 take activations in 8 bits, one scale for each token; in rows they are float32.
#include "expand.h"
#include "panels8.h"

#ifdef RESSA_HAS_AVX2
#include <immintrin.h>

#include <cmath>
#include <limits>

// Only what follows may use these instructions: what headers define may be shared with files that run anywhere.
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

namespace ressa {
namespace {


bool runs() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}

using panels8::Work;

bool wide(const Form& form) { return form.kind == RESSA_BF16 && form.layout == panels8::HALF16; }

int64_t row_bytes(const Form& form) {
  const int64_t stride = up(form.cols, PAD);
  return wide(form) ? stride / 16 * 24 * 4 : panels8::in8bits(form) ? stride : 0;
}

int64_t work(const Form& form, int tokens, bool) { return (int64_t)sizeof(Work) + tokens * row_bytes(form) + SLACK; }

// Rounds to -127 .. 127 (int4: plus 128) and returns the scale; NaN if there is one in x.
float quantise(const float* x, int64_t count, unsigned char bias, uint8_t* out) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 most = _mm256_setzero_ps(), bad = most;
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v));
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }
  float lanes[8], amax = 0;
  _mm256_storeu_ps(lanes, most);
  UNROLL for (int i = 0; i < 8; i++) amax = lanes[i] > amax ? lanes[i] : amax;
  const float inverse = amax > 0 ? 127 / amax : 0;
  const __m256 by = _mm256_set1_ps(std::isfinite(inverse) ? inverse : 0);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), add = _mm256_set1_epi8((char)bias);
  for (int64_t i = 0; i < count; i += 32) {
    __m256i v[4];
    UNROLL for (int j = 0; j < 4; j++) v[j] = _mm256_cvtps_epi32(_mm256_mul_ps(by, _mm256_loadu_ps(x + i + 8 * j)));
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    _mm256_storeu_si256((__m256i*)(out + i), _mm256_add_epi8(_mm256_permutevar8x32_epi32(bytes, order), add));
  }
  return _mm256_movemask_ps(bad) ? std::numeric_limits<float>::quiet_NaN() : std::isfinite(inverse) ? amax / 127 : 0;
}

void activations(const Form& form, const float* x, int64_t stride, int tokens, bool, uint8_t* at) {
  Work& work = *(Work*)at;
  work.x = x, work.stride = stride, work.row = row_bytes(form), work.bias = form.kind == RESSA_INT4 ? 128 : 0;
  for (int t = 0; t < tokens; t++) {
    uint8_t* out = const_cast<uint8_t*>(work.of(t));
    const float* from = x + t * stride;
    if (panels8::in8bits(form)) work.scale[t] = quantise(from, stride, (unsigned char)work.bias, out);
    if (wide(form))  // 24 for 16: so that windows across the end of a group are read at once
      for (int64_t c = 0; c < stride; c += 16, out += 96) memcpy(out, from + c, 64), memcpy(out + 64, from + c, 32);
  }
}

INLINE __m256i bytes32(const void* at) { return _mm256_loadu_si256((const __m256i*)at); }
INLINE __m256i twice16(const void* at) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)at)); }
INLINE __m256 floats(__m256i v) { return _mm256_castsi256_ps(v); }
INLINE __m256i small(int value) { return _mm256_set1_epi8((char)value); }
// Weights come in one stream, which the processor's own prefetching does not follow far enough.
template <int BYTES> INLINE void ahead(const uint8_t* at) { UNROLL for (int i = 0; i < BYTES; i += 64) _mm_prefetch((const char*)at + 4096 + i, _MM_HINT_T0); }

template <int T> constexpr int CHAINS = T == 1 ? 8 : T == 2 ? 4 : 2;  // sums of a token: an FMA waits four cycles for the one before
template <int T> INLINE void clear(__m256 (*sum)[CHAINS<T>]) {
  UNROLL for (int t = 0; t < T; t++) UNROLL for (int i = 0; i < CHAINS<T>; i++) sum[t][i] = _mm256_setzero_ps();
}
template <int N> INLINE __m256 total_of(__m256* sum) {
  UNROLL for (int half = N / 2; half; half /= 2) UNROLL for (int i = 0; i < half; i++) sum[i] = _mm256_add_ps(sum[i], sum[i + half]);
  return sum[0];
}

// ---- bfloat16: a dword has two weights of a row

struct Bf16Dense {
  static constexpr int LAYOUT = panels8::DENSE, COLS = 8, SLOTS = 8, INDEX = 0, WIDTH = 8;
  INLINE void read(const uint8_t*, __m256i*) {}
  INLINE __m256 x(const float* x, const __m256i*, int s) { return _mm256_broadcast_ss(x + s); }
};
struct Bf16Of4 {
  static constexpr int LAYOUT = panels8::OF4, COLS = 32, SLOTS = 16, INDEX = 32, WIDTH = 32;
  INLINE void read(const uint8_t* at, __m256i* index) { index[0] = bytes32(at); }
  INLINE __m256 x(const float* x, const __m256i* index, int s) {
    return _mm256_permutevar_ps(_mm256_broadcast_ps((const __m128*)(x + s / 2 * 4)), _mm256_srli_epi32(index[0], 2 * s));
  }
};
struct Bf16Half16 {
  static constexpr int LAYOUT = panels8::HALF16, COLS = 64, SLOTS = 32, INDEX = 96, WIDTH = 96;
  INLINE void read(const uint8_t* at, __m256i* index) { UNROLL for (int i = 0; i < 3; i++) index[i] = bytes32(at + 32 * i); }
  INLINE __m256i index_of(const __m256i* index, int s) {  // the permutation reads three bits of each
    if (s < 30) return _mm256_srli_epi32(index[s / 10], s % 10 * 3);
    if (s == 30) return _mm256_or_si256(_mm256_srli_epi32(index[0], 30), _mm256_slli_epi32(_mm256_srli_epi32(index[1], 30), 2));
    return _mm256_or_si256(_mm256_srli_epi32(index[1], 31), _mm256_slli_epi32(_mm256_srli_epi32(index[2], 30), 1));
  }
  INLINE __m256 x(const float* x, const __m256i* index, int s) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + s / 8 * 24 + s % 8 * panels8::WINDOW), index_of(index, s));
  }
};
struct Bf16Quarter16 {
  static constexpr int LAYOUT = panels8::QUARTER16, COLS = 32, SLOTS = 8, INDEX = 32, WIDTH = 32;
  INLINE void read(const uint8_t* at, __m256i* index) { index[0] = bytes32(at); }
  INLINE __m256 x(const float* x, const __m256i* index, int s) {
    const float* group = x + s / 4 * 16;
    const __m256i i = _mm256_srli_epi32(index[0], 4 * s);
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
  UNROLL for (int t = 0; t < T; t++) x[t] = work.row ? (const float*)work.of(first + t) : work.x + (first + t) * work.stride;
  for (int64_t c = 0, k = 0; c < form.cols; c += L::COLS, k += L::WIDTH, at += L::INDEX + 16 * L::SLOTS) {
    __m256i index[3];
    L::read(at, index);
    ahead<L::INDEX + 16 * L::SLOTS>(at);
    UNROLL for (int s = 0; s < L::SLOTS; s += 2) {
      const __m256i both = bytes32(at + L::INDEX + 16 * s);
      const __m256 low = floats(_mm256_slli_epi32(both, 16)), high = floats(_mm256_and_si256(both, upper));
      UNROLL for (int t = 0; t < T; t++) {
        __m256 &a = sum[t][s % SUMS], &b = sum[t][(s + 1) % SUMS];
        a = _mm256_fmadd_ps(low, L::x(x[t] + k, index, s), a);
        b = _mm256_fmadd_ps(high, L::x(x[t] + k, index, s + 1), b);
      }
    }
  }
  UNROLL for (int t = 0; t < T; t++) _mm256_storeu_ps(y + t * panels8::ROWS, total_of<SUMS>(sum[t]));
}

// ---- integers: a dword has four weights of a row (int4: two steps of four)

struct Dense {
  static constexpr int LAYOUT = panels8::DENSE;
  INLINE __m256i index(const uint8_t*, int) { return _mm256_setzero_si256(); }
  INLINE __m256i x(const uint8_t* x, __m256i, int s) { return _mm256_set1_epi32(load<int>(x + 4 * s)); }
  static constexpr int cols(int steps) { return 4 * steps; }
  static constexpr int index_bytes(int) { return 0; }
};
struct Of4 {
  static constexpr int LAYOUT = panels8::OF4;
  INLINE __m256i index(const uint8_t* at, int s) {
    const __m256i two = _mm256_and_si256(small(3), _mm256_srli_epi16(bytes32(at + s / 4 * 32), s % 4 * 2));
    return _mm256_or_si256(_mm256_set1_epi32(0x0c080400), two);
  }
  INLINE __m256i x(const uint8_t* x, __m256i index, int s) { return _mm256_shuffle_epi8(twice16(x + s / 2 * 16), index); }
  static constexpr int cols(int steps) { return 8 * steps; }
  static constexpr int index_bytes(int steps) { return 8 * steps; }
};
struct Half16 {
  static constexpr int LAYOUT = panels8::HALF16;
  INLINE __m256i three(const uint8_t* at, int s) {
    if (s < 6) return _mm256_and_si256(small(7), _mm256_srli_epi16(bytes32(at + s / 2 * 32), s % 2 * 3));
    const __m256i low = _mm256_and_si256(small(3), _mm256_srli_epi16(bytes32(at + (s - 6) * 32), 6));
    return _mm256_or_si256(low, _mm256_and_si256(small(4), _mm256_srli_epi16(bytes32(at + 64), s - 2)));
  }
  INLINE __m256i index(const uint8_t* at, int s) {  // beyond 15 the permutation begins again
    return _mm256_add_epi8(three(at, s), _mm256_set1_epi32(s % 2 ? 0x0e0c0a08 : 0x06040200));
  }
  INLINE __m256i x(const uint8_t* x, __m256i index, int s) { return _mm256_shuffle_epi8(twice16(x + s / 2 * 16), index); }
  static constexpr int cols(int steps) { return 8 * steps; }
  static constexpr int index_bytes(int steps) { return 12 * steps; }
};
struct Quarter16 {
  static constexpr int LAYOUT = panels8::QUARTER16;
  INLINE __m256i index(const uint8_t* at, int s) {
    return _mm256_and_si256(small(15), _mm256_srli_epi16(bytes32(at + s / 2 * 32), s % 2 * 4));
  }
  INLINE __m256i x(const uint8_t* x, __m256i index, int s) { return _mm256_shuffle_epi8(twice16(x + s * 16), index); }
  static constexpr int cols(int steps) { return 16 * steps; }
  static constexpr int index_bytes(int steps) { return 16 * steps; }
};

// Two products of at most 127 * 127 fit 16 bits; with activations plus 128 they would not.
INLINE __m256i dot8(__m256i sum, __m256i x, __m256i weight) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(weight, x));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

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

// Eight steps of int4, whose sums fit 16 bits: 8 * 2 * 255 * 8 < 2^15.
template <class L, int T> INLINE void int4_block(const uint8_t* at, const uint8_t* const* x, int64_t col, __m256i* sum) {
  __m256i pairs[T];
  UNROLL for (int t = 0; t < T; t++) pairs[t] = _mm256_setzero_si256();
  UNROLL for (int s = 0; s < 8; s++) {
    const __m256i both = bytes32(at + L::index_bytes(8) + s / 2 * 32), index = L::index(at, s);
    const __m256i plus8 = _mm256_and_si256(small(15), s % 2 ? _mm256_srli_epi16(both, 4) : both);
    const __m256i weight = _mm256_sub_epi8(plus8, small(8));
    UNROLL for (int t = 0; t < T; t++)
      pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(L::x(x[t] + col, index, s), weight));
  }
  UNROLL for (int t = 0; t < T; t++) sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(pairs[t], _mm256_set1_epi16(1)));
}

template <class L, int T> void int4(const Form& form, const uint8_t* at, const Work& work, int first, float* y) {
  constexpr int BYTES = L::index_bytes(8) + 128, COLS = L::cols(8);
  const bool pairs = panels8::unit(form) == 2;
  const uint8_t* x[T];
  __m256 total[T];  // begins with what activations plus 128 count too much
  UNROLL for (int t = 0; t < T; t++) x[t] = work.of(first + t), total[t] = _mm256_loadu_ps((const float*)at);
  at += 32;
  for (int64_t c = 0; c < form.cols; c += COLS) {
    const __m256 scale = floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)at)), 16));
    __m256i sum[T];
    UNROLL for (int t = 0; t < T; t++) sum[t] = _mm256_setzero_si256();
    at += 16;
    ahead<BYTES>(at);
    int4_block<L, T>(at, x, c, sum);
    at += BYTES;
    if (pairs && c + COLS < form.cols) {
      c += COLS;
      ahead<BYTES>(at);
      int4_block<L, T>(at, x, c, sum);
      at += BYTES;
    }
    UNROLL for (int t = 0; t < T; t++) total[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]), scale, total[t]);
  }
  UNROLL for (int t = 0; t < T; t++)
    _mm256_storeu_ps(y + t * panels8::ROWS, _mm256_mul_ps(total[t], _mm256_set1_ps(work.scale[first + t])));
}

template <int T> void fixed_stride(const Form& form, const uint8_t* at, const Work& work, int first, float* y) {
  const int which = form.kind * 8 + form.layout;
  switch (which) {
    case RESSA_BF16 * 8 + panels8::DENSE: return bf16<Bf16Dense, T>(form, at, work, first, y);
    case RESSA_BF16 * 8 + panels8::OF4: return bf16<Bf16Of4, T>(form, at, work, first, y);
    case RESSA_BF16 * 8 + panels8::HALF16: return bf16<Bf16Half16, T>(form, at, work, first, y);
    case RESSA_BF16 * 8 + panels8::QUARTER16: return bf16<Bf16Quarter16, T>(form, at, work, first, y);
    case RESSA_INT8 * 8 + panels8::DENSE: return int8<Dense, 4, T>(form, at, work, first, y);
    case RESSA_INT8 * 8 + panels8::OF4: return int8<Of4, 4, T>(form, at, work, first, y);
    case RESSA_INT8 * 8 + panels8::HALF16: return int8<Half16, 8, T>(form, at, work, first, y);
    case RESSA_INT8 * 8 + panels8::QUARTER16: return int8<Quarter16, 2, T>(form, at, work, first, y);
    case RESSA_INT4 * 8 + panels8::DENSE: return int4<Dense, T>(form, at, work, first, y);
    case RESSA_INT4 * 8 + panels8::OF4: return int4<Of4, T>(form, at, work, first, y);
    case RESSA_INT4 * 8 + panels8::HALF16: return int4<Half16, T>(form, at, work, first, y);
    case RESSA_INT4 * 8 + panels8::QUARTER16: return int4<Quarter16, T>(form, at, work, first, y);
  }
}

// Four, two or one token at once: as many as there are registers for.
template <class Four, class Two, class One> INLINE void by_tokens(int tokens, const Four& four, const Two& two, const One& one) {
  int t = 0;
  for (; tokens - t >= 4; t += 4) four(t);
  if (tokens - t >= 2) two(t), t += 2;
  if (tokens - t) one(t);
}

// ---- rows one after the other, with bits

INLINE float sum_of(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Bits of 64 columns; a dense row has none.
INLINE uint64_t word_of(const Form& form, const rows::View& view, int64_t col) {
  if (view.bits) return load<uint64_t>(view.bits + col / 8);
  return form.cols - col >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << (form.cols - col)) - 1;
}

// Byte i of the bits, times SIZE: it has as many bits, and is where the table has its entry.
template <int SIZE> INLINE uint64_t part_of(uint64_t word, int i) {
  constexpr int SHIFT = SIZE == 32 ? 5 : 3;
  return (i ? word >> (8 * i - SHIFT) : word << SHIFT) & (255 * SIZE);
}

template <int T> NOINLINE void bf16_row(const Form& form, const rows::View& view, const float* x, int64_t stride, float* y) {
  __m256 sum[T][CHAINS<T>];
  clear<T>(sum);
  const uint8_t *at = view.values, *table = &EXPAND.to_floats[0][0];
  for (int64_t c = 0; c < form.cols; c += 64) {
    const uint64_t word = word_of(form, view, c);
    ahead<64>(at);
    UNROLL for (int i = 0; i < 8; i++) {
      const uint64_t mask = part_of<32>(word, i);
      const __m256 weight = floats(_mm256_shuffle_epi8(twice16(at), bytes32(table + mask)));
      at += 2 * __builtin_popcountll(mask);
      UNROLL for (int t = 0; t < T; t++) {
        __m256& s = sum[t][i % CHAINS<T>];
        s = _mm256_fmadd_ps(weight, _mm256_loadu_ps(x + t * stride + c + 8 * i), s);
      }
    }
  }
  UNROLL for (int t = 0; t < T; t++) y[t * rows::PANEL] = sum_of(total_of<CHAINS<T>>(sum[t]));
}

template <int T> NOINLINE void int8_row(const Form& form, const rows::View& view, const float* x, int64_t stride, float* y) {
  __m256 sum[T][CHAINS<T>];
  clear<T>(sum);
  const uint8_t *at = view.values, *table = &EXPAND.to_bytes[0][0];
  for (int64_t c = 0; c < form.cols; c += 64) {
    const uint64_t word = word_of(form, view, c);
    ahead<64>(at);
    UNROLL for (int i = 0; i < 8; i++) {
      const uint64_t mask = part_of<8>(word, i);
      const __m128i kept = _mm_xor_si128(_mm_loadl_epi64((const __m128i*)at), _mm_set1_epi8((char)0x80));
      const __m128i each = _mm_shuffle_epi8(kept, _mm_loadl_epi64((const __m128i*)(table + mask)));
      const __m256 weight = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(each));
      at += __builtin_popcountll(mask);
      UNROLL for (int t = 0; t < T; t++) {
        __m256& s = sum[t][i % CHAINS<T>];
        s = _mm256_fmadd_ps(weight, _mm256_loadu_ps(x + t * stride + c + 8 * i), s);
      }
    }
  }
  UNROLL for (int t = 0; t < T; t++) y[t * rows::PANEL] = sum_of(total_of<CHAINS<T>>(sum[t])) * load<float>(view.scales);
}

// Kept weights of int4 in their order, times their scales: groups end at any column, so that rows are scaled before bits
// are looked at.
struct Int4Stream {
  const uint8_t *values, *scales;
  int64_t group, number = 0, left;  // left: of the weights that have this scale
  // The next `count` of them; up to 7 floats behind are written too.
  INLINE_MEMBER void read(int64_t count, float* out) {
    const __m256i shifts = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    for (int64_t done = 0; done < count;) {
      const int64_t run = count - done < left ? count - done : left;
      const __m256 scale = _mm256_set1_ps(from_bf16(load<uint16_t>(scales)));
      for (int64_t i = 0; i < run; i += 8) {
        const uint64_t at = (uint64_t)(number + i);
        const uint32_t eight = (uint32_t)(load<uint64_t>(values + at / 2) >> (at % 2 * 4));
        const __m256i each = _mm256_srai_epi32(_mm256_sllv_epi32(_mm256_set1_epi32((int)eight), shifts), 28);
        _mm256_storeu_ps(out + done + i, _mm256_mul_ps(_mm256_cvtepi32_ps(each), scale));
      }
      done += run, number += run, left -= run;
      if (!left) scales += 2, left = group;
    }
  }
};

template <int T> NOINLINE void int4_row(const Form& form, const rows::View& view, const float* x, int64_t stride, float* y) {
  constexpr int WORDS = 8;
  __m256 sum[T][CHAINS<T>];
  clear<T>(sum);
  Int4Stream stream{view.values, view.scales, form.group, 0, form.group};
  alignas(32) float kept[64 * WORDS + 8];
  for (int64_t c = 0; c < form.cols; c += 64 * WORDS) {
    uint64_t words[WORDS];
    int64_t count = 0;
    UNROLL for (int w = 0; w < WORDS; w++) {
      words[w] = c + 64 * w < form.cols ? word_of(form, view, c + 64 * w) : 0;
      count += __builtin_popcountll(words[w]);
    }
    ahead<256>(stream.values + stream.number / 2);
    stream.read(count, kept);
    const float* at = kept;
    for (int w = 0; w < WORDS; w++)
      UNROLL for (int i = 0; i < 8; i++) {
        const uint64_t mask = part_of<8>(words[w], i);
        const __m256i index = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(&EXPAND.to_bytes[0][0] + mask)));
        // negative where nothing is kept
        const __m256 weight = _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(at), index), _mm256_setzero_ps(), floats(index));
        at += __builtin_popcountll(mask);
        UNROLL for (int t = 0; t < T; t++) {
          __m256& s = sum[t][i % CHAINS<T>];
          s = _mm256_fmadd_ps(weight, _mm256_loadu_ps(x + t * stride + c + 64 * w + 8 * i), s);
        }
      }
  }
  UNROLL for (int t = 0; t < T; t++) y[t * rows::PANEL] = sum_of(total_of<CHAINS<T>>(sum[t]));
}

// As rows::next, with this processor's count of bits.
rows::View next(const Form& form, const uint8_t*& at) {
  rows::View view{at, nullptr, nullptr, form.cols, 0};
  at += form.kind == RESSA_INT8 ? 4 : 0;
  if (form.bits) {
    view.bits = at, view.count = 0;
    for (int64_t c = 0; c < form.cols; c += 64, at += 8) view.count += __builtin_popcountll(load<uint64_t>(at));
  }
  view.values = at;
  at += form.kind == RESSA_BF16 ? 2 * view.count : form.kind == RESSA_INT8 ? view.count : (view.count + 1) / 2;
  if (form.kind != RESSA_INT4) return view;
  view.scales = at, view.groups = row_groups(view.count, form.group);
  at += 2 * view.groups;
  return view;
}

template <int T> void one_row(const Form& form, const rows::View& view, const Work& work, int first, float* y) {
  const float* x = work.x + first * work.stride;
  if (form.kind == RESSA_BF16) bf16_row<T>(form, view, x, work.stride, y);
  else if (form.kind == RESSA_INT8) int8_row<T>(form, view, x, work.stride, y);
  else int4_row<T>(form, view, x, work.stride, y);
}

void panel(const Form& form, const uint8_t* body, const uint8_t* at, int tokens, bool, int64_t number, float* y) {
  const Work& work = *(const Work*)at;
  if (form.layout != rows::LAYOUT) {
    const uint8_t* from = panels8::panel(form, body, number);
    by_tokens(tokens, [&](int t) { fixed_stride<4>(form, from, work, t, y + t * panels8::ROWS); },
              [&](int t) { fixed_stride<2>(form, from, work, t, y + t * panels8::ROWS); },
              [&](int t) { fixed_stride<1>(form, from, work, t, y + t * panels8::ROWS); });
    return panels8::add_listed(form, body, work, tokens, number, y);
  }
  const uint8_t* from = rows::panel(body, number);
  for (int64_t i = 0; i < rows::PANEL && number * rows::PANEL + i < form.rows; i++, y++) {
    const rows::View view = next(form, from);
    by_tokens(tokens, [&](int t) { one_row<4>(form, view, work, t, y + t * rows::PANEL); },
              [&](int t) { one_row<2>(form, view, work, t, y + t * rows::PANEL); },
              [&](int t) { one_row<1>(form, view, work, t, y + t * rows::PANEL); });
  }
}

}  // namespace

const Isa avx2_isa = {"avx2", runs, panels8::plan, panels8::pack, panels8::row, work, activations, panel};

}  // namespace ressa

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
