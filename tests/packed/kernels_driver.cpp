// Stand-alone: the kernels under AddressSanitizer and UBSan. `driver check` compares every set that this processor runs
// with plain arithmetic; `driver fuzz N` prepares N stored weights of which most lie, each in buffers as large as they say.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "ressa_kernels.h"

namespace {

std::mt19937 dice(0);
int draw(int most) { return (int)(dice() % (unsigned)(most + 1)); }
float normal() { return std::normal_distribution<float>()(dice); }
uint16_t half(float f) { uint32_t u; memcpy(&u, &f, 4); return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16); }
float full(uint16_t h) { uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f; }

// A stored weight, each buffer of exactly the bytes that it should have; `dense` is what it stands for.
struct Weight {
  int kind;
  int64_t rows, cols, group;
  std::vector<uint8_t> values, bits, scale;
  std::vector<float> dense;
  bool sparse;
};

bool kept(int pattern, int64_t row, int64_t col, std::vector<int>& order) {
  if (pattern == 0) return true;
  if (pattern == 3) return row % 5 == 1 || (row % 5 && draw(1));
  const int of = pattern == 1 ? 4 : 16;
  if (col % of == 0)
    for (int i = 0; i < of; i++) order[i] = i;
  if (col % of == 0)
    for (int i = of - 1; i > 0; i--) std::swap(order[i], order[draw(i)]);
  return order[col % of] < of / (of == 4 ? 2 : 4);
}

void add_scale(Weight& w, float scale) {
  const uint16_t small = half(scale);
  const auto* at = w.kind == RESSA_INT8 ? (const uint8_t*)&scale : (const uint8_t*)&small;
  w.scale.insert(w.scale.end(), at, at + (w.kind == RESSA_INT8 ? 4 : 2));
}

Weight weight(int kind, int64_t rows, int64_t cols, int64_t group, int pattern) {
  Weight w{kind, rows, cols, group, {}, {}, {}, std::vector<float>(rows * cols), pattern != 0};
  if (w.sparse) w.bits.resize(rows * ((cols + 7) / 8));
  int64_t count = 0;
  std::vector<int> order(16);
  for (int64_t r = 0; r < rows; r++) {
    float scale = std::fabs(normal()) / 100;
    if (kind == RESSA_INT8) add_scale(w, scale);
    for (int64_t c = 0, own = 0; c < cols; c++) {
      if (!kept(pattern, r, c, order)) continue;
      if (w.sparse) w.bits[r * ((cols + 7) / 8) + c / 8] |= (uint8_t)(1 << c % 8);
      float& dense = w.dense[r * cols + c];
      if (kind == RESSA_INT4 && own++ % group == 0) scale = full(half(std::fabs(normal()) / 10)), add_scale(w, scale);
      const int number = kind == RESSA_INT8 ? draw(254) - 127 : draw(15) - 8;
      if (kind == RESSA_BF16) {
        const uint16_t h = half(normal());
        w.values.insert(w.values.end(), (const uint8_t*)&h, (const uint8_t*)&h + 2), dense = full(h);
      } else if (kind == RESSA_INT8) {
        w.values.push_back((uint8_t)number), dense = (float)number * scale;
      } else {
        if (count % 2 == 0) w.values.push_back(0);
        w.values.back() |= (uint8_t)((number & 15) << (count % 2 * 4)), dense = (float)number * scale;
      }
      count++;
    }
  }
  return w;
}

ressa_stored stored(Weight& w) {
  const auto at = [](std::vector<uint8_t>& v) { v.shrink_to_fit(); return v.empty() ? nullptr : v.data(); };
  return {w.kind, 0, w.rows, w.cols, w.group, at(w.values), (int64_t)w.values.size(), w.sparse ? at(w.bits) : nullptr,
          (int64_t)w.bits.size(), at(w.scale), (int64_t)w.scale.size()};
}

struct Aligned {
  void* at;
  explicit Aligned(int64_t bytes) : at(aligned_alloc(64, (size_t)(bytes + 63) / 64 * 64)) {}
  ~Aligned() { free(at); }
};

