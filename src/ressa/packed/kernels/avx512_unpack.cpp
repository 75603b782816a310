// Dense weights out of prepared ones with AVX-512, for products of more tokens than the kernels take: one panel of 16 rows
// at a time. The kept weights of a row are brought together and rounded, then expanded by the row's bits.
#include "panels.h"

#ifdef RESSA_HAS_AVX512
#include "avx512.h"

namespace ressa {
namespace {


// What is known of one row: where its kept weights are, one after the other, and its bits (null: all are kept).
struct Kept {
  const uint8_t *values, *bits, *scales;
  int64_t count;
  int offset;  // int8: what was added to values
};

inline void put16(void* to, int32_t dtype, int64_t i, __m512 value) {
  if (dtype == RESSA_F32) return _mm512_storeu_ps((float*)to + i, value);
  const __m512i u = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));  // to nearest even
  _mm256_storeu_si256((__m256i*)((uint16_t*)to + i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16)));
}

// 16 values of 4 bits from 8 bytes, as integers.
inline __m512i nibbles(const uint8_t* at) {
  const __m128i both = _mm_loadl_epi64((const __m128i*)at), low = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  const __m128i all = _mm_unpacklo_epi8(_mm_and_si128(both, low), _mm_and_si128(_mm_srli_epi16(both, 4), low));
  return _mm512_cvtepi8_epi32(_mm_sub_epi8(_mm_xor_si128(all, eight), eight));
}

// The kept weights in `dtype`, and up to 64 bytes of anything behind them.
void round_kept(const Form& form, const Kept& kept, void* to, int32_t dtype) {
  for (int64_t i = 0; i < kept.count; i += 16) {
    __m512 value;
    if (form.kind == RESSA_BF16) {
      const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(kept.values + 2 * i)));
      value = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    } else if (form.kind == RESSA_INT8) {
      const __m128i bytes = _mm_xor_si128(_mm_loadu_si128((const __m128i*)(kept.values + i)), _mm_set1_epi8((char)kept.offset));
      value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), _mm512_set1_ps(load<float>(kept.scales)));
    } else {
      const float scale = from_bf16(load<uint16_t>(kept.scales + 2 * (i / form.group)));
      value = _mm512_mul_ps(_mm512_cvtepi32_ps(nibbles(kept.values + i / 2)), _mm512_set1_ps(scale));
    }
    put16(to, dtype, i, value);
  }
}

template <class T> void expand(const Form& form, const Kept& kept, const T* values, T* to) {
  if (!kept.bits) {
    memcpy(to, values, form.cols * sizeof(T));
    return;
  }
  constexpr int STEP = 64 / sizeof(T);
  for (int64_t c = 0; c < form.cols; c += STEP) {
    const int64_t left = form.cols - c;
    const uint32_t all = left >= STEP ? (uint32_t)((UINT64_C(1) << STEP) - 1) : (UINT32_C(1) << left) - 1;
    const uint32_t bits = load<uint32_t>(kept.bits + c / 8) & all;
    if (sizeof(T) == 2) _mm512_mask_storeu_epi16(to + c, all, _mm512_maskz_expand_epi16(bits, load64(values)));
    else _mm512_mask_storeu_epi32(to + c, (__mmask16)all, _mm512_maskz_expand_epi32((__mmask16)bits, load64(values)));
    values += __builtin_popcount(bits);
  }
}

// The kept weights of a row of a panel: its 4 bytes of every 64.
void gather(const Form& form, const uint8_t* blocks, int row, uint8_t* to) {
  const panels::Block b = panels::block(form.kind, form.own[panels::SCHEME]);
  const int head = form.own[panels::SCHEME] == panels::DENSE ? 0 : 64;
  for (int64_t i = 0; i < form.own[panels::BLOCKS]; i++, blocks += b.bytes)
    for (int at = head; at < b.bytes; at += 64, to += 4) {
      const uint32_t own = load<uint32_t>(blocks + at + 4 * row);
      if (form.kind != RESSA_INT4) {
        store<uint32_t>(to, own);
        continue;
      }
      // the lower halves are 4 weights, the upper ones the next 4: put in pairs, as they are stored
      uint32_t low = own & 0x0f0f0f0f, high = own >> 4 & 0x0f0f0f0f;
      low = (low | low >> 4) & 0x00ff00ff, high = (high | high >> 4) & 0x00ff00ff;
      low = (low | low >> 8) & 0xffff, high = (high | high >> 8) & 0xffff;
      const uint32_t flip = head ? 0 : 0x88888888;  // dense ones are plus 8
      store<uint32_t>(to, (low | high << 16) ^ flip);
    }
}

