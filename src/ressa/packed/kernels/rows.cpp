#include "internal.h"

namespace ressa::rows {

static int64_t bits_bytes(const Form& form) { return form.bits ? up(form.cols, 64) / 8 : 0; }

static int64_t value_bytes(int32_t kind, int64_t count) {
  return kind == RESSA_BF16 ? 2 * count : kind == RESSA_INT8 ? count : (count + 1) / 2;
}

static int64_t groups_of(const Form& form, int64_t count) {
  return form.kind == RESSA_INT4 ? row_groups(count, form.group) : 0;
}

static int64_t row_bytes(const Form& form, int64_t count) {
  return (form.kind == RESSA_INT8 ? 4 : 0) + bits_bytes(form) + value_bytes(form.kind, count) + 2 * groups_of(form, count);
}

int64_t plan(const Stored& stored, Form& form) {
  form.layout = LAYOUT;
  form.panel_rows = PANEL;
  form.panels = (stored.rows + PANEL - 1) / PANEL;
  int64_t bytes = up(8 * form.panels, 64);
  for (int64_t r = 0; r < stored.rows; r++) bytes += row_bytes(form, stored.kept(r));
  return bytes;
}

static void pack_values(const Stored& stored, int64_t r, uint8_t* at) {
  const int64_t first = stored.first[r], count = stored.kept(r);
  if (stored.kind == RESSA_BF16 && count) memcpy(at, stored.values + 2 * first, 2 * count);
  if (stored.kind == RESSA_INT8)
    for (int64_t i = 0; i < count; i++) at[i] = stored.values[first + i] ^ 0x80;
  if (stored.kind == RESSA_INT4)
    for (int64_t i = 0; i < count; i++) at[i / 2] |= (uint8_t)((stored.value(first + i) & 15) << (i % 2 * 4));
}

void pack(const Stored& stored, const Form& form, uint8_t* body) {
  uint8_t* at = body + up(8 * form.panels, 64);
  for (int64_t r = 0; r < stored.rows; r++) {
    if (r % PANEL == 0) store<int64_t>(body + 8 * (r / PANEL), at - body);
    const int64_t count = stored.kept(r), groups = groups_of(form, count);
    if (form.kind == RESSA_INT8) memcpy(at, stored.scale + 4 * r, 4);
    at += form.kind == RESSA_INT8 ? 4 : 0;
    if (form.bits) memcpy(at, stored.bits(r), stored.row_bytes());
    at += bits_bytes(form);
    pack_values(stored, r, at);
    at += value_bytes(form.kind, count);
    if (groups) memcpy(at, stored.scale + 2 * stored.scale_first[r], 2 * groups);
    at += 2 * groups;
  }
}

View next(const Form& form, const uint8_t*& at) {
  View view{};
  view.count = form.cols;
  if (form.kind == RESSA_INT8) { view.scales = at; at += 4; }
  if (form.bits) {
    view.bits = at;
    at += bits_bytes(form);
    view.count = 0;
    for (const uint8_t* word = view.bits; word < at; word += 8) view.count += __builtin_popcountll(load<uint64_t>(word));
  }
  view.values = at;
  at += value_bytes(form.kind, view.count);
  view.groups = groups_of(form, view.count);
  if (form.kind == RESSA_INT4) { view.scales = at; at += 2 * view.groups; }
  return view;
}

void row(const Form& form, const uint8_t* body, int64_t row, Row& out) {
  const uint8_t* at = panel(body, row / PANEL);
  View view = next(form, at);
  for (int64_t i = 0; i < row % PANEL; i++) view = next(form, at);
  out.count = view.count;
  out.groups = view.groups;
  if (out.bits) memcpy(out.bits, view.bits, (form.cols + 7) / 8);
  if (form.kind == RESSA_INT8) out.scale = load<float>(view.scales);
  if (view.groups) memcpy(out.scales16, view.scales, 2 * view.groups);
  for (int64_t i = 0; i < view.count; i++) {
    if (form.kind == RESSA_BF16) out.values[i] = load<int16_t>(view.values + 2 * i);
    if (form.kind == RESSA_INT8) out.values[i] = (int8_t)(view.values[i] ^ 0x80);
    if (form.kind == RESSA_INT4) out.values[i] = (int16_t)((((view.values[i / 2] >> (i % 2 * 4)) & 15) ^ 8) - 8);
  }
}

}  // namespace ressa::rows
