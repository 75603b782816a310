// Where panels of 8 rows have their weights: the slots of each kind of block, and which weights of a group of 16 get
// which; and the products of those that get none.
#include "panels8.h"

namespace ressa::panels8 {
namespace {

int steps_of(int32_t kind, int32_t layout) {  // vectors of 4 bytes a row that a block of integers holds
  if (kind == RESSA_INT4 || layout == HALF16) return 8;
  return layout == QUARTER16 ? 2 : 4;
}

// Slot i of `group`: of floats in the order of the columns; of integers so that the bytes of one step lie in 16 columns.
void locate(int32_t layout, int group, int i, int& step, int& byte) {
  if (layout == DENSE) step = i / 4, byte = i % 4;
  else if (layout == OF4) step = 2 * (group / 4) + i, byte = group % 4;
  else if (layout == HALF16) step = 2 * group + i / 4, byte = i % 4;
  else step = group, byte = i;
}

void put_index(Block& b, Slot& s, int32_t kind, int32_t layout, int number, int step, int byte) {
  s.low_bits = (int8_t)b.index_bits;
  const bool floats = kind == RESSA_BF16;
  if (layout == HALF16 && floats && number >= 30) {  // what three dwords of ten indices leave over
    s.low_bits = (int8_t)(number == 30 ? 2 : 1);
    s.index = (int16_t)(number == 30 ? 0 : 32), s.index_shift = (int8_t)(number == 30 ? 30 : 31);
    s.index2 = (int16_t)(number == 30 ? 32 : 64), s.index2_shift = 30;
  } else if (layout == HALF16 && floats) {
    s.index = (int16_t)(number / 10 * 32), s.index_shift = (int8_t)(number % 10 * 3);
  } else if (floats) {
    s.index_shift = (int8_t)(number * b.index_bits);
  } else if (layout == HALF16 && step >= 6) {  // what three bytes of two indices leave over
    s.low_bits = 2;
    s.index = (int16_t)((step - 6) * 32), s.index_shift = (int8_t)(8 * byte + 6);
    s.index2 = 64, s.index2_shift = (int8_t)(8 * byte + step);
  } else {
    const int each = 8 / b.index_bits;
    s.index = (int16_t)(step / each * 32), s.index_shift = (int8_t)(8 * byte + step % each * b.index_bits);
  }
}

Block make(int32_t kind, int32_t layout) {
  Block b{};
  b.group = layout == OF4 ? 4 : 16, b.kept = layout == OF4 ? 2 : layout == HALF16 ? 8 : 4;
  b.index_bits = layout == DENSE ? 0 : layout == OF4 ? 2 : layout == HALF16 ? 3 : 4;
  const bool floats = kind == RESSA_BF16;
  b.slots = floats ? (layout == DENSE || layout == QUARTER16 ? 8 : layout == OF4 ? 16 : 32) : 4 * steps_of(kind, layout);
  if (layout == DENSE) b.group = b.kept = b.slots;
  b.cols = b.slots / b.kept * b.group;
  b.value_bits = floats ? 16 : kind == RESSA_INT8 ? 8 : 4;
  b.index_bytes = (b.slots * b.index_bits + 31) / 32 * 32;
  b.bytes = b.index_bytes + b.slots * b.value_bits;
  for (int number = 0; number < b.slots; number++) {
    Slot& s = b.slot[number];
    int step = 0, byte = 0;
    locate(layout, number / b.kept, number % b.kept, step, byte);
    if (floats) s.value = (int16_t)(number / 2 * 32), s.value_shift = (int8_t)(number % 2 * 16);
    else if (kind == RESSA_INT8) s.value = (int16_t)(step * 32), s.value_shift = (int8_t)(8 * byte);
    else s.value = (int16_t)(step / 2 * 32), s.value_shift = (int8_t)(8 * byte + step % 2 * 4);
    s.value = (int16_t)(s.value + b.index_bytes);
    if (b.index_bits) put_index(b, s, kind, layout, number, step, byte);
  }
  return b;
}

}  // namespace

const Block& block(int32_t kind, int32_t layout) {
  static const struct All { Block of[3][5]; All() { for (int k = 0; k < 3; k++) for (int l = 1; l < 5; l++) of[k][l] = make(k, l); } } all;
  return all.of[kind][layout];
}

namespace {

bool in_window(int slot, int col) { return ((col - WINDOW * slot) & 15) < 8; }
// Augmenting path from `col`: moves columns that have a slot to others until one is free.
bool seat(int col, int* at, unsigned& tried) {
  for (int slot = 0; slot < 8; slot++) {
    if (!in_window(slot, col) || tried >> slot & 1) continue;
    tried |= 1u << slot;
    if (at[slot] < 0 || seat(at[slot], at, tried)) { at[slot] = col; return true; }
  }
  return false;
}
Places::Place match(unsigned set) {
  int at[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
  for (unsigned left = set, tried; left; left &= left - 1) seat(__builtin_ctz(left), at, tried = 0);
  Places::Place place{UINT32_MAX, 0};
  for (int slot = 0; slot < 8; slot++) {
    if (at[slot] < 0) continue;
    const int rank = __builtin_popcount(set & ((1u << at[slot]) - 1));
    place.slots &= ~(15u << (4 * rank)) | (unsigned)slot << (4 * rank);
    place.taken |= (uint8_t)(1 << slot);
  }
  return place;
}

}  // namespace

Places::Places() {
  for (unsigned set = 0; set < 1 << 16; set++) of[set] = __builtin_popcount(set) > 8 ? Place{UINT32_MAX, 255} : match(set);
}
const Places& places() { static const Places all; return all; }

void add_listed(const Form& form, const uint8_t* body, const Work& work, int tokens, int64_t number, float* y) {
  const uint8_t* at = panel(form, body, number);
  const Extra* last = extras(form, body, number + 1);
  for (const Extra* extra = extras(form, body, number); extra != last; extra++)
    for (int t = 0; t < tokens; t++) {
      float& sum = y[t * ROWS + extra->row()];
      if (form.kind == RESSA_BF16) {
        sum += from_bf16((uint16_t)extra->value) * work.x[t * work.stride + extra->col()];
        continue;
      }
      const uint8_t byte = work.of(t)[extra->col()];
      const int x = work.bias ? byte - (int)work.bias : (int8_t)byte;
      const float scale = form.kind == RESSA_INT4 ? from_bf16(extra->scale) : load<float>(at + 4 * extra->row());
      sum += (float)(x * extra->value) * scale * work.scale[t];
    }
}

}  // namespace ressa::panels8
