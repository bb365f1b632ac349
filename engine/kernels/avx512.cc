// Products with AVX-512 VNNI: 64 multiplications an instruction.
#include "tile.h"
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#include <cstring>
#include "exponential_avx512.h"

namespace llamacord {
namespace {

inline __m512 load_scales(const uint8_t* at, bool is_half) {
  return is_half ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at)) : _mm512_loadu_ps((const float*)at);
}

void quantize(const Format& format, const float* x, size_t num_blocks, uint8_t* group, size_t m, size_t row) {
  for (size_t b = 0; b < num_blocks; b++, x += kBlock, group += m * kRowBytes) {
    int8_t* values = (int8_t*)group + row * kBlock;
    float* scales = (float*)(group + m * kBlock);
    __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    // What is no number is lost in a maximum. As the scale it reaches all that is computed of it.
    if (_mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) || !(largest < __builtin_inff())) {
      memset(values, 0, kBlock);
      scales[row] = scales[m + row] = __builtin_nanf("");
      continue;
    }
    float inverse = largest > kSmallest ? 127.0f / largest : 0.0f;
    __m512 by = _mm512_set1_ps(inverse);
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, by)), c = _mm512_cvtps_epi32(_mm512_mul_ps(high, by));
    _mm_storeu_si128((__m128i*)values, _mm512_cvtsepi32_epi8(a));
    _mm_storeu_si128((__m128i*)(values + 16), _mm512_cvtsepi32_epi8(c));
    const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(a, c)), start = -format.zero() * sum;
    scales[row] = largest / 127.0f;
    if (format.has_offsets) scales[m + row] = scales[row] * float(sum);
    else memcpy(&scales[m + row], &start, 4);
  }
}

// Left to itself, the compiler lets all products of one row wait for each other, and the units with them.
inline void add_dot(__m512i& sum, __m512i w, const uint8_t* x) {
  asm volatile("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*(const int32_t*)x));
}
inline void add_dot(__m512i& sum, __m512i w, __m512i x) { asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x)); }

// How far ahead weights are fetched, in bytes. The processor's own guess falls behind from four rows on. Single tiles are
// for one group of rows: they are read once.
constexpr size_t kAhead = 4096;
// Rows that are multiplied together: with more of them, what is added up no longer stays in registers (3 times slower).
constexpr int kMaxRows = 10, kMaxPairRows = 6;

// T tiles times M rows.
template <int BITS, bool OFFSETS, bool HALF, int T, int M>
void product(const uint8_t* const* tiles, const uint8_t* group, size_t num_blocks, float* const* outs, size_t stride) {
  constexpr size_t kValues = size_t(kTile) * kBlock * BITS / 8, kScales = kTile * (HALF ? 2 : 4);
  constexpr size_t kBytes = kValues + kScales * (OFFSETS ? 2 : 1);
  // Chains of additions that do not wait for each other: whole numbers, so that their order is of no matter.
  constexpr int C = T * M == 1 ? 4 : T * M <= 3 ? 2 : 1;
  const __m512i nibble = _mm512_set1_epi8(15);
  const uint8_t* tile[T];
  __m512 total[T][M];
  for (int t = 0; t < T; t++) {
    tile[t] = tiles[t];
    for (int r = 0; r < M; r++) total[t][r] = _mm512_setzero_ps();
  }
  for (size_t b = 0; b < num_blocks; b++, group += M * kRowBytes) {
    const float* scales = (const float*)(group + M * kBlock);
    const float* corrections = scales + M;
    __m512i dot[T][M][C];
    for (int r = 0; r < M; r++)
      for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++)
          dot[t][r][c] = c == 0 && !OFFSETS ? _mm512_set1_epi32(*(const int32_t*)(corrections + r)) : _mm512_setzero_si512();
    for (int t = 0; t < T; t++)
      for (size_t line = 0; line < kBytes; line += 64) _mm_prefetch((const char*)tile[t] + kAhead + line, T == 1 ? _MM_HINT_NTA : _MM_HINT_T0);
    auto step = [&](const __m512i (&w)[T], int g) __attribute__((always_inline)) {
#pragma GCC unroll 10
      for (int r = 0; r < M; r++) {
        const uint8_t* x = group + r * kBlock + 4 * g;
        if constexpr (T == 1) add_dot(dot[0][r][g % C], w[0], x);
        else {
          const __m512i all = _mm512_set1_epi32(*(const int32_t*)x);
          for (int t = 0; t < T; t++) add_dot(dot[t][r][g % C], w[t], all);
        }
      }
    };
#pragma GCC unroll 8
    for (int g = 0; g < (BITS == 4 ? 4 : 8); g++) {
      __m512i w[T], high[T];
      for (int t = 0; t < T; t++) {
        w[t] = _mm512_loadu_si512(tile[t] + 64 * g);
        if constexpr (BITS == 4) {
          high[t] = _mm512_and_si512(_mm512_srli_epi16(w[t], 4), nibble);
          w[t] = _mm512_and_si512(w[t], nibble);
        }
      }
      step(w, g);
      if constexpr (BITS == 4) step(high, g + 4);
    }
    for (int t = 0; t < T; t++) {
      const __m512 scale = load_scales(tile[t] + kValues, HALF);
#pragma GCC unroll 10
      for (int r = 0; r < M; r++) {
        __m512i sum = dot[t][r][0];
        for (int c = 1; c < C; c++) sum = _mm512_add_epi32(sum, dot[t][r][c]);
        const __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scales[r]));
        total[t][r] = _mm512_fmadd_ps(part, scale, total[t][r]);
      }
      if constexpr (OFFSETS) {
        const __m512 offset = load_scales(tile[t] + kValues + kScales, HALF);
#pragma GCC unroll 10
        for (int r = 0; r < M; r++) total[t][r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(corrections[r]), total[t][r]);
      }
      tile[t] += kBytes;
    }
  }
  for (int t = 0; t < T; t++)
    for (int r = 0; r < M; r++) _mm512_storeu_ps(outs[t] + r * stride, total[t][r]);
}

