// Products with AVX-VNNI, for processors that have it without AVX-512: 32 multiplications an instruction.
#include "tile.h"
#if defined(__AVXVNNI__)
#include <immintrin.h>
#include <cstring>

namespace llamacord {
namespace {

constexpr int kLane = 8, H = 2;  // columns of a register, and registers of a tile

inline __m256 load_scales(const uint8_t* at, bool is_half, int h) {
  return is_half ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at + h)) : _mm256_loadu_ps((const float*)at + kLane * h);
}

inline float largest_of(__m256 x) {
  __m128 v = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
}

inline int sum_of(__m256i x) {
  __m128i v = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  v = _mm_add_epi32(v, _mm_unpackhi_epi64(v, v));
  return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 1)));
}

void quantize(const Format& format, const float* x, size_t num_blocks, uint8_t* group, size_t m, size_t row) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (size_t b = 0; b < num_blocks; b++, x += kBlock, group += m * kRowBytes) {
    int8_t* values = (int8_t*)group + row * kBlock;
    float* scales = (float*)(group + m * kBlock);
    __m256 v[4], top = _mm256_setzero_ps(), none = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      top = _mm256_max_ps(top, _mm256_andnot_ps(sign, v[i]));
      none = _mm256_or_ps(none, _mm256_cmp_ps(v[i], v[i], _CMP_UNORD_Q));
    }
    float largest = largest_of(top);
    // What is no number is lost in a maximum. As the scale it reaches all that is computed of it.
    if (_mm256_movemask_ps(none) || !(largest < __builtin_inff())) {
      memset(values, 0, kBlock);
      scales[row] = scales[m + row] = __builtin_nanf("");
      continue;
    }
    float inverse = largest > kSmallest ? 127.0f / largest : 0.0f;
    __m256 by = _mm256_set1_ps(inverse);
    __m256i n[4];
    for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], by));
    // Packing goes by halves of a register; the permutation puts its groups of four back in order.
    __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i*)values, packed);
    const int sum = sum_of(_mm256_add_epi32(_mm256_add_epi32(n[0], n[1]), _mm256_add_epi32(n[2], n[3]))), start = -format.zero() * sum;
    scales[row] = largest / 127.0f;
    if (format.has_offsets) scales[m + row] = scales[row] * float(sum);
    else memcpy(&scales[m + row], &start, 4);
  }
}

// How far ahead weights are fetched, in bytes. The processor's own guess falls behind from four rows on.
constexpr size_t kAhead = 4096;
// Rows that are multiplied together. From the fourth on, what is added up is in memory between blocks: that costs less
// than to unpack the weights once more.
constexpr int kMaxRows = 6;

template <int BITS, bool OFFSETS, bool HALF, int M>
void product(const uint8_t* tile, const uint8_t* group, size_t num_blocks, float* out, size_t stride) {
  constexpr size_t kValues = size_t(kTile) * kBlock * BITS / 8, kScales = kTile * (HALF ? 2 : 4);
  // Chains of additions that do not wait for each other: whole numbers, so that their order is of no matter.
  constexpr int C = M == 1 ? 2 : 1;
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256 total[M][H];
  for (int r = 0; r < M; r++)
    for (int h = 0; h < H; h++) total[r][h] = _mm256_setzero_ps();
  for (size_t b = 0; b < num_blocks; b++, group += M * kRowBytes) {
    const float* scales = (const float*)(group + M * kBlock);
    const float* corrections = scales + M;
    for (size_t line = 0; line < kValues + kScales * (OFFSETS ? 2 : 1); line += 64) _mm_prefetch((const char*)tile + kAhead + line, _MM_HINT_T0);
    __m256i dot[M][H][C];
    for (int r = 0; r < M; r++)
      for (int h = 0; h < H; h++)
        for (int c = 0; c < C; c++) dot[r][h][c] = c == 0 && !OFFSETS ? _mm256_set1_epi32(*(const int32_t*)(corrections + r)) : _mm256_setzero_si256();
    auto step = [&](const __m256i (&w)[H], int g) {
      for (int r = 0; r < M; r++) {
        __m256i x = _mm256_set1_epi32(*(const int32_t*)(group + r * kBlock + 4 * g));
        for (int h = 0; h < H; h++) dot[r][h][g % C] = _mm256_dpbusd_avx_epi32(dot[r][h][g % C], w[h], x);
      }
    };
    const __m256i* at = (const __m256i*)tile;
    if constexpr (BITS == 4) {
#pragma GCC unroll 4
      for (int g = 0; g < 4; g++) {
        __m256i two[H], w[H];
        for (int h = 0; h < H; h++) { two[h] = _mm256_loadu_si256(at + 2 * g + h); w[h] = _mm256_and_si256(two[h], nibble); }
        step(w, g);
        for (int h = 0; h < H; h++) w[h] = _mm256_and_si256(_mm256_srli_epi16(two[h], 4), nibble);
        step(w, g + 4);
      }
    } else {
#pragma GCC unroll 8
      for (int g = 0; g < 8; g++) {
        __m256i w[H];
        for (int h = 0; h < H; h++) w[h] = _mm256_loadu_si256(at + 2 * g + h);
        step(w, g);
      }
    }
    tile += kValues;
    for (int h = 0; h < H; h++) {
      __m256 scale = load_scales(tile, HALF, h);
      for (int r = 0; r < M; r++) {
        __m256i sum = dot[r][h][0];
        for (int c = 1; c < C; c++) sum = _mm256_add_epi32(sum, dot[r][h][c]);
        __m256 part = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scales[r]));
        total[r][h] = _mm256_fmadd_ps(part, scale, total[r][h]);
      }
    }
    tile += kScales;
    if constexpr (OFFSETS) {
      for (int h = 0; h < H; h++) {
        __m256 offset = load_scales(tile, HALF, h);
        for (int r = 0; r < M; r++) total[r][h] = _mm256_fmadd_ps(offset, _mm256_set1_ps(corrections[r]), total[r][h]);
      }
      tile += kScales;
    }
  }
  for (int r = 0; r < M; r++)
    for (int h = 0; h < H; h++) _mm256_storeu_ps(out + r * stride + kLane * h, total[r][h]);
}

