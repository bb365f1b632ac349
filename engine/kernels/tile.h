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
// rows, the floating-point operations of a row are the same in the same order.
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
};

struct Rows {             // quantised activations of m rows
  const int8_t* values;   // [m, k]
  const float* scales;    // [m, k / 32]
  const float* sums;      // [m, k / 32]: scale * sum of values, for offsets
  const int32_t* starts;  // [m, k / 32]: -zero * sum of values
  size_t num_blocks;      // k / 32
};

// What one instruction set does.
struct Kernels {
  // Quantises a row x [num_blocks * 32].
  void (*quantize)(const float* x, size_t num_blocks, int zero, int8_t* values, float* scales, float* sums, int32_t* starts);
  // out [m, 16] (rows `stride` apart) = rows x one tile of weights. m <= max_rows.
  void (*product)(const Format& format, const uint8_t* tile, const Rows& rows, size_t first_row, int m, float* out, size_t stride);
  // gate = act(gate) * up, 16 floats of each of m rows; out rows `stride` apart. kind: 0 SiLU, 1 GELU (tanh).
  void (*gated)(const float* gate, const float* up, int m, int kind, float* out, size_t stride);
  int max_rows;
  const char* name;
};

const Kernels* avx512();   // nullptr where it was not built
const Kernels* avxvnni();
const Kernels* neon();

}  // namespace llamacord
