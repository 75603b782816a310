// AVX-512 with VBMI, VBMI2, VNNI and BF16 (Zen 4 and newer, Sapphire Rapids and newer).
//
// 2:4, 4:16 and dense weights lie in panels of 16 rows, a row to each 32-bit lane: of sparse ones the activations are
// permuted by the stored places (vpermw, vpermb), so that only kept weights are multiplied. Other patterns lie row by row
// and are expanded by their bits (vpexpandw, vpexpandb); of 4-bit ones the activations are compressed instead.
// Activations: bfloat16, of float32 ones two (x = high + low); for int8 and panels of int4 rounded to 8 bits, with a scale
// for each token and 256 columns, or as many as one scale of the weight is for.
#include "panels.h"

#ifdef RESSA_HAS_AVX512
#include "avx512.h"

namespace ressa {
namespace {

constexpr int AHEAD = 2048;     // bytes that are asked for before they are needed
constexpr int FURTHER = 4096;   // the same of rows of bfloat16
constexpr int XBLOCK = 256;     // columns of activations that share a scale
constexpr int MOST = 8;         // tokens of one pass

template <int BYTES = AHEAD> inline void ask(const void* at) { _mm_prefetch((const char*)at + BYTES, _MM_HINT_T0); }
inline __m512i each4(const void* at) { return _mm512_set1_epi32(load<int32_t>(at)); }
inline __m512i each8(const void* at) { return _mm512_set1_epi64(load<int64_t>(at)); }
inline __m512i each16(const void* at) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)at)); }
inline __m512i each32(const void* at) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)at)); }
inline __m512 dot2(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
inline __m512 wide(const void* bf16) {  // 16 of them as float32
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)bf16)), 16));
}
// The expanding instructions wait for what was in their destination before: it is set anew first.
inline __m512i expand16(__mmask32 bits, const void* at) {
  __m512i out;
  asm("vpxor %x0, %x0, %x0\n\tvpexpandw %2, %0%{%1%}%{z%}" : "=&v"(out) : "Yk"(bits), "v"(load64(at)));
  return out;
}
inline __m512i expand8(__m512i rest, __mmask64 bits, const void* at) { return _mm512_mask_expand_epi8(rest, bits, load64(at)); }

// ---- activations ----------------------------------------------------------------------------------------------------

// What `activations` makes: for each of `many` tokens (or halves of one) `stride` values of 2 or 1 bytes, then of 8-bit
// ones a scale and a sum for each block of columns.
struct Work {
  uint8_t* x;
  float* scales;  // (many, blocks)
  int32_t* sums;  // (many, blocks)
  int64_t stride, blocks, xblock, bytes;
  int many;
};

bool in_8_bits(const Form& form) { return form.kind == RESSA_INT8 || (form.kind == RESSA_INT4 && form.layout == panels::LAYOUT); }

Work layout(const Form& form, int tokens, bool is_bf16, uint8_t* at) {
  Work w{};
  const bool small = in_8_bits(form);
  const int all = small || is_bf16 ? tokens : 2 * tokens;
  w.many = all <= 2 ? all : all <= 4 ? 4 : (int)up(all, MOST);
  w.xblock = XBLOCK;
  if (form.kind == RESSA_INT4 && small)
    w.xblock = form.own[panels::GROUP_BLOCKS] * panels::block(form.kind, form.own[panels::SCHEME]).columns;
  w.stride = up(up(form.cols, PAD), small ? w.xblock : 1);
  w.stride = up(w.stride, 64);
  w.blocks = (w.stride + w.xblock - 1) / w.xblock;
  w.x = at;
  const int64_t values = w.many * w.stride * (small ? 1 : 2), numbers = up(w.many * w.blocks * 4, 64);
  w.scales = (float*)(at + up(values, 64));
  w.sums = (int32_t*)(at + up(values, 64) + numbers);
  w.bytes = up(values, 64) + (small ? 2 * numbers : 0);
  return w;
}

int64_t work(const Form& form, int tokens, bool is_bf16) { return layout(form, tokens, is_bf16, nullptr).bytes; }

