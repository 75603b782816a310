// AVX2: products of rows one after the other (rows.cpp), whose bits are expanded by tables. Activations are float32.
#include "internal.h"

#ifdef RESSA_HAS_AVX2
#include "expand.h"

#include "avx2.h"

namespace ressa::avx2 {
namespace {

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

struct Bf16Values {
  static constexpr int BYTES = 2, ENTRY = 32;  // of a value, and of an entry of the table
  INLINE const uint8_t* table() { return &EXPAND.to_floats[0][0]; }
  INLINE __m256 expand(const uint8_t* at, const uint8_t* entry) { return floats(_mm256_shuffle_epi8(twice16(at), bytes32(entry))); }
  INLINE float scaled(float sum, const rows::View&) { return sum; }
};
struct Int8Values {
  static constexpr int BYTES = 1, ENTRY = 8;
  INLINE const uint8_t* table() { return &EXPAND.to_bytes[0][0]; }
  INLINE __m256 expand(const uint8_t* at, const uint8_t* entry) {
    const __m128i kept = _mm_xor_si128(_mm_loadl_epi64((const __m128i*)at), _mm_set1_epi8((char)0x80));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_shuffle_epi8(kept, _mm_loadl_epi64((const __m128i*)entry))));
  }
  INLINE float scaled(float sum, const rows::View& view) { return sum * load<float>(view.scales); }
};

template <class V, int T> NOINLINE void whole_row(const Form& form, const rows::View& view, const float* x, int64_t stride, float* y) {
  __m256 sum[T][CHAINS<T>];
  clear<T>(sum);
  const uint8_t *at = view.values, *table = V::table();
  for (int64_t c = 0; c < form.cols; c += 64) {
    const uint64_t word = word_of(form, view, c);
    ahead<64>(at);
    UNROLL for (int i = 0; i < 8; i++) {
      const uint64_t mask = part_of<V::ENTRY>(word, i);
      const __m256 weight = V::expand(at, table + mask);
      at += V::BYTES * __builtin_popcountll(mask);
      UNROLL for (int t = 0; t < T; t++) {
        __m256& s = sum[t][i % CHAINS<T>];
        s = _mm256_fmadd_ps(weight, _mm256_loadu_ps(x + t * stride + c + 8 * i), s);
      }
    }
  }
  UNROLL for (int t = 0; t < T; t++) y[t * rows::PANEL] = V::scaled(sum_of(total_of<CHAINS<T>>(sum[t])), view);
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
template <int T> void of_tokens(const Form& form, const rows::View& view, const Work& work, int first, float* y) {
  const float* x = work.x + first * work.stride;
  if (form.kind == RESSA_BF16) whole_row<Bf16Values, T>(form, view, x, work.stride, y);
  else if (form.kind == RESSA_INT8) whole_row<Int8Values, T>(form, view, x, work.stride, y);
  else int4_row<T>(form, view, x, work.stride, y);
}
}  // namespace

void one_row(const Form& form, const uint8_t*& at, const Work& work, int tokens, float* y) {
  const rows::View view = next(form, at);
  by_tokens(tokens, [&](int t) { of_tokens<4>(form, view, work, t, y + t * rows::PANEL); },
            [&](int t) { of_tokens<2>(form, view, work, t, y + t * rows::PANEL); },
            [&](int t) { of_tokens<1>(form, view, work, t, y + t * rows::PANEL); });
}

}  // namespace ressa::avx2

#include "avx2_end.h"
#endif