int fail(const char* what, int isa, const Weight& w, double error = 0) {
  printf("%s: %s, kind %d, %lld x %lld, group %lld, error %g\n", ressa_isa(isa), what, w.kind, (long long)w.rows,
         (long long)w.cols, (long long)w.group, error);
  return 1;
}

// Of the products of up to 8 tokens, in float32 or bfloat16, the largest difference relative to the sum of what is added
// up; of integers, whose activations are rounded to 8 bits too, to that with each activation as large as the largest.
double error(const void* prepared, int64_t bytes, const Weight& w, int tokens, bool bf16) {
  std::vector<float> x(tokens * w.cols), y(tokens * w.rows), bias(w.rows);
  std::vector<uint16_t> x16(x.size()), y16(y.size()), bias16(w.rows);
  for (size_t i = 0; i < x.size(); i++) x[i] = normal(), x16[i] = half(x[i]), x[i] = bf16 ? full(x16[i]) : x[i];
  for (int64_t i = 0; i < w.rows; i++) bias[i] = normal(), bias16[i] = half(bias[i]), bias[i] = bf16 ? full(bias16[i]) : bias[i];
  const int code = bf16 ? ressa_matvec(prepared, bytes, x16.data(), bias16.data(), y16.data(), RESSA_AS_BF16, tokens, 1)
                        : ressa_matvec(prepared, bytes, x.data(), bias.data(), y.data(), RESSA_F32, tokens, 1);
  if (code) return 1e9;
  double worst = 0;
  for (int t = 0; t < tokens; t++) {
    double largest = 0;
    for (int64_t c = 0; c < w.cols; c++) largest = std::fmax(largest, std::fabs(x[t * w.cols + c]));
    for (int64_t r = 0; r < w.rows; r++) {
      double sum = bias[r], size = std::fabs(bias[r]);
      for (int64_t c = 0; c < w.cols; c++) {
        const double product = (double)w.dense[r * w.cols + c] * x[t * w.cols + c];
        sum += product;
        size += w.kind == RESSA_BF16 ? std::fabs(product) : std::fabs(w.dense[r * w.cols + c]) * largest;
      }
      const double found = bf16 ? full(y16[t * w.rows + r]) : y[t * w.rows + r];
      worst = std::fmax(worst, std::fabs(found - sum) / (size + 1e-20));
    }
  }
  return worst;
}

int check_one(int isa, Weight& w) {
  const ressa_stored in = stored(w);
  const int64_t bytes = ressa_prepared_bytes(isa, &in);
  if (bytes == -7) return w.kind == RESSA_INT4 && w.group % 32 ? 0 : fail("no kernel", isa, w);
  if (bytes < 0) return fail(ressa_message((int)bytes), isa, w);
  const Aligned prepared(bytes);
  if (ressa_prepare(isa, &in, prepared.at, bytes)) return fail("prepare", isa, w);
  Weight back = w;
  for (auto* part : {&back.values, &back.bits, &back.scale}) std::fill(part->begin(), part->end(), 0xa5);
  const ressa_stored out = stored(back);
  if (ressa_restore(prepared.at, bytes, &out)) return fail("restore", isa, w);
  if (back.values != w.values || back.bits != w.bits || back.scale != w.scale) return fail("restored otherwise", isa, w);
  std::vector<float> dense(w.dense.size());
  if (ressa_unpack(prepared.at, bytes, dense.data(), RESSA_F32, 1)) return fail("unpack", isa, w);
  if (memcmp(dense.data(), w.dense.data(), 4 * dense.size())) return fail("unpacked otherwise", isa, w);
  for (int tokens : {1, 2, 3, 8})
    for (bool bf16 : {false, true}) {
      const double found = error(prepared.at, bytes, w, tokens, bf16);
      const double most = (bf16 ? 1. / 256 : 1e-5) + (w.kind == RESSA_BF16 ? 0 : 1. / 250);
      if (!(found < most)) return fail(bf16 ? "product in bfloat16" : "product in float32", isa, w, found);
    }
  return 0;
}

