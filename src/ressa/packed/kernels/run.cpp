// Calls: products and unpacking, cut into panels of rows and shared among the threads of torch's own OpenMP.
#include <cstdlib>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "internal.h"

namespace ressa {

// Weights are read in one stream: with pages of 2 MiB instead of 4 KiB that takes a quarter less time where it is large.
void huge_pages(void* at, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t page = 2 << 20, first = ((uintptr_t)at + page - 1) / page * page, last = ((uintptr_t)at + bytes) / page * page;
  if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#else
  (void)at, (void)bytes;
#endif
}

namespace {

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
typedef int (*Number)();
Parallel parallel_;
Number thread_num_, num_threads_;

constexpr int64_t ALONE = 64 << 10;  // bytes of a weight that are not worth waking another thread

// Calls task(i) for i of 0 to count, in one run of neighbours for each thread.
template <class Task> void share(int64_t count, int threads, const Task& task) {
  struct Share { const Task* task; int64_t count; } what{&task, count};
  const auto part = [](void* data) {
    const Share& what = *(const Share*)data;
    const int64_t own = thread_num_(), all = num_threads_();
    for (int64_t i = what.count * own / all, last = what.count * (own + 1) / all; i < last; i++) (*what.task)(i);
  };
  if (threads > 1 && parallel_) return parallel_(part, &what, (unsigned)threads, 0);
  for (int64_t i = 0; i < count; i++) task(i);
}

struct Buffer {  // 64-byte aligned, kept by the thread that calls, as large as the largest so far
  std::unique_ptr<uint8_t[]> memory;
  int64_t bytes = 0;
  uint8_t* of(int64_t wanted) {
    if (wanted > bytes) memory.reset(new uint8_t[wanted + 64]), bytes = wanted;
    return (uint8_t*)(((uintptr_t)memory.get() + 63) / 64 * 64);
  }
};

float read(const void* from, int32_t dtype, int64_t i) {
  return dtype == RESSA_F32 ? load<float>((const uint8_t*)from + 4 * i) : from_bf16(load<uint16_t>((const uint8_t*)from + 2 * i));
}

void write(void* to, int32_t dtype, int64_t i, float value) {
  if (dtype == RESSA_F32) store<float>((uint8_t*)to + 4 * i, value);
  else store<uint16_t>((uint8_t*)to + 2 * i, to_bf16(value));
}

const float* padded(const void* x, int32_t dtype, int64_t cols, int64_t stride, int tokens) {
  static thread_local Buffer buffer;
  float* out = (float*)buffer.of(tokens * stride * 4);
  for (int t = 0; t < tokens; t++) {
    float* row = out + t * stride;
    if (dtype == RESSA_F32) memcpy(row, (const uint8_t*)x + 4 * t * cols, 4 * cols);
    else for (int64_t c = 0; c < cols; c++) row[c] = from_bf16(load<uint16_t>((const uint8_t*)x + 2 * (t * cols + c)));
    memset(row + cols, 0, 4 * (stride - cols));
  }
  return out;
}

void unpack_row(const Form& form, const uint8_t* body, int64_t r, void* out, int32_t dtype) {
  static thread_local std::vector<uint8_t> bits;
  static thread_local std::vector<int16_t> values;
  static thread_local std::vector<uint16_t> scales;
  bits.assign(up(form.cols, 64) / 8, 0);
  values.resize(form.cols), scales.resize(form.cols);
  Row row{form.bits ? bits.data() : nullptr, values.data(), scales.data(), 0, 0, 0};
  isa_of(form.isa)->row(form, body, r, row);
  const auto value = [&](int64_t i) {
    if (form.kind == RESSA_BF16) return from_bf16((uint16_t)values[i]);
    return (float)values[i] * (form.kind == RESSA_INT8 ? row.scale : from_bf16(scales[i / form.group]));
  };
  const int64_t size = dtype == RESSA_F32 ? 4 : 2;
  uint8_t* to = (uint8_t*)out + r * form.cols * size;
  if (!form.bits) {
    for (int64_t c = 0; c < form.cols; c++) write(to, dtype, c, value(c));
    return;
  }
  memset(to, 0, form.cols * size);
  for (int64_t word = 0, i = 0; 64 * word < form.cols; word++)
    for (uint64_t left = load<uint64_t>(&bits[8 * word]); left; left &= left - 1, i++)
      write(to, dtype, 64 * word + __builtin_ctzll(left), value(i));
}

}  // namespace
}  // namespace ressa

using namespace ressa;

void ressa_use_threads(void* parallel, void* thread_num, void* num_threads) {
  const bool all = parallel && thread_num && num_threads;
  parallel_ = all ? (Parallel)parallel : nullptr;
  thread_num_ = (Number)thread_num, num_threads_ = (Number)num_threads;
}

int32_t ressa_matvec(const void* prepared, int64_t bytes, const void* x, const void* bias, void* y, int32_t dtype,
                     int32_t tokens, int32_t threads) {
  const Form* form = form_of(prepared, bytes);
  if (!form) return NOT_PREPARED;
  if (tokens < 1 || tokens > TOKENS || (dtype != RESSA_F32 && dtype != RESSA_AS_BF16)) return BAD_TOKENS;
  static thread_local Buffer buffer;
  const Isa& isa = *isa_of(form->isa);
  const bool is_bf16 = dtype == RESSA_AS_BF16;
  const int64_t stride = up(form->cols, PAD);
  uint8_t* work = buffer.of(isa.work(*form, tokens, is_bf16));
  isa.activations(*form, padded(x, dtype, form->cols, stride, tokens), stride, tokens, is_bf16, work);
  const uint8_t* body = (const uint8_t*)prepared + HEADER;
  share(form->panels, bytes < ALONE ? 1 : threads, [&](int64_t panel) {
    alignas(64) float out[TOKENS * 64];
    isa.panel(*form, body, work, tokens, is_bf16, panel, out);
    const int64_t first = panel * form->panel_rows;
    const int64_t count = first + form->panel_rows <= form->rows ? form->panel_rows : form->rows - first;
    for (int t = 0; t < tokens; t++)
      for (int64_t i = 0; i < count; i++) {
        const float sum = out[t * form->panel_rows + i] + (bias ? read(bias, dtype, first + i) : 0);
        write(y, dtype, t * form->rows + first + i, sum);
      }
  });
  return OK;
}

int32_t ressa_unpack(const void* prepared, int64_t bytes, void* out, int32_t dtype, int32_t threads) {
  const Form* form = form_of(prepared, bytes);
  if (!form) return NOT_PREPARED;
  if (dtype != RESSA_F32 && dtype != RESSA_AS_BF16) return BAD_TOKENS;
  const uint8_t* body = (const uint8_t*)prepared + HEADER;
  const auto fast = isa_of(form->isa)->unpack;
  share(form->panels, bytes < ALONE ? 1 : threads, [&](int64_t panel) {
    if (fast && fast(*form, body, panel, out, dtype)) return;
    const int64_t first = panel * form->panel_rows, last = first + form->panel_rows;
    for (int64_t r = first; r < last && r < form->rows; r++) unpack_row(*form, body, r, out, dtype);
  });
  return OK;
}
