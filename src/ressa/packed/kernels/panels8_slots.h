// Reading and writing panels of 8 rows slot by slot.
#pragma once
#include "panels8.h"

namespace ressa::panels8 {

inline unsigned get(const uint8_t* at, int shift, int bits) { return load<uint32_t>(at) >> shift & ((1u << bits) - 1); }

struct Shape {
  const Form& form;
  const Block& b;
  int unit;
  Shape(const Form& form, const Block& b) : form(form), b(b), unit(panels8::unit(form, b)) {}
  bool has_bits() const { return form.layout == HALF16; }
  // The slot, in its group, of the weight that comes as number `rank` of those that `set` keeps.
  int slot(unsigned set, int rank) const {
    const int first = has_bits() ? __builtin_popcount(set & 255) : b.kept;
    return rank < first ? rank : 7 - (rank - first);
  }
};

inline uint8_t* at_block(const Shape& s, uint8_t* panel, int64_t number) {
  const int64_t scales = s.form.kind == RESSA_INT4 ? (number / s.unit + 1) * 16 : 0;
  return panel + (s.form.kind == RESSA_BF16 ? 0 : 32) + scales + number * s.b.bytes;
}
inline const uint8_t* at_block(const Shape& s, const uint8_t* panel, int64_t number) { return at_block(s, const_cast<uint8_t*>(panel), number); }

inline int64_t at_bits(int lane, int group) { return 16 * group + 2 * lane; }  // in a block of HALF16

inline int get_index(const Shape& s, const uint8_t* block, int lane, int slot) {
  const Slot& where = s.b.slot[slot];
  return (int)get(block + where.index + 4 * lane, where.index_shift, s.b.index_bits);
}

inline int bias(const Shape& s) { return s.form.kind == RESSA_INT4 ? 8 : 0; }  // int4 is kept plus 8

inline int16_t value_at(const Shape& s, const uint8_t* block, int lane, int slot) {
  const Slot& where = s.b.slot[slot];
  const unsigned value = get(block + where.value + s.b.row_value * lane, where.value_shift, s.b.value_bits);
  if (s.form.kind == RESSA_BF16) return (int16_t)value;
  return (int16_t)(s.form.kind == RESSA_INT8 ? (int8_t)value : (int)value - bias(s));
}

// The columns that one group keeps, and their values at these columns. A free slot repeats another's column.
inline unsigned read_group(const Shape& s, const uint8_t* block, int lane, int group, int16_t* value) {
  unsigned set = 0;
  const int first = group * s.b.kept;
  if (s.has_bits()) {
    set = load<uint16_t>(block + at_bits(lane, group));
    int rank = 0;
    for (unsigned left = set; left; left &= left - 1, rank++)
      value[__builtin_ctz(left)] = value_at(s, block, lane, first + s.slot(set, rank));
    return set;
  }
  for (int i = 0; i < s.b.kept; i++) {
    const int where = get_index(s, block, lane, first + i);
    if (!(set >> where & 1)) value[where] = value_at(s, block, lane, first + i), set |= 1u << where;
  }
  return set;
}

}  // namespace ressa::panels8
