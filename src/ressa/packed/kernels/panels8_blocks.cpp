// Where panels of 8 rows have their weights: the slots of each kind of block; and the products of those in lists.
#include "panels8.h"

namespace ressa::panels8 {
namespace {

int steps_of(int32_t kind, int32_t layout) {  // vectors of 4 bytes a row that a block of integers holds
  if (layout == QUARTER16) return kind == RESSA_INT4 ? 4 : 2;
  return kind == RESSA_INT4 || layout == HALF16 ? 8 : 4;
}

// Slot i of `group`: of floats in the order of the columns; of integers so that the bytes of one step lie in 16 columns.
void locate(int32_t layout, int group, int i, int& step, int& byte) {
  if (layout == DENSE) step = i / 4, byte = i % 4;
  else if (layout == OF4) step = 2 * (group / 4) + i, byte = group % 4;
  else step = group, byte = i;  // of HALF16 a step is a group of 8 bytes a row
}

void put_index(Block& b, Slot& s, bool floats, int number, int step, int byte) {
  const int each = 8 / b.index_bits;
  if (floats) s.index_shift = (int8_t)(number * b.index_bits);
  else s.index = (int16_t)(step / each * 32), s.index_shift = (int8_t)(8 * byte + step % each * b.index_bits);
}

void put_value(Block& b, Slot& s, int32_t kind, int32_t layout, int number, int step, int byte) {
  const int vector = layout == HALF16 ? 64 : 32;  // bytes of one step of all rows
  if (kind == RESSA_BF16 && layout == HALF16) s.value = (int16_t)(number / 8 * 128 + 2 * (number % 8));
  else if (kind == RESSA_BF16) s.value = (int16_t)(number / 2 * 32), s.value_shift = (int8_t)(number % 2 * 16);
  else if (kind == RESSA_INT8) s.value = (int16_t)(step * vector + byte);
  else s.value = (int16_t)(step / 2 * vector + byte), s.value_shift = (int8_t)(step % 2 * 4);
  s.value = (int16_t)(s.value + b.index_bytes);
}

Block make(int32_t kind, int32_t layout) {
  Block b{};
  b.group = layout == OF4 ? 4 : 16, b.kept = layout == OF4 ? 2 : layout == HALF16 ? 8 : 4;
  b.index_bits = layout == OF4 ? 2 : layout == QUARTER16 ? 4 : 0;
  const bool floats = kind == RESSA_BF16;
  b.slots = floats ? (layout == DENSE || layout == QUARTER16 ? 8 : layout == OF4 ? 16 : 32) : 4 * steps_of(kind, layout);
  if (layout == DENSE) b.group = b.kept = b.slots;
  b.cols = b.slots / b.kept * b.group;
  b.value_bits = floats ? 16 : kind == RESSA_INT8 ? 8 : 4;
  b.row_value = layout != HALF16 ? 4 : floats ? 16 : 8;
  b.index_bytes = layout == HALF16 ? b.cols : (b.slots * b.index_bits + 31) / 32 * 32;
  b.bytes = b.index_bytes + b.slots * b.value_bits;
  for (int number = 0; number < b.slots; number++) {
    int step = 0, byte = 0;
    locate(layout, number / b.kept, number % b.kept, step, byte);
    put_value(b, b.slot[number], kind, layout, number, step, byte);
    if (b.index_bits) put_index(b, b.slot[number], floats, number, step, byte);
  }
  return b;
}

}  // namespace

const Block& block(int32_t kind, int32_t layout) {
  static const struct All { Block of[3][5]; All() { for (int k = 0; k < 3; k++) for (int l = 1; l < 5; l++) of[k][l] = make(k, l); } } all;
  return all.of[kind][layout];
}

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
