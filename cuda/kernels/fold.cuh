// Folds the inputs of a step in one pass over memory, by the balanced tree over their positions,
// and writes every output.
//
// A thread processes 16 bytes of each operand at a time, and several such packs at once so that
// many loads are in flight. Accesses are as wide as the alignment of all operands allows. Single
// elements are processed by one thread each: those before the first multiple of 16, if all operands
// have the same offset to one, and those at the end that do not fill 16 bytes.
#pragma once
#include "block.cuh"
#include "operations.cuh"

// What every thread needs to know about a step.
struct FoldShape {
  u32 inputs, outputs;
  u32 own;     // bit k: input k is a contribution that is scaled
  u32 finish;  // whether the result is divided
  u32 ll;      // bit j: operand j is an LL message
};

// Any operation, by a function call.
struct AnyFold {
  static constexpr bool SUMS = false;
  u32 node;
  __device__ INLINE Pack operator()(Pack a, Pack b) const { return combine(node, a, b); }
};
// A frequent operation, inlined into the loop, for steps that neither scale nor divide.
template <Kind KIND>
struct InlineSum {
  static constexpr bool SUMS = true;
  __device__ INLINE Pack operator()(Pack a, Pack b) const {
    return combine_inline<KIND, SUM>(a, b);
  }
};

// Folds the packs of all inputs at one position. `v` has room for K inputs, of which `s.inputs` are
// used.
template <class Op, u32 K>
__device__ static INLINE Pack fold_tree(Op op, const Arithmetic& m, const FoldShape& s,
                                        Pack (&v)[K]) {
  if (!Op::SUMS) {
#pragma unroll
    for (u32 k = 0; k < K; k++) {
      if (k < s.inputs && s.own >> k & 1) v[k] = combine(m.prod, v[k], m.factor);
#pragma unroll
      for (u32 i = 0; i < 4; i++) v[k].w[i] ^= m.flip.w[i];
    }
  }
#pragma unroll
  for (u32 d = 1; d < K; d *= 2)
#pragma unroll
    for (u32 k = 0; k + d < K; k += 2 * d)
      if (k + d < s.inputs) v[k] = op(v[k], v[k + d]);
  if (Op::SUMS) return v[0];
#pragma unroll
  for (u32 i = 0; i < 4; i++) v[0].w[i] ^= m.flip.w[i];
  return s.finish ? divide(m.dtype, v[0], m.divisor) : v[0];
}

// Loads the first `bytes` bytes of a pack by accesses of `width` bytes, of which `bytes` is a
// multiple; the rest is zero.
__device__ static NOINLINE Pack load_part(gptr<const u8> at, u32 bytes, u32 width) {
  Pack v = {{0, 0, 0, 0}};
#pragma unroll
  for (u32 i = 0; i < 16; i++) {
    if (i >= bytes || i % width) continue;
    const u32 part = width >= 4   ? *gcast<const u32>(at + i)
                     : width == 2 ? *gcast<const u16>(at + i)
                                  : at[i];
    v.w[i / 4] |= part << i % 4 * 8;
    if (width == 8) v.w[i / 4 + 1] |= gcast<const u32>(at + i)[1];
  }
  return v;
}

__device__ static NOINLINE void store_part(gptr<u8> at, u32 bytes, u32 width, Pack v) {
#pragma unroll
  for (u32 i = 0; i < 16; i++) {
    if (i >= bytes || i % width) continue;
    const u32 part = v.w[i / 4] >> i % 4 * 8;
    if (width >= 4)
      *gcast<u32>(at + i) = part;
    else if (width == 2)
      *gcast<u16>(at + i) = (u16)part;
    else
      at[i] = (u8)part;
    if (width == 8) gcast<u32>(at + i)[1] = v.w[i / 4 + 1];
  }
}

// Loads 16 bytes by accesses of `width` bytes.
__device__ static INLINE Pack load_pack(gptr<const u8> at, u32 width) {
  if (width == 16) return *gcast<const Pack>(at);
  if (width < 4) return load_part(at, 16, width);
  Pack v;
#pragma unroll
  for (u32 i = 0; i < 4; i++) v.w[i] = gcast<const u32>(at)[i];
  return v;
}

