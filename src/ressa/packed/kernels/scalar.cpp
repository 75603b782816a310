// Plain C++: what the tests compare the others with, for any processor. Slower than unpacking, so never chosen by itself.
#include "internal.h"

namespace ressa {
namespace {

bool runs() { return true; }

int64_t work(const Form&, int, bool) { return sizeof(const float*) + sizeof(int64_t); }

void activations(const Form&, const float* x, int64_t stride, int, bool, uint8_t* work) {
  store<const float*>(work, x);
  store<int64_t>(work + sizeof(const float*), stride);
}

float weight(const Form& form, const rows::View& view, int64_t i) {
  if (form.kind == RESSA_BF16) return from_bf16(load<uint16_t>(view.values + 2 * i));
  if (form.kind == RESSA_INT8) return (float)((int)view.values[i] - 128);
  const int nibble = (view.values[i / 2] >> (i % 2 * 4)) & 15;
  return (float)((nibble ^ 8) - 8) * from_bf16(load<uint16_t>(view.scales + 2 * (i / form.group)));
}

float dot(const Form& form, const rows::View& view, const float* x) {
  float sum = 0;
  if (!form.bits) {
    for (int64_t i = 0; i < form.cols; i++) sum += weight(form, view, i) * x[i];
  } else {
    for (int64_t word = 0, i = 0; 64 * word < form.cols; word++)
      for (uint64_t left = load<uint64_t>(view.bits + 8 * word); left; left &= left - 1, i++)
        sum += weight(form, view, i) * x[64 * word + __builtin_ctzll(left)];
  }
  return form.kind == RESSA_INT8 ? sum * load<float>(view.scales) : sum;
}

void panel(const Form& form, const uint8_t* body, const uint8_t* work, int tokens, bool, int64_t panel, float* y) {
  const float* x = load<const float*>(work);
  const int64_t stride = load<int64_t>(work + sizeof(const float*));
  const uint8_t* at = rows::panel(body, panel);
  for (int64_t i = 0; i < rows::PANEL && panel * rows::PANEL + i < form.rows; i++) {
    const rows::View view = rows::next(form, at);
    for (int t = 0; t < tokens; t++) y[t * rows::PANEL + i] = dot(form, view, x + t * stride);
  }
}

}  // namespace

const Isa scalar_isa = {"scalar", runs, rows::plan, rows::pack, rows::row, work, activations, panel};

}  // namespace ressa
