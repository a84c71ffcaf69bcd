// Conversion of the 16-bit and 8-bit floating-point formats to and from binary32, with the same
// bits as `reduce/src/convert.rs` on the host.
//
// The conversions use ordinary arithmetic instead of instructions that only some architectures
// have, so every GPU and the simulated device give the same bits. Decoding is exact. Encoding
// rounds to nearest, ties to even, also for subnormal results; the 8-bit formats saturate at their
// largest finite value. A NaN becomes a NaN.
#pragma once
#include "portable.cuh"

// A format of `BITS` bits, of which `FRACTION` are the fraction, with exponents biased by `BIAS`.
// Magnitudes above `LAST` are NaN; `INFINITE` says that the largest exponent means infinity or NaN.
// Overflow gives `OVERFLOWS`, a NaN gives `NOT_A_NUMBER`.
template <u32 BITS, u32 FRACTION, u32 BIAS, u32 LAST, bool INFINITE, u32 OVERFLOWS,
          u32 NOT_A_NUMBER>
struct Format {
  static constexpr u32 WIDTH = BITS, SHIFT = 23 - FRACTION, LAST_NUMBER = LAST;

  __device__ static INLINE float decode(u32 bits) {
    const u32 sign = bits >> (BITS - 1) << 31, magnitude = bits & ((1u << (BITS - 1)) - 1);
    // A multiplication corrects the exponent. It is exact, also for subnormals.
    u32 value = float_bits(mul_rn(bits_float(magnitude << SHIFT), bits_float((254 - BIAS) << 23)));
    if (INFINITE ? magnitude >= LAST : magnitude > LAST)
      value = 0x7f800000 | (INFINITE ? magnitude << SHIFT : 0x400000);
    return bits_float(sign | value);
  }

  __device__ static INLINE u32 encode(float x) {
    const u32 bits = float_bits(x), sign = bits >> 31 << (BITS - 1), magnitude = bits & 0x7fffffff;
    const u32 odd = magnitude >> SHIFT & 1;
    const u32 normal =
        ((magnitude + (1u << (SHIFT - 1)) - 1 + odd) >> SHIFT) - ((127 - BIAS) << FRACTION);
    // The last bit of this power of two is worth the smallest subnormal: adding it rounds to a
    // multiple of that.
    constexpr u32 ROUNDER = (128 - BIAS + SHIFT) << 23;
    const u32 subnormal = float_bits(add_rn(bits_float(magnitude), bits_float(ROUNDER))) - ROUNDER;
    u32 result = magnitude < ((128 - BIAS) << 23) ? subnormal
                 : normal > OVERFLOWS             ? OVERFLOWS
                                                  : normal;
    if (magnitude > 0x7f800000) result = NOT_A_NUMBER;
    return sign | result;
  }
};

typedef Format<16, 10, 15, 0x7c00, true, 0x7c00, 0x7e00> F16;
typedef Format<8, 3, 7, 0x7e, false, 0x7e, 0x7f> E4M3;
typedef Format<8, 2, 15, 0x7c, true, 0x7b, 0x7f> E5M2;

// bfloat16: the upper half of a binary32, also for subnormals and overflow.
struct Bf16 {
  static constexpr u32 WIDTH = 16, LAST_NUMBER = 0x7f80;
  __device__ static INLINE float decode(u32 bits) { return bits_float(bits << 16); }
  __device__ static INLINE u32 encode(float x) {
    const u32 bits = float_bits(x);
    return (bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40
                                            : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
};
