// Dense weights out of panels of 8 rows, for products of more tokens than kernels take: every weight goes to its column.
#include "panels8_slots.h"

namespace ressa::panels8 {
namespace {

template <class Out> Out rounded(float value);
template <> float rounded<float>(float value) { return value; }
template <> uint16_t rounded<uint16_t>(float value) { return to_bf16(value); }

// Of int8, the row's; of int4, that of the block; of bf16 there is none.
float scale_of(const Shape& s, const uint8_t* panel, int lane, int64_t block) {
  if (s.form.kind == RESSA_INT8) return load<float>(panel + 4 * lane);
  return from_bf16(load<uint16_t>(at_block(s, panel, block / s.unit * s.unit) - 16 + 2 * lane));
}

template <class Out> Out product(const Shape& s, int16_t value, float scale) {
  return rounded<Out>(s.form.kind == RESSA_BF16 ? from_bf16((uint16_t)value) : (float)value * scale);
}

// Free slots hold 0 and are passed over, as are weights that are kept and 0.
template <class Out> void one_row(const Shape& s, const uint8_t* panel, int lane, Out* out) {
  memset(out, 0, s.form.cols * sizeof(Out));
  const int64_t count = blocks(s.form, s.b);
  int16_t values[16];
  for (int64_t block = 0; block < count; block++) {
    const uint8_t* at = at_block(s, panel, block);
    const float scale = s.form.kind == RESSA_BF16 ? 1 : scale_of(s, panel, lane, block);
    Out* group = out + block * s.b.cols;
    if (s.form.layout == DENSE) {
      for (int slot = 0; slot < s.b.slots; slot++)
        if (const int16_t value = value_at(s, at, lane, slot)) group[slot] = product<Out>(s, value, scale);
      continue;
    }
    for (int number = 0; number < s.b.slots / s.b.kept; number++, group += s.b.group)
      for (unsigned set = read_group(s, at, lane, number, values); set; set &= set - 1)
        if (const int16_t value = values[__builtin_ctz(set)]) group[__builtin_ctz(set)] = product<Out>(s, value, scale);
  }
}

template <class Out> void rows_of(const Shape& s, const uint8_t* body, int64_t number, Out* out) {
  const uint8_t* from = panel(s.form, body, number);
  out += number * ROWS * s.form.cols;
  for (int lane = 0; lane < ROWS && number * ROWS + lane < s.form.rows; lane++) one_row(s, from, lane, out + lane * s.form.cols);
  const Extra* last = extras(s.form, body, number + 1);
  for (const Extra* extra = extras(s.form, body, number); extra != last; extra++) {
    const float scale = s.form.kind == RESSA_INT8 ? load<float>(from + 4 * extra->row()) : from_bf16(extra->scale);
    out[extra->row() * s.form.cols + extra->col()] = product<Out>(s, extra->value, scale);
  }
}

}  // namespace

bool unpack(const Form& form, const uint8_t* body, int64_t panel, void* out, int32_t dtype) {
  if (form.layout == rows::LAYOUT) return false;
  const Shape s(form, block(form.kind, form.layout));
  if (dtype == RESSA_F32) rows_of(s, body, panel, (float*)out);
  else rows_of(s, body, panel, (uint16_t*)out);
  return true;
}

}  // namespace ressa::panels8