template <int BITS, bool OFFSETS, bool HALF>
void by_rows(const uint8_t* t, const uint8_t* a, size_t nb, int m, float* out, size_t s) {
  switch (m) {
#define CASE(M) case M: return product<BITS, OFFSETS, HALF, M>(t, a, nb, out, s);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
  }
}

void any_product(const Format& w, const uint8_t* t, const uint8_t* a, size_t nb, int m, float* out, size_t s) {
  if (w.bits == 4)
    w.has_offsets ? (w.is_half ? by_rows<4, true, true>(t, a, nb, m, out, s) : by_rows<4, true, false>(t, a, nb, m, out, s))
                  : (w.is_half ? by_rows<4, false, true>(t, a, nb, m, out, s) : by_rows<4, false, false>(t, a, nb, m, out, s));
  else
    w.has_offsets ? (w.is_half ? by_rows<8, true, true>(t, a, nb, m, out, s) : by_rows<8, true, false>(t, a, nb, m, out, s))
                  : (w.is_half ? by_rows<8, false, true>(t, a, nb, m, out, s) : by_rows<8, false, false>(t, a, nb, m, out, s));
}

// e^x, as in exponential_avx512.h.
inline __m256 exponential(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.0f)), _mm256_set1_ps(88.0f));
  __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 f = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145752f), x);
  f = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860677e-6f), f);
  __m256 p = _mm256_set1_ps(1.0f / 720);
  constexpr float kTaylor[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (float c : kTaylor) p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(c));
  __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

void gated(const float* gate, const float* up, int m, int kind, float* out, size_t stride) {
  for (int r = 0; r < m; r++)
    for (int i = 0; i < kTile; i += kLane) {
      __m256 g = _mm256_loadu_ps(gate + r * kTile + i), u = _mm256_loadu_ps(up + r * kTile + i), z = g;
      if (kind == 1) {  // GELU by tanh is g * sigmoid(2 * 0.79788 * (g + 0.044715 g^3))
        __m256 cube = _mm256_mul_ps(_mm256_mul_ps(g, g), g);
        z = _mm256_mul_ps(_mm256_set1_ps(1.5957691216f), _mm256_fmadd_ps(_mm256_set1_ps(0.044715f), cube, g));
      }
      __m256 bottom = _mm256_add_ps(_mm256_set1_ps(1), exponential(_mm256_sub_ps(_mm256_setzero_ps(), z)));
      _mm256_storeu_ps(out + r * stride + i, _mm256_mul_ps(_mm256_div_ps(g, bottom), u));
    }
}

const Kernels kernels = {quantize, any_product, nullptr, gated, kMaxRows, 0, "avxvnni"};
}  // namespace

const Kernels* avxvnni() { return &kernels; }
}  // namespace llamacord
#else
namespace llamacord { const Kernels* avxvnni() { return nullptr; } }
#endif
