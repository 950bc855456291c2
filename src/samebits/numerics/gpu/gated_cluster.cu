// Gate, up and their activation in one product of many rows, on Hopper (sm_90a): see gated_cluster.py.
//
// Two multiprocessors, a cluster, compute 256 rows of the same 128 columns. Each copies its own 128 rows of x, and
// either the gate's or the up matrix's lines of these columns, which go to both at once: a weight is read from the
// second-level cache once for 256 rows. Of a program's three groups of four warps one copies; the others own 64 rows
// each, whose sums of gate and up are side by side in registers, and meet at the ring of shared memory only.
//
// Defined ahead of this text: SUMS and SUM_OPERANDS, the 128 registers of a product; ESTIMATED_PAIR and EXACT_PAIR, the
// activation of two elements.

typedef unsigned int Word;
typedef unsigned long long Long;
typedef unsigned short Half;
struct alignas(64) TensorMap { char bytes[128]; };

constexpr int STAGES = 4;             // blocks of K in shared memory
constexpr int DEPTH = 64;             // elements of K in a block: 128 bytes, as wide as the swizzle
constexpr int ROWS = 128;             // of a program
constexpr int COLUMNS = 128;          // of the result, so many of gate and so many of up
constexpr int X_BYTES = ROWS * DEPTH * 2, PANEL_BYTES = COLUMNS * DEPTH * 2;
constexpr int SLOT_BYTES = X_BYTES + 2 * PANEL_BYTES;
constexpr int WARP_ROWS = 16;
constexpr int STAGED_ROW = COLUMNS + 8;  // so that eight rows of pairs meet no bank twice
constexpr int STAGED = STAGES * SLOT_BYTES, BARRIERS = STAGED + 8 * WARP_ROWS * STAGED_ROW * 2;
constexpr int LEAD = 2;               // blocks that the first group is ahead of the second

__device__ __forceinline__ void wait(Word barrier, Word phase) {
  asm volatile(
      "{ .reg .pred p; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra DONE; "
      "bra AGAIN; DONE: }" ::"r"(barrier), "r"(phase) : "memory");
}

__device__ __forceinline__ void arrive(Word barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrive at a barrier that also waits for so many bytes.
__device__ __forceinline__ void expect(Word barrier, Word bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// The address, in another program of the cluster, of what lies here in this one.
__device__ __forceinline__ Word address_in(Word here, Word rank) {
  Word there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  return there;
}

__device__ __forceinline__ void arrive_there(Word barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// A block of K in shared memory, lines of 128 bytes swizzled, as tensor cores read it.
__device__ __forceinline__ Long operand(Word address) { return (Long)(address >> 4) | 0x4000004000010000ull; }

// sums += left right^T, of 16 elements of K; without `keep` what the sums held is dropped.
__device__ __forceinline__ void multiply(float (&sums)[128], Long left, Long right, int keep) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %130, 0; "
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" SUMS "}, %128, %129, p, 1, 1, 0, 0; }"
      : SUM_OPERANDS : "l"(left), "l"(right), "r"(keep));
}

__device__ __forceinline__ Word packed(float first, float second) {
  Word both;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(both) : "f"(first), "f"(second));
  return both;
}

__device__ __forceinline__ float low(Word both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(Word both) { return __uint_as_float(both & 0xFFFF0000u); }

// Nearly silu(gate) * up of two elements; `bit` is set in `doubts` where an estimate may round otherwise.
__device__ __forceinline__ Word estimated(Word gate, Word up, Word& doubts, Word bit) {
  float first, second;
  asm(ESTIMATED_PAIR
      : "=f"(first), "=f"(second), "+r"(doubts)
      : "f"(low(gate)), "f"(high(gate)), "f"(low(up)), "f"(high(up)), "r"(bit));
  return packed(first, second);
}

__device__ __forceinline__ Word exact(Word gate, Word up) {
  float first, second;
  asm(EXACT_PAIR : "=f"(first), "=f"(second) : "f"(low(gate)), "f"(high(gate)), "f"(low(up)), "f"(high(up)));
  return packed(first, second);
}

// Where pair `i` of a thread's 32 lies behind its first: eight columns further, or the same of eight rows below.
__device__ __forceinline__ int staged_at(int i) { return i / 2 * 4 + i % 2 * 4 * STAGED_ROW; }

struct Place {
  int row, column;
};

// Where a tile of a cluster begins: `group` tiles of rows side by side, then their next column.
__device__ __forceinline__ Place place_of(int tile, int row_tiles, int column_tiles, int group) {
  const int per_group = group * column_tiles, first = tile / per_group * group;
  const int height = min(row_tiles - first, group);
  return {(first + tile % per_group % height) * 2 * ROWS, tile % per_group / height * COLUMNS};
}

__device__ __forceinline__ void copy(Word to, const TensorMap* from, int k, int line, Word barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
      ::"r"(to), "l"(from), "r"(barrier), "r"(k), "r"(line) : "memory");
}

