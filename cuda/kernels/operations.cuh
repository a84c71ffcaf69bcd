// Reduction operations on elements, 16 bytes at a time.
//
// The bits are the same as on the host (`reduce/`), except that a sum or product that is NaN may
// be any NaN. One function, `combine`, does a binary node of all types and operations: scaling is a
// product, signed integers are added and multiplied as unsigned ones, and a minimum of integers is
// the maximum of flipped numbers.
#pragma once
#include "small_floats.cuh"
#include "program.cuh"

// The types whose sums, products and maxima differ in bits.
enum Kind : u32 { U8, U32, U64, HALF, SINGLE, DOUBLE, BFLOAT, FP8_E4M3, FP8_E5M2 };
// Only floats have a minimum.
enum Node : u32 { SUM, PROD, MAX, MIN };
__device__ constexpr u32 node_of(Kind kind, Node node) { return kind * 4 + node; }

// The numbers of DType and RedOp of maypole-algorithms.
constexpr u32 DTYPES = 12, RED_SUM = 0, RED_PROD = 1, RED_MAX = 2, RED_MIN = 3, RED_AVG = 4,
              RED_PREMULSUM = 5;

// The operation of a work.
struct Arithmetic {
  Pack factor;     // contributions are multiplied by it, if `scaled`
  Pack flip;       // inputs and results are combined with it by xor
  u64 divisor;     // a finishing step divides by it, if it is not 0
  u32 node, prod;  // arguments for combine
  u32 dtype, scaled;
};

// Integers of 8, 32 or 64 bits.
template <class T, Node NODE>
__device__ static INLINE T integer(T a, T b) {
  return NODE == SUM ? (T)(a + b) : NODE == PROD ? (T)(a * b) : a > b ? a : b;
}

// The bits of the float `a`, where each NaN is the one with all bits set. Magnitudes above LAST are
// NaN.
template <class T, u32 BITS, u64 LAST>
__device__ static INLINE T canonical(T a) {
  constexpr T ALL = (T)(~0ull >> (64 - BITS));
  return (a & ALL >> 1) > (T)LAST ? ALL : a;
}

// Unsigned integers in the order of canonical floats. The NaN is the lowest.
template <class T, u32 BITS>
__device__ static INLINE T order_of(T a) {
  constexpr T ALL = (T)(~0ull >> (64 - BITS)), SIGN = (T)(1ull << (BITS - 1));
  return a & SIGN ? a ^ ALL : a | SIGN;
}

// The maximum or the minimum of two floats, which depends on neither their order nor the payload of
// a NaN: -0 is less than +0, a number wins against a NaN, and the result of two NaNs is the one
// with all bits set.
template <class T, u32 BITS, u64 LAST, Node NODE>
__device__ static INLINE T extreme(T a, T b) {
  constexpr T ALL = (T)(~0ull >> (64 - BITS));
  a = canonical<T, BITS, LAST>(a);
  b = canonical<T, BITS, LAST>(b);
  const T x = order_of<T, BITS>(a), y = order_of<T, BITS>(b);
  // Subtracting 1 makes the lowest number the highest.
  if (NODE == MIN) return ((x - 1) & ALL) < ((y - 1) & ALL) ? a : b;
  return x > y ? a : b;
}

template <class Format, Node NODE>
__device__ static INLINE u32 small_float(u32 a, u32 b) {
  if (NODE == MAX || NODE == MIN)
    return extreme<u32, Format::WIDTH, Format::LAST_NUMBER, NODE>(a, b);
  const float x = Format::decode(a), y = Format::decode(b);
  return Format::encode(NODE == SUM ? add_rn(x, y) : mul_rn(x, y));
}

// Applies `f` to each of the elements of `BITS` bits in a word.
template <u32 BITS, class F>
__device__ static INLINE u32 each(u32 a, u32 b, F f) {
  u32 word = 0;
#pragma unroll
  for (u32 i = 0; i < 32; i += BITS)
    word |= (f(a >> i & ((1u << BITS) - 1), b >> i & ((1u << BITS) - 1)) & ((1u << BITS) - 1)) << i;
  return word;
}

