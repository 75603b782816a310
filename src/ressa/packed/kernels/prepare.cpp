// Checks stored weights, prepares them, and gives them back: dense, or as they were stored.
#include <cmath>

#include "internal.h"

namespace ressa {

// Sets that were built, best first; the index is the number by which the interface knows one.
const Isa* const ISAS[] = {
#if defined(RESSA_HAS_AVX512)
    &avx512_isa,
#else
    nullptr,
#endif
#if defined(RESSA_HAS_AVX2)
    &avx2_isa,
#else
    nullptr,
#endif
#if defined(RESSA_HAS_NEON)
    &neon_isa,
#else
    nullptr,
#endif
    &scalar_isa,
};
constexpr int32_t COUNT = sizeof(ISAS) / sizeof(ISAS[0]);

const Isa* isa_of(int32_t isa) { return isa >= 0 && isa < COUNT ? ISAS[isa] : nullptr; }

const Form* form_of(const void* prepared, int64_t bytes) {
  if (!prepared || bytes < HEADER || (uintptr_t)prepared % 8) return nullptr;
  const Form* form = (const Form*)prepared;
  return form->magic == MAGIC && form->bytes == bytes && isa_of(form->isa) ? form : nullptr;
}

namespace {

int popcount(const uint8_t* bits, int64_t bytes) {
  int64_t count = 0, i = 0;
  for (; i + 8 <= bytes; i += 8) count += __builtin_popcountll(load<uint64_t>(bits + i));
  for (; i < bytes; i++) count += __builtin_popcount(bits[i]);
  return (int)count;
}

// How full aligned groups of 4 and 16 columns are, over all rows.
struct Fullness {
  int most4 = 0, least4 = 4, most16 = 0, least16 = 16;

  void see16(int count) {
    most16 = count > most16 ? count : most16;
    least16 = count < least16 ? count : least16;
  }

  void see4(int count) {
    most4 = count > most4 ? count : most4;
    least4 = count < least4 ? count : least4;
  }

