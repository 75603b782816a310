// The layout of fixed stride that AVX2 and NEON share: panels of 8 rows, whose values and positions lie in blocks of some
// columns, so that one vector of 32 bytes holds 4 bytes of each row. Kernels permute the activations by the positions;
// weights are never expanded. It takes dense weights and those with at most 2 kept of any 4, 4 of any 16 or 8 of any 16.
//
// A panel of int8 begins with 8 float32 scales, of int4 with -128 times the sum of each row. Of int4, every 32 or 64 kept
// weights (one to four blocks) have 8 bfloat16 scales before them. Then the blocks: positions, and behind them values.
//
// Of 8:16 the positions of a group are its 16 bits, from which tables make columns (HALVES, expand.h), and the bytes of one
// row lie together: a vector holds the 8 slots of four rows (bf16: of one).
//
// Weights of int4 that a missing weight moved to the scale of a neighbour stand in a list of their own, which a panel adds
// at its end. They are few, or this layout is not taken. Rows of 2:4 and 4:16 in which some group is empty keep their bits
// too, from which alone they can be restored.
#pragma once
#include "internal.h"

namespace ressa::panels8 {

constexpr int ROWS = 8;
enum Layout : int32_t { DENSE = 1, OF4 = 2, HALF16 = 3, QUARTER16 = 4 };  // Form::layout; rows::LAYOUT is 0

struct Slot { int16_t value, index; int8_t value_shift, index_shift; };

// One block: `cols` columns of which each row keeps `slots`. Offsets in slots are bytes of row 0; indices of row r are
// 4 r behind, values `row_value` r.
struct Block {
  int cols, slots, group, kept;  // at most `kept` of any `group` columns
  int index_bytes, bytes;
  int value_bits, index_bits;
  int row_value;
  Slot slot[64];
};

// A weight of int4 whose scale is not that of its slot.
struct Extra { uint32_t col_row; uint16_t scale; int16_t value;
  int64_t col() const { return col_row >> 3; }
  int row() const { return col_row & 7; } };

const Block& block(int32_t kind, int32_t layout);
inline int64_t blocks(const Form& form, const Block& b) { return (form.cols + b.cols - 1) / b.cols; }
// Blocks that share the scales before them; int4 only.
inline int unit(const Form& form, const Block& b) { return (form.group % 64 == 0 ? 64 : 32) / b.slots; }
inline int64_t panel_bytes(const Form& form, const Block& b) {
  const int64_t count = blocks(form, b);
  const int64_t scales = form.kind == RESSA_INT4 ? (count + unit(form, b) - 1) / unit(form, b) * 16 : 0;
  return (form.kind == RESSA_BF16 ? 0 : 32) + count * b.bytes + scales;
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

// Adds the products of the weights in the list to y (tokens, ROWS).
void add_listed(const Form&, const uint8_t* body, const Work&, int tokens, int64_t panel, float* y);

// The plan of this layout, or of rows one after the other where no fixed stride fits or it would cost too many bytes.
int64_t plan(const Stored&, Form&);
void pack(const Stored&, const Form&, uint8_t* body);
void row(const Form&, const uint8_t* body, int64_t row, Row& out);
bool unpack(const Form&, const uint8_t* body, int64_t panel, void* out, int32_t dtype);

}  // namespace ressa::panels8