__device__ static INLINE void store_pack(gptr<u8> at, u32 width, Pack v) {
  if (width == 16) {
    *gcast<Pack>(at) = v;
  } else if (width < 4) {
    store_part(at, 16, width, v);
  } else {
#pragma unroll
    for (u32 i = 0; i < 4; i++) gcast<u32>(at)[i] = v.w[i];
  }
}

// Folds single elements: the first `head`, and those from `tail` to `elements`; fewer than 16 each.
__device__ static NOINLINE void fold_ends(const Block& b, FoldShape s, u32 head, u32 tail,
                                          u32 elements) {
  for (u32 t = threadIdx.x; t < 32; t += blockDim.x) {
    const u32 i = t < 16 ? t : tail + t - 16;
    if (i >= (t < 16 ? head : elements)) continue;
    const u64 at = (u64)i * b.work.element;
    Pack v[MAX_FAN];
#pragma unroll
    for (u32 k = 0; k < MAX_FAN; k++)
      if (k < s.inputs) v[k] = load_part(b.operands.at[k] + at, b.work.element, b.work.element);
    const Pack r = fold_tree<AnyFold, MAX_FAN>(AnyFold{b.arithmetic.node}, b.arithmetic, s, v);
#pragma unroll 1
    for (u32 o = 0; o < s.outputs; o++)
      store_part(b.operands.at[MAX_FAN + o] + at, b.work.element, b.work.element, r);
  }
}

// Folds the packs from `first` to `packs`, which lie behind `from` bytes, U packs of each thread at
// a time. Returns the first pack that is left. If WIDE, `width` is 16.
template <class Op, u32 K, u32 U, bool WIDE>
__device__ static INLINE u32 fold_packs(Op op, const Block& b, const FoldShape& s, u32 width,
                                        u64 from, u32 first, u32 packs) {
  const u32 stride = blockDim.x * U;
#pragma unroll 1
  for (; packs - first >= (U == 1 ? 1 : stride) && first < packs; first += stride) {
    Pack v[U][K];
#pragma unroll
    for (u32 u = 0; u < U; u++) {
      const u32 p = first + u * blockDim.x + threadIdx.x;
#pragma unroll
      for (u32 k = 0; k < K; k++) {
        v[u][k] = Pack{{0, 0, 0, 0}};
        if (k < s.inputs && (U > 1 || p < packs))
          v[u][k] = load_pack(b.operands.at[k] + from + 16ull * p, WIDE ? 16 : width);
      }
    }
#pragma unroll
    for (u32 u = 0; u < U; u++) {
      const u32 p = first + u * blockDim.x + threadIdx.x;
      if (U == 1 && p >= packs) continue;
      const Pack r = fold_tree<Op, K>(op, b.arithmetic, s, v[u]);
#pragma unroll 1
      for (u32 o = 0; o < s.outputs; o++)
        store_pack(b.operands.at[MAX_FAN + o] + from + 16ull * p, WIDE ? 16 : width, r);
    }
  }
  return first;
}

template <class Op, u32 K, u32 U, bool WIDE>
__device__ static NOINLINE void fold_all(Op op, const Block& b, FoldShape s, u32 width, u64 from,
                                         u32 packs) {
  const u32 left = fold_packs<Op, K, U, WIDE>(op, b, s, width, from, 0, packs);
  fold_packs<Op, K, 1, WIDE>(op, b, s, width, from, left, packs);
}

