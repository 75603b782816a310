// NEON of ARMv8: panels of fixed stride (panels8.h) with permuted activations, and rows with bits expanded by a table.
// In panels, products of int8 and int4 take activations in 8 bits, one scale for each token; in rows they are float32.
#include "expand.h"
#include "panels8.h"

#ifdef RESSA_HAS_NEON
#include <arm_neon.h>

#include <cmath>
#include <limits>

namespace ressa {
namespace {

using panels8::Work;

bool runs() { return true; }

int64_t row_bytes(const Form& form) { return panels8::in8bits(form) ? up(form.cols, PAD) : 0; }

int64_t work(const Form& form, int tokens, bool) { return (int64_t)sizeof(Work) + tokens * row_bytes(form) + SLACK; }

// Rounds to -127 .. 127 and returns the scale; NaN if there is one in x.
float quantise(const float* x, int64_t count, uint8_t* out) {
  float amax = 0;
  bool bad = false;
  for (int64_t i = 0; i < count; i++) {
    const float size = std::fabs(x[i]);
    bad |= size != size;
    amax = size > amax ? size : amax;
  }
  const float inverse = amax > 0 && std::isfinite(amax) ? 127 / amax : 0;
  const bool fits = std::isfinite(inverse) && !bad;
  for (int64_t i = 0; i < count; i++) out[i] = fits ? (uint8_t)(int8_t)std::nearbyint(x[i] * inverse) : 0;
  return bad || !std::isfinite(amax) ? std::numeric_limits<float>::quiet_NaN() : fits ? amax / 127 : 0;
}

void activations(const Form& form, const float* x, int64_t stride, int tokens, bool, uint8_t* at) {
  Work& work = *(Work*)at;
  work.x = x, work.stride = stride, work.row = row_bytes(form), work.bias = 0;
  for (int t = 0; panels8::in8bits(form) && t < tokens; t++)
    work.scale[t] = quantise(x + t * stride, stride, const_cast<uint8_t*>(work.of(t)));
}

// Vectors are half a panel: rows 4 half to 4 half + 3, 4 bytes each.
uint8x16_t bytes16(const uint8_t* at) { return vld1q_u8(at); }
uint32x4_t dwords(const uint8_t* at) { return vreinterpretq_u32_u8(vld1q_u8(at)); }

// The floats of `index` among 16.
float32x4_t pick(const float* x, uint32x4_t index) {
  uint8x16x4_t all;
  for (int i = 0; i < 4; i++) all.val[i] = vld1q_u8((const uint8_t*)(x + 4 * i));
  const uint32x4_t bytes = vaddq_u32(vmulq_u32(index, vdupq_n_u32(0x04040404)), vdupq_n_u32(0x03020100));
  return vreinterpretq_f32_u8(vqtbl4q_u8(all, vreinterpretq_u8_u32(bytes)));
}

uint32x4_t shifted(uint32x4_t v, int right) { return vshlq_u32(v, vdupq_n_s32(-right)); }

// The columns, in their group of 16, of weight `slot` of a block of bfloat16.
uint32x4_t bf16_index(int32_t layout, const uint8_t* at, int slot) {
  if (layout == panels8::OF4) {
    const uint32x4_t two = vandq_u32(shifted(dwords(at), 2 * slot), vdupq_n_u32(3));
    return vaddq_u32(two, vdupq_n_u32((unsigned)(slot / 2 % 4 * 4)));
  }
  return vandq_u32(shifted(dwords(at), 4 * slot), vdupq_n_u32(15));
}

void bf16(const Form& form, const panels8::Block& b, const uint8_t* panel, const Work& work, int tokens, int half, float* y) {
  float32x4_t sum[TOKENS];
  for (int t = 0; t < tokens; t++) sum[t] = vdupq_n_f32(0);
  const uint8_t* at = panel + 16 * half;
  for (int64_t c = 0; c < form.cols; c += b.cols, at += b.bytes)
    for (int s = 0; s < b.slots; s += 2) {
      const uint32x4_t both = dwords(at + b.slot[s].value);
      const float32x4_t low = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
      const float32x4_t high = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000)));
      const int64_t group = c + (form.layout == panels8::OF4 ? s / 8 : s / b.kept) * 16;
      const bool dense = form.layout == panels8::DENSE;
      const uint32x4_t first = dense ? vdupq_n_u32(0) : bf16_index(form.layout, at, s);
      const uint32x4_t second = dense ? first : bf16_index(form.layout, at, s + 1);
      for (int t = 0; t < tokens; t++) {
        const float* x = work.x + t * work.stride;
        sum[t] = vfmaq_f32(sum[t], low, dense ? vdupq_n_f32(x[c + s]) : pick(x + group, first));
        sum[t] = vfmaq_f32(sum[t], high, dense ? vdupq_n_f32(x[c + s + 1]) : pick(x + group, second));
      }
    }
  for (int t = 0; t < tokens; t++) vst1q_f32(y + t * panels8::ROWS + 4 * half, sum[t]);
}

