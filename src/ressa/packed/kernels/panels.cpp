#include "panels.h"

namespace ressa::panels {

namespace {

// A pattern whose stored form holds at most 1 weight in 50 that is not one.
bool nearly(int64_t kept, int64_t slots) { return 50 * (slots - kept) <= slots; }

int64_t scheme_of(const Stored& s) {
  const bool integers4 = s.kind == RESSA_INT4;
  if (!s.bitmask) return DENSE;
  const int64_t kept = s.first[s.rows], weights = s.rows * up(s.cols, COLUMNS);
  if (s.most16 <= 4 && (integers4 ? s.exact16 && s.most16 == 4 : nearly(kept, weights / 4))) return OF_16;
  if (s.most4 <= 2 && (integers4 ? s.exact4 && s.most4 == 2 : nearly(kept, weights / 2))) return OF_4;
  return -1;
}

// Where weight k of a block's row stands: its byte in the block's values, which half of it, its bits among the places.
struct Place { int byte, nibble, bit; };

inline Place place(int32_t kind, int64_t scheme, int row, int k) {
  const int width = scheme == OF_16 ? 4 : 2;
  if (kind == RESSA_BF16) return {64 * (k / 2) + 4 * row + 2 * (k % 2), 0, 16 * (k % 2) + width * (k / 2)};
  const int step = k / 4, bit = 8 * (k % 4) + width * step;
  if (kind == RESSA_INT8) return {64 * step + 4 * row + k % 4, 0, bit};
  return {64 * (step / 2) + 4 * row + k % 4, step % 2, bit};
}

inline void put(int32_t kind, int64_t scheme, uint8_t* values, Place at, int value) {
  if (kind == RESSA_BF16) return store<int16_t>(values + at.byte, (int16_t)value);
  if (kind == RESSA_INT8) values[at.byte] = (uint8_t)(scheme == DENSE ? value + 128 : value);
  else values[at.byte] |= (uint8_t)(((scheme == DENSE ? value + 8 : value) & 15) << (4 * at.nibble));
}

int take(int32_t kind, int64_t scheme, const uint8_t* values, Place at) {
  if (kind == RESSA_BF16) return load<int16_t>(values + at.byte);
  if (kind == RESSA_INT8) return scheme == DENSE ? values[at.byte] - 128 : (int8_t)values[at.byte];
  const int nibble = values[at.byte] >> (4 * at.nibble) & 15;
  return scheme == DENSE ? nibble - 8 : (nibble ^ 8) - 8;
}

// The bits of 32 columns of a row; of columns behind the last there are none.
uint32_t bits32(const Stored& s, int64_t r, int64_t column) {
  const int64_t from = column / 8, left = s.row_bytes() - from;
  uint32_t bits = 0;
  if (left > 0) memcpy(&bits, s.bits(r) + from, left < 4 ? left : 4);
  return bits;
}

template <int32_t KIND, int64_t SCHEME> void pack_sparse(const Stored& s, const Form& form, int64_t r, uint8_t* blocks) {
  const Block b = block(KIND, SCHEME);
  constexpr int WIDTH = SCHEME == OF_16 ? 16 : 4, MOST = SCHEME == OF_16 ? 4 : 2;
  const int row = (int)(r % ROWS);
  int64_t index = s.first[r];
  for (int64_t i = 0; i < form.own[BLOCKS]; i++, blocks += b.bytes) {
    uint32_t places = 0;
    const uint32_t bits = bits32(s, r, i * COLUMNS);
    for (int g = 0; g < COLUMNS / WIDTH; g++) {
      uint32_t own = bits >> (WIDTH * g) & ((1u << WIDTH) - 1), column = own ? 0 : 1;
      for (int j = 0; j < MOST; j++) {
        const Place at = place(KIND, SCHEME, row, MOST * g + j);
        if (own) {
          column = (uint32_t)__builtin_ctz(own);
          put(KIND, SCHEME, blocks + 64, at, s.value(index++));
          own &= own - 1;
        }
        places |= column << at.bit;
        if (j == 0 && !(bits >> (WIDTH * g) & ((1u << WIDTH) - 1))) column = 0;  // of a group without any: 1, 0, ...
      }
    }
    store<uint32_t>(blocks + 4 * row, places);
  }
}

void pack_sparse(const Stored& s, const Form& form, int64_t r, uint8_t* blocks) {
  const bool of_4 = form.own[SCHEME] == OF_4;
  switch (form.kind) {
    case RESSA_BF16: return (of_4 ? pack_sparse<RESSA_BF16, OF_4> : pack_sparse<RESSA_BF16, OF_16>)(s, form, r, blocks);
    case RESSA_INT8: return (of_4 ? pack_sparse<RESSA_INT8, OF_4> : pack_sparse<RESSA_INT8, OF_16>)(s, form, r, blocks);
    default: return (of_4 ? pack_sparse<RESSA_INT4, OF_4> : pack_sparse<RESSA_INT4, OF_16>)(s, form, r, blocks);
  }
}

void pack_dense(const Stored& s, const Form& form, int64_t r, uint8_t* blocks) {
  const Block b = block(form.kind, DENSE);
  const int row = (int)(r % ROWS);
  for (int64_t c = 0; c < form.own[BLOCKS] * b.columns; c++)
    put(form.kind, DENSE, blocks + c / b.columns * b.bytes, place(form.kind, DENSE, row, (int)(c % b.columns)),
        c < s.cols ? s.value(s.first[r] + c) : 0);
}

void read_sparse(const Form& form, const uint8_t* blocks, int row, Row& out) {
  const int64_t scheme = form.own[SCHEME];
  const Block b = block(form.kind, scheme);
  const int width = scheme == OF_16 ? 16 : 4, most = scheme == OF_16 ? 4 : 2;
  for (int64_t i = 0; i < form.own[BLOCKS]; i++, blocks += b.bytes) {
    const uint32_t places = load<uint32_t>(blocks + 4 * row);
    for (int k = 0; k < b.kept; k += most)
      for (int j = 0, before = -1; j < most; j++) {
        const Place at = place(form.kind, scheme, row, k + j);
        const int column = places >> at.bit & (width - 1);
        const bool none = j == 0 && (places >> place(form.kind, scheme, row, k + 1).bit & (width - 1)) < (uint32_t)column;
        if (none || column <= before) break;
        before = column;
        const int64_t c = i * COLUMNS + k / most * width + column;
        if (c >= form.cols) break;
        out.bits[c / 8] |= (uint8_t)(1 << c % 8);
        out.values[out.count++] = (int16_t)take(form.kind, scheme, blocks + 64, at);
      }
  }
}

}  // namespace

int64_t plan(const Stored& s, Form& form) {
  const int64_t scheme = scheme_of(s);
  if (scheme < 0) return NO_KERNEL;
  const Block b = block(s.kind, scheme);
  form.layout = LAYOUT;
  form.panel_rows = ROWS;
  form.panels = (s.rows + ROWS - 1) / ROWS;
  form.own[SCHEME] = scheme;
  form.own[BLOCKS] = (s.cols + b.columns - 1) / b.columns;
  form.own[GROUP_BLOCKS] = form.own[BLOCKS];
  if (s.kind == RESSA_INT4) {
    if (s.group % b.kept && s.group < s.kept(0)) return NO_KERNEL;
    if (s.group < s.kept(0)) form.own[GROUP_BLOCKS] = s.group / b.kept;
    if (form.own[GROUP_BLOCKS] * b.columns > 16384) return NO_KERNEL;  // its sums must fit 32 bits
  }
  form.own[PANEL_BYTES] = scale_bytes(form) + form.own[BLOCKS] * b.bytes;
  return form.panels * form.own[PANEL_BYTES];
}

void pack(const Stored& s, const Form& form, uint8_t* body) {
  for (int64_t r = 0; r < form.panels * ROWS; r++) {
    uint8_t* panel = body + r / ROWS * form.own[PANEL_BYTES];
    uint8_t* blocks = panel + scale_bytes(form);
    if (r >= s.rows) continue;
    if (s.kind == RESSA_INT8) memcpy(panel + 4 * (r % ROWS), s.scale + 4 * r, 4);
    if (s.kind == RESSA_INT4)
      for (int64_t g = s.scale_first[r]; g < s.scale_first[r + 1]; g++)
        memcpy(panel + 2 * ((g - s.scale_first[r]) * ROWS + r % ROWS), s.scale + 2 * g, 2);
    if (form.own[SCHEME] == DENSE) pack_dense(s, form, r, blocks);
    else pack_sparse(s, form, r, blocks);
  }
}

void row(const Form& form, const uint8_t* body, int64_t r, Row& out) {
  const uint8_t* panel = body + r / ROWS * form.own[PANEL_BYTES];
  const uint8_t* blocks = panel + scale_bytes(form);
  const int row = (int)(r % ROWS);
  const Block b = block(form.kind, form.own[SCHEME]);
  out.count = 0;
  if (form.own[SCHEME] == DENSE) {
    for (; out.count < form.cols; out.count++)
      out.values[out.count] = (int16_t)take(form.kind, DENSE, blocks + out.count / b.columns * b.bytes,
                                            place(form.kind, DENSE, row, (int)(out.count % b.columns)));
  } else {
    read_sparse(form, blocks, row, out);
  }
  if (form.kind == RESSA_INT8) out.scale = load<float>(panel + 4 * row);
  out.groups = form.kind == RESSA_INT4 ? row_groups(out.count, form.group) : 0;
  for (int64_t g = 0; g < out.groups; g++) out.scales16[g] = load<uint16_t>(panel + 2 * (g * ROWS + row));
}

}  // namespace ressa::panels
