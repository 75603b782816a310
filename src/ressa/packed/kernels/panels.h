// The layout of panels: 16 rows side by side, so that each 32-bit lane of a register holds one row, in one stream.
//
// A panel holds its scales (float32 of int8; bfloat16 of int4, 16 for each group), padded to 64 bytes, and its blocks:
//   dense   bf16: 64 bytes are 2 columns of every row; int8 (plus 128): 4 columns; int4 (plus 8): 8, the first four in the
//           lower halves of the bytes
//   2:4     32 columns: 64 bytes that say where the 16 kept weights of every row stand (2 bits each, within their 4
//           columns), then the weights
//   4:16    32 columns: 64 bytes with 4 bits for each of the 8 kept weights, then the weights; 1:4 and 2:8 are 4:16 too
// Where fewer are kept, a weight of 0 stands for one that is not, at a place that does not follow the one before.
#pragma once
#include "internal.h"

namespace ressa::panels {

constexpr int LAYOUT = 1, ROWS = 16, COLUMNS = 32;
enum Scheme : int64_t { DENSE = 0, OF_4 = 1, OF_16 = 2 };
enum Own { SCHEME = 0, BLOCKS = 1, PANEL_BYTES = 2, GROUP_BLOCKS = 3 };  // of Form::own

// Bytes of the body, or NO_KERNEL if the weight is no such.
int64_t plan(const Stored&, Form&);
void pack(const Stored&, const Form&, uint8_t* body);
void row(const Form&, const uint8_t* body, int64_t row, Row& out);

inline int64_t scale_bytes(const Form& form) {
  if (form.kind == RESSA_BF16) return 0;
  if (form.kind == RESSA_INT8) return 4 * ROWS;
  return up(2 * ROWS * ((form.own[BLOCKS] + form.own[GROUP_BLOCKS] - 1) / form.own[GROUP_BLOCKS]), 64);
}

// Columns of a block, weights of a row in it, and its bytes.
struct Block { int columns, kept, bytes; };
inline Block block(int32_t kind, int64_t scheme) {
  const int each = kind == RESSA_BF16 ? 2 : kind == RESSA_INT8 ? 4 : 8;  // weights of a row in 64 bytes
  if (scheme == DENSE) return {each, each, 64};
  const int kept = scheme == OF_4 ? 16 : 8;
  return {COLUMNS, kept, 64 + 64 * kept / each};
}

}  // namespace ressa::panels