  // 64 columns: counts of each 2 bits, then of 4, then of 16, side by side in one number.
  void see64(uint64_t bits) {
    const uint64_t ones = UINT64_C(0x1111111111111111), halves = UINT64_C(0x0f0f0f0f0f0f0f0f);
    const uint64_t bytes = UINT64_C(0x00ff00ff00ff00ff), twos = bits - ((bits >> 1) & 5 * ones);
    const uint64_t fours = (twos & 3 * ones) + ((twos >> 2) & 3 * ones);
    if (fours & 4 * ones) see4(4);
    if (fours & fours >> 1 & ones) see4(3);
    if (~fours & fours >> 1 & ones) see4(2);
    if (fours & ~(fours >> 1) & ones) see4(1);
    if (~(fours | fours >> 1 | fours >> 2) & ones) see4(0);
    const uint64_t eights = (fours & halves) + (fours >> 4 & halves), sixteens = (eights & bytes) + (eights >> 8 & bytes);
    for (int i = 0; i < 64; i += 16) see16((int)(sixteens >> i & 255));
  }
};

void look_at_groups(Stored& s) {
  Fullness seen;
  for (int64_t r = 0; r < s.rows; r++) {
    int64_t c = 0;
    for (; c + 64 <= s.cols; c += 64) seen.see64(load<uint64_t>(s.bits(r) + c / 8));
    for (; c < s.cols; c += 16) {
      const uint8_t* at = s.bits(r) + c / 8;
      const unsigned word = at[0] | (c + 8 < s.cols ? (unsigned)at[1] << 8 : 0);
      seen.see16(__builtin_popcount(word));
      for (int q = 0; q < 16 && c + q < s.cols; q += 4) seen.see4(__builtin_popcount(word >> q & 15));
    }
  }
  s.most4 = seen.most4, s.most16 = seen.most16;
  s.exact4 = s.cols % 4 == 0 && seen.least4 == seen.most4;
  s.exact16 = s.cols % 16 == 0 && seen.least16 == seen.most16;
}

int32_t check_bits(const ressa_stored& in, Stored& s) {
  s.first.resize(s.rows + 1);
  s.first[0] = 0;
  s.most4 = 4, s.most16 = 16;
  s.exact4 = s.exact16 = true;
  if (!s.bitmask) {
    for (int64_t r = 0; r < s.rows; r++) s.first[r + 1] = s.first[r] + s.cols;
    return OK;
  }
  if (in.bitmask_bytes != s.rows * s.row_bytes()) return BAD_BITMASK;
  for (int64_t r = 0; r < s.rows; r++) {
    if (s.cols % 8 && s.bits(r)[s.row_bytes() - 1] >> (s.cols % 8)) return BAD_BITMASK;
    s.first[r + 1] = s.first[r] + popcount(s.bits(r), s.row_bytes());
  }
  look_at_groups(s);
  return OK;
}

int32_t check_values(const ressa_stored& in, const Stored& s) {
  const int64_t count = s.first[s.rows];
  const int64_t wanted = s.kind == RESSA_BF16 ? 2 * count : s.kind == RESSA_INT8 ? count : (count + 1) / 2;
  return in.values_bytes == wanted && (s.values || !wanted) ? OK : BAD_VALUES;
}

int32_t check_scale(const ressa_stored& in, Stored& s) {
  if (s.kind == RESSA_BF16) return in.scale_bytes == 0 ? OK : BAD_SCALE;
  if (s.kind == RESSA_INT8) return in.scale_bytes == 4 * s.rows && s.scale ? OK : BAD_SCALE;
  s.scale_first.resize(s.rows + 1);
  s.scale_first[0] = 0;
  for (int64_t r = 0; r < s.rows; r++) s.scale_first[r + 1] = s.scale_first[r] + row_groups(s.kept(r), s.group);
  const int64_t wanted = 2 * s.scale_first[s.rows];
  return in.scale_bytes == wanted && (s.scale || !wanted) ? OK : BAD_SCALE;
}

int32_t check(const ressa_stored* in, Stored& s) {
  if (!in || in->kind < RESSA_BF16 || in->kind > RESSA_INT4) return BAD_KIND;
  const int64_t most = INT64_C(1) << 40;
  if (in->rows < 1 || in->cols < 1 || in->rows > most / in->cols || in->cols > INT64_C(1) << 24) return BAD_SHAPE;
  if (in->kind == RESSA_INT4 && (in->group < 1 || in->group > INT64_C(1) << 31)) return BAD_GROUP;
  // before there is anything of that many rows
  if (in->bitmask ? in->bitmask_bytes < in->rows : in->values_bytes < in->rows * in->cols / 2) return BAD_VALUES;
  s.kind = in->kind, s.rows = in->rows, s.cols = in->cols, s.group = in->kind == RESSA_INT4 ? in->group : 0;
  s.values = (const uint8_t*)in->values, s.bitmask = in->bitmask, s.scale = (const uint8_t*)in->scale;
  int32_t code = check_bits(*in, s);
  if (code == OK) code = check_values(*in, s);
  return code == OK ? check_scale(*in, s) : code;
}

int64_t plan(int32_t number, const ressa_stored* in, Stored& s, Form& form) {
  const Isa* isa = isa_of(number);
  if (!isa) return NO_KERNEL;
  if (const int32_t code = check(in, s)) return code;
  form = Form{};
  form.magic = MAGIC, form.isa = number, form.kind = s.kind, form.bits = s.bitmask != nullptr;
  form.rows = s.rows, form.cols = s.cols, form.group = s.group, form.kept = s.first[s.rows];
  form.scales = s.kind == RESSA_BF16 ? 0 : s.kind == RESSA_INT8 ? s.rows : s.scale_first[s.rows];
  const int64_t body = isa->plan(s, form);
  return body < 0 ? body : form.bytes = HEADER + up(body, 64) + SLACK;
}

}  // namespace
}  // namespace ressa

using namespace ressa;

int32_t ressa_abi(void) { return RESSA_ABI; }