inline __mmask16 some(int64_t count) { return count >= 16 ? 0xffff : (__mmask16)((1 << count) - 1); }

// One block of a token in 8 bits: signed, or plus 128.
void quantise(const float* x, int64_t count, bool plus, int8_t* to, float* scale, int32_t* sum) {
  __m512i most = _mm512_setzero_si512();  // as integers, so that NaN and infinity are the largest
  for (int64_t c = 0; c < count; c += 16) {
    const __m512i bits = _mm512_maskz_loadu_epi32(some(count - c), x + c);
    most = _mm512_max_epi32(most, _mm512_and_epi32(bits, _mm512_set1_epi32(0x7fffffff)));
  }
  const float amax = _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(_mm512_reduce_max_epi32(most))));
  const __m512 by = _mm512_set1_ps(amax > 1e-30f ? 127 / amax : 0);
  __m512i total = _mm512_setzero_si512();
  for (int64_t c = 0; c < count; c += 16) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(some(count - c), x + c), by));
    total = _mm512_add_epi32(total, q);
    const __m128i bytes = _mm512_cvtsepi32_epi8(q);
    _mm_mask_storeu_epi8(to + c, some(count - c), plus ? _mm_xor_si128(bytes, _mm_set1_epi8(-128)) : bytes);
  }
  *scale = amax / 127;
  *sum = _mm512_reduce_add_epi32(total);
}

void in_8(const Form& form, const float* x, int64_t stride, int tokens, Work& w) {
  const bool plus = form.layout == panels::LAYOUT && form.own[panels::SCHEME] != panels::DENSE;
  for (int64_t t = 0; t < w.many; t++)
    for (int64_t b = 0; b < w.blocks; b++) {
      int8_t* to = (int8_t*)w.x + t * w.stride + b * w.xblock;
      const int64_t at = b * w.xblock, room = (at + w.xblock > w.stride ? w.stride - at : w.xblock);
      const int64_t there = t >= tokens || at >= stride ? 0 : at + room > stride ? stride - at : room;
      memset(to, plus ? 128 : 0, room);
      w.scales[t * w.blocks + b] = 0, w.sums[t * w.blocks + b] = 0;
      if (there) quantise(x + t * stride + at, there, plus, to, &w.scales[t * w.blocks + b], &w.sums[t * w.blocks + b]);
    }
}

void in_bf16(const float* x, int64_t stride, int tokens, bool is_bf16, Work& w) {
  memset(w.x, 0, w.many * w.stride * 2);
  for (int t = 0; t < tokens; t++) {
    uint16_t* high = (uint16_t*)w.x + (is_bf16 ? t : 2 * t) * w.stride;
    for (int64_t c = 0; c < stride; c += 16) {
      const __m512 value = _mm512_loadu_ps(x + t * stride + c);
      const __m256i first = (__m256i)_mm512_cvtneps_pbh(value);
      _mm256_storeu_si256((__m256i*)(high + c), first);
      if (is_bf16) continue;
      const __m512 rest = _mm512_sub_ps(value, wide(high + c));
      _mm256_storeu_si256((__m256i*)(high + w.stride + c), (__m256i)_mm512_cvtneps_pbh(rest));
    }
  }
}

void activations(const Form& form, const float* x, int64_t stride, int tokens, bool is_bf16, uint8_t* at) {
  Work w = layout(form, tokens, is_bf16, at);
  if (in_8_bits(form)) in_8(form, x, stride, tokens, w);
  else in_bf16(x, stride, tokens, is_bf16, w);
}

// ---- panels ---------------------------------------------------------------------------------------------------------

// T tokens, U sums of each, which do not wait for one another.
template <int T> constexpr int U = T == 1 ? 4 : T == 2 ? 2 : 1;

template <int T> void put(const __m512 (&sums)[T][U<T>], float* y) {
  for (int t = 0; t < T; t++) {
    __m512 sum = sums[t][0];
    for (int u = 1; u < U<T>; u++) sum = _mm512_add_ps(sum, sums[t][u]);
    _mm512_storeu_ps(y + 16 * t, sum);
  }
}