template <Node NODE>
__device__ static INLINE u32 node32(u32 a, u32 b) {
  return integer<u32, NODE>(a, b);
}
template <Node NODE>
__device__ static INLINE u32 node_single(u32 a, u32 b) {
  if (NODE == MAX || NODE == MIN) return extreme<u32, 32, 0x7f800000, NODE>(a, b);
  const float x = bits_float(a), y = bits_float(b);
  return float_bits(NODE == SUM ? add_rn(x, y) : mul_rn(x, y));
}
template <Node NODE>
__device__ static INLINE u64 node_double(u64 a, u64 b) {
  if (NODE == MAX || NODE == MIN) return extreme<u64, 64, 0x7ffull << 52, NODE>(a, b);
  const double x = bits_double(a), y = bits_double(b);
  return double_bits(NODE == SUM ? add_rn(x, y) : mul_rn(x, y));
}

// One node of a fold, for a fixed `KIND` and `NODE`; `a` is the result of the lower positions.
template <Kind KIND, Node NODE>
__device__ static INLINE Pack combine_inline(Pack a, Pack b) {
  Pack r;
  if (KIND == U64 || KIND == DOUBLE) {
#pragma unroll
    for (u32 i = 0; i < 4; i += 2) {
      const u64 x = a.w[i] | (u64)a.w[i + 1] << 32, y = b.w[i] | (u64)b.w[i + 1] << 32;
      const u64 z = KIND == U64 ? integer<u64, NODE>(x, y) : node_double<NODE>(x, y);
      r.w[i] = (u32)z;
      r.w[i + 1] = (u32)(z >> 32);
    }
    return r;
  }
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const u32 x = a.w[i], y = b.w[i];
    r.w[i] = KIND == U32        ? node32<NODE>(x, y)
             : KIND == SINGLE   ? node_single<NODE>(x, y)
             : KIND == HALF     ? each<16>(x, y, small_float<F16, NODE>)
             : KIND == BFLOAT   ? each<16>(x, y, small_float<Bf16, NODE>)
             : KIND == U8       ? each<8>(x, y, integer<u32, NODE>)
             : KIND == FP8_E4M3 ? each<8>(x, y, small_float<E4M3, NODE>)
                                : each<8>(x, y, small_float<E5M2, NODE>);
  }
  return r;
}

// One node of a fold, for any kind and node.
__device__ static NOINLINE Pack combine(u32 node, Pack a, Pack b) {
#define CASES(KIND)                                                  \
  case node_of(KIND, SUM): return combine_inline<KIND, SUM>(a, b);   \
  case node_of(KIND, PROD): return combine_inline<KIND, PROD>(a, b); \
  case node_of(KIND, MAX): return combine_inline<KIND, MAX>(a, b);
#define FLOAT_CASES(KIND) \
  CASES(KIND)             \
  case node_of(KIND, MIN): return combine_inline<KIND, MIN>(a, b);
  switch (node) {
    CASES(U8)
    CASES(U32)
    CASES(U64)
    FLOAT_CASES(HALF)
    FLOAT_CASES(SINGLE)
    FLOAT_CASES(DOUBLE)
    FLOAT_CASES(BFLOAT)
    FLOAT_CASES(FP8_E4M3)
    FLOAT_CASES(FP8_E5M2)
  }
#undef FLOAT_CASES
#undef CASES
  return a;
}

// Divides integers by the number of ranks, toward zero.
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

// A pack filled with the low `element` bytes of `low`.
__device__ static INLINE Pack filled_with(u64 low, u32 element) {
  for (u32 bits = 8 * element; bits < 64; bits *= 2)
    low = (low & ((1ull << bits) - 1)) | low << bits;
  const u32 words[2] = {(u32)low, (u32)(low >> 32)};
  return Pack{{words[0], words[1], words[0], words[1]}};
}

// Decodes the operation of a work; false if there is no such operation. One thread calls this.
__device__ static bool arithmetic_of(const Work& work, Arithmetic& m) {
  const u32 code = work.operation & ~OPERATION_ADDRESS, dtype = code / 8, op = code % 8;
  if (dtype >= DTYPES || op > RED_PREMULSUM) return false;
  const bool real = dtype >= 6, is_signed = !real && dtype % 2 == 0;
  const Kind kind = (Kind)(real ? dtype - 3 : dtype / 2);
  m.dtype = dtype;
  m.node = node_of(kind, op == RED_PROD                   ? PROD
                         : op == RED_MIN && real          ? MIN
                         : op == RED_MAX || op == RED_MIN ? MAX
                                                          : SUM);
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
  // Inverting all bits of an integer reverses the order. Inverting the sign bit of a signed integer
  // gives an unsigned one in the same order.
  u64 flip = 0;
  if (op == RED_MIN && !real) flip = ~0ull;
  if ((op == RED_MIN || op == RED_MAX) && is_signed) flip ^= 1ull << (8 * work.element - 1);
  m.flip = filled_with(flip, work.element);
  return true;
}