int check() {
  const int64_t shapes[][2] = {{1, 1}, {5, 7}, {17, 33}, {3, 129}, {16, 64}, {33, 576}, {20, 1040}};
  int done = 0;
  for (int isa = 0; ressa_isa(isa); isa++) {
    if (!ressa_runs(isa)) continue;
    for (const auto& shape : shapes)
      for (int kind = 0; kind < 3; kind++)
        for (int pattern = 0; pattern < 4; pattern++)
          for (int64_t group : {INT64_C(3), INT64_C(32), INT64_C(64), INT64_C(1) << 31}) {
            if (kind != RESSA_INT4 && group != 64) continue;
            Weight w = weight(kind, shape[0], shape[1], group, pattern);
            if (check_one(isa, w)) return 1;
            done++;
          }
    printf("%s ", ressa_isa(isa));
  }
  printf("%d\n", done);
  return 0;
}

void lie(Weight& w) {
  const auto cut = [](std::vector<uint8_t>& v) {
    const int how = draw(3);
    if (how == 0) v.resize((size_t)draw((int)v.size() + 8));
    if (how == 1 && !v.empty()) v.pop_back();
    if (how == 2) v.push_back((uint8_t)draw(255));
    if (how == 3) for (auto& byte : v) byte ^= (uint8_t)(draw(9) == 0 ? draw(255) : 0);
  };
  const int64_t numbers[] = {0, -1, 1, INT64_C(1) << 31, INT64_C(1) << 40, INT64_MAX, INT64_MIN, w.rows + 1, w.cols + 1, w.group * 2};
  for (int i = draw(2); i >= 0; i--) switch (draw(7)) {
      case 0: cut(w.values); break;
      case 1: cut(w.bits); break;
      case 2: cut(w.scale); break;
      case 3: w.rows = numbers[draw(9)]; break;
      case 4: w.cols = numbers[draw(9)]; break;
      case 5: w.group = numbers[draw(9)]; break;
      case 6: w.kind = draw(4) - 1; break;
      case 7: w.sparse = !w.sparse; break;
    }
}

int fuzz(int count) {
  int refused = 0, isas = 0;
  while (ressa_isa(isas)) isas++;
  for (int i = 0; i < count; i++) {
    Weight w = weight(draw(2), 1 + draw(20), 1 + draw(90), 1 + draw(70), draw(3));
    if (draw(9)) lie(w);
    const int isa = draw(isas) - 1;
    if (isa >= 0 && isa < isas && !ressa_runs(isa)) { i--; continue; }
    const ressa_stored in = stored(w);
    const int64_t bytes = ressa_prepared_bytes(isa, &in);
    if (bytes < 0 && ++refused) continue;
    const Aligned prepared(bytes);
    if (ressa_prepare(isa, &in, prepared.at, bytes)) return fail("planned, and not prepared", isa, w);
    std::vector<float> x(2 * w.cols, 1), y(2 * w.rows), dense(w.rows * w.cols);
    if (ressa_matvec(prepared.at, bytes, x.data(), nullptr, y.data(), RESSA_F32, 2, 1)) return fail("matvec", isa, w);
    if (ressa_unpack(prepared.at, bytes, dense.data(), RESSA_F32, 1)) return fail("unpack", isa, w);
    const ressa_stored out = stored(w);
    if (ressa_restore(prepared.at, bytes, &out)) return fail("restore", isa, w);
    if (ressa_matvec(prepared.at, bytes - 1, x.data(), nullptr, y.data(), RESSA_F32, 1, 1) == 0) return fail("a lie of its size", isa, w);
  }
  printf("%d of %d refused\n", refused, count);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && !strcmp(words[1], "check")) return check();
  if (count == 3 && !strcmp(words[1], "fuzz")) return fuzz(atoi(words[2]));
  return 2;
}