template <bool PAIRS, int SCHEME> void bits_of(const Form& form, const uint8_t* blocks, int row, uint8_t* bits) {
  constexpr int WIDTH = SCHEME == OF_16 ? 4 : 2, KEPT = SCHEME == OF_16 ? 8 : 16, MOST = SCHEME == OF_16 ? 4 : 2;
  const int bytes = panels::block(form.kind, SCHEME).bytes;
  for (int64_t i = 0; i < form.own[panels::BLOCKS]; i++, blocks += bytes, bits += 4) {
    const uint32_t places = load<uint32_t>(blocks + 4 * row);
    uint32_t all = 0;
#pragma GCC unroll 16
    for (int k = 0; k < KEPT; k++) {
      const int bit = PAIRS ? 16 * (k % 2) + WIDTH * (k / 2) : 8 * (k % 4) + WIDTH * (k / 4);
      all |= UINT32_C(1) << (k / MOST * (32 * MOST / KEPT) + (places >> bit & ((1 << WIDTH) - 1)));
    }
    store<uint32_t>(bits, all);
  }
}

void bits_of(const Form& form, const uint8_t* blocks, int row, uint8_t* bits) {
  const bool of_4 = form.own[panels::SCHEME] == OF_4;
  if (form.kind == RESSA_BF16) (of_4 ? bits_of<true, OF_4> : bits_of<true, OF_16>)(form, blocks, row, bits);
  else (of_4 ? bits_of<false, OF_4> : bits_of<false, OF_16>)(form, blocks, row, bits);
}

}  // namespace

// False if it cannot: places that stand for nothing are among the kept ones, or groups end within 16 of them. A last
// group that is cut short may keep more than its share, so that the count alone would not tell.
bool avx512_unpack(const Form& form, const uint8_t* body, int64_t panel, void* out, int32_t dtype) {
  const bool rows = form.layout == rows::LAYOUT, dense = !rows && form.own[panels::SCHEME] == panels::DENSE;
  const int64_t scheme = rows ? panels::DENSE : form.own[panels::SCHEME];
  const int64_t of = scheme == OF_4 ? 2 : scheme == OF_16 ? 4 : 1, group = scheme == OF_4 ? 4 : scheme == OF_16 ? 16 : 1;
  if (!rows && (form.cols % group || form.kept * of != form.rows * form.cols)) return false;
  if (form.kind == RESSA_INT4 && form.group % 16) return false;
  static thread_local std::vector<uint8_t> values, rounded, bits, scales;
  values.resize(2 * up(form.cols, 64) + 256), rounded.resize(4 * up(form.cols, 64) + 256);
  bits.resize(up(form.cols, 64) / 8 + 64), scales.resize(2 * form.cols + 64);
  const int64_t first = panel * form.panel_rows, rest = form.rows - first;
  const uint8_t *at = rows ? rows::panel(body, panel) : body + panel * form.own[panels::PANEL_BYTES], *panel_at = at;
  const uint8_t* blocks = rows ? nullptr : at + panels::scale_bytes(form);
  for (int r = 0; r < form.panel_rows && r < rest; r++) {
    Kept kept{values.data(), dense ? nullptr : bits.data(), scales.data(), form.kept / form.rows, 0};
    if (rows) {
      const rows::View view = rows::next(form, at);
      kept = {view.values, view.bits, view.scales, view.count, 128};
    } else {
      gather(form, blocks, r, values.data());
      if (!dense) bits_of(form, blocks, r, bits.data());
      kept.offset = dense ? 128 : 0;
      if (form.kind == RESSA_INT8) kept.scales = panel_at + 4 * r;
      for (int64_t g = 0; form.kind == RESSA_INT4 && g < form.scales / form.rows; g++)
        memcpy(&scales[2 * g], panel_at + 2 * (g * panels::ROWS + r), 2);
    }
    round_kept(form, kept, rounded.data(), dtype);
    const int64_t to = (first + r) * form.cols;
    if (dtype == RESSA_F32) expand<float>(form, kept, (const float*)rounded.data(), (float*)out + to);
    else expand<uint16_t>(form, kept, (const uint16_t*)rounded.data(), (uint16_t*)out + to);
  }
  return true;
}

}  // namespace ressa

#include "avx512_end.h"
#endif
