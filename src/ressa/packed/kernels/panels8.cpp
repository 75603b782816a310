#include "panels8_slots.h"

namespace ressa::panels8 {
namespace {

constexpr int FEW = 64;          // one weight of so many may stand in the list
constexpr double DEARER = 1.1;   // as many bytes as rows one after the other may this layout have
constexpr int64_t SMALL = 4096;  // and so many more: padding of small weights

void put(uint8_t* at, int shift, int bits, unsigned value) {
  const uint32_t mask = ((1u << bits) - 1) << shift;
  store<uint32_t>(at, (load<uint32_t>(at) & ~mask) | (value << shift & mask));
}
unsigned group_bits(const uint8_t* bits, int64_t cols, int64_t col, int group) {
  const int64_t left = cols - col;
  unsigned set = bits[col / 8] | (group > 8 && left > 8 ? (unsigned)bits[col / 8 + 1] << 8 : 0);
  return set >> (col % 8) & ((1u << group) - 1);
}

// Calls one(number of the kept weight, column, block, slot, fits) for all kept weights of a row in their order. A weight
// of int4 whose scale is not that of its block does not fit.
template <class One> void walk_sparse(const Shape& s, const uint8_t* bits, const One& one) {
  const int per = s.b.cols / s.b.group;
  const bool grouped = s.form.kind == RESSA_INT4;
  int64_t number = 0, at = 0, own = 0, of_block = 0, left = s.form.group;  // own, of_block: numbers of scales
  int in_block = 0;
  for (int64_t col = 0; col < s.form.cols; col += s.b.group) {
    const unsigned set = group_bits(bits, s.form.cols, col, s.b.group);
    int rank = 0;
    for (unsigned rest = set; rest; rest &= rest - 1, rank++, number++) {
      one(number, col + __builtin_ctz(rest), at, in_block * s.b.kept + s.slot(set, rank), own == of_block);
      if (grouped && --left == 0) own++, left = s.form.group;
    }
    if (++in_block < per) continue;
    in_block = 0, at++;
    if (grouped) of_block = at * s.b.slots / s.form.group;
  }
}

template <class One> void walk(const Shape& s, const uint8_t* bits, const One& one) {
  if (s.form.bits) return walk_sparse(s, bits, one);
  for (int64_t col = 0, at = 0; col < s.form.cols; col += s.b.cols, at++)
    for (int i = 0; i < s.b.cols && col + i < s.form.cols; i++) one(col + i, col + i, at, i, true);
}

// Whether the row keeps as many as it has room for, or at least its positions alone tell which.
bool full(const Shape& s, int64_t kept) { return s.form.cols % s.b.group == 0 && kept == s.form.cols / s.b.group * s.b.kept; }
bool tells(const Shape& s, const uint8_t* bits, int64_t kept) {
  if (s.has_bits() || full(s, kept)) return true;
  for (int64_t col = 0; col < s.form.cols; col += s.b.group)
    if (!group_bits(bits, s.form.cols, col, s.b.group)) return false;
  return true;
}

void set_index(const Shape& s, uint8_t* block, int lane, int slot, int col) {
  const Slot& where = s.b.slot[slot];
  put(block + where.index + 4 * lane, where.index_shift, s.b.index_bits, (unsigned)col);
}

// Free slots repeat a column that is kept, so that they tell nothing wrong.
void fill_free(const Shape& s, const uint8_t* bits, uint8_t* panel, int lane) {
  const int per = s.b.cols / s.b.group;
  for (int64_t col = 0, group = 0; !s.has_bits() && col < s.form.cols; col += s.b.group, group++) {
    const unsigned set = group_bits(bits, s.form.cols, col, s.b.group);
    for (int i = __builtin_popcount(set); set && i < s.b.kept; i++)
      set_index(s, at_block(s, panel, group / per), lane, (int)(group % per) * s.b.kept + i, __builtin_ctz(set));
  }
}

// The bits that positions tell.
void bits_of(const Shape& s, const uint8_t* panel, int lane, uint8_t* bits) {
  const int per = s.b.cols / s.b.group;
  int16_t value[16];
  for (int64_t col = 0, group = 0; col < s.form.cols; col += s.b.group, group++) {
    const unsigned set = read_group(s, at_block(s, panel, group / per), lane, (int)(group % per), value);
    bits[col / 8] |= (uint8_t)(set << (col % 8));
    if (set >> 8) bits[col / 8 + 1] |= (uint8_t)(set >> 8);
  }
}

struct Room { int64_t extras = 0, told = 0; };  // what a layout needs beside its panels

Room room_of(const Stored& stored, const Shape& s) {
  Room room;
  if (!s.form.bits) return room;
  for (int64_t r = 0; r < stored.rows; r++) {
    if (s.form.kind == RESSA_INT4 && !full(s, stored.kept(r)))
      walk(s, stored.bits(r), [&](int64_t, int64_t, int64_t, int, bool fits) { room.extras += !fits; });
    room.told += !tells(s, stored.bits(r), stored.kept(r));
  }
  return room;
}

// own: the offsets of the lists' beginnings, the lists, the number of each row's bits plus 1, and these bits.
int64_t lay_out(Form& form, const Block& b, const Room& room) {
  form.own[0] = up(form.panels * panel_bytes(form, b), 64);
  form.own[1] = up(form.own[0] + 4 * (form.panels + 1), 64);
  form.own[2] = up(form.own[1] + (int64_t)sizeof(Extra) * room.extras, 64);
  form.own[3] = up(form.own[2] + (room.told ? 4 * form.rows : 0), 64);
  if (!room.told) form.own[2] = 0;
  return form.own[3] + room.told * ((form.cols + 7) / 8);
}

int32_t layout_of(const Stored& stored) {
  if (!stored.bitmask) return DENSE;
  if (stored.most16 <= 4) return QUARTER16;
  if (stored.most4 <= 2) return OF4;
  return stored.most16 <= 8 ? HALF16 : rows::LAYOUT;
}

}  // namespace

int64_t plan(const Stored& stored, Form& form) {
  const int64_t plain = rows::plan(stored, form);
  Form other = form;
  other.layout = layout_of(stored), other.panel_rows = ROWS, other.panels = (stored.rows + ROWS - 1) / ROWS;
  if (other.layout == rows::LAYOUT || (form.kind == RESSA_INT4 && form.group % 32)) return plain;
  // products of -128 do not fit; ressa writes none
  if (form.kind == RESSA_INT8 && form.kept && memchr(stored.values, 0x80, form.kept)) return plain;
  const Block& b = block(form.kind, other.layout);
  const Room room = room_of(stored, Shape(other, b));
  const int64_t bytes = lay_out(other, b, room);
  if (room.extras * FEW > form.kept || (double)bytes > DEARER * (double)plain + SMALL) return plain;
  form = other;
  return bytes;
}

namespace {

struct Packing {
  const Stored& stored;
  Shape s;
  uint8_t* body;
  uint32_t extras = 0, told = 0;

