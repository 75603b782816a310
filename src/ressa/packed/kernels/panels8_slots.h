// Reading and writing panels of 8 rows slot by slot.
#pragma once
#include "panels8.h"

namespace ressa::panels8 {

inline unsigned get(const uint8_t* at, int offset, int shift, int bits) {
  return load<uint32_t>(at + offset) >> shift & ((1u << bits) - 1);
}

struct Shape {
  const Form& form;
  const Block& b;
  const Places* places;
  int unit;
  Shape(const Form& form, const Block& b)
      : form(form), b(b), places(form.layout == HALF16 ? &panels8::places() : nullptr), unit(panels8::unit(form)) {}
  // The slot, in its group, of the weight that comes as number `rank` of those that `set` keeps; or -1.
  int slot(unsigned set, int rank) const {
    if (!places) return rank < b.kept ? rank : -1;
    const unsigned slot = rank < 8 ? places->of[set].slots >> (4 * rank) & 15 : 15;
    return slot == 15 ? -1 : (int)slot;
  }
};

inline uint8_t* at_block(const Shape& s, uint8_t* panel, int64_t number) {
  const int64_t scales = s.form.kind == RESSA_INT4 ? (number / s.unit + 1) * 16 : 0;
  return panel + (s.form.kind == RESSA_BF16 ? 0 : 32) + scales + number * s.b.bytes;
}
inline const uint8_t* at_block(const Shape& s, const uint8_t* panel, int64_t number) { return at_block(s, const_cast<uint8_t*>(panel), number); }

inline int get_index(const Shape& s, const uint8_t* at, int slot) {
  const Slot& where = s.b.slot[slot];
  unsigned index = get(at, where.index, where.index_shift, where.low_bits);
  if (where.low_bits < s.b.index_bits)
    index |= get(at, where.index2, where.index2_shift, s.b.index_bits - where.low_bits) << where.low_bits;
  return (int)(s.places ? (index + WINDOW * (slot % 8)) & 15 : index);
}

inline int bias(const Shape& s) { return s.form.kind == RESSA_INT4 ? 8 : 0; }  // int4 is kept plus 8

inline int16_t value_at(const Shape& s, const uint8_t* at, int slot) {
  const unsigned value = get(at, s.b.slot[slot].value, s.b.slot[slot].value_shift, s.b.value_bits);
  if (s.form.kind == RESSA_BF16) return (int16_t)value;
  return (int16_t)(s.form.kind == RESSA_INT8 ? (int8_t)value : (int)value - bias(s));
}

}  // namespace ressa::panels8