uint8x16_t bits_at(const uint8_t* at, int shift, int mask) {
  return vandq_u8(vshlq_u8(bytes16(at), vdupq_n_s8((int8_t)-shift)), vdupq_n_u8((uint8_t)mask));
}

// The columns of the four weights of step `s`, in the 16 that they lie in.
uint8x16_t int_index(int32_t layout, const uint8_t* at, int s) {
  if (layout == panels8::OF4)
    return vorrq_u8(bits_at(at + s / 4 * 32, s % 4 * 2, 3), vreinterpretq_u8_u32(vdupq_n_u32(0x0c080400)));
  return bits_at(at + s / 2 * 32, s % 2 * 4, 15);
}

// The activations of step `s`.
int8x16_t int_x(int32_t layout, const uint8_t* x, uint8x16_t index, int s) {
  if (layout == panels8::DENSE) return vreinterpretq_s8_u32(vdupq_n_u32(load<uint32_t>(x + 4 * s)));
  return vreinterpretq_s8_u8(vqtbl1q_u8(bytes16(x + (layout == panels8::QUARTER16 ? s : s / 2) * 16), index));
}

// Two products of at most 127 * 127 fit 16 bits.
int32x4_t dot(int32x4_t sum, int8x16_t x, int8x16_t weight) {
  const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(weight)), high = vmull_s8(vget_high_s8(x), vget_high_s8(weight));
  return vpadalq_s16(sum, vpaddq_s16(low, high));
}

int8x16_t int_weight(const Form& form, const uint8_t* values, int s) {
  if (form.kind == RESSA_INT8) return vreinterpretq_s8_u8(bytes16(values + 32 * s));
  return vsubq_s8(vreinterpretq_s8_u8(bits_at(values + s / 2 * 32, s % 2 * 4, 15)), vdupq_n_s8(8));
}

void block_of_integers(const Form& form, const panels8::Block& b, const uint8_t* at, const Work& work, int64_t c, int tokens, int32x4_t* sum) {
  for (int s = 0; s < b.slots / 4; s++) {
    const uint8x16_t index = form.layout == panels8::DENSE ? vdupq_n_u8(0) : int_index(form.layout, at, s);
    const int8x16_t weight = int_weight(form, at + b.index_bytes, s);
    for (int t = 0; t < tokens; t++) sum[t] = dot(sum[t], int_x(form.layout, work.of(t) + c, index, s), weight);
  }
}

void integers(const Form& form, const panels8::Block& b, const uint8_t* panel, const Work& work, int tokens, int half, float* y) {
  const bool grouped = form.kind == RESSA_INT4;
  int32x4_t sum[TOKENS];
  float32x4_t total[TOKENS];
  for (int t = 0; t < tokens; t++) sum[t] = vdupq_n_s32(0), total[t] = vdupq_n_f32(0);
  float32x4_t scale = vld1q_f32((const float*)(panel + 16 * half));
  const uint8_t* at = panel + 32 + 16 * half;
  for (int64_t c = 0, number = 0; c < form.cols; c += b.cols, number++, at += b.bytes) {
    if (grouped && number % panels8::unit(form, b) == 0) {
      scale = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t*)(at - 16 * half + 8 * half)), 16));
      at += 16;
    }
    block_of_integers(form, b, at, work, c, tokens, sum);
    for (int t = 0; grouped && t < tokens; t++)
      total[t] = vfmaq_f32(total[t], vcvtq_f32_s32(sum[t]), scale), sum[t] = vdupq_n_s32(0);
  }
  for (int t = 0; t < tokens; t++) {
    if (!grouped) total[t] = vmulq_f32(vcvtq_f32_s32(sum[t]), scale);
    vst1q_f32(y + t * panels8::ROWS + 4 * half, vmulq_n_f32(total[t], work.scale[t]));
  }
}

