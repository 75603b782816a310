// Holds one set of kernels to the plain one, for random weights of every kind and many patterns and shapes: the stored
// weight must come back bit for bit, unpacked weights must be equal, products be so up to rounding.
// `kernels_check avx2 [seed]` prints what differs; 0: nothing, 1: something, 77: this processor cannot run the set.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>

#include "internal.h"

namespace {

std::mt19937 draw(1);
int below(int count) { return (int)(draw() % (unsigned)count); }

struct Pattern {
  const char* name;
  int kept, of;  // of any `of` columns; of == 1: any share, in tenths
  bool holes;    // some groups keep less, one row nothing
};
const Pattern PATTERNS[] = {
    {"dense", 0, 0, false},      {"2:4", 2, 4, false},         {"4:8", 4, 8, false},          {"8:16", 8, 16, false},
    {"4:16", 4, 16, false},      {"2:8", 2, 8, false},         {"1:4", 1, 4, false},          {"2:4 with holes", 2, 4, true},
    {"8:16 with holes", 8, 16, true}, {"4:16 with holes", 4, 16, true}, {"half", 5, 1, true}, {"a third", 3, 1, false},
    {"nothing", 0, 1, false},
};

struct Weight {
  ressa_stored stored{};
  std::vector<uint8_t> values, bits, scale;
  void point(bool dense, int32_t kind, int64_t rows, int64_t cols, int64_t group) {
    stored = {kind, 0, rows, cols, group, values.data(), (int64_t)values.size(), dense ? nullptr : bits.data(),
              dense ? 0 : (int64_t)bits.size(), kind ? scale.data() : nullptr, kind ? (int64_t)scale.size() : 0};
  }
};

// How many of a group of `width` columns are kept, and which: `columns` begins with them.
int choose(const Pattern& p, int row, int width, int* columns) {
  std::iota(columns, columns + width, 0);
  std::shuffle(columns, columns + width, draw);
  if (p.of == 1) return p.holes && row == 2 ? 0 : below(10) < p.kept;
  if (p.holes && row == 2) return 0;
  // of 8:16, there are 8 ways that need a place of their own: 8 neighbours from an even column on
  if (p.kept == 8 && width == 16 && below(50) == 0) std::iota(columns, columns + 8, 2 * below(4));
  const int most = std::min(p.kept, width);
  return p.holes && (below(40) == 0 || (row == 1 && below(2))) ? below(most + 1) : most;
}

template <class T> void append(std::vector<uint8_t>& to, T value) {
  to.resize(to.size() + sizeof value);
  memcpy(to.data() + to.size() - sizeof value, &value, sizeof value);
}

void fill(Weight& w, int32_t kind, int64_t rows, const std::vector<int64_t>& kept, int64_t group) {
  const int64_t count = std::accumulate(kept.begin(), kept.end(), INT64_C(0));
  if (kind == RESSA_INT4) w.values.assign((count + 1) / 2, 0);
  for (int64_t i = 0; i < count; i++) {
    if (kind == RESSA_BF16) append(w.values, ressa::to_bf16((float)(below(2001) - 1000) / 1000));  // some are 0, and kept
    if (kind == RESSA_INT8) append(w.values, (int8_t)(below(255) - 127));
    if (kind == RESSA_INT4) w.values[i / 2] |= (uint8_t)(below(16) << (i % 2 * 4));
  }
  if (kind == RESSA_INT8 && count && below(10) == 0) w.values[below((int)count)] = 0x80;  // -128, which others may write
  for (int64_t r = 0; r < rows; r++) {
    if (kind == RESSA_INT8) append(w.scale, (float)(1 + below(100)) / 1024);
    for (int64_t g = 0; kind == RESSA_INT4 && g < ressa::row_groups(kept[r], group); g++)
      append(w.scale, ressa::to_bf16((float)(1 + below(100)) / 64));
  }
}

Weight make(const Pattern& p, int32_t kind, int64_t rows, int64_t cols, int64_t group) {
  Weight w;
  const bool dense = p.of == 0;
  std::vector<int64_t> kept(rows, dense ? cols : 0);
  w.bits.assign(rows * ((cols + 7) / 8), 0);
  for (int64_t r = 0; r < rows && !dense; r++)
    for (int64_t c = 0; c < cols; c += p.of) {
      int columns[16];
      const int count = choose(p, (int)r, (int)std::min<int64_t>(p.of, cols - c), columns);
      for (int i = 0; i < count; i++, kept[r]++) w.bits[r * ((cols + 7) / 8) + (c + columns[i]) / 8] |= (uint8_t)(1 << ((c + columns[i]) % 8));
    }
  fill(w, kind, rows, kept, group);
  w.point(dense, kind, rows, cols, group);
  return w;
}

struct Prepared {
  std::vector<uint8_t> memory;
  int64_t bytes;
  const uint8_t* at;
  Prepared(int32_t isa, const ressa_stored& stored) : bytes(ressa_prepared_bytes(isa, &stored)) {
    if (bytes < 0) printf("plan: %s\n", ressa_message((int32_t)bytes)), exit(1);
    memory.resize(bytes + 64);
    uint8_t* to = memory.data() + (64 - (uintptr_t)memory.data() % 64) % 64;
    if (const int32_t code = ressa_prepare(isa, &stored, to, bytes)) printf("prepare: %s\n", ressa_message(code)), exit(1);
    at = to;
  }
};

bool restores(const Prepared& own, const Weight& w) {
  Weight back;
  back.values.resize(w.values.size()), back.bits.resize(w.bits.size()), back.scale.resize(w.scale.size());
  const ressa_stored& s = w.stored;
  back.point(!s.bitmask, s.kind, s.rows, s.cols, s.group);
  if (ressa_restore(own.at, own.bytes, &back.stored)) return false;
  return back.values == w.values && back.scale == w.scale && (!s.bitmask || back.bits == w.bits);
}

// Activations are whole numbers up to 127, which any 16 of them reach: so nothing is lost where kernels take them in 8 bits,
// whatever columns share a scale.
bool multiplies(const Prepared& own, const Prepared& plain, const std::vector<float>& dense, int64_t rows, int64_t cols) {
  const int tokens = 1 + below(8);
  std::vector<float> x(tokens * cols), bias(rows), y(tokens * rows), wanted(tokens * rows);
  for (float& value : x) value = (float)(below(255) - 127);
  for (int t = 0; t < tokens; t++)
    for (int64_t c = 0; c < cols; c += 16) x[t * cols + c + below((int)std::min<int64_t>(16, cols - c))] = 127;
  for (float& value : bias) value = (float)below(9);
  if (ressa_matvec(own.at, own.bytes, x.data(), bias.data(), y.data(), RESSA_F32, tokens, 1)) return false;
  if (ressa_matvec(plain.at, plain.bytes, x.data(), bias.data(), wanted.data(), RESSA_F32, tokens, 1)) return false;
  for (int t = 0; t < tokens; t++)
    for (int64_t r = 0; r < rows; r++) {
      double size = 10;
      for (int64_t c = 0; c < cols; c++) size += std::fabs(dense[r * cols + c] * x[t * cols + c]);
      if (!(std::fabs(y[t * rows + r] - wanted[t * rows + r]) <= 2e-6 * size)) return false;
    }
  return true;
}

bool holds(int32_t isa, int32_t scalar, const Pattern& p, int32_t kind, int64_t rows, int64_t cols, int64_t group) {
  const Weight w = make(p, kind, rows, cols, group);
  if (group % 32 && ressa_prepared_bytes(isa, &w.stored) == ressa::NO_KERNEL) return true;
  const Prepared own(isa, w.stored), plain(scalar, w.stored);
  std::vector<float> a(rows * cols), b(rows * cols);
  const bool unpacks = !ressa_unpack(own.at, own.bytes, a.data(), RESSA_F32, 1) && !ressa_unpack(plain.at, plain.bytes, b.data(), RESSA_F32, 1) && a == b;
  const bool same = restores(own, w), right = multiplies(own, plain, b, rows, cols);
  if (!unpacks || !same || !right)
    printf("%s, kind %d, %d x %d, group %d:%s%s%s\n", p.name, kind, (int)rows, (int)cols, (int)group, same ? "" : " not restored",
           unpacks ? "" : " unpacked otherwise", right ? "" : " another product");
  return unpacks && same && right;
}

int32_t number_of(const std::string& name) {
  for (int32_t isa = 0; const char* known = ressa_isa(isa); isa++)
    if (name == known) return isa;
  return -1;
}

}  // namespace

int main(int count, char** arguments) {
  const int32_t isa = number_of(count > 1 ? arguments[1] : "scalar"), scalar = number_of("scalar");
  if (isa < 0 || !ressa_runs(isa)) return 77;
  if (count > 2) draw.seed((unsigned)atoi(arguments[2]));
  int weights = 0, wrong = 0;
  for (int32_t kind : {RESSA_BF16, RESSA_INT8, RESSA_INT4})
    for (const Pattern& p : PATTERNS)
      for (int64_t rows : {1, 7, 17})
        for (int64_t cols : {1, 3, 16, 31, 64, 100, 130, 256, 576, 1000})
          for (int64_t group : {64, 32, 128, 5})
            if (kind == RESSA_INT4 || group == 64) weights++, wrong += !holds(isa, scalar, p, kind, rows, cols, group);
  printf("%d weights, %d wrong\n", weights, wrong);
  return wrong != 0;
}