  void row(int64_t r, uint8_t* panel) {
    const int lane = (int)(r % ROWS);
    const uint8_t* bits = s.form.bits ? stored.bits(r) : nullptr;
    const int64_t first = stored.first[r];
    double sum = 0;
    walk(s, bits, [&](int64_t number, int64_t col, int64_t block, int slot, bool fits) {
      uint8_t* at = at_block(s, panel, block);
      const int16_t value = stored.value(first + number);
      const uint16_t scale = s.form.kind == RESSA_INT4 ? scale_of(r, number / s.form.group) : (uint16_t)0;
      if (s.has_bits()) put(at + at_bits(lane, slot / 8), (int)(col & 15), 1, 1);
      else if (bits) set_index(s, at, lane, slot, (int)(col & (s.b.group - 1)));
      if (!fits) return add({(uint32_t)(col << 3 | lane), scale, value});
      const Slot& where = s.b.slot[slot];
      put(at + where.value + s.b.row_value * lane, where.value_shift, s.b.value_bits, (unsigned)(value + bias(s)));
      if (s.form.kind == RESSA_INT4) sum += from_bf16(scale) * (double)value;
    });
    if (s.form.kind == RESSA_INT8) store<float>(panel + 4 * lane, load<float>(stored.scale + 4 * r));
    if (s.form.kind == RESSA_INT4) { store<float>(panel + 4 * lane, (float)(-128 * sum)); scales(r, panel); }
    if (!bits || full(s, stored.kept(r))) return;
    fill_free(s, bits, panel, lane);
    if (!tells(s, bits, stored.kept(r))) keep_bits(r, bits);
  }
  uint16_t scale_of(int64_t r, int64_t group) const { return load<uint16_t>(stored.scale + 2 * (stored.scale_first[r] + group)); }
  void add(Extra extra) { store<Extra>(body + s.form.own[1] + sizeof(Extra) * extras++, extra); }
  void scales(int64_t r, uint8_t* panel) {
    const int64_t count = blocks(s.form, s.b), groups = row_groups(stored.kept(r), s.form.group);
    for (int64_t at = 0; at < count; at += s.unit)
      if (const int64_t own = at * s.b.slots / s.form.group; own < groups)
        store<uint16_t>(at_block(s, panel, at) - 16 + 2 * (r % ROWS), scale_of(r, own));
  }
  void keep_bits(int64_t r, const uint8_t* bits) {
    const int64_t bytes = stored.row_bytes();
    memcpy(body + s.form.own[3] + told * bytes, bits, bytes);
    store<uint32_t>(body + s.form.own[2] + 4 * r, ++told);
  }
};

}  // namespace

void pack(const Stored& stored, const Form& form, uint8_t* body) {
  if (form.layout == rows::LAYOUT) return rows::pack(stored, form, body);
  const Block& b = block(form.kind, form.layout);
  Packing packing{stored, Shape(form, b), body};
  const int64_t bytes = panel_bytes(form, b);
  // free slots of int4 hold 0, which is stored as 8
  for (int64_t p = 0; p < form.panels; p++) {
    uint8_t* at = body + p * bytes;
    if (form.kind == RESSA_INT4)
      for (int64_t i = 0; i < blocks(form, b); i++) memset(at_block(packing.s, at, i) + b.index_bytes, 0x88, b.bytes - b.index_bytes);
    store<uint32_t>(body + form.own[0] + 4 * p, packing.extras);
    for (int64_t r = p * ROWS; r < (p + 1) * ROWS && r < form.rows; r++) packing.row(r, at);
  }
  store<uint32_t>(body + form.own[0] + 4 * form.panels, packing.extras);
}


namespace {

uint32_t own_bits(const Form& form, const uint8_t* body, int64_t row) {  // their number plus 1, 0: none
  return form.own[2] ? load<uint32_t>(body + form.own[2] + 4 * row) : 0;
}

void find_bits(const Shape& s, const uint8_t* body, int64_t row, uint8_t* bits) {
  const int64_t bytes = (s.form.cols + 7) / 8;
  if (const uint32_t number = own_bits(s.form, body, row)) memcpy(bits, body + s.form.own[3] + (number - 1) * bytes, bytes);
  else bits_of(s, panel(s.form, body, row / ROWS), (int)(row % ROWS), bits);
}

// A row whose positions tell everything, and that has no weight in the list: in one pass.
void read_told(const Shape& s, const uint8_t* panel, int lane, Row& out) {
  const int per = s.b.cols / s.b.group;
  for (int64_t col = 0, block = 0; col < s.form.cols; block++) {
    const uint8_t* at = at_block(s, panel, block);
    for (int group = 0; group < per && col < s.form.cols; group++, col += s.b.group) {
      int16_t value[16];
      unsigned set = read_group(s, at, lane, group, value);
      out.bits[col / 8] |= (uint8_t)(set << (col % 8));
      if (set >> 8) out.bits[col / 8 + 1] |= (uint8_t)(set >> 8);
      for (; set; set &= set - 1) out.values[out.count++] = value[__builtin_ctz(set)];
    }
  }
}

}  // namespace

void row(const Form& form, const uint8_t* body, int64_t row, Row& out) {
  if (form.layout == rows::LAYOUT) return rows::row(form, body, row, out);
  const Shape s(form, block(form.kind, form.layout));
  const int lane = (int)(row % ROWS);
  const uint8_t* from = panel(form, body, row / ROWS);
  const Extra *extra = extras(form, body, row / ROWS), *last = extras(form, body, row / ROWS + 1);
  while (extra != last && extra->row() != lane) extra++;
  out.count = 0;
  if (form.bits && extra == last && !own_bits(form, body, row)) {
    read_told(s, from, lane, out);
  } else {
    if (form.bits) find_bits(s, body, row, out.bits);
    walk(s, out.bits, [&](int64_t number, int64_t, int64_t at, int slot, bool fits) {
      out.values[number] = !fits ? (extra++)->value : value_at(s, at_block(s, from, at), lane, slot);
      out.count = number + 1;
    });
  }
  if (form.kind == RESSA_INT8) out.scale = load<float>(from + 4 * lane);
  out.groups = form.kind == RESSA_INT4 ? row_groups(out.count, form.group) : 0;
  for (int64_t g = 0; g < out.groups; g++)
    out.scales16[g] = load<uint16_t>(at_block(s, from, g * form.group / s.b.slots / s.unit * s.unit) - 16 + 2 * lane);
}

}  // namespace ressa::panels8