// ---- panels of 8:16, whose positions are bits (HALF16): a vector has two rows, of bfloat16 half of one

// The columns of the 8 slots of the row whose 16 bits are there.
uint8x8_t columns(const uint8_t* bits) { return vorr_u8(vld1_u8(HALVES.low[bits[0]]), vld1_u8(HALVES.high[bits[1]])); }

void half16_bf16(const Form& form, const uint8_t* at, const Work& work, int token, float* y) {
  const float* x = work.x + token * work.stride;
  float32x4_t sum[panels8::ROWS];
  for (auto& one : sum) one = vdupq_n_f32(0);
  for (int64_t c = 0; c < form.cols; c += 64, at += 64 + 4 * 128)
    for (int i = 0; i < 4 * panels8::ROWS; i++) {
      const int g = i / panels8::ROWS, r = i % panels8::ROWS;
      const uint16x8_t index = vmovl_u8(columns(at + 16 * g + 2 * r)), kept = vld1q_u16((const uint16_t*)(at + 64 + 128 * g + 16 * r));
      const float32x4_t low = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(kept), 16));
      const float32x4_t high = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(kept), 16));
      sum[r] = vfmaq_f32(sum[r], low, pick(x + c + 16 * g, vmovl_u16(vget_low_u16(index))));
      sum[r] = vfmaq_f32(sum[r], high, pick(x + c + 16 * g, vmovl_u16(vget_high_u16(index))));
    }
  for (int r = 0; r < panels8::ROWS; r++) y[r] = vaddvq_f32(sum[r]);
}

// The 8 weights of two rows in group `g`.
int8x16_t half16_weight(const Form& form, const uint8_t* values, int g, int pair) {
  if (form.kind == RESSA_INT8) return vreinterpretq_s8_u8(bytes16(values + 64 * g + 16 * pair));
  return vsubq_s8(vreinterpretq_s8_u8(bits_at(values + g / 2 * 64 + 16 * pair, g % 2 * 4, 15)), vdupq_n_s8(8));
}

void half16_integers(const Form& form, const panels8::Block& b, const uint8_t* panel, const Work& work, int token, float* y) {
  const bool grouped = form.kind == RESSA_INT4;
  const uint8_t *at = panel + 32, *x = work.of(token);
  int32x4_t sum[4];
  float total[panels8::ROWS] = {}, scale[panels8::ROWS];
  memcpy(scale, panel, sizeof scale);
  for (auto& one : sum) one = vdupq_n_s32(0);
  for (int64_t c = 0, number = 0; c < form.cols; c += b.cols, number++, at += b.bytes) {
    if (grouped && number % panels8::unit(form, b) == 0) {
      for (int r = 0; r < panels8::ROWS; r++) scale[r] = from_bf16(load<uint16_t>(at + 2 * r));
      at += 16;
    }
    for (int i = 0; i < 16; i++) {
      const int g = i / 4, pair = i % 4;
      const uint8x16_t index = vcombine_u8(columns(at + 16 * g + 4 * pair), columns(at + 16 * g + 4 * pair + 2));
      const int8x16_t own = vreinterpretq_s8_u8(vqtbl1q_u8(bytes16(x + c + 16 * g), index));
      sum[pair] = dot(sum[pair], own, half16_weight(form, at + b.index_bytes, g, pair));
    }
    for (int r = 0; r < panels8::ROWS && (grouped || c + b.cols >= form.cols); r++) {
      const int32x2_t own = r % 2 ? vget_high_s32(sum[r / 2]) : vget_low_s32(sum[r / 2]);
      total[r] += (float)vaddv_s32(own) * scale[r];
      if (r % 2) sum[r / 2] = vdupq_n_s32(0);
    }
  }
  for (int r = 0; r < panels8::ROWS; r++) y[r] = total[r] * work.scale[token];
}

// ---- rows one after the other, with bits