// The same into both programs of the cluster, whose barriers both count it.
__device__ __forceinline__ void copy_to_both(Word to, const TensorMap* from, int k, int line, Word barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;"
      ::"r"(to), "l"(from), "r"(barrier), "r"(k), "r"(line), "h"((Half)3) : "memory");
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    gated_cluster(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, Half* out, int rows,
                  int width, int depth, int group) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const Word base = (Word)__cvta_generic_to_shared(memory);
  const Word ready = base + BARRIERS, free = ready + 8 * STAGES, begun = free + 8 * STAGES;
  Word rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  rank = __shfl_sync(~0u, rank, 0);
  const int row_tiles = rows / (2 * ROWS), column_tiles = width / COLUMNS, steps = depth / DEPTH;
  const int tiles = row_tiles * column_tiles, clusters = gridDim.x / 2;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; stage++) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(ready + 8 * stage));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 4;" ::"r"(free + 8 * stage));  // both groups of both programs
    }
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(begun));
    asm volatile("fence.mbarrier_init.release.cluster;");
  }
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
  const int which = __shfl_sync(~0u, threadIdx.x / 128, 0);
  int slot = 0;
  Word phase = 0;
  if (which == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 256) {
      for (int tile = blockIdx.x / 2; tile < tiles; tile += clusters) {
        const Place place = place_of(tile, row_tiles, column_tiles, group);
        const int line = place.column + rank * width;
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
          const Word to = base + slot * SLOT_BYTES, barrier = ready + 8 * slot;
          wait(free + 8 * slot, phase ^ 1);
          expect(barrier, SLOT_BYTES);
          copy(to, &x, step * DEPTH, place.row + rank * ROWS, barrier);
          copy_to_both(to + X_BYTES + rank * PANEL_BYTES, &weight, step * DEPTH, line, barrier);
          if (++slot == STAGES) { slot = 0; phase ^= 1; }
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // A product ends for its four warps at once, so one thread may speak for all: one to each program of the cluster.
    const bool speaks = threadIdx.x % 128 < 2;
    const Word free_there = address_in(free, lane & 1);
    Half* staged = reinterpret_cast<Half*>(memory + STAGED) + warp * WARP_ROWS * STAGED_ROW;
    Word* pairs = reinterpret_cast<Word*>(staged + lane / 4 * STAGED_ROW + lane % 4 * 2);
    bool first = which == 0;
    if (which == 1) wait(begun, 0);
    for (int tile = blockIdx.x / 2; tile < tiles; tile += clusters) {
      float sums[128];
      int before = 0;
#pragma unroll 1
      for (int step = 0; step < steps; step++) {
        const Word from = base + slot * SLOT_BYTES;
        const Long left = operand(from + which * (X_BYTES / 2)), right = operand(from + X_BYTES);
        wait(ready + 8 * slot, phase);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int atom = 0; atom < DEPTH / 16; atom++) multiply(sums, left + 2 * atom, right + 2 * atom, step | atom);
        asm volatile("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (speaks && step > 0) arrive_there(free_there + 8 * before);
        if (first && step == LEAD && threadIdx.x == 0) arrive(begun);
        before = slot;
        if (++slot == STAGES) { slot = 0; phase ^= 1; }
      }
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
      for (int i = 0; i < 128; i++) asm volatile("" : "+f"(sums[i])::"memory");
      if (speaks) arrive_there(free_there + 8 * before);
      first = false;
      const Place place = place_of(tile, row_tiles, column_tiles, group);
      const int row = place.row + rank * ROWS + warp * WARP_ROWS + lane / 16, column = lane % 16 * 8;
      // A thread holds pairs of columns of rows lane / 4 and 8 below it, gate in the first half, up in the second.
      Word gates[32], ups[32];
#pragma unroll
      for (int i = 0; i < 32; i++) {
        gates[i] = packed(sums[2 * i], sums[2 * i + 1]);
        ups[i] = packed(sums[64 + 2 * i], sums[64 + 2 * i + 1]);
      }
      Word doubts = 0;
#pragma unroll
      for (int i = 0; i < 32; i++) pairs[staged_at(i)] = estimated(gates[i], ups[i], doubts, 1u << i);
      // One element in a thousand; its place is not known ahead, so its gate and up are looked for among all.
      while (__any_sync(~0u, doubts != 0)) {
        const int at = __ffs(doubts) - 1;
        Word gate = 0, up = 0;
#pragma unroll
        for (int i = 0; i < 32; i++) {
          gate = at == i ? gates[i] : gate;
          up = at == i ? ups[i] : up;
        }
        const Word value = exact(gate, up);
        if (doubts) pairs[staged_at(at)] = value;
        doubts &= doubts - 1;
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < WARP_ROWS; i += 2) {
        const uint4 line = *reinterpret_cast<const uint4*>(staged + (i + lane / 16) * STAGED_ROW + column);
        *reinterpret_cast<uint4*>(out + (Long)(row + i) * width + place.column + column) = line;
      }
      __syncwarp();
    }
  }
  // Nobody leaves while the other may still copy into its memory or arrive at its barriers.
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}
