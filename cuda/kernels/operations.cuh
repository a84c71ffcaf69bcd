// What a reduction does to elements, 16 bytes at a time: the device's algebras, see `Algebra` in maypole-algorithms.
//
// The bits are those of the host (`src/reduce`, whose page says what they are), except that a NaN may be any NaN. There is one function
// for a binary node, `combine`, of all types and operations: what is scaled is a product, signed numbers are added and
// multiplied as unsigned ones, and a minimum is the maximum of flipped numbers.
#pragma once
#include "narrow.cuh"
#include "program.cuh"

// Types of which sums, products and maxima differ in bits.
enum Kind : u32 { U8, U32, U64, HALF, SINGLE, DOUBLE, BFLOAT, FP8_E4M3, FP8_E5M2 };
enum Node : u32 { SUM, PROD, MAX };
__device__ constexpr u32 node_of(Kind kind, Node node) { return kind * 3 + node; }

// The codes of the host: DType and RedOp of maypole-algorithms.
constexpr u32 DTYPES = 12, RED_SUM = 0, RED_PROD = 1, RED_MAX = 2, RED_MIN = 3, RED_AVG = 4, RED_PREMULSUM = 5;

// The operation of a work.
struct Arithmetic {
  Pack factor;     // what contributions are multiplied by, where `scaled`
  Pack flip;       // inputs and results are xored with it
  u64 divisor;     // what a finishing step divides by, where not 0
  u32 node, prod;  // of combine
  u32 dtype, scaled;
};

// Whole numbers, several to a word or a word or two each.
template <class T, Node NODE>
__device__ static INLINE T whole(T a, T b) {
  return NODE == SUM ? (T)(a + b) : NODE == PROD ? (T)(a * b) : a > b ? a : b;
}

template <class Format, Node NODE>
__device__ static INLINE u32 narrow(u32 a, u32 b) {
  const float x = Format::decode(a), y = Format::decode(b);
  if (NODE == MAX) return x > y ? a : b;
  return Format::encode(NODE == SUM ? add_rn(x, y) : mul_rn(x, y));
}

// `f` of each of the elements of `BITS` bits in a word.
template <u32 BITS, class F>
__device__ static INLINE u32 each(u32 a, u32 b, F f) {
  u32 word = 0;
#pragma unroll
  for (u32 i = 0; i < 32; i += BITS) word |= (f(a >> i & ((1u << BITS) - 1), b >> i & ((1u << BITS) - 1)) & ((1u << BITS) - 1)) << i;
  return word;
}

template <Node NODE>
__device__ static INLINE u32 node32(u32 a, u32 b) {
  return whole<u32, NODE>(a, b);
}
template <Node NODE>
__device__ static INLINE u32 node_single(u32 a, u32 b) {
  const float x = bits_float(a), y = bits_float(b);
  if (NODE == MAX) return x > y ? a : b;
  return float_bits(NODE == SUM ? add_rn(x, y) : mul_rn(x, y));
}
template <Node NODE>
__device__ static INLINE u64 node_double(u64 a, u64 b) {
  const double x = bits_double(a), y = bits_double(b);
  if (NODE == MAX) return x > y ? a : b;
  return double_bits(NODE == SUM ? add_rn(x, y) : mul_rn(x, y));
}

// One node of a fold, `KIND` and `NODE` known; `a` stands for the lower positions.
template <Kind KIND, Node NODE>
__device__ static INLINE Pack combine_inline(Pack a, Pack b) {
  Pack r;
  if (KIND == U64 || KIND == DOUBLE) {
#pragma unroll
    for (u32 i = 0; i < 4; i += 2) {
      const u64 x = a.w[i] | (u64)a.w[i + 1] << 32, y = b.w[i] | (u64)b.w[i + 1] << 32;
      const u64 z = KIND == U64 ? whole<u64, NODE>(x, y) : node_double<NODE>(x, y);
      r.w[i] = (u32)z;
      r.w[i + 1] = (u32)(z >> 32);
    }
    return r;
  }
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const u32 x = a.w[i], y = b.w[i];
    r.w[i] = KIND == U32      ? node32<NODE>(x, y)
             : KIND == SINGLE ? node_single<NODE>(x, y)
             : KIND == HALF   ? each<16>(x, y, narrow<F16, NODE>)
             : KIND == BFLOAT ? each<16>(x, y, narrow<Bf16, NODE>)
             : KIND == U8     ? each<8>(x, y, whole<u32, NODE>)
             : KIND == FP8_E4M3 ? each<8>(x, y, narrow<E4M3, NODE>)
                                : each<8>(x, y, narrow<E5M2, NODE>);
  }
  return r;
}