// Up to 8 kept weights from `number` on, where `mask` says.
void expand(const Form& form, const rows::View& view, int64_t number, unsigned mask, float32x4_t* weight) {
  if (form.kind == RESSA_BF16) {
    const uint8x16_t kept = bytes16(view.values + 2 * number);
    for (int i = 0; i < 2; i++)
      weight[i] = vreinterpretq_f32_u8(vqtbl1q_u8(kept, bytes16(EXPAND.to_floats[mask] + 16 * i)));
    return;
  }
  uint8x16_t kept = bytes16(view.values + (form.kind == RESSA_INT4 ? number / 2 : number));
  if (form.kind == RESSA_INT4) {
    const uint8x16_t low = vandq_u8(kept, vdupq_n_u8(15)), high = vshrq_n_u8(kept, 4);
    const int8x16_t eight = vdupq_n_s8(8);
    kept = vreinterpretq_u8_s8(vsubq_s8(veorq_s8(vreinterpretq_s8_u8(vzip1q_u8(low, high)), eight), eight));
    if (number % 2) kept = vextq_u8(kept, kept, 1);
  } else {
    kept = veorq_u8(kept, vdupq_n_u8(0x80));
  }
  const int16x8_t each = vmovl_s8(vreinterpret_s8_u8(vqtbl1_u8(kept, vld1_u8(EXPAND.to_bytes[mask]))));
  weight[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(each)));
  weight[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(each)));
}

unsigned byte_of(const Form& form, const rows::View& view, int64_t col) {
  if (view.bits) return view.bits[col / 8];
  return form.cols - col >= 8 ? 255 : (1u << (form.cols - col)) - 1;
}

struct Sums { float32x4_t now[TOKENS], total[TOKENS]; };

void finish(Sums& sums, int tokens, float scale) {
  for (int t = 0; t < tokens; t++)
    sums.total[t] = vfmaq_n_f32(sums.total[t], sums.now[t], scale), sums.now[t] = vdupq_n_f32(0);
}

float scale_of(const Form& form, const rows::View& view, int64_t group) {
  if (form.kind == RESSA_BF16) return 1;
  return form.kind == RESSA_INT8 ? load<float>(view.scales) : from_bf16(load<uint16_t>(view.scales + 2 * group));
}

void one_row(const Form& form, const rows::View& view, const Work& work, int tokens, float* y) {
  Sums sums;
  for (int t = 0; t < tokens; t++) sums.now[t] = sums.total[t] = vdupq_n_f32(0);
  const int64_t length = form.kind == RESSA_INT4 ? form.group : form.cols;
  int64_t number = 0, group = 0;
  for (int64_t c = 0; c < form.cols; c += 8)
    for (unsigned mask = byte_of(form, view, c); mask;) {
      unsigned part = mask;  // those of this scale
      while (number + __builtin_popcount(part) > (group + 1) * length) part &= ~(0x80000000u >> __builtin_clz(part));
      float32x4_t weight[2];
      expand(form, view, number, part, weight);
      for (int t = 0; t < tokens; t++) {
        const float* x = work.x + t * work.stride + c;
        sums.now[t] = vfmaq_f32(vfmaq_f32(sums.now[t], weight[0], vld1q_f32(x)), weight[1], vld1q_f32(x + 4));
      }
      number += __builtin_popcount(part), mask &= ~part;
      if (number == (group + 1) * length) finish(sums, tokens, scale_of(form, view, group++));
    }
  if (number > group * length) finish(sums, tokens, scale_of(form, view, group));
  for (int t = 0; t < tokens; t++) y[t * rows::PANEL] = vaddvq_f32(sums.total[t]);
}

void panel(const Form& form, const uint8_t* body, const uint8_t* at, int tokens, bool, int64_t number, float* y) {
  const Work& work = *(const Work*)at;
  if (form.layout != rows::LAYOUT) {
    const panels8::Block& b = panels8::block(form.kind, form.layout);
    const uint8_t* from = panels8::panel(form, body, number);
    const bool halves = form.layout != panels8::HALF16;
    for (int t = 0; !halves && t < tokens; t++) {
      if (form.kind == RESSA_BF16) half16_bf16(form, from, work, t, y + t * panels8::ROWS);
      else half16_integers(form, b, from, work, t, y + t * panels8::ROWS);
    }
    for (int half = 0; halves && half < 2; half++)
      (form.kind == RESSA_BF16 ? bf16 : integers)(form, b, from, work, tokens, half, y);
    return panels8::add_listed(form, body, work, tokens, number, y);
  }
  const uint8_t* from = rows::panel(body, number);
  for (int64_t i = 0; i < rows::PANEL && number * rows::PANEL + i < form.rows; i++)
    one_row(form, rows::next(form, from), work, tokens, y + i);
}

}  // namespace

const Isa neon_isa = {"neon", runs, panels8::plan, panels8::pack, panels8::row, work, activations, panel, panels8::unpack};

}  // namespace ressa
#endif
