// LL messages: every 8-byte word carries a flag, which tells the receiver that the word has
// arrived.
//
// Message `n` of a link uses LL line `n % depth` of the ring. The flag is the low half of n + 1.
// The sender writes the words in any order; a word is never torn. The receiver polls each word that
// it needs. Neither side needs a barrier or a release.
//
// Why there is no deadlock. A block commits to a step when it has seen the first words (tag and
// length) of all messages that the step receives, and has credit for all messages that it sends.
// From then on it waits only for the other words of these messages. The block that wrote the first
// words had committed to its step earlier, and waits itself only for words of messages that were
// begun even earlier. So of all committed steps the one that was committed first waits for nothing,
// and ends. There is no cycle, however lanes are distributed over blocks. (Committing to a step
// before the first words have arrived would break this: the block that waits for the message of one
// lane could be the block that has to send it in another lane.)
//
// A stale word never looks like a new one: before the same 32-bit flag is used again, the sender
// overwrites all words of each line of the ring, whichever protocol the messages use then. It
// writes the flag of the message before, which has been consumed.
#pragma once
#include "ready.cuh"
#include "fold.cuh"

__device__ static INLINE LlPair ll_pair(u32 low, u32 high, u32 flag) {
  return {low | (u64)flag << 32, high | (u64)flag << 32};
}

// Waits until two words have arrived; false if the work is aborted.
__device__ static INLINE bool await_ll_pair(const Work& work, gptr<const u64> at, u32 flag,
                                            LlPair& v) {
  for (u32 turns = 1;; turns++) {
    v = load_ll_pair(at);
    if ((u32)(v.a >> 32) == flag && (u32)(v.b >> 32) == flag) return true;
    if (turns % ABORT_TURNS == 0 && aborted(work)) return false;
    wait_hint(turns);
  }
}

// The widest access, up to 16 bytes, that the alignment of `at` allows.
__device__ static INLINE u32 width_of(gptr<const u8> at) {
  const u64 low = address_of(at) | 16;
  return (u32)(low & -low);
}

// Loads pack `p` of operand `j`, of which `bytes` bytes are used; false if the work is aborted.
__device__ static NOINLINE bool load_operand(const Block& b, bool is_ll, u32 j, u32 p, u32 bytes,
                                             Pack& v) {
  const gptr<const u8> at = b.operands.at[j];
  if (is_ll) {
    const gptr<const u64> words = gcast<const u64>(at) + 2 + 4ull * p;
    const u32 flag = (u32)b.operands.n[j] + 1;
    LlPair low, high = {0, 0};
    if (!await_ll_pair(b.work, words, flag, low)) return false;
    if (bytes > 8 && !await_ll_pair(b.work, words + 2, flag, high)) return false;
    v = Pack{{(u32)low.a, (u32)low.b, (u32)high.a, (u32)high.b}};
  } else {
    const gptr<const u8> from = at + 16ull * p;
    v = bytes == 16 ? load_pack(from, width_of(from)) : load_part(from, bytes, b.work.element);
  }
  return true;
}

// Stores pack `p` of operand `j`, of which `bytes` bytes are used.
__device__ static NOINLINE void store_operand(const Block& b, bool is_ll, u32 j, u32 p, u32 bytes,
                                              Pack v) {
  const gptr<u8> at = b.operands.at[j];
  if (is_ll) {
    const gptr<u64> words = gcast<u64>(at) + 2 + 4ull * p;
    const u32 flag = (u32)b.operands.n[j] + 1;
    store_ll_pair(words, ll_pair(v.w[0], v.w[1], flag));
    if (bytes > 8) store_ll_pair(words + 2, ll_pair(v.w[2], v.w[3], flag));
  } else {
    const gptr<u8> to = at + 16ull * p;
    if (bytes == 16)
      store_pack(to, width_of(to), v);
    else
      store_part(to, bytes, b.work.element, v);
  }
}

// Folds a step of which some operands are LL messages. False if the work was aborted; the outputs
// are then incomplete.
__device__ static NOINLINE bool fold_step_ll(const Block& b, FoldShape s, u32 elements) {
  const u32 bytes = elements * b.work.element;
  for (u32 o = threadIdx.x; o < s.outputs; o += blockDim.x) {
    const u32 j = MAX_FAN + o;
    if (s.ll >> j & 1)
      store_ll_pair(gcast<u64>(b.operands.at[j]),
                    ll_pair(b.cursor.tag, bytes, (u32)b.operands.n[j] + 1));
  }
#pragma unroll 1
  for (u32 p = threadIdx.x; 16ull * p < bytes; p += blockDim.x) {
    const u32 part = bytes - 16 * p < 16 ? bytes - 16 * p : 16;
    Pack v[MAX_FAN];
#pragma unroll
    for (u32 k = 0; k < MAX_FAN; k++)
      if (k < s.inputs && !load_operand(b, s.ll >> k & 1, k, p, part, v[k])) return false;
    const Pack r = fold_tree<AnyFold, MAX_FAN>(AnyFold{b.arithmetic.node}, b.arithmetic, s, v);
#pragma unroll 1
    for (u32 o = 0; o < s.outputs; o++)
      store_operand(b, s.ll >> (MAX_FAN + o) & 1, MAX_FAN + o, p, part, r);
  }
  return true;
}

// Overwrites the LL lines of the messages that the step sends, so that no stale word is left (see
// above). All threads call it.
__device__ static NOINLINE void overwrite_stale(const Block& b, u32 stale) {
  const u32 head = b.cursor.words[0];
  for (u32 o = 0; o < outputs_of(head); o++) {
    if (!(stale >> (MAX_FAN + o) & 1)) continue;
    const gptr<const LinkEnd> end =
        b.work.sending + index_of(b.cursor.words[1 + inputs_of(head) + o]);
    const u64 n = b.operands.n[MAX_FAN + o];
    const gptr<u64> words = end->ll + n % end->depth * end->ll_words;
    for (u64 i = threadIdx.x; i < end->ll_words / 2; i += blockDim.x)
      store_ll_pair(words + 2 * i, ll_pair(0, 0, (u32)n));
  }
  __syncthreads();
}