template <int T> void bf16_dense(const Form& form, const uint8_t* w, const Work& work, int first, float* y) {
  const uint16_t* x = (const uint16_t*)work.x + first * work.stride;
  __m512 sums[T][U<T>] = {};
  const int64_t blocks = form.own[panels::BLOCKS];
  int64_t b = 0;
  for (; b + 4 <= blocks; b += 4, w += 256, x += 8) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      ask(w + 64 * i);
      const __m512i weight = load64(w + 64 * i);
      for (int t = 0; t < T; t++) sums[t][i % U<T>] = dot2(sums[t][i % U<T>], weight, each4(x + t * work.stride + 2 * i));
    }
  }
  for (; b < blocks; b++, w += 64, x += 2)
    for (int t = 0; t < T; t++) sums[t][0] = dot2(sums[t][0], load64(w), each4(x + t * work.stride));
  put<T>(sums, y);
}

template <int T, int SCHEME> void bf16_sparse(const Form& form, const uint8_t* w, const Work& work, int first, float* y) {
  constexpr int WIDTH = SCHEME == OF_4 ? 2 : 4, STEPS = SCHEME == OF_4 ? 8 : 4;
  const uint16_t* x = (const uint16_t*)work.x + first * work.stride;
  __m512 sums[T][U<T>] = {};
  for (int64_t b = 0; b < form.own[panels::BLOCKS]; b++, w += 64 + 64 * STEPS, x += panels::COLUMNS) {
    const __m512i places = load64(w);
    ask(w);
#pragma GCC unroll 8
    for (int i = 0; i < STEPS; i++) {
      ask(w + 64 + 64 * i);
      const __m512i weight = load64(w + 64 + 64 * i), at = _mm512_srli_epi16(places, WIDTH * i);
      for (int t = 0; t < T; t++) {
        const uint16_t* own = x + t * work.stride;
        const __m512i table = SCHEME == OF_4 ? each8(own + 4 * i) : each32(own + 16 * (i / 2));
        sums[t][i % U<T>] = dot2(sums[t][i % U<T>], weight, _mm512_permutexvar_epi16(at, table));
      }
    }
  }
  put<T>(sums, y);
}

// Columns 4 s.. of 2:4 and 16 s.. of 4:16 as the places of step s ask for them.
template <int SCHEME> __m512i places8(__m512i places, int s) {
  if (SCHEME == OF_16) return _mm512_srli_epi16(places, 4 * s);  // vpermb looks at 6 bits, its table repeats after 4
  // 2 bits say which of 4, the third which 4 of 8: (shifted & 3) | base
  return _mm512_ternarylogic_epi32(_mm512_srli_epi16(places, 2 * s), _mm512_set1_epi8(3), _mm512_set1_epi32(0x04040000), 0xea);
}
template <int SCHEME> __m512i table8(const uint8_t* x, int s) { return SCHEME == OF_4 ? each8(x + 8 * s) : each16(x + 16 * s); }

// Sums of one block of columns become floats: times the activations' scale, and the weight's if it changes here.
template <int T> void flush(__m512 (&y)[T], const __m512i (&sums)[T][2], __m512i less, const Work& work, int first, int64_t block,
                            __m512 scale) {
  for (int t = 0; t < T; t++) {
    const __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(sums[t][0], sums[t][1]), less);
    const __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(work.scales[(first + t) * work.blocks + block]));
    y[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), by, y[t]);
  }
}

template <int T> void begin_dense(__m512i (&sums)[T][2], const Work& work, int first, int64_t block, int offset) {
  for (int t = 0; t < T; t++) {
    sums[t][0] = _mm512_set1_epi32(-offset * work.sums[(first + t) * work.blocks + block]);
    sums[t][1] = _mm512_setzero_si512();
  }
}

