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

void quantize(const float* x, size_t num_blocks, int zero, int8_t* values, float* scales, float* sums, int32_t* starts) {
  for (size_t b = 0; b < num_blocks; b++, x += kBlock, values += kBlock) {
    __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    // What is no number is lost in a maximum. As the scale it reaches all that is computed of it.
    if (_mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) || !(largest < __builtin_inff())) {
      memset(values, 0, kBlock);
      scales[b] = sums[b] = __builtin_nanf("");
      starts[b] = 0;
      continue;
    }
    float inverse = largest > kSmallest ? 127.0f / largest : 0.0f;
    __m512 by = _mm512_set1_ps(inverse);
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, by)), c = _mm512_cvtps_epi32(_mm512_mul_ps(high, by));
    _mm_storeu_si128((__m128i*)values, _mm512_cvtsepi32_epi8(a));
    _mm_storeu_si128((__m128i*)(values + 16), _mm512_cvtsepi32_epi8(c));
    int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(a, c));
    float scale = largest / 127.0f;
    scales[b] = scale;
    sums[b] = scale * float(sum);
    starts[b] = -zero * sum;
  }
}

// Rows that are multiplied together: with more of them, what is added up no longer stays in registers (3 times slower).
constexpr int kMaxRows = 10;

template <int BITS, bool OFFSETS, bool HALF, int M>
void product(const uint8_t* tile, const Rows& rows, size_t first_row, float* out, size_t stride) {
  constexpr size_t kValues = size_t(kTile) * kBlock * BITS / 8, kScales = kTile * (HALF ? 2 : 4);
  // Chains of additions that do not wait for each other: whole numbers, so that their order is of no matter.
  constexpr int C = M == 1 ? 4 : M <= 3 ? 2 : 1;
  const size_t nb = rows.num_blocks, k = nb * kBlock;
  const int8_t* a = rows.values + first_row * k;
  const float* scales = rows.scales + first_row * nb;
  const float* sums = rows.sums + first_row * nb;
  const int32_t* starts = rows.starts + first_row * nb;
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512 total[M];
  for (int r = 0; r < M; r++) total[r] = _mm512_setzero_ps();
  for (size_t b = 0; b < nb; b++, a += kBlock) {
    __m512i dot[M][C];
    for (int r = 0; r < M; r++)
      for (int c = 0; c < C; c++) dot[r][c] = c == 0 && !OFFSETS ? _mm512_set1_epi32(starts[r * nb + b]) : _mm512_setzero_si512();
    auto step = [&](__m512i w, int g) {
      for (int r = 0; r < M; r++)
        dot[r][g % C] = _mm512_dpbusd_epi32(dot[r][g % C], w, _mm512_set1_epi32(*(const int32_t*)(a + r * k + 4 * g)));
    };
    if constexpr (BITS == 4) {
#pragma GCC unroll 4
      for (int g = 0; g < 4; g++) {
        __m512i two = _mm512_loadu_si512(tile + 64 * g);
        step(_mm512_and_si512(two, nibble), g);
        step(_mm512_and_si512(_mm512_srli_epi16(two, 4), nibble), g + 4);
      }
    } else {
#pragma GCC unroll 8
      for (int g = 0; g < 8; g++) step(_mm512_loadu_si512(tile + 64 * g), g);
    }
    tile += kValues;
    __m512 scale = load_scales(tile, HALF);
    tile += kScales;
    for (int r = 0; r < M; r++) {
      __m512i sum = dot[r][0];
      for (int c = 1; c < C; c++) sum = _mm512_add_epi32(sum, dot[r][c]);
      __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scales[r * nb + b]));
      total[r] = _mm512_fmadd_ps(part, scale, total[r]);
    }
    if constexpr (OFFSETS) {
      __m512 offset = load_scales(tile, HALF);
      tile += kScales;
      for (int r = 0; r < M; r++) total[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(sums[r * nb + b]), total[r]);
    }
  }
  for (int r = 0; r < M; r++) _mm512_storeu_ps(out + r * stride, total[r]);
}

template <int BITS, bool OFFSETS, bool HALF>
void by_rows(const uint8_t* t, const Rows& a, size_t f, int m, float* out, size_t s) {
  switch (m) {
#define CASE(M) case M: return product<BITS, OFFSETS, HALF, M>(t, a, f, out, s);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10)
#undef CASE
  }
}

void any_product(const Format& w, const uint8_t* t, const Rows& a, size_t f, int m, float* out, size_t s) {
  if (w.bits == 4)
    w.has_offsets ? (w.is_half ? by_rows<4, true, true>(t, a, f, m, out, s) : by_rows<4, true, false>(t, a, f, m, out, s))
                  : (w.is_half ? by_rows<4, false, true>(t, a, f, m, out, s) : by_rows<4, false, false>(t, a, f, m, out, s));
  else
    w.has_offsets ? (w.is_half ? by_rows<8, true, true>(t, a, f, m, out, s) : by_rows<8, true, false>(t, a, f, m, out, s))
                  : (w.is_half ? by_rows<8, false, true>(t, a, f, m, out, s) : by_rows<8, false, false>(t, a, f, m, out, s));
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

const Kernels kernels = {quantize, any_product, gated, kMaxRows, "avx512"};
}  // namespace

const Kernels* avx512() { return &kernels; }
}  // namespace llamacord
#else
namespace llamacord { const Kernels* avx512() { return nullptr; } }
#endif
