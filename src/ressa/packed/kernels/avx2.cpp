// AVX2 with FMA: which weights its kernels take how (avx2_panels.cpp, avx2_rows.cpp), and their activations. In panels,
// products of int8 and int4 take them in 8 bits, with one scale for each token; in rows they are float32.
#include "internal.h"

#ifdef RESSA_HAS_AVX2
#include <cmath>
#include <limits>

namespace ressa {
namespace {

// Before what follows may use what it asks for.
bool runs() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("popcnt");
}

}  // namespace
}  // namespace ressa

#include "avx2.h"

namespace ressa {
namespace {

using panels8::Work;

int64_t row_bytes(const Form& form) { return panels8::in8bits(form) ? up(form.cols, PAD) : 0; }

int64_t work(const Form& form, int tokens, bool) { return (int64_t)sizeof(Work) + tokens * row_bytes(form) + SLACK; }

// Rounds to -127 .. 127 (int4: plus 128) and returns the scale; NaN if there is one in x.
float quantise(const float* x, int64_t count, unsigned char bias, uint8_t* out) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 most = _mm256_setzero_ps(), bad = most;
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v));
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }
  float lanes[8], amax = 0;
  _mm256_storeu_ps(lanes, most);
  UNROLL for (int i = 0; i < 8; i++) amax = lanes[i] > amax ? lanes[i] : amax;
  const float inverse = amax > 0 ? 127 / amax : 0;
  const __m256 by = _mm256_set1_ps(std::isfinite(inverse) ? inverse : 0);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), add = _mm256_set1_epi8((char)bias);
  for (int64_t i = 0; i < count; i += 32) {
    __m256i v[4];
    UNROLL for (int j = 0; j < 4; j++) v[j] = _mm256_cvtps_epi32(_mm256_mul_ps(by, _mm256_loadu_ps(x + i + 8 * j)));
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    _mm256_storeu_si256((__m256i*)(out + i), _mm256_add_epi8(_mm256_permutevar8x32_epi32(bytes, order), add));
  }
  return _mm256_movemask_ps(bad) ? std::numeric_limits<float>::quiet_NaN() : std::isfinite(inverse) ? amax / 127 : 0;
}

void activations(const Form& form, const float* x, int64_t stride, int tokens, bool, uint8_t* at) {
  Work& work = *(Work*)at;
  work.x = x, work.stride = stride, work.row = row_bytes(form), work.bias = form.kind == RESSA_INT4 ? 128 : 0;
  for (int t = 0; panels8::in8bits(form) && t < tokens; t++)
    work.scale[t] = quantise(x + t * stride, stride, (unsigned char)work.bias, const_cast<uint8_t*>(work.of(t)));
}

void panel(const Form& form, const uint8_t* body, const uint8_t* at, int tokens, bool, int64_t number, float* y) {
  const Work& work = *(const Work*)at;
  if (form.layout != rows::LAYOUT) {
    avx2::fixed_stride(form, panels8::panel(form, body, number), work, tokens, y);
    return panels8::add_listed(form, body, work, tokens, number, y);
  }
  const uint8_t* from = rows::panel(body, number);
  for (int64_t i = 0; i < rows::PANEL && number * rows::PANEL + i < form.rows; i++) avx2::one_row(form, from, work, tokens, y + i);
}

}  // namespace

const Isa avx2_isa = {"avx2", runs, panels8::plan, panels8::pack, panels8::row, work, activations, panel, panels8::unpack};

}  // namespace ressa

#include "avx2_end.h"
#endif
