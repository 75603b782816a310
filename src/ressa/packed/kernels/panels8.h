// The layout of fixed stride that AVX2 and NEON share: panels of 8 rows, whose values and positions lie in blocks of some
// columns, so that one vector of 32 bytes holds 4 bytes of each row. Kernels permute the activations by the positions;
// weights are never expanded. It takes dense weights and those with at most 2 kept of any 4, 4 of any 16 or 8 of any 16.
//
// A panel of int8 begins with 8 float32 scales, of int4 with -128 times the sum of each row. Of int4, every 32 or 64 kept
// weights (one or two blocks) have 8 bfloat16 scales before them. Then the blocks: positions, and behind them values.
//
// Weights that do not fit stand in a list of their own, which a panel adds at its end. They are few, or this layout is
// not taken: of 8:16, one weight in those 8 of the 12,870 ways to keep 8 that have no place for it (see `WINDOW`); of
// int4, those that a missing weight moved to the scale of a neighbour. Rows in which some group is not full keep
// their bits, from which alone they can be restored.
#pragma once
#include "internal.h"

namespace ressa::panels8 {

constexpr int ROWS = 8;
enum Layout : int32_t { DENSE = 1, OF4 = 2, HALF16 = 3, QUARTER16 = 4 };  // Form::layout; rows::LAYOUT is 0

// Of HALF16, the weight in slot i of 8 stands in column (2 i + index) mod 16 of its group, and an index of 3 bits is enough.
constexpr int WINDOW = 2;

struct Slot { int16_t value, index, index2; int8_t value_shift, index_shift, index2_shift, low_bits; };

// One block: `cols` columns of which each row keeps `slots`. Offsets in slots are bytes of row 0; row r is 4 r behind.
struct Block {
  int cols, slots, group, kept;  // at most `kept` of any `group` columns
  int index_bytes, bytes;
  int value_bits, index_bits;
  Slot slot[64];
};

// A weight that has no slot.
struct Extra { uint32_t col_row; uint16_t scale; int16_t value;
  int64_t col() const { return col_row >> 3; }
  int row() const { return col_row & 7; } };

const Block& block(int32_t kind, int32_t layout);
// Of HALF16: for each set of at most 8 of 16 columns, the slot of each in their order (four bits each, 15: it has none),
// and which slots are taken.
struct Places {
  struct Place { uint32_t slots; uint8_t taken; } of[1 << 16];
  Places();
};
const Places& places();
inline int64_t blocks(const Form& form, const Block& b) { return (form.cols + b.cols - 1) / b.cols; }
// Blocks that share the scales before them; int4 only.
inline int unit(const Form& form) { return form.group % 64 == 0 ? 2 : 1; }
inline int64_t panel_bytes(const Form& form, const Block& b) {
  const int64_t count = blocks(form, b);
  return (form.kind == RESSA_BF16 ? 0 : 32) + count * b.bytes + (form.kind == RESSA_INT4 ? (count + unit(form) - 1) / unit(form) * 16 : 0);
}
inline const uint8_t* panel(const Form& form, const uint8_t* body, int64_t panel) {
  return body + panel * panel_bytes(form, block(form.kind, form.layout));
}
inline const Extra* extras(const Form& form, const uint8_t* body, int64_t panel) {
  return (const Extra*)(body + form.own[1]) + load<uint32_t>(body + form.own[0] + 4 * panel);
}

// What `activations` leaves in `work`; behind it, one row a token, what the kernels of the layout read.
struct Work {
  const float* x;       // (tokens, stride), as given
  int64_t stride;
  int64_t row;          // bytes of a token's row behind this
  int64_t bias;         // what was added to 8-bit activations
  float scale[TOKENS];  // of 8-bit activations
  const uint8_t* of(int token) const { return (const uint8_t*)(this + 1) + token * row; }
};
inline bool in8bits(const Form& form) { return form.kind != RESSA_BF16 && form.layout != rows::LAYOUT; }

// Adds the products of the weights that have no slot to y (tokens, ROWS).
void add_listed(const Form&, const uint8_t* body, const Work&, int tokens, int64_t panel, float* y);

// The plan of this layout, or of rows one after the other where no fixed stride fits or it would cost too many bytes.
int64_t plan(const Stored&, Form&);
void pack(const Stored&, const Form&, uint8_t* body);
void row(const Form&, const uint8_t* body, int64_t row, Row& out);
bool unpack(const Form&, const uint8_t* body, int64_t panel, void* out, int32_t dtype);

}  // namespace ressa::panels8