const char* ressa_message(int32_t code) {
  switch (code) {
    case OK: return "ok";
    case BAD_KIND: return "values of a kind that is unknown";
    case BAD_SHAPE: return "a weight of such a shape cannot be";
    case BAD_VALUES: return "its values are not as many as its bits ask for";
    case BAD_BITMASK: return "its bitmask has not the bytes of its shape, or bits behind the last column";
    case BAD_SCALE: return "its scales are not as many as they should be";
    case BAD_GROUP: return "a group must be of one weight or more";
    case NO_KERNEL: return "there is no kernel for it";
    case BAD_OUT: return "the buffer to write into has another size";
    case NOT_PREPARED: return "this is no prepared weight of this build";
    case BAD_TOKENS: return "kernels take 1 to 8 tokens, in float32 or bfloat16";
  }
  return "unknown";
}

const char* ressa_isa(int32_t isa) {
  if (isa < 0 || isa >= COUNT) return nullptr;
  return ISAS[isa] ? ISAS[isa]->name : "";
}

int32_t ressa_runs(int32_t isa) { return isa_of(isa) && isa_of(isa)->runs(); }

int64_t ressa_prepared_bytes(int32_t isa, const ressa_stored* stored) {
  Stored s;
  Form form;
  return plan(isa, stored, s, form);
}

int32_t ressa_prepare(int32_t isa, const ressa_stored* stored, void* out, int64_t out_bytes) {
  Stored s;
  Form form;
  const int64_t bytes = plan(isa, stored, s, form);
  if (bytes < 0) return (int32_t)bytes;
  if (!out || out_bytes != bytes || (uintptr_t)out % 64) return BAD_OUT;
  huge_pages(out, bytes);
  memset(out, 0, bytes);
  memcpy(out, &form, sizeof form);
  isa_of(isa)->pack(s, form, (uint8_t*)out + HEADER);
  return OK;
}

int32_t ressa_tell(const void* prepared, int64_t bytes, ressa_told* out) {
  const Form* form = form_of(prepared, bytes);
  if (!form) return NOT_PREPARED;
  *out = {form->kind, form->isa, form->layout, form->bits, form->rows, form->cols, form->group, form->kept, form->scales};
  return OK;
}

int32_t ressa_restore(const void* prepared, int64_t bytes, const ressa_stored* out) {
  const Form* form = form_of(prepared, bytes);
  if (!form) return NOT_PREPARED;
  const int64_t row_bytes = (form->cols + 7) / 8;
  const int64_t wanted = form->kind == RESSA_BF16 ? 2 * form->kept : form->kind == RESSA_INT8 ? form->kept : (form->kept + 1) / 2;
  const int64_t scale = form->scales * (form->kind == RESSA_INT8 ? 4 : 2);
  if (out->values_bytes != wanted || out->scale_bytes != scale) return BAD_OUT;
  if (form->bits && (!out->bitmask || out->bitmask_bytes != form->rows * row_bytes)) return BAD_OUT;
  std::vector<int16_t> values(form->cols);
  std::vector<uint16_t> scales(form->cols);
  uint8_t* to = (uint8_t*)out->values;
  if (form->kind == RESSA_INT4 && wanted) memset(to, 0, wanted);
  if (form->bits) memset(out->bitmask, 0, out->bitmask_bytes);
  for (int64_t r = 0, at = 0, group = 0; r < form->rows; r++) {
    Row row{form->bits ? out->bitmask + r * row_bytes : nullptr, values.data(), scales.data(), 0, 0, 0};
    isa_of(form->isa)->row(*form, (const uint8_t*)prepared + HEADER, r, row);
    for (int64_t i = 0; i < row.count && at < form->kept; i++, at++) {
      if (form->kind == RESSA_BF16) memcpy(to + 2 * at, &values[i], 2);
      if (form->kind == RESSA_INT8) to[at] = (uint8_t)values[i];
      if (form->kind == RESSA_INT4) to[at / 2] |= (uint8_t)((values[i] & 15) << (at % 2 * 4));
    }
    if (form->kind == RESSA_INT8) memcpy((uint8_t*)out->scale + 4 * r, &row.scale, 4);
    for (int64_t i = 0; i < row.groups && group < form->scales; i++, group++)
      memcpy((uint8_t*)out->scale + 2 * group, &scales[i], 2);
  }
  return OK;
}