template <int T> void int8_dense(const Form& form, const uint8_t* w, const Work& work, int first, float* y) {
  const __m512 scale = _mm512_loadu_ps((const float*)w);
  const uint8_t* x = work.x + first * work.stride;
  __m512 out[T] = {};
  w += panels::scale_bytes(form);
  int64_t left = form.own[panels::BLOCKS];
  for (int64_t block = 0; left > 0; block++, left -= XBLOCK / 4) {
    __m512i sums[T][2];
    begin_dense<T>(sums, work, first, block, 128);
    const int64_t count = left < XBLOCK / 4 ? left : XBLOCK / 4;
    int64_t b = 0;
    for (; b + 4 <= count; b += 4, w += 256, x += 16) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        ask(w + 64 * i);
        const __m512i weight = load64(w + 64 * i);
        for (int t = 0; t < T; t++) sums[t][i % 2] = _mm512_dpbusd_epi32(sums[t][i % 2], weight, each4(x + t * work.stride + 4 * i));
      }
    }
    for (; b < count; b++, w += 64, x += 4)
      for (int t = 0; t < T; t++) sums[t][0] = _mm512_dpbusd_epi32(sums[t][0], load64(w), each4(x + t * work.stride));
    flush<T>(out, sums, _mm512_setzero_si512(), work, first, block, scale);
  }
  for (int t = 0; t < T; t++) _mm512_storeu_ps(y + 16 * t, out[t]);
}

template <int T, int SCHEME> void int8_sparse(const Form& form, const uint8_t* w, const Work& work, int first, float* y) {
  constexpr int STEPS = SCHEME == OF_4 ? 4 : 2;
  const __m512 scale = _mm512_loadu_ps((const float*)w);
  const __m512i plus = _mm512_set1_epi8(-128);  // as unsigned bytes: 128
  const uint8_t* x = work.x + first * work.stride;
  __m512 out[T] = {};
  w += panels::scale_bytes(form);
  int64_t left = form.own[panels::BLOCKS];
  for (int64_t block = 0; left > 0; block++, left -= XBLOCK / panels::COLUMNS) {
    __m512i sums[T][2] = {}, less[2] = {};
    for (int64_t b = 0; b < XBLOCK / panels::COLUMNS && b < left; b++, w += 64 + 64 * STEPS, x += panels::COLUMNS) {
      const __m512i places = load64(w);
      ask(w);
#pragma GCC unroll 4
      for (int i = 0; i < STEPS; i++) {
        ask(w + 64 + 64 * i);
        const __m512i weight = load64(w + 64 + 64 * i), at = places8<SCHEME>(places, i);
        less[i % 2] = _mm512_dpbusd_epi32(less[i % 2], plus, weight);
        for (int t = 0; t < T; t++)
          sums[t][i % 2] = _mm512_dpbusd_epi32(sums[t][i % 2], _mm512_permutexvar_epi8(at, table8<SCHEME>(x + t * work.stride, i)), weight);
      }
    }
    flush<T>(out, sums, _mm512_add_epi32(less[0], less[1]), work, first, block, scale);
  }
  for (int t = 0; t < T; t++) _mm512_storeu_ps(y + 16 * t, out[t]);
}

template <int T> void int4_dense(const Form& form, const uint8_t* w, const Work& work, int first, float* y) {
  const __m512i low = _mm512_set1_epi8(15);
  const uint8_t *x = work.x + first * work.stride, *scales = w;
  __m512 out[T] = {};
  w += panels::scale_bytes(form);
  int64_t left = form.own[panels::BLOCKS];
  const int64_t group = form.own[panels::GROUP_BLOCKS];
  for (int64_t block = 0; left > 0; block++, left -= group, scales += 32) {
    __m512i sums[T][2];
    begin_dense<T>(sums, work, first, block, 8);
    for (int64_t b = 0; b < group && b < left; b++, w += 64, x += 8) {
      ask(w);
      const __m512i both = load64(w), one = _mm512_and_si512(both, low), other = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      for (int t = 0; t < T; t++) {
        sums[t][0] = _mm512_dpbusd_epi32(sums[t][0], one, each4(x + t * work.stride));
        sums[t][1] = _mm512_dpbusd_epi32(sums[t][1], other, each4(x + t * work.stride + 4));
      }
    }
    ask(scales);
    flush<T>(out, sums, _mm512_setzero_si512(), work, first, block, wide(scales));
  }
  for (int t = 0; t < T; t++) _mm512_storeu_ps(y + 16 * t, out[t]);
}

