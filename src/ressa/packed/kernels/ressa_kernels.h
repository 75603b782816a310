// C interface of ressa's kernels: products of packed weights with up to eight tokens. No Python, no torch, no OpenMP here.
//
// A weight as docs/packed.md stores it is checked and repacked once (ressa_prepare) into a form that this processor reads
// in one stream; ressa_matvec multiplies with it, ressa_unpack and ressa_restore give back the dense and the stored weight,
// bit for bit. Functions return 0 (or what they say), else a negative code that ressa_message explains.
#pragma once
#include <stdint.h>

#define RESSA_ABI 1

#if defined(_WIN32)
#define RESSA_API extern "C" __declspec(dllexport)
#else
#define RESSA_API extern "C" __attribute__((visibility("default")))
#endif

enum { RESSA_BF16 = 0, RESSA_INT8 = 1, RESSA_INT4 = 2 };  // kinds of stored values
enum { RESSA_F32 = 0, RESSA_AS_BF16 = 1 };                // dtypes of activations, bias, results and unpacked weights

// A weight as it is stored. Lengths are those of the buffers: what the bits and the shape ask for is compared with them.
struct ressa_stored {
  int32_t kind;
  int32_t reserved;
  int64_t rows, cols, group;
  void* values;
  int64_t values_bytes;
  uint8_t* bitmask;  // null: every weight is kept
  int64_t bitmask_bytes;
  void* scale;  // float32 of int8, bfloat16 of int4, null of bf16
  int64_t scale_bytes;
};

// Of a prepared weight: what ressa_restore needs buffers for.
struct ressa_told {
  int32_t kind, isa, layout, bits;  // bits: 1 if there is a bitmask
  int64_t rows, cols, group, kept, scales;
};

RESSA_API int32_t ressa_abi(void);
RESSA_API const char* ressa_message(int32_t code);

// Names of what was built, best first, null behind the last; and whether this processor has what it needs.
RESSA_API const char* ressa_isa(int32_t isa);
RESSA_API int32_t ressa_runs(int32_t isa);

// Bytes of the prepared form, or a negative code: the stored weight contradicts itself, or this set has no kernel for it.
RESSA_API int64_t ressa_prepared_bytes(int32_t isa, const struct ressa_stored* stored);
RESSA_API int32_t ressa_prepare(int32_t isa, const struct ressa_stored* stored, void* out, int64_t out_bytes);

// torch's own OpenMP: GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the runtime it has loaded, or nulls.
RESSA_API void ressa_use_threads(void* parallel, void* thread_num, void* num_threads);

RESSA_API int32_t ressa_tell(const void* prepared, int64_t bytes, struct ressa_told* out);
// y (tokens, rows) = x (tokens, cols) times the weight, plus bias (rows) unless null; all of `dtype`; 1 to 8 tokens.
RESSA_API int32_t ressa_matvec(const void* prepared, int64_t bytes, const void* x, const void* bias, void* y, int32_t dtype,
                               int32_t tokens, int32_t threads);
// The dense weight (rows, cols): value times scale in float32, rounded to `dtype`.
RESSA_API int32_t ressa_unpack(const void* prepared, int64_t bytes, void* out, int32_t dtype, int32_t threads);
// The stored weight, into buffers of the sizes that ressa_tell implies.
RESSA_API int32_t ressa_restore(const void* prepared, int64_t bytes, const struct ressa_stored* out);