// The same for any.
__device__ static NOINLINE Pack combine(u32 node, Pack a, Pack b) {
#define CASES(KIND)                                             \
  case node_of(KIND, SUM): return combine_inline<KIND, SUM>(a, b);   \
  case node_of(KIND, PROD): return combine_inline<KIND, PROD>(a, b); \
  case node_of(KIND, MAX): return combine_inline<KIND, MAX>(a, b);
  switch (node) {
    CASES(U8)
    CASES(U32)
    CASES(U64)
    CASES(HALF)
    CASES(SINGLE)
    CASES(DOUBLE)
    CASES(BFLOAT)
    CASES(FP8_E4M3)
    CASES(FP8_E5M2)
  }
#undef CASES
  return a;
}

// Integers divided by the number of ranks, toward zero.
__device__ static NOINLINE Pack divide(u32 dtype, Pack a, u64 n) {
  const s64 by = (s64)n;
  Pack r = a;
#pragma unroll 1
  for (u32 i = 0; i < 4; i++) {
    switch (dtype) {
      case 0: r.w[i] = each<8>(a.w[i], 0, [=](u32 x, u32) { return (u32)((s8)x / by); }); break;
      case 1: r.w[i] = each<8>(a.w[i], 0, [=](u32 x, u32) { return (u32)(x / n); }); break;
      case 2: r.w[i] = (u32)((s32)a.w[i] / by); break;
      case 3: r.w[i] = (u32)(a.w[i] / n); break;
      default: {
        if (i % 2) break;
        const u64 x = a.w[i] | (u64)a.w[i + 1] << 32, z = dtype == 4 ? (u64)((s64)x / by) : x / n;
        r.w[i] = (u32)z;
        r.w[i + 1] = (u32)(z >> 32);
      }
    }
  }
  return r;
}

// `element` bytes of `low`, as often as a pack holds them.
__device__ static INLINE Pack filled_with(u64 low, u32 element) {
  for (u32 bits = 8 * element; bits < 64; bits *= 2) low = (low & ((1ull << bits) - 1)) | low << bits;
  const u32 words[2] = {(u32)low, (u32)(low >> 32)};
  return Pack{{words[0], words[1], words[0], words[1]}};
}

// False if there is no such operation. One thread calls this.
__device__ static bool arithmetic_of(const Work& work, Arithmetic& m) {
  const u32 code = work.operation & ~OPERATION_ADDRESS, dtype = code / 8, op = code % 8;
  if (dtype >= DTYPES || op > RED_PREMULSUM) return false;
  const bool real = dtype >= 6, is_signed = !real && dtype % 2 == 0;
  const Kind kind = (Kind)(real ? dtype - 3 : dtype / 2);
  m.dtype = dtype;
  m.node = node_of(kind, op == RED_PROD ? PROD : op == RED_MAX || op == RED_MIN ? MAX : SUM);
  m.prod = node_of(kind, PROD);
  m.scaled = op == RED_PREMULSUM || (op == RED_AVG && real);
  m.divisor = op == RED_AVG && !real ? work.parameter : 0;
  u64 parameter = work.parameter;
  if (m.scaled && work.operation & OPERATION_ADDRESS) {
    const gptr<const u8> at = (gptr<const u8>)(const u8*)work.parameter;
    parameter = 0;
    for (u32 i = 0; i < work.element; i++) parameter |= (u64)at[i] << 8 * i;
  }
  m.factor = filled_with(parameter, work.element);
  // Larger is smaller where all bits of a whole number, or the sign of a float, are inverted; a signed number is
  // in the order of unsigned ones with its sign inverted.
  const u64 sign = 1ull << (8 * work.element - 1);
  u64 flip = 0;
  if (op == RED_MIN) flip = real ? sign : ~0ull;
  if ((op == RED_MIN || op == RED_MAX) && is_signed) flip ^= sign;
  m.flip = filled_with(flip, work.element);
  return true;
}