template <int T, int SCHEME> void int4_sparse(const Form& form, const uint8_t* w, const Work& work, int first, float* y) {
  constexpr int VECTORS = SCHEME == OF_4 ? 2 : 1;
  const __m512i plus = _mm512_set1_epi8(-128), high = _mm512_set1_epi8(-16);
  const uint8_t *x = work.x + first * work.stride, *scales = w;
  __m512 out[T] = {};
  w += panels::scale_bytes(form);
  int64_t left = form.own[panels::BLOCKS];
  const int64_t group = form.own[panels::GROUP_BLOCKS];
  for (int64_t block = 0; left > 0; block++, left -= group, scales += 32) {
    __m512i sums[T][2] = {}, less[2] = {};
    for (int64_t b = 0; b < group && b < left; b++, w += 64 + 64 * VECTORS, x += panels::COLUMNS) {
      const __m512i places = load64(w);
      ask(w);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) {
        ask(w + 64 + 64 * v);
        const __m512i both = load64(w + 64 + 64 * v);
        // in the upper half of its byte a value is 16 times itself, sign and all
        const __m512i weights[2] = {_mm512_and_si512(_mm512_slli_epi16(both, 4), high), _mm512_and_si512(both, high)};
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
          const int i = 2 * v + h;
          const __m512i at = places8<SCHEME>(places, i);
          less[h] = _mm512_dpbusd_epi32(less[h], plus, weights[h]);
          for (int t = 0; t < T; t++)
            sums[t][h] = _mm512_dpbusd_epi32(sums[t][h], _mm512_permutexvar_epi8(at, table8<SCHEME>(x + t * work.stride, i)), weights[h]);
        }
      }
    }
    ask(scales);
    flush<T>(out, sums, _mm512_add_epi32(less[0], less[1]), work, first, block, _mm512_mul_ps(wide(scales), _mm512_set1_ps(1 / 16.f)));
  }
  for (int t = 0; t < T; t++) _mm512_storeu_ps(y + 16 * t, out[t]);
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// Of a row with its bits before its values: what reading the values ahead of time leaves out.
template <int BYTES = AHEAD> inline void ask_behind(const uint8_t* bits, int64_t words) {
  for (int64_t at = 0; at < 8 * words; at += 64) ask<BYTES>(bits + at);
}

template <int T> inline void bf16_step(__m512 (&sums)[T][U<T>], int u, uint32_t own, const uint8_t*& v, const uint16_t* x, int64_t stride) {
  const __m512i weight = expand16(own, v);
  v += 2 * __builtin_popcount(own);
  for (int t = 0; t < T; t++) sums[t][u] = dot2(sums[t][u], weight, load64(x + t * stride));
}

// The bits of a row begin at `at`; its values stand behind them, and `at` is moved behind those.
template <int T> void bf16_row(const uint8_t*& at, int64_t words, const uint16_t* x, int64_t stride, float* y) {
  const uint8_t *bits = at, *v = at + 8 * words;
  __m512 sums[T][U<T>] = {};
  ask_behind<FURTHER>(bits, words);
  int64_t j = 0;
  for (; j + 2 <= words; j += 2, bits += 16, x += 128) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      ask<FURTHER>(v);
      bf16_step<T>(sums, i % U<T>, load<uint32_t>(bits + 4 * i), v, x + 32 * i, stride);
    }
  }
  if (j < words) {
    bf16_step<T>(sums, 0, load<uint32_t>(bits), v, x, stride);
    bf16_step<T>(sums, 1 % U<T>, load<uint32_t>(bits + 4), v, x + 32, stride);
  }
  at = v;
  for (int t = 0; t < T; t++) {
    __m512 sum = sums[t][0];
    for (int u = 1; u < U<T>; u++) sum = _mm512_add_ps(sum, sums[t][u]);
    y[16 * t] = _mm512_reduce_add_ps(sum);
  }
}

