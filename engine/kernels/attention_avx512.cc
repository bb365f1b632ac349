// Attention with AVX-512. The sums of a query are the same in the same order whatever else is computed with it: keys are
// taken in blocks and segments that begin at multiples of their length.
#include "attention.h"
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#include <cmath>
#include <cstring>
#include "exponential_avx512.h"

namespace llamacord {
namespace {

constexpr float kNone = -__builtin_inff();

using Half = uint16_t;

inline __m512 load(const float* at) { return _mm512_loadu_ps(at); }
inline __m512 load(const Half* at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at)); }

void store(float* to, const float* from, size_t n) { memcpy(to, from, n * sizeof(float)); }
void store(Half* to, const float* from, size_t n) {
  const __m512 top = _mm512_set1_ps(65504.0f), bottom = _mm512_set1_ps(-65504.0f);  // beyond them half precision is infinite
  for (size_t i = 0; i < n; i += 16) {
    __m512 v = _mm512_loadu_ps(from + i);
    __m512 within = _mm512_max_ps(bottom, _mm512_min_ps(top, v));
    v = _mm512_mask_mov_ps(within, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
    _mm256_storeu_si256((__m256i*)(to + i), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
}

void rms_norm(float* x, const float* by, size_t n, float epsilon) {
  __m512 squares = _mm512_setzero_ps();
  for (size_t i = 0; i < n; i += 16) { __m512 v = _mm512_loadu_ps(x + i); squares = _mm512_fmadd_ps(v, v, squares); }
  __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / float(n) + epsilon));
  for (size_t i = 0; i < n; i += 16)
    _mm512_storeu_ps(x + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), scale), _mm512_loadu_ps(by + i)));
}

void rotate(float* x, const float* cos, const float* sin, size_t half) {
  for (size_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

template <typename KV>
void prepare(const Attention& a, size_t row) {
  const size_t b = row / a.length, s = row % a.length, d = a.head_dim, group = a.group();
  const size_t position = size_t(a.totals[b]) + 1 - a.length + s, half = a.rotary_dim / 2;
  const float *cos = a.cos ? a.cos + position * half : nullptr, *sin = a.sin ? a.sin + position * half : nullptr;
  for (size_t kv = 0; kv < a.num_kv_heads; kv++) {
    for (size_t g = 0; g < group; g++) {
      float* q = a.queries + ((b * a.num_kv_heads + kv) * a.length * group + s * group + g) * d;
      memcpy(q, a.q + row * a.q_stride + (kv * group + g) * d, d * sizeof(float));
      if (a.q_norm) rms_norm(q, a.q_norm, d, a.epsilon);
      if (cos) rotate(q, cos, sin, half);
      __m512 scale = _mm512_set1_ps(a.scale);
      for (size_t i = 0; i < d; i += 16) _mm512_storeu_ps(q + i, _mm512_mul_ps(_mm512_loadu_ps(q + i), scale));
    }
    const size_t at = ((b * a.num_kv_heads + kv) * a.max_len + position) * d;
    alignas(64) float key[256];
    memcpy(key, a.k + row * a.k_stride + kv * d, d * sizeof(float));
    if (a.k_norm) rms_norm(key, a.k_norm, d, a.epsilon);
    if (cos) rotate(key, cos, sin, half);
    store((KV*)a.keys + at, key, d);
    store((KV*)a.values + at, a.v + row * a.v_stride + kv * d, d);
  }
}

// 16 rows of 16 numbers, `stride` apart, to the columns of `out`, 64 numbers apart.
template <typename KV>
inline void transpose16(const KV* in, size_t stride, float* out) {
  __m512 r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = load(in + i * stride);
  for (int i = 0; i < 16; i += 2) { t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]); t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]); }
  for (int i = 0; i < 16; i += 4)
    for (int h = 0; h < 2; h++) {
      __m512d x = _mm512_castps_pd(t[i + h]), y = _mm512_castps_pd(t[i + h + 2]);
      r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
  for (int c = 0; c < 4; c++) {
    __m512 a = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
    __m512 e = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88), f = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    _mm512_storeu_ps(out + (c)*kKeys, _mm512_shuffle_f32x4(a, e, 0x88));
    _mm512_storeu_ps(out + (4 + c) * kKeys, _mm512_shuffle_f32x4(b, f, 0x88));
    _mm512_storeu_ps(out + (8 + c) * kKeys, _mm512_shuffle_f32x4(a, e, 0xdd));
    _mm512_storeu_ps(out + (12 + c) * kKeys, _mm512_shuffle_f32x4(b, f, 0xdd));
  }
}