// Copies, for every data type: pieces of type T, U of each thread at a time.
template <class T, u32 U>
__device__ static INLINE u32 copy_pieces(const Block& b, u32 outputs, u64 from, u32 first,
                                         u32 pieces) {
  const gptr<const T> source = gcast<const T>(b.operands.at[0] + from);
  const u32 stride = blockDim.x * U;
#pragma unroll 1
  for (; pieces - first >= (U == 1 ? 1 : stride) && first < pieces; first += stride) {
    T v[U] = {};
#pragma unroll
    for (u32 u = 0; u < U; u++) {
      const u32 i = first + u * blockDim.x + threadIdx.x;
      if (U > 1 || i < pieces) v[u] = source[i];
    }
#pragma unroll 1
    for (u32 o = 0; o < outputs; o++) {
      const gptr<T> to = gcast<T>(b.operands.at[MAX_FAN + o] + from);
#pragma unroll
      for (u32 u = 0; u < U; u++) {
        const u32 i = first + u * blockDim.x + threadIdx.x;
        if (U > 1 || i < pieces) to[i] = v[u];
      }
    }
  }
  return first;
}

template <class T>
__device__ static NOINLINE void copy_all(const Block& b, u32 outputs, u64 from, u32 bytes) {
  const u32 pieces = bytes / sizeof(T);
  const u32 left = copy_pieces<T, 8>(b, outputs, from, 0, pieces);
  copy_pieces<T, 1>(b, outputs, from, left, pieces);
}

// Folds a step whose operands are all in memory.
__device__ static INLINE void fold_step(const Block& b, FoldShape s, u32 elements) {
  const u32 element = b.work.element;
  // `other` is a multiple of 16 if all operands have the same offset to a multiple of 16.
  const u64 first = address_of(b.operands.at[0]);
  u64 any = 0, other = 0;
  for (u32 j = 0; j < s.inputs + s.outputs; j++) {
    const u64 at = address_of(b.operands.at[j < s.inputs ? j : MAX_FAN + j - s.inputs]);
    any |= at;
    other |= at ^ first;
  }
  u32 head = 0;
  if (other % 16 == 0) {
    head = (u32)(-first % 16) / element;
    if (head > elements) head = elements;
    any = first + head * element;
  }
  const u32 width = any % 16 == 0 ? 16 : any % 8 == 0 ? 8 : any % 4 == 0 ? 4 : any % 2 == 0 ? 2 : 1;
  const u64 from = (u64)head * element;
  const u32 packs = (u32)((elements - head) * (u64)element / 16),
            tail = head + packs * (16 / element);
  if (head != 0 || tail != elements) fold_ends(b, s, head, tail, elements);
  if (packs == 0) return;
  if (s.inputs == 1 && s.own == 0 && !s.finish) {
    switch (width) {
      case 16: return copy_all<Pack>(b, s.outputs, from, packs * 16);
      case 8: return copy_all<u64>(b, s.outputs, from, packs * 16);
      case 4: return copy_all<u32>(b, s.outputs, from, packs * 16);
      case 2: return copy_all<u16>(b, s.outputs, from, packs * 16);
      default: return copy_all<u8>(b, s.outputs, from, packs * 16);
    }
  }
  const AnyFold op = {b.arithmetic.node};
  if (width != 16) {
    if (s.inputs > 2) return fold_all<AnyFold, 8, 1, false>(op, b, s, width, from, packs);
    return fold_all<AnyFold, 2, 2, false>(op, b, s, width, from, packs);
  }
  if (s.inputs > 4) return fold_all<AnyFold, 8, 1, true>(op, b, s, width, from, packs);
  if (s.inputs > 2) return fold_all<AnyFold, 4, 2, true>(op, b, s, width, from, packs);
  switch (s.own != 0 || s.finish ? ~0u : op.node) {
    case node_of(SINGLE, SUM):
      return fold_all<InlineSum<SINGLE>, 2, 4, true>({}, b, s, width, from, packs);
    case node_of(BFLOAT, SUM):
      return fold_all<InlineSum<BFLOAT>, 2, 4, true>({}, b, s, width, from, packs);
    case node_of(HALF, SUM):
      return fold_all<InlineSum<HALF>, 2, 4, true>({}, b, s, width, from, packs);
    default: return fold_all<AnyFold, 2, 4, true>(op, b, s, width, from, packs);
  }
}