template <int T> inline void int8_step(__m512i (&sums)[T][U<T>], int u, uint64_t own, const uint8_t*& v, const uint8_t* x, int64_t stride) {
  const __m512i weight = expand8(_mm512_set1_epi8(-128), own, v);  // what is not kept: 0 plus 128
  v += __builtin_popcountll(own);
  for (int t = 0; t < T; t++) sums[t][u] = _mm512_dpbusd_epi32(sums[t][u], weight, load64(x + t * stride));
}

template <int T> void int8_row(const uint8_t*& at, int64_t words, const Work& work, int first, float* y) {
  const float scale = load<float>(at);
  const uint8_t *bits = at + 4, *v = at + 4 + 8 * words, *x = work.x + first * work.stride;
  __m512 out[T] = {};
  ask_behind(bits, words);
  for (int64_t block = 0, left = words; left > 0; block++, left -= 4, bits += 32, x += XBLOCK) {
    __m512i sums[T][U<T>] = {};
    for (int t = 0; t < T; t++)
      sums[t][0] = _mm512_zextsi128_si512(_mm_cvtsi32_si128(-128 * work.sums[(first + t) * work.blocks + block]));
    ask(v), ask(v + 64);
    if (left >= 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) int8_step<T>(sums, i % U<T>, load<uint64_t>(bits + 8 * i), v, x + 64 * i, work.stride);
    } else {
      for (int i = 0; i < left; i++) int8_step<T>(sums, 0, load<uint64_t>(bits + 8 * i), v, x + 64 * i, work.stride);
    }
    for (int t = 0; t < T; t++) {
      for (int u = 1; u < U<T>; u++) sums[t][0] = _mm512_add_epi32(sums[t][0], sums[t][u]);
      const __m512 by = _mm512_set1_ps(work.scales[(first + t) * work.blocks + block]);
      out[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t][0]), by, out[t]);
    }
  }
  at = v;
  for (int t = 0; t < T; t++) y[16 * t] = _mm512_reduce_add_ps(out[t]) * scale;
}

// 32 values of 4 bits, as bfloat16.
inline __m512i nibbles(const uint8_t* at) {
  alignas(64) static const uint16_t NUMBERS[32] = {  // 0 to 7, -8 to -1, twice
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
  const __m128i both = _mm_loadu_si128((const __m128i*)at), low = _mm_and_si128(both, _mm_set1_epi8(15));
  const __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15));
  const __m256i all = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi8(low, high)), _mm_unpackhi_epi8(low, high), 1);
  return _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(all), load64(NUMBERS));
}

// The activations of a row's kept columns, one after the other, and zeros behind them up to a group's end.
int64_t compress(const uint8_t* bits, int64_t words, const uint16_t* x, uint16_t* to) {
  int64_t count = 0;
  for (int64_t j = 0; j < 2 * words; j++) {
    const uint32_t own = load<uint32_t>(bits + 4 * j);
    _mm512_storeu_si512(to + count, _mm512_maskz_compress_epi16(own, load64(x + 32 * j)));
    count += __builtin_popcount(own);
  }
  for (int i = 0; i < 2; i++) _mm512_storeu_si512(to + count + 32 * i, _mm512_setzero_si512());
  return count;
}

void int4_rows(const Form& form, const uint8_t* at, const Work& work, int first, int tokens, int64_t rows, float* y) {
  static thread_local std::vector<uint16_t> kept;
  kept.resize(work.stride + 128);
  for (int64_t r = 0; r < rows; r++) {
    const rows::View view = rows::next(form, at);
    ask(at);
    for (int t = 0; t < tokens; t++) {
      const uint16_t* x = (const uint16_t*)work.x + (first + t) * work.stride;
      if (form.bits) compress(view.bits, up(form.cols, 64) / 64, x, kept.data()), x = kept.data();
      __m512 sum = _mm512_setzero_ps();
      for (int64_t g = 0; g < view.groups; g++) {
        __m512 own = _mm512_setzero_ps();
        const int64_t last = (g + 1) * form.group < view.count ? (g + 1) * form.group : view.count;
        for (int64_t i = g * form.group; i < last; i += 32) own = dot2(own, nibbles(view.values + i / 2), load64(x + i));
        sum = _mm512_fmadd_ps(own, _mm512_set1_ps(from_bf16(load<uint16_t>(view.scales + 2 * g))), sum);
      }
      y[16 * t + r] = _mm512_reduce_add_ps(sum);
    }
  }
}

