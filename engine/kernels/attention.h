// Attention of a step's rows over the cache of their sequences. It computes in single precision; the cache is in single or
// in half precision.
#pragma once
#include <cstddef>
#include <cstdint>

namespace llamacord {

struct Attention {
  size_t num_heads, num_kv_heads, head_dim, rotary_dim;
  float scale, softcap, epsilon;
  int64_t window;  // positions that a token sees, itself among them; 0: all before it

  // Of this call: `length` new tokens of each of `batch` sequences.
  size_t batch, length, max_len;
  const float *q, *k, *v;              // rows [batch * length, *], `*_stride` apart
  size_t q_stride, k_stride, v_stride;
  const float *cos, *sin;              // [positions, rotary_dim / 2]; nullptr: not rotated
  const float *q_norm, *k_norm;        // [head_dim]; nullptr: not normed
  const int32_t* totals;               // [batch]: length of each sequence with its new tokens, minus 1
  void *keys, *values;                 // [batch, num_kv_heads, max_len, head_dim], float or half
  float* out;                          // [batch * length, num_heads * head_dim]
  float* queries;                      // room for [batch, num_kv_heads, length * group, head_dim]
  float* partial;                      // room for num_units() * num_segments of partial_floats()

  size_t group() const { return num_heads / num_kv_heads; }
};

constexpr size_t kQueries = 48;    // rows of queries that are looked at together
constexpr size_t kKeys = 64;       // keys that are
constexpr size_t kSegment = 512;   // keys whose sums are made apart from others'

struct AttentionKernels {
  void (*prepare)(const Attention& a, size_t row);  // rotates queries and keys of one token, and writes to the cache
  // Queries of one unit over the keys [first, end), which begin with a segment; segments are added up one after the
  // other. Into the output, or, where `partial` is set, of one segment into it.
  void (*attend)(const Attention& a, size_t sequence, size_t kv_head, size_t first_query, size_t num_queries,
                 size_t first_key, size_t end_key, float* partial);
  // Adds up the segments of one unit.
  void (*merge)(const Attention& a, size_t sequence, size_t kv_head, size_t first_query, size_t num_queries,
                const float* partials, size_t num_segments);
  bool (*takes)(size_t head_dim);
};

inline size_t partial_floats(size_t head_dim) { return kQueries * (head_dim + 32); }

const AttentionKernels* attention_avx512(bool is_half);  // for a cache in half precision, or in single

}  // namespace llamacord
