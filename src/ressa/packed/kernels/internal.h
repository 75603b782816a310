// What the files of this folder share. A set of kernels is one `Isa`: how it lays weights out, and its products.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "ressa_kernels.h"

#if defined(__x86_64__)
#define RESSA_HAS_AVX512
#define RESSA_HAS_AVX2
#elif defined(__aarch64__)
#define RESSA_HAS_NEON
#endif

namespace ressa {

constexpr int HEADER = 128;  // bytes of Form, before the body of a prepared weight
constexpr int SLACK = 256;   // bytes behind the body that full-width loads may read
constexpr int PAD = 512;     // columns of activations are padded with zeros to a multiple of it
constexpr int TOKENS = 8;
constexpr uint64_t MAGIC = 0x3161737365720a00ull;

enum Code : int32_t {
  OK = 0, BAD_KIND = -1, BAD_SHAPE = -2, BAD_VALUES = -3, BAD_BITMASK = -4, BAD_SCALE = -5, BAD_GROUP = -6, NO_KERNEL = -7,
  BAD_OUT = -8, NOT_PREPARED = -9, BAD_TOKENS = -10,
};

// A stored weight whose lengths and bits were checked: `first` and `scale_first` point at nothing outside of its buffers.
struct Stored {
  int32_t kind;
  int64_t rows, cols, group;
  const uint8_t* values;
  const uint8_t* bitmask;
  const uint8_t* scale;
  std::vector<int64_t> first;        // (rows + 1): index of each row's first kept weight
  std::vector<int64_t> scale_first;  // (rows + 1), of int4: index of each row's first scale
  int most4, most16;                 // most kept weights in any 4 and any 16 columns (aligned) of a row
  bool exact4, exact16;              // as many in every one of them, with no columns over

  int64_t kept(int64_t row) const { return first[row + 1] - first[row]; }
  int64_t row_bytes() const { return (cols + 7) / 8; }
  const uint8_t* bits(int64_t row) const { return bitmask + row * row_bytes(); }
  // bf16: its 16 bits; int8, int4: the integer
  int16_t value(int64_t index) const {
    if (kind == RESSA_BF16) { int16_t v; memcpy(&v, values + 2 * index, 2); return v; }
    if (kind == RESSA_INT8) return (int8_t)values[index];
    return (int16_t)((((values[index / 2] >> (index % 2 * 4)) & 15) ^ 8) - 8);
  }
};

// The header of a prepared weight. `own` is for the set of kernels that made it.
struct Form {
  uint64_t magic;
  int32_t isa, kind, layout, bits;
  int64_t rows, cols, group, kept, scales, bytes;
  int64_t panels;      // the work is cut into them: `panel_rows` rows each
  int32_t panel_rows, reserved;
  int64_t own[4];
};
static_assert(sizeof(Form) <= HEADER, "the header has its room");

// One row, as it was stored.
struct Row {
  uint8_t* bits;       // ceil(cols / 8) zeroed bytes, to be set; null if the form has no bitmask
  int16_t* values;     // room for cols; as Stored::value
  uint16_t* scales16;  // int4: room for all scales of a row
  float scale;         // int8
  int64_t count, groups;
};

struct Isa {
  const char* name;
  bool (*runs)();
  // Fills layout, panels, panel_rows and own[]; bytes of the body, or NO_KERNEL.
  int64_t (*plan)(const Stored&, Form&);
  // `body` is zeroed, 64-byte aligned and has the planned bytes and SLACK.
  void (*pack)(const Stored&, const Form&, uint8_t* body);
  void (*row)(const Form&, const uint8_t* body, int64_t row, Row& out);
  // Bytes of what `activations` makes of x (tokens, stride) float32, zero behind cols; is_bf16: nothing is lost in bf16.
  int64_t (*work)(const Form&, int tokens, bool is_bf16);
  void (*activations)(const Form&, const float* x, int64_t stride, int tokens, bool is_bf16, uint8_t* work);
  // y (tokens, panel_rows) of one panel; rows behind the last may hold anything finite.
  void (*panel)(const Form&, const uint8_t* body, const uint8_t* work, int tokens, bool is_bf16, int64_t panel, float* y);
  // May be null: the rows of one panel into the dense `out` (rows, cols) of `dtype`; false, with nothing written, if `row`
  // must do it.
  bool (*unpack)(const Form&, const uint8_t* body, int64_t panel, void* out, int32_t dtype) = nullptr;
};

extern const Isa avx512_isa, avx2_isa, neon_isa, scalar_isa;

const Isa* isa_of(int32_t isa);  // null for what was not built
const Form* form_of(const void* prepared, int64_t bytes);  // null for what is no prepared weight
void huge_pages(void* at, int64_t bytes);

inline float from_bf16(uint16_t v) { uint32_t u = (uint32_t)v << 16; float f; memcpy(&f, &u, 4); return f; }
inline uint16_t to_bf16(float f) {  // to nearest even, NaN stays one
  uint32_t u; memcpy(&u, &f, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 64);
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
template <class T> inline T load(const void* at) { T value; memcpy(&value, at, sizeof value); return value; }
template <class T> inline void store(void* at, T value) { memcpy(at, &value, sizeof value); }
inline int64_t up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
inline int64_t row_groups(int64_t kept, int64_t group) { return (kept + group - 1) / group; }

// The layout of rows one after the other, which sets of kernels share (rows.cpp): for panels of 16 rows the offset of the
// first, then of every row its scales, its bits (padded to 8 bytes; none if every weight is kept) and its values.
// int8 values are stored plus 128. Dense int4 rows begin at whole bytes.
namespace rows {
constexpr int LAYOUT = 0, PANEL = 16;
struct View { const uint8_t *scales, *bits, *values; int64_t count, groups; };
int64_t plan(const Stored&, Form&);
void pack(const Stored&, const Form&, uint8_t* body);
void row(const Form&, const uint8_t* body, int64_t row, Row& out);
// The row at `at`, which is moved behind it.
View next(const Form&, const uint8_t*& at);
inline const uint8_t* panel(const uint8_t* body, int64_t panel) { return body + load<int64_t>(body + 8 * panel); }
}  // namespace rows

}  // namespace ressa