template <int T> void rows_of(const Form& form, const uint8_t* body, const Work& work, int first, int64_t panel, float* y) {
  const uint8_t* at = rows::panel(body, panel);
  const int64_t rest = form.rows - panel * rows::PANEL, rows = rest < rows::PANEL ? rest : rows::PANEL, words = up(form.cols, 64) / 64;
  if (form.kind == RESSA_INT4) return int4_rows(form, at, work, first, T, rows, y);
  for (int64_t r = 0; r < rows; r++) {
    if (form.kind == RESSA_BF16) bf16_row<T>(at, words, (const uint16_t*)work.x + first * work.stride, work.stride, y + r);
    else int8_row<T>(at, words, work, first, y + r);
  }
}

// ---- the set --------------------------------------------------------------------------------------------------------

template <int T> void pass(const Form& form, const uint8_t* body, const Work& work, int first, int64_t panel, float* y) {
  if (form.layout == rows::LAYOUT) return rows_of<T>(form, body, work, first, panel, y);
  const uint8_t* w = body + panel * form.own[panels::PANEL_BYTES];
  switch (form.kind * 3 + (int)form.own[panels::SCHEME]) {
    case 0: return bf16_dense<T>(form, w, work, first, y);
    case 1: return bf16_sparse<T, OF_4>(form, w, work, first, y);
    case 2: return bf16_sparse<T, OF_16>(form, w, work, first, y);
    case 3: return int8_dense<T>(form, w, work, first, y);
    case 4: return int8_sparse<T, OF_4>(form, w, work, first, y);
    case 5: return int8_sparse<T, OF_16>(form, w, work, first, y);
    case 6: return int4_dense<T>(form, w, work, first, y);
    case 7: return int4_sparse<T, OF_4>(form, w, work, first, y);
    default: return int4_sparse<T, OF_16>(form, w, work, first, y);
  }
}

void panel(const Form& form, const uint8_t* body, const uint8_t* at, int tokens, bool is_bf16, int64_t panel, float* y) {
  const Work work = layout(form, tokens, is_bf16, (uint8_t*)at);
  const bool halves = !is_bf16 && !in_8_bits(form);
  alignas(64) float out[2 * TOKENS * 16] = {};
  for (int first = 0; first < work.many; first += MOST) {
    float* const to = out + 16 * first;
    const int some = work.many - first;
    if (some == 1) pass<1>(form, body, work, first, panel, to);
    else if (some == 2) pass<2>(form, body, work, first, panel, to);
    else if (some == 4) pass<4>(form, body, work, first, panel, to);
    else pass<8>(form, body, work, first, panel, to);
  }
  for (int t = 0; t < tokens; t++)
    for (int i = 0; i < 16; i++) y[16 * t + i] = halves ? out[32 * t + i] + out[32 * t + 16 + i] : out[16 * t + i];
}

}  // namespace
}  // namespace ressa

#include "avx512_end.h"

namespace ressa {

bool avx512_unpack(const Form& form, const uint8_t* body, int64_t panel, void* out, int32_t dtype);

namespace {

bool runs() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

int64_t plan(const Stored& stored, Form& form) {
  const int64_t bytes = panels::plan(stored, form);
  if (bytes >= 0) return bytes;
  if (stored.kind == RESSA_INT4 && stored.group % 32) return NO_KERNEL;
  for (int64_t& own : form.own) own = 0;
  return rows::plan(stored, form);
}

void pack(const Stored& stored, const Form& form, uint8_t* body) {
  (form.layout == panels::LAYOUT ? panels::pack : rows::pack)(stored, form, body);
}

void row(const Form& form, const uint8_t* body, int64_t row, Row& out) {
  (form.layout == panels::LAYOUT ? panels::row : rows::row)(form, body, row, out);
}

}  // namespace

const Isa avx512_isa = {"avx512", runs, plan, pack, row, work, activations, panel, avx512_unpack};

}  // namespace ressa
#endif