template <int BITS, bool OFFSETS, bool HALF, int T>
void by_rows(const uint8_t* const* tiles, const uint8_t* group, size_t num_blocks, int m, float* const* outs, size_t stride) {
  switch (m) {
#define CASE(M) case M: return product<BITS, OFFSETS, HALF, T, M>(tiles, group, num_blocks, outs, stride);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
  }
  if constexpr (T == 1) switch (m) {
    CASE(7) CASE(8) CASE(9) CASE(10)
#undef CASE
  }
}

template <int T>
void by_format(const Format& w, const uint8_t* const* t, const uint8_t* a, size_t nb, int m, float* const* out, size_t s) {
  if (w.bits == 4)
    w.has_offsets ? (w.is_half ? by_rows<4, true, true, T>(t, a, nb, m, out, s) : by_rows<4, true, false, T>(t, a, nb, m, out, s))
                  : (w.is_half ? by_rows<4, false, true, T>(t, a, nb, m, out, s) : by_rows<4, false, false, T>(t, a, nb, m, out, s));
  else
    w.has_offsets ? (w.is_half ? by_rows<8, true, true, T>(t, a, nb, m, out, s) : by_rows<8, true, false, T>(t, a, nb, m, out, s))
                  : (w.is_half ? by_rows<8, false, true, T>(t, a, nb, m, out, s) : by_rows<8, false, false, T>(t, a, nb, m, out, s));
}

void one_tile(const Format& format, const uint8_t* tile, const uint8_t* group, size_t num_blocks, int m, float* out, size_t stride) {
  by_format<1>(format, &tile, group, num_blocks, m, &out, stride);
}

void gated(const float* gate, const float* up, int m, int kind, float* out, size_t stride) {
  for (int r = 0; r < m; r++) {
    __m512 g = _mm512_loadu_ps(gate + r * kTile), u = _mm512_loadu_ps(up + r * kTile), z = g;
    if (kind == 1) {  // GELU by tanh is g * sigmoid(2 * 0.79788 * (g + 0.044715 g^3))
      __m512 cube = _mm512_mul_ps(_mm512_mul_ps(g, g), g);
      z = _mm512_mul_ps(_mm512_set1_ps(1.5957691216f), _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cube, g));
    }
    __m512 bottom = _mm512_add_ps(_mm512_set1_ps(1), exponential(_mm512_sub_ps(_mm512_setzero_ps(), z)));
    _mm512_storeu_ps(out + r * stride, _mm512_mul_ps(_mm512_div_ps(g, bottom), u));
  }
}

const Kernels kernels = {quantize, one_tile, by_format<2>, gated, kMaxRows, kMaxPairRows, "avx512"};
}  // namespace

const Kernels* avx512() { return &kernels; }
}  // namespace llamacord
#else
namespace llamacord { const Kernels* avx512() { return nullptr; } }
#endif
