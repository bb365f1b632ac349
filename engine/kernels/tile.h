// What the parts of the library share: how weights and activations lie in memory, and the products over them.
//
// A matrix [n, k] lies in tiles of 16 of its rows, the columns of the product. A tile is its blocks of 32
// inputs, one behind the other, and a block is
//     4 bits: 256 bytes. Bytes 4 j .. 4 j + 3 of each 64 are those of column j; the low nibbles of the g-th 64 are inputs
//             4 g .. 4 g + 3, the high ones inputs 16 + 4 g .. 19 + 4 g
//     8 bits: 512 bytes, likewise, the g-th 64 bytes being inputs 4 g .. 4 g + 3
// and behind these 16 scales, and 16 offsets where there are any, in half or in single precision. A weight is
// scale * (value - zero) + offset, zero being 8 or 128 where there are no offsets, else 0.
//
// Activations are quantised by row and block, so that no row of a product depends on another one. Whatever the number of
// rows, the floating-point operations of a row are the same in the same order. Rows that are multiplied together are a
// group and lie together, in the order in which they are read: a group of m rows is its blocks, and a block is m times 32
// values, m scales (float) and m corrections: -zero * the sum of the values (int32), or, where the weights have offsets,
// scale * that sum (float).
#pragma once
#include <cstddef>
#include <cstdint>

namespace llamacord {

constexpr int kTile = 16;    // columns
constexpr int kBlock = 32;   // inputs
constexpr float kSmallest = 1e-36f;  // activations that are no larger count as 0: what 127 is divided by stays finite

struct Format {
  int bits;            // 4 or 8
  bool has_offsets;
  bool is_half;        // scales and offsets in half precision
  size_t value_bytes() const { return size_t(kTile) * kBlock * bits / 8; }
  size_t scale_bytes() const { return size_t(kTile) * (is_half ? 2 : 4); }
  size_t block_bytes() const { return value_bytes() + scale_bytes() * (has_offsets ? 2 : 1); }
  int zero() const { return has_offsets ? 0 : bits == 4 ? 8 : 128; }
};

constexpr size_t kRowBytes = kBlock + 8;  // of a block of a row

// What one instruction set does.
struct Kernels {
  // Quantises a row x [num_blocks * 32] to its place in a group of m.
  void (*quantize)(const Format& format, const float* x, size_t num_blocks, uint8_t* group, size_t m, size_t row);
  // out [m, 16] (rows `stride` apart) = a group of m rows x one tile of weights. m <= max_rows.
  void (*product)(const Format& format, const uint8_t* tile, const uint8_t* group, size_t num_blocks, int m, float* out, size_t stride);
  // The same with two tiles at once, which pays from two groups on; nullptr where it never does. m <= max_pair_rows.
  void (*product_pair)(const Format& format, const uint8_t* const* tiles, const uint8_t* group, size_t num_blocks, int m, float* const* outs, size_t stride);
  // gate = act(gate) * up, 16 floats of each of m rows; out rows `stride` apart. kind: 0 SiLU, 1 GELU (tanh).
  void (*gated)(const float* gate, const float* up, int m, int kind, float* out, size_t stride);
  int max_rows, max_pair_rows;
  const char* name;
};

const Kernels* avx512();   // nullptr where it was not built
const Kernels* avxvnni();

}  // namespace llamacord