// Keys [num, d] to [d, 64]; what there is no key for is 0.
template <typename KV>
void transpose_keys(const KV* keys, size_t num, size_t d, float* out) {
  alignas(64) KV padded[16 * 256];
  for (size_t first = 0; first < kKeys; first += 16) {
    const KV* from = keys + first * d;
    if (first >= num) {
      for (size_t i = 0; i < d; i++) _mm512_storeu_ps(out + i * kKeys + first, _mm512_setzero_ps());
      continue;
    }
    if (num - first < 16) {
      memset(padded, 0, 16 * d * sizeof(KV));
      memcpy(padded, from, (num - first) * d * sizeof(KV));
      from = padded;
    }
    for (size_t i = 0; i < d; i += 16) transpose16(from + i, d, out + i * kKeys + first);
  }
}

template <int R>
void score(const float* q, size_t d, const float* keys, float* scores) {
  __m512 sum[R][4];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < 4; c++) sum[r][c] = _mm512_setzero_ps();
  for (size_t i = 0; i < d; i++) {
    __m512 k[4];
    for (int c = 0; c < 4; c++) k[c] = _mm512_loadu_ps(keys + i * kKeys + 16 * c);
    for (int r = 0; r < R; r++) {
      __m512 x = _mm512_set1_ps(q[r * d + i]);
      for (int c = 0; c < 4; c++) sum[r][c] = _mm512_fmadd_ps(x, k[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < 4; c++) _mm512_storeu_ps(scores + r * kKeys + 16 * c, sum[r][c]);
}

void score_all(const float* q, size_t n, size_t d, const float* keys, float* scores) {
  size_t r = 0;
  for (; r + 6 <= n; r += 6) score<6>(q + r * d, d, keys, scores + r * kKeys);
  switch (n - r) {
    case 5: score<5>(q + r * d, d, keys, scores + r * kKeys); break;
    case 4: score<4>(q + r * d, d, keys, scores + r * kKeys); break;
    case 3: score<3>(q + r * d, d, keys, scores + r * kKeys); break;
    case 2: score<2>(q + r * d, d, keys, scores + r * kKeys); break;
    case 1: score<1>(q + r * d, d, keys, scores + r * kKeys); break;
  }
}

// sums [R, 16 NV] = sums * shrink + weights [R, num] x values [num, 16 NV]
template <int R, int NV, typename KV>
void weigh(const float* weights, const float* shrink, const KV* values, size_t num, float* sums) {
  __m512 sum[R][NV];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < NV; c++) sum[r][c] = _mm512_mul_ps(_mm512_loadu_ps(sums + (r * NV + c) * 16), _mm512_set1_ps(shrink[r]));
  for (size_t t = 0; t < num; t++) {
    __m512 w[R];
    for (int r = 0; r < R; r++) w[r] = _mm512_set1_ps(weights[r * kKeys + t]);
    for (int c = 0; c < NV; c++) {
      const __m512 v = load(values + (t * NV + c) * 16);
      for (int r = 0; r < R; r++) sum[r][c] = _mm512_fmadd_ps(w[r], v, sum[r][c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < NV; c++) _mm512_storeu_ps(sums + (r * NV + c) * 16, sum[r][c]);
}

template <int NV, typename KV>
void weigh_all(const float* weights, const float* shrink, size_t n, const KV* values, size_t num, float* sums) {
  constexpr int R = NV >= 16 ? 1 : NV >= 8 ? 3 : NV >= 5 ? 4 : 6;
  size_t r = 0;
  for (; r + R <= n; r += R) weigh<R, NV, KV>(weights + r * kKeys, shrink + r, values, num, sums + r * NV * 16);
  if constexpr (R == 6) for (; r + 3 <= n; r += 3) weigh<3, NV, KV>(weights + r * kKeys, shrink + r, values, num, sums + r * NV * 16);
  for (; r < n; r++) weigh<1, NV, KV>(weights + r * kKeys, shrink + r, values, num, sums + r * NV * 16);
}

template <typename KV>
using Weigh = void (*)(const float*, const float*, size_t, const KV*, size_t, float*);
template <typename KV>
Weigh<KV> weigh_for(size_t d) {
  switch (d) {
    case 16: return weigh_all<1, KV>;
    case 32: return weigh_all<2, KV>;
    case 48: return weigh_all<3, KV>;
    case 64: return weigh_all<4, KV>;
    case 80: return weigh_all<5, KV>;
    case 96: return weigh_all<6, KV>;
    case 128: return weigh_all<8, KV>;
    case 256: return weigh_all<16, KV>;
  }
  return nullptr;
}

struct Sums {  // of n queries: the largest score, the weights' sums by lane, and the weighed values
  float largest[kQueries];
  alignas(64) float total[kQueries][16];
  alignas(64) float values[kQueries * 256];
  void clear(size_t n, size_t d) {
    for (size_t r = 0; r < n; r++) largest[r] = kNone;
    memset(total, 0, sizeof total[0] * n);
    memset(values, 0, n * d * sizeof(float));
  }
};

inline float tanh_of(float x) { return std::tanh(x); }

template <typename KV>
void add_block(const Attention& a, const float* q, const size_t* positions, size_t n, size_t first, size_t num,
               const KV* keys, const KV* values, Weigh<KV> weigh, Sums& sums) {
  const size_t d = a.head_dim;
  alignas(64) float turned[256 * kKeys], scores[kQueries * kKeys];
  float shrink[kQueries];
  transpose_keys(keys, num, d, turned);
  score_all(q, n, d, turned, scores);
  for (size_t r = 0; r < n; r++) {
    float* row = scores + r * kKeys;
    // Of the block's keys it sees [from, to).
    const int64_t p = int64_t(positions[r]), start = int64_t(first);
    const int64_t to = p + 1 - start < int64_t(num) ? p + 1 - start : int64_t(num);
    const int64_t from = a.window > 0 && p + 1 - a.window > start ? p + 1 - a.window - start : 0;
    shrink[r] = 1;
    if (to <= from) { memset(row, 0, kKeys * sizeof(float)); continue; }
    if (a.softcap > 0) for (int64_t t = from; t < to; t++) row[t] = a.softcap * tanh_of(row[t] / a.softcap);
    uint64_t seen = (to == 64 ? ~0ull : (1ull << to) - 1) & ~((1ull << from) - 1);
    __m512 s[4], best = _mm512_set1_ps(kNone);
    for (int c = 0; c < 4; c++) {
      s[c] = _mm512_mask_loadu_ps(_mm512_set1_ps(kNone), __mmask16(seen >> 16 * c), row + 16 * c);
      best = _mm512_max_ps(best, s[c]);
    }
    const float before = sums.largest[r], now = _mm512_reduce_max_ps(best), largest = now > before ? now : before;
    sums.largest[r] = largest;
    __m512 total = _mm512_load_ps(sums.total[r]), top = _mm512_set1_ps(largest);
    if (largest != before) {
      shrink[r] = before == kNone ? 0.0f : _mm512_cvtss_f32(exponential(_mm512_set1_ps(before - largest)));
      total = _mm512_mul_ps(total, _mm512_set1_ps(shrink[r]));
    }
    for (int c = 0; c < 4; c++) {
      __m512 w = _mm512_maskz_mov_ps(__mmask16(seen >> 16 * c), exponential(_mm512_sub_ps(s[c], top)));
      total = _mm512_add_ps(total, w);
      _mm512_store_ps(row + 16 * c, w);
    }
    _mm512_store_ps(sums.total[r], total);
  }
  weigh(scores, shrink, n, values, num, sums.values);
}

// `to` and `from` are of the same queries over other keys; those of `to` came first.
void add_up(Sums& to, const float* largest, const float* total, const float* values, size_t n, size_t d) {
  for (size_t r = 0; r < n; r++) {
    if (largest[r] == kNone) continue;
    const float top = to.largest[r] > largest[r] ? to.largest[r] : largest[r];
    const float old = to.largest[r] == kNone ? 0.0f : to.largest[r] == top ? 1.0f : _mm512_cvtss_f32(exponential(_mm512_set1_ps(to.largest[r] - top)));
    const float fresh = largest[r] == top ? 1.0f : _mm512_cvtss_f32(exponential(_mm512_set1_ps(largest[r] - top)));
    const __m512 x = _mm512_set1_ps(old), y = _mm512_set1_ps(fresh);
    _mm512_store_ps(to.total[r], _mm512_fmadd_ps(_mm512_load_ps(to.total[r]), x, _mm512_mul_ps(_mm512_loadu_ps(total + 16 * r), y)));
    for (size_t i = r * d; i < (r + 1) * d; i += 16)
      _mm512_store_ps(to.values + i, _mm512_fmadd_ps(_mm512_load_ps(to.values + i), x, _mm512_mul_ps(_mm512_loadu_ps(values + i), y)));
    to.largest[r] = top;
  }
}

void write_out(const Attention& a, size_t b, size_t kv, size_t first_query, size_t n, const Sums& sums) {
  const size_t d = a.head_dim, group = a.group();
  for (size_t r = 0; r < n; r++) {
    const size_t query = first_query + r, row = b * a.length + query / group, head = kv * group + query % group;
    float* out = a.out + (row * a.num_heads + head) * d;
    const __m512 whole = _mm512_set1_ps(_mm512_reduce_add_ps(_mm512_load_ps(sums.total[r])));
    for (size_t i = 0; i < d; i += 16) _mm512_storeu_ps(out + i, _mm512_div_ps(_mm512_load_ps(sums.values + r * d + i), whole));
  }
}

// Reads rows of the cache once, in order, before they are computed with. In the order in which they are needed the
// processor foresees them badly; telling it to fetch them (prefetch) helps half as much.
constexpr size_t kTouched = 256;

template <typename KV>
void touch(const KV* rows, size_t num, size_t d) {
  __m512i all = _mm512_setzero_si512();
  for (size_t i = 0; i + 64 <= num * d * sizeof(KV); i += 64) all = _mm512_or_si512(all, _mm512_loadu_si512((const char*)rows + i));
  asm volatile("" ::"v"(all));
}

template <typename KV>
void attend(const Attention& a, size_t b, size_t kv, size_t first_query, size_t n, size_t first_key, size_t end_key, float* partial) {
  const size_t d = a.head_dim, group = a.group(), past = size_t(a.totals[b]) + 1 - a.length;
  const size_t head = b * a.num_kv_heads + kv;
  const float* q = a.queries + (head * a.length * group + first_query) * d;
  const KV *keys = (const KV*)a.keys + head * a.max_len * d, *values = (const KV*)a.values + head * a.max_len * d;
  const Weigh<KV> weigh = weigh_for<KV>(d);
  size_t positions[kQueries];
  for (size_t r = 0; r < n; r++) positions[r] = past + (first_query + r) / group;
  Sums all, segment;
  bool is_first = true;
  all.clear(n, d);
  for (size_t start = first_key; start < end_key; start = (start / kSegment + 1) * kSegment) {
    const size_t end = (start / kSegment + 1) * kSegment < end_key ? (start / kSegment + 1) * kSegment : end_key;
    Sums& sums = is_first ? all : segment;
    if (!is_first) segment.clear(n, d);
    for (size_t block = start; block < end; block += kKeys) {
      if (block == first_key || block % kTouched == 0) {
        const size_t to = (block / kTouched + 1) * kTouched, num = (to < end_key ? to : end_key) - block;
        touch(keys + block * d, num, d);
        touch(values + block * d, num, d);
      }
      add_block(a, q, positions, n, block, end - block < kKeys ? end - block : kKeys, keys + block * d, values + block * d, weigh, sums);
    }
    if (!is_first) add_up(all, segment.largest, segment.total[0], segment.values, n, d);
    is_first = false;
  }
  if (!partial) return write_out(a, b, kv, first_query, n, all);
  memcpy(partial, all.largest, n * sizeof(float));
  memcpy(partial + kQueries, all.total, n * 16 * sizeof(float));
  memcpy(partial + kQueries * 17, all.values, n * d * sizeof(float));
}

void merge(const Attention& a, size_t b, size_t kv, size_t first_query, size_t n, const float* partials, size_t num_segments) {
  Sums all;
  all.clear(n, a.head_dim);
  for (size_t s = 0; s < num_segments; s++, partials += partial_floats(a.head_dim))
    if (s == 0) {
      memcpy(all.largest, partials, n * sizeof(float));
      memcpy(all.total, partials + kQueries, n * 16 * sizeof(float));
      memcpy(all.values, partials + kQueries * 17, n * a.head_dim * sizeof(float));
    } else add_up(all, partials, partials + kQueries, partials + kQueries * 17, n, a.head_dim);
  write_out(a, b, kv, first_query, n, all);
}

bool takes(size_t head_dim) { return weigh_for<float>(head_dim) != nullptr; }

const AttentionKernels single = {prepare<float>, attend<float>, merge, takes};
const AttentionKernels half = {prepare<Half>, attend<Half>, merge, takes};
}  // namespace

const AttentionKernels* attention_avx512(bool is_half) { return is_half ? &half : &single; }
}  // namespace llamacord
#else
namespace llamacord { const AttentionKernels* attention_avx512(bool) { return nullptr; } }
#endif
