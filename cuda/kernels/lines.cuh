// Messages in lines: every 8-byte word carries a flag, so that the data themselves tell that they are there.
//
// Message `n` of a link takes the words of the ring that its slot would be. The flag is the low half of n + 1. The sender writes
// them in any order, by words that are never torn; the receiver polls each word it needs. Neither needs a barrier or a release.
//
// Why nobody waits for ever. A block commits to a step when it has seen the first words, tag and length, of all its messages (and
// has credit for those it sends). From then on it waits only for the other words of these messages. Whoever wrote the first words
// had committed to the step that sends them, earlier; that step waits, if at all, for words of messages begun earlier still. So of all
// steps that are under way the one that was committed first waits for nothing, and ends: there is no cycle, however lanes are
// spread over blocks. (Committing before the first words are there would break this: a block that waits for one lane's message
// could be the one to send it in another lane.)
//
// A stale word never looks fresh: between two uses of the same 32 bits, the sender overwrites all words of each place of the ring,
// whatever protocol the messages are then in. The flag that it leaves is that of the message before, which is over.
#pragma once
#include "look.cuh"
#include "pass.cuh"

__device__ static INLINE Line line_of(u32 low, u32 high, u32 flag) {
  return {low | (u64)flag << 32, high | (u64)flag << 32};
}

// Waits for two words; false if the work is aborted.
__device__ static INLINE bool await_line(const Work& work, gptr<const u64> at, u32 flag, Line& v) {
  for (u32 turns = 1;; turns++) {
    v = load_line(at);
    if ((u32)(v.a >> 32) == flag && (u32)(v.b >> 32) == flag) return true;
    if (turns % ABORT_TURNS == 0 && aborted(work)) return false;
    wait_hint(turns);
  }
}

__device__ static INLINE u32 width_of(gptr<const u8> at) {
  const u64 low = address_of(at) | 16;
  return (u32)(low & -low);
}

// Pack `p` of the message or chunk of operand `j`, of which `bytes` bytes count.
__device__ static NOINLINE bool take_pack(const Block& b, bool in_lines, u32 j, u32 p, u32 bytes, Pack& v) {
  const gptr<const u8> at = b.operands.at[j];
  if (in_lines) {
    const gptr<const u64> words = gcast<const u64>(at) + 2 + 4ull * p;
    const u32 flag = (u32)b.operands.n[j] + 1;
    Line low, high = {0, 0};
    if (!await_line(b.work, words, flag, low)) return false;
    if (bytes > 8 && !await_line(b.work, words + 2, flag, high)) return false;
    v = Pack{{(u32)low.a, (u32)low.b, (u32)high.a, (u32)high.b}};
  } else {
    const gptr<const u8> from = at + 16ull * p;
    v = bytes == 16 ? load_pack(from, width_of(from)) : load_part(from, bytes, b.work.element);
  }
  return true;
}

__device__ static NOINLINE void put_pack(const Block& b, bool in_lines, u32 j, u32 p, u32 bytes, Pack v) {
  const gptr<u8> at = b.operands.at[j];
  if (in_lines) {
    const gptr<u64> words = gcast<u64>(at) + 2 + 4ull * p;
    const u32 flag = (u32)b.operands.n[j] + 1;
    store_line(words, line_of(v.w[0], v.w[1], flag));
    if (bytes > 8) store_line(words + 2, line_of(v.w[2], v.w[3], flag));
  } else {
    const gptr<u8> to = at + 16ull * p;
    if (bytes == 16) store_pack(to, width_of(to), v);
    else store_part(to, bytes, b.work.element, v);
  }
}

// The whole pass, for operands of which some are messages in lines. False if the work was aborted meanwhile; then it is not whole.
__device__ static NOINLINE bool pass_lines(const Block& b, Shape s, u32 elements) {
  const u32 bytes = elements * b.work.element;
  for (u32 o = threadIdx.x; o < s.outputs; o += blockDim.x) {
    const u32 j = MAX_FAN + o;
    if (s.lines >> j & 1) store_line(gcast<u64>(b.operands.at[j]), line_of(b.turn.tag, bytes, (u32)b.operands.n[j] + 1));
  }
#pragma unroll 1
  for (u32 p = threadIdx.x; 16ull * p < bytes; p += blockDim.x) {
    const u32 part = bytes - 16 * p < 16 ? bytes - 16 * p : 16;
    Pack v[MAX_FAN];
#pragma unroll
    for (u32 k = 0; k < MAX_FAN; k++)
      if (k < s.inputs && !take_pack(b, s.lines >> k & 1, k, p, part, v[k])) return false;
    const Pack r = fold_tree<Called, MAX_FAN>(Called{b.arithmetic.node}, b.arithmetic, s, v);
#pragma unroll 1
    for (u32 o = 0; o < s.outputs; o++) put_pack(b, s.lines >> (MAX_FAN + o) & 1, MAX_FAN + o, p, part, r);
  }
  return true;
}

// Overwrites the words of the places that the step's messages take; see above. All threads call it.
__device__ static NOINLINE void freshen(const Block& b, u32 stale) {
  const u32 head = b.turn.words[0];
  for (u32 o = 0; o < outputs_of(head); o++) {
    if (!(stale >> (MAX_FAN + o) & 1)) continue;
    const gptr<const LinkEnd> end = b.work.sending + index_of(b.turn.words[1 + inputs_of(head) + o]);
    const u64 n = b.operands.n[MAX_FAN + o];
    const gptr<u64> words = end->lines + n % end->depth * end->line_words;
    for (u64 i = threadIdx.x; i < end->line_words / 2; i += blockDim.x) store_line(words + 2 * i, line_of(0, 0, (u32)n));
  }
  __syncthreads();
}
