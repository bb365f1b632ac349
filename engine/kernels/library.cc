// The operator `BlockLinear` of ONNX Runtime: rows times a matrix in blocks of 32, at the rate of a CPU's int8 units.
//
//     y [..., n] = x [..., k] W^T         or, with `gated`, act(x G^T) * (x U^T), W being G above U
//
// The weights are no input: they are read from their file, where they lie as MatMulNBits takes them, and kept once, in
// the order in which the processor reads them. Attributes: `file`, `k`, `n`, `bits`, `values`, `scales`, `offsets`
// (bytes from the file's beginning; offsets -1: none; float32 [k / 32, n]), `gated` (0, 1 SiLU, 2 GELU).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include "onnxruntime_c_api.h"
#include "attention.h"
#include "tile.h"
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace llamacord {
namespace {

const OrtApi* ort = nullptr;
// What new operators compute with; each keeps what it was made with.
const Kernels* kernels = nullptr;
const AttentionKernels* (*attention_kernels)(bool is_half) = nullptr;

OrtStatus* fault(const char* what) { return ort->CreateStatus(ORT_FAIL, what); }

#define TRY(call) if (OrtStatus* status = (call)) return status

uint16_t to_half(float value, bool* exact) {  // exact numbers only; *exact is cleared where it is none
  uint32_t bits; memcpy(&bits, &value, 4);
  uint32_t sign = bits >> 16 & 0x8000, mantissa = bits & 0x7fffff;
  int exponent = int(bits >> 23 & 255) - 127;
  if ((bits & 0x7fffffff) == 0) return uint16_t(sign);
  if (exponent > 15) { *exact = false; return 0; }
  if (exponent >= -14) {
    if (mantissa & 0x1fff) *exact = false;
    return uint16_t(sign | uint32_t(exponent + 15) << 10 | mantissa >> 13);
  }
  int shift = -14 - exponent + 13;
  mantissa |= 0x800000;
  if (shift > 24 || mantissa & ((1u << shift) - 1)) { *exact = false; return 0; }
  return uint16_t(sign | mantissa >> shift);
}

struct File {
  FILE* handle = nullptr;
  explicit File(const char* path) {  // in UTF-8
#if defined(_WIN32)
    wchar_t wide[4096];
    if (MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, 4096)) handle = _wfopen(wide, L"rb");
#else
    handle = fopen(path, "rb");
#endif
  }
  ~File() { if (handle) fclose(handle); }
  bool read(void* to, int64_t at, size_t size) {
#if defined(_WIN32)
    if (_fseeki64(handle, at, SEEK_SET)) return false;
#else
    if (fseeko(handle, off_t(at), SEEK_SET)) return false;
#endif
    return fread(to, 1, size, handle) == size;
  }
};

struct Buffer {  // grows, and goes with its owner
  void* at = nullptr;
  size_t size = 0;
  ~Buffer() { free(at); }
  void* of(size_t wanted) {
    if (wanted > size) { free(at); at = malloc(wanted); size = at ? wanted : 0; }
    return at;
  }
};

// Memory that the system gives and takes back at once, which malloc's freed blocks would not be.
void* map(size_t size) {
#if defined(_WIN32)
  return VirtualAlloc(nullptr, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
#else
  void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return at == MAP_FAILED ? nullptr : at;
#endif
}

void unmap(void* at, size_t size) {
#if defined(_WIN32)
  (void)size;
  if (at) VirtualFree(at, 0, MEM_RELEASE);
#else
  if (at) munmap(at, size);
#endif
}

struct Pages {  // for a while
  size_t size;
  void* at;
  explicit Pages(size_t size) : size(size), at(map(size)) {}
  ~Pages() { unmap(at, size); }
};

struct Lock {
  char taken = 0;
  void lock() { while (__atomic_test_and_set(&taken, __ATOMIC_ACQUIRE)) {} }
  void unlock() { __atomic_clear(&taken, __ATOMIC_RELEASE); }
};

// Memory for matrices, one behind the other, so that huge pages hold nothing but weights. Goes with the last of them.
struct Region {
  void* mapped;
  size_t size;    // of the mapping
  uint8_t* next;  // where there is room
  size_t left;
  size_t users;
};

constexpr size_t kHugePage = size_t(2) << 20, kRegion = size_t(64) << 20;
Region* open_region = nullptr;
Lock region_lock;

uint8_t* take_memory(size_t bytes, Region** from) {
  bytes = (bytes + 63) / 64 * 64;
  uint8_t* at = nullptr;
  region_lock.lock();
  Region* region = open_region;
  if (!region || region->left < bytes) {
    region = (Region*)malloc(sizeof(Region));
    const size_t room = bytes > kRegion ? bytes : kRegion, size = room + kHugePage;
    void* mapped = region ? map(size) : nullptr;
    if (mapped) {
      uint8_t* first = (uint8_t*)((uintptr_t(mapped) + kHugePage - 1) / kHugePage * kHugePage);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
      madvise(first, room / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
      *region = {mapped, size, first, room, 0};
      open_region = region;
    } else { free(region); region = nullptr; }
  }
  if (region) {
    at = region->next;
    region->next += bytes;
    region->left -= bytes;
    region->users++;
  }
  region_lock.unlock();
  *from = region;
  return at;
}

void give_memory_back(Region* region) {
  if (!region) return;
  region_lock.lock();
  if (--region->users == 0) {
    if (open_region == region) open_region = nullptr;
    unmap(region->mapped, region->size);
    free(region);
  }
  region_lock.unlock();
}

// What a call needs beside its inputs and outputs. All operators share them: as many are made as calls run at once.
struct Scratch {
  Buffer rows;              // quantised
  Buffer queries, partial;  // of attention
  Scratch* next = nullptr;
};

Scratch* idle = nullptr;
Lock idle_lock;

struct ScratchUse {
  Scratch* scratch;
  ScratchUse() {
    idle_lock.lock();
    scratch = idle;
    if (scratch) idle = scratch->next;
    idle_lock.unlock();
    if (!scratch && (scratch = (Scratch*)malloc(sizeof(Scratch)))) new (scratch) Scratch();
  }
  ~ScratchUse() {
    if (!scratch) return;
    idle_lock.lock();
    scratch->next = idle;
    idle = scratch;
    idle_lock.unlock();
  }
};

struct Matrix {
  const Kernels* by = kernels;
  Format format{};
  size_t n = 0, k = 0;
  int gated = 0;
  uint8_t* tiles = nullptr;
  Region* region = nullptr;

  ~Matrix() { give_memory_back(region); }
  size_t num_blocks() const { return k / kBlock; }
  size_t num_tiles() const { return (n + kTile - 1) / kTile; }
  size_t tile_bytes() const { return format.block_bytes() * num_blocks(); }

  OrtStatus* load(const char* path, int64_t values_at, int64_t scales_at, int64_t offsets_at) {
    File file(path);
    if (!file.handle) return fault("the file of the weights cannot be opened");
    const size_t nb = num_blocks(), packed = size_t(kBlock) * format.bits / 8;
    Pages scale_pages(n * nb * 4), offset_pages(format.has_offsets ? n * nb * 4 : 1), value_pages(kTile * nb * packed);
    float* scale = (float*)scale_pages.at;
    float* offset = format.has_offsets ? (float*)offset_pages.at : nullptr;
    uint8_t* rows = (uint8_t*)value_pages.at;
    if (!scale || !rows || (format.has_offsets && !offset)) return fault("bad_alloc");
    if (!file.read(scale, scales_at, n * nb * 4)) return fault("the file of the weights is too short");
    if (offset && !file.read(offset, offsets_at, n * nb * 4)) return fault("the file of the weights is too short");
    // The stored offset is of value - 8: here values count from 0.
    bool exact = true;
    const float middle = format.bits == 4 ? 8.0f : 128.0f;
    for (size_t i = 0; i < n; i++)
      for (size_t b = 0; b < nb; b++) {
        to_half(scale[i * nb + b], &exact);
        if (offset) { offset[b * n + i] -= middle * scale[i * nb + b]; to_half(offset[b * n + i], &exact); }
      }
    format.is_half = exact;
    tiles = take_memory(num_tiles() * tile_bytes(), &region);
    if (!tiles) return fault("bad_alloc");
    uint8_t* to = tiles;
    for (size_t tile = 0; tile < num_tiles(); tile++) {
      const size_t first = tile * kTile, columns = n - first < kTile ? n - first : kTile;
      if (!file.read(rows, values_at + int64_t(first * nb * packed), columns * nb * packed))
        return fault("the file of the weights is too short");
      memset(rows + columns * nb * packed, 0, (kTile - columns) * nb * packed);
      for (size_t b = 0; b < nb; b++) {
        for (size_t j = 0; j < kTile; j++) pack(rows + (j * nb + b) * packed, to + 4 * j);
        to += format.value_bytes();
        for (int part = 0; part < (offset ? 2 : 1); part++) {
          for (size_t j = 0; j < kTile; j++) {
            float number = j >= columns ? 0.0f : part ? offset[b * n + first + j] : scale[(first + j) * nb + b];
            if (exact) { uint16_t half = to_half(number, &exact); memcpy(to + 2 * j, &half, 2); }
            else memcpy(to + 4 * j, &number, 4);
          }
          to += format.scale_bytes();
        }
      }
    }
    return nullptr;
  }

  // One column's block, as MatMulNBits has it, into its four bytes of each 64.
  void pack(const uint8_t* from, uint8_t* to) const {
    auto nibble = [&](int i) { return uint8_t(from[i / 2] >> (i % 2 * 4) & 15); };
    for (int g = 0; g < (format.bits == 4 ? 4 : 8); g++, to += 64)
      for (int i = 0; i < 4; i++)
        to[i] = format.bits == 4 ? uint8_t(nibble(4 * g + i) | nibble(16 + 4 * g + i) << 4) : from[4 * g + i];
  }
};

constexpr size_t kManyTiles = 128, kManyRows = 64;

struct Work {
  Matrix* matrix;
  const float* x;
  float* y;
  uint8_t* rows;  // quantised, in groups of like size: 16 are 8 and 8, not 10 and 6
  size_t m, num_parts;
  bool in_pairs;  // tiles, where the rows are more than one group
  size_t num_groups;

  void part_rows() {
    const Kernels& by = *matrix->by;
    // Few outputs in pairs would leave threads without work, unless there are many rows to each.
    const bool is_large = num_out() >= kManyTiles || m >= kManyRows;
    in_pairs = by.product_pair && m > size_t(by.max_rows) && is_large;
    const size_t most = size_t(in_pairs ? by.max_pair_rows : by.max_rows);
    num_groups = (m + most - 1) / most;
  }
  size_t first_row(size_t group) const { return m * group / num_groups; }
  size_t group_of(size_t row) const { return ((row + 1) * num_groups - 1) / m; }
  // What is computed together: a tile of outputs, or two.
  size_t num_out() const { return matrix->gated ? matrix->num_tiles() / 2 : matrix->num_tiles(); }
  size_t unit_tiles() const { return in_pairs && !matrix->gated ? 2 : 1; }
  size_t num_units() const { return (num_out() + unit_tiles() - 1) / unit_tiles(); }
  uint8_t* group(size_t index) const { return rows + first_row(index) * matrix->num_blocks() * kRowBytes; }
};

void quantize_part(void* data, size_t part) {
  const Work& w = *(Work*)data;
  const Matrix& matrix = *w.matrix;
  for (size_t r = w.m * part / w.num_parts; r < w.m * (part + 1) / w.num_parts; r++) {
    const size_t g = w.group_of(r), first = w.first_row(g);
    matrix.by->quantize(matrix.format, w.x + r * matrix.k, matrix.num_blocks(), w.group(g), w.first_row(g + 1) - first, r - first);
  }
}

// The tiles `first` and, unless that is `first` too, `second` times one group, to `outs`.
void multiply(const Work& w, size_t first, size_t second, size_t g, float* const* outs, size_t stride) {
  const Matrix& matrix = *w.matrix;
  const Kernels& by = *matrix.by;
  const uint8_t* tiles[2] = {matrix.tiles + first * matrix.tile_bytes(), matrix.tiles + second * matrix.tile_bytes()};
  const int m = int(w.first_row(g + 1) - w.first_row(g)), num = first == second ? 1 : 2;
  if (w.in_pairs && num == 2) return by.product_pair(matrix.format, tiles, w.group(g), matrix.num_blocks(), m, outs, stride);
  for (int t = 0; t < num; t++) by.product(matrix.format, tiles[t], w.group(g), matrix.num_blocks(), m, outs[t], stride);
}

void multiply_gated(const Work& w, size_t tile) {
  const Matrix& matrix = *w.matrix;
  const size_t stride = matrix.n / 2;
  alignas(64) float gate[16 * kTile], up[16 * kTile];
  float* const outs[2] = {gate, up};
  for (size_t g = 0; g < w.num_groups; g++) {
    const size_t first = w.first_row(g), m = w.first_row(g + 1) - first;
    multiply(w, tile, matrix.num_tiles() / 2 + tile, g, outs, kTile);
    matrix.by->gated(gate, up, int(m), matrix.gated - 1, w.y + first * stride + tile * kTile, stride);
  }
}

void multiply_tiles(const Work& w, size_t tile, size_t last) {
  const size_t n = w.matrix->n;
  for (size_t g = 0; g < w.num_groups; g++) {
    const size_t first = w.first_row(g), m = w.first_row(g + 1) - first;
    float* const outs[2] = {w.y + first * n + tile * kTile, w.y + first * n + last * kTile};
    if (n >= (last + 1) * kTile) { multiply(w, tile, last, g, outs, n); continue; }
    // The last tile is wider than what is left of a row.
    alignas(64) float whole[2][16 * kTile];
    float* const aside[2] = {whole[0], whole[1]};
    multiply(w, tile, last, g, aside, kTile);
    for (size_t t = tile; t <= last; t++)
      for (size_t r = 0; r < m; r++)
        memcpy(outs[t - tile] + r * n, whole[t - tile] + r * kTile, (n - t * kTile < kTile ? n - t * kTile : size_t(kTile)) * sizeof(float));
  }
}

void multiply_part(void* data, size_t part) {
  const Work& w = *(Work*)data;
  for (size_t unit = w.num_units() * part / w.num_parts; unit < w.num_units() * (part + 1) / w.num_parts; unit++) {
    if (w.matrix->gated) { multiply_gated(w, unit); continue; }
    const size_t first = unit * w.unit_tiles(), last = first + w.unit_tiles() - 1;
    multiply_tiles(w, first, last < w.num_out() ? last : first);
  }
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  Matrix& matrix = *(Matrix*)kernel;
  const OrtValue* input; OrtValue* output; OrtTensorTypeAndShapeInfo* shape; size_t rank;
  TRY(ort->KernelContext_GetInput(context, 0, &input));
  TRY(ort->GetTensorTypeAndShape(input, &shape));
  int64_t dims[8];
  OrtStatus* status = ort->GetDimensionsCount(shape, &rank);
  if (!status && rank >= 1 && rank <= 8) status = ort->GetDimensions(shape, dims, rank);
  ort->ReleaseTensorTypeAndShapeInfo(shape);
  if (status) return status;
  if (rank < 1 || rank > 8 || dims[rank - 1] != int64_t(matrix.k)) return fault("BlockLinear: the input has another width than the matrix");
  size_t m = 1;
  for (size_t i = 0; i + 1 < rank; i++) m *= size_t(dims[i]);
  dims[rank - 1] = int64_t(matrix.gated ? matrix.n / 2 : matrix.n);
  TRY(ort->KernelContext_GetOutput(context, 0, dims, rank, &output));
  if (m == 0) return nullptr;
  Work work{};
  void *x, *y;
  TRY(ort->GetTensorMutableData((OrtValue*)input, &x));
  TRY(ort->GetTensorMutableData(output, &y));
  work.matrix = &matrix; work.x = (const float*)x; work.y = (float*)y; work.m = m;
  work.part_rows();
  ScratchUse use;
  if (!use.scratch || !(work.rows = (uint8_t*)use.scratch->rows.of(m * matrix.num_blocks() * kRowBytes))) return fault("bad_alloc");
  work.num_parts = 64;
  if (m * matrix.k <= 16384) { work.num_parts = 1; quantize_part(&work, 0); }
  else TRY(ort->KernelContext_ParallelFor(context, quantize_part, work.num_parts, 0, &work));
  work.num_parts = work.num_units() < 64 ? work.num_units() : 64;
  return ort->KernelContext_ParallelFor(context, multiply_part, work.num_parts, 0, &work);
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  char path[4096]; size_t size = sizeof path;
  int64_t k, n, bits, values, scales, offsets, gated;
  TRY(ort->KernelInfoGetAttribute_string(info, "file", path, &size));
  TRY(ort->KernelInfoGetAttribute_int64(info, "k", &k));
  TRY(ort->KernelInfoGetAttribute_int64(info, "n", &n));
  TRY(ort->KernelInfoGetAttribute_int64(info, "bits", &bits));
  TRY(ort->KernelInfoGetAttribute_int64(info, "values", &values));
  TRY(ort->KernelInfoGetAttribute_int64(info, "scales", &scales));
  TRY(ort->KernelInfoGetAttribute_int64(info, "offsets", &offsets));
  TRY(ort->KernelInfoGetAttribute_int64(info, "gated", &gated));
  if (k <= 0 || n <= 0 || k % kBlock || (gated && n % (2 * kTile)) || (bits != 4 && bits != 8) || gated < 0 || gated > 2)
    return fault("BlockLinear: a matrix of a shape that it does not take");
  Matrix* matrix = (Matrix*)malloc(sizeof(Matrix));
  if (!matrix) return fault("bad_alloc");
  new (matrix) Matrix();
  matrix->format = {int(bits), offsets >= 0, false};
  matrix->n = size_t(n); matrix->k = size_t(k); matrix->gated = int(gated);
  if (OrtStatus* status = matrix->load(path, values, scales, offsets)) { matrix->~Matrix(); free(matrix); return status; }
  *kernel = matrix;
  return nullptr;
}

OrtCustomOp make_op() {
  OrtCustomOp op{};
  op.version = ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp*) { return "BlockLinear"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputType = op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetInputTypeCount = op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = op.GetVariadicInputHomogeneity = op.GetVariadicOutputMinArity = op.GetVariadicOutputHomogeneity =
      [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { ((Matrix*)kernel)->~Matrix(); free(kernel); };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

// The operator `SlotAttention`: rows attend to the cache of their sequence, after their keys and values were written to it.
//
// Inputs: queries, keys, values [n, *], or all packed in the first; past keys and values [b, kv heads, max_len, d]; total
// lengths minus 1, int32 [b]; tables of cos and sin; norms of queries and of keys [d]. Each sequence has n / b of the
// rows. Outputs: rows [n, heads * d]; present keys and values, which have to be bound to the memory of the past ones.
// `HalfSlotAttention` is the same over a cache in half precision.
struct SlotAttention {
  const AttentionKernels* by = nullptr;
  Attention shape{};
};

struct AttentionWork {
  const AttentionKernels* by;
  Attention a;
  size_t num_chunks, num_segments;
  size_t first_segment, end_key;
};

void prepare_part(void* data, size_t row) { ((AttentionWork*)data)->by->prepare(((AttentionWork*)data)->a, row); }

struct Unit { size_t b, kv, first, n, first_key, end_key; };
Unit unit_of(const AttentionWork& w, size_t index) {
  const Attention& a = w.a;
  const size_t rows = a.length * a.group(), chunk = index % w.num_chunks, head = index / w.num_chunks;
  Unit u{head / a.num_kv_heads, head % a.num_kv_heads, chunk * kQueries, 0, 0, 0};
  u.n = rows - u.first < kQueries ? rows - u.first : kQueries;
  const size_t past = size_t(a.totals[u.b]) + 1 - a.length;
  const size_t lowest = past + u.first / a.group();
  if (a.window > 0 && int64_t(lowest) + 1 > a.window) u.first_key = (lowest + 1 - size_t(a.window)) / kKeys * kKeys;
  u.end_key = past + (u.first + u.n - 1) / a.group() + 1;
  return u;
}

void attend_part(void* data, size_t index) {
  AttentionWork& w = *(AttentionWork*)data;
  Unit u = unit_of(w, index);
  w.by->attend(w.a, u.b, u.kv, u.first, u.n, u.first_key, u.end_key, nullptr);
}

void attend_segment(void* data, size_t index) {
  AttentionWork& w = *(AttentionWork*)data;
  Unit u = unit_of(w, index / w.num_segments);
  const size_t segment = u.first_key / kSegment + index % w.num_segments;
  const size_t first = segment * kSegment > u.first_key ? segment * kSegment : u.first_key;
  const size_t end = (segment + 1) * kSegment < u.end_key ? (segment + 1) * kSegment : u.end_key;
  if (first < end)
    w.by->attend(w.a, u.b, u.kv, u.first, u.n, first, end, w.a.partial + index * partial_floats(w.a.head_dim));
}

void merge_part(void* data, size_t index) {
  AttentionWork& w = *(AttentionWork*)data;
  Unit u = unit_of(w, index);
  const size_t num = (u.end_key - 1) / kSegment - u.first_key / kSegment + 1;
  w.by->merge(w.a, u.b, u.kv, u.first, u.n, w.a.partial + index * w.num_segments * partial_floats(w.a.head_dim), num);
}

struct Tensor {
  void* data = nullptr;
  size_t rank = 0;
  int64_t dims[8] = {};
};

OrtStatus* tensor_of(const OrtValue* value, Tensor* to) {
  OrtTensorTypeAndShapeInfo* shape;
  TRY(ort->GetTensorTypeAndShape(value, &shape));
  OrtStatus* status = ort->GetDimensionsCount(shape, &to->rank);
  if (!status && to->rank <= 8) status = ort->GetDimensions(shape, to->dims, to->rank);
  ort->ReleaseTensorTypeAndShapeInfo(shape);
  if (status) return status;
  if (to->rank > 8) return fault("a tensor has too many dimensions");
  return ort->GetTensorMutableData((OrtValue*)value, &to->data);
}

OrtStatus* compute_attention(void* kernel, OrtKernelContext* context) {
  SlotAttention& op = *(SlotAttention*)kernel;
  AttentionWork work{};
  Attention& a = work.a;
  work.by = op.by;
  a = op.shape;
  Tensor in[10];
  size_t count;
  TRY(ort->KernelContext_GetInputCount(context, &count));
  for (size_t i = 0; i < count && i < 10; i++) {
    const OrtValue* value;
    TRY(ort->KernelContext_GetInput(context, i, &value));
    if (value) TRY(tensor_of(value, &in[i]));
  }
  const Tensor &q = in[0], &past_key = in[3], &past_value = in[4], &totals = in[5];
  const size_t d = a.head_dim, kv_width = a.num_kv_heads * d, q_width = a.num_heads * d;
  if (q.rank != 2 || past_key.rank != 4 || past_value.rank != 4 || totals.rank != 1) return fault("SlotAttention: an input has the wrong rank");
  const size_t n = size_t(q.dims[0]);
  a.batch = size_t(totals.dims[0]);
  const bool is_packed = !in[1].data;
  if (!a.batch || !n || n % a.batch || past_key.dims[0] != int64_t(a.batch) || past_key.dims[1] != int64_t(a.num_kv_heads) ||
      past_key.dims[3] != int64_t(d) || memcmp(past_key.dims, past_value.dims, sizeof past_key.dims) ||
      q.dims[1] != int64_t(is_packed ? q_width + 2 * kv_width : q_width))
    return fault("SlotAttention: an input has the wrong shape");
  if (!is_packed && (in[1].rank != 2 || in[2].rank != 2 || in[1].dims[0] != q.dims[0] || in[2].dims[0] != q.dims[0] ||
                     in[1].dims[1] != int64_t(kv_width) || in[2].dims[1] != int64_t(kv_width)))
    return fault("SlotAttention: keys or values have the wrong shape");
  a.length = n / a.batch;
  a.max_len = size_t(past_key.dims[2]);
  a.q = (const float*)q.data;
  a.q_stride = size_t(q.dims[1]);
  a.k = is_packed ? a.q + q_width : (const float*)in[1].data;
  a.v = is_packed ? a.k + kv_width : (const float*)in[2].data;
  a.k_stride = a.v_stride = is_packed ? a.q_stride : kv_width;
  a.totals = (const int32_t*)totals.data;
  a.cos = (const float*)in[6].data;
  a.sin = (const float*)in[7].data;
  a.q_norm = (const float*)in[8].data;
  a.k_norm = (const float*)in[9].data;
  a.rotary_dim = a.cos ? 2 * size_t(in[6].dims[1]) : 0;
  if (a.rotary_dim > d) return fault("SlotAttention: the tables are wider than a head");
  size_t longest = 0;
  for (size_t b = 0; b < a.batch; b++) {
    const int64_t total = int64_t(a.totals[b]) + 1;
    if (total < int64_t(a.length) || total > int64_t(a.max_len) || (a.cos && total > in[6].dims[0]))
      return fault("SlotAttention: a sequence is longer than its cache, or shorter than its rows");
    if (size_t(total) > longest) longest = size_t(total);
  }
  OrtValue *out, *present_key, *present_value;
  const int64_t out_dims[2] = {q.dims[0], int64_t(q_width)};
  TRY(ort->KernelContext_GetOutput(context, 0, out_dims, 2, &out));
  TRY(ort->KernelContext_GetOutput(context, 1, past_key.dims, 4, &present_key));
  TRY(ort->KernelContext_GetOutput(context, 2, past_value.dims, 4, &present_value));
  TRY(ort->GetTensorMutableData(out, (void**)&a.out));
  TRY(ort->GetTensorMutableData(present_key, &a.keys));
  TRY(ort->GetTensorMutableData(present_value, &a.values));
  if (a.keys != past_key.data || a.values != past_value.data) return fault("SlotAttention: past and present have to be the same memory");
  ScratchUse use;
  if (!use.scratch) return fault("bad_alloc");
  a.queries = (float*)use.scratch->queries.of(n * q_width * sizeof(float));
  if (!a.queries) return fault("bad_alloc");
  if (n == 1) prepare_part(&work, 0);
  else TRY(ort->KernelContext_ParallelFor(context, prepare_part, n, 0, &work));
  work.num_chunks = (a.length * a.group() + kQueries - 1) / kQueries;
  const size_t units = a.batch * a.num_kv_heads * work.num_chunks;
  work.num_segments = (longest + kSegment - 1) / kSegment;
  // Few units of long sequences: their segments go to several threads.
  if (units > 16 || work.num_segments == 1) return ort->KernelContext_ParallelFor(context, attend_part, units, 0, &work);
  a.partial = (float*)use.scratch->partial.of(units * work.num_segments * partial_floats(d) * sizeof(float));
  if (!a.partial) return fault("bad_alloc");
  TRY(ort->KernelContext_ParallelFor(context, attend_segment, units * work.num_segments, 0, &work));
  return ort->KernelContext_ParallelFor(context, merge_part, units, 0, &work);
}

template <bool HALF>
OrtStatus* create_attention(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  int64_t heads, kv_heads, head_dim, window;
  float scale, softcap, epsilon;
  TRY(ort->KernelInfoGetAttribute_int64(info, "num_heads", &heads));
  TRY(ort->KernelInfoGetAttribute_int64(info, "kv_num_heads", &kv_heads));
  TRY(ort->KernelInfoGetAttribute_int64(info, "head_dim", &head_dim));
  TRY(ort->KernelInfoGetAttribute_int64(info, "local_window_size", &window));
  TRY(ort->KernelInfoGetAttribute_float(info, "scale", &scale));
  TRY(ort->KernelInfoGetAttribute_float(info, "softcap", &softcap));
  TRY(ort->KernelInfoGetAttribute_float(info, "qk_norm_epsilon", &epsilon));
  if (heads <= 0 || kv_heads <= 0 || heads % kv_heads || !attention_kernels || !attention_kernels(HALF)->takes(size_t(head_dim)))
    return fault("SlotAttention: heads that it does not take");
  SlotAttention* op = (SlotAttention*)malloc(sizeof(SlotAttention));
  if (!op) return fault("bad_alloc");
  new (op) SlotAttention();
  op->by = attention_kernels(HALF);
  op->shape.num_heads = size_t(heads); op->shape.num_kv_heads = size_t(kv_heads); op->shape.head_dim = size_t(head_dim);
  op->shape.scale = scale; op->shape.softcap = softcap; op->shape.epsilon = epsilon; op->shape.window = window;
  *kernel = op;
  return nullptr;
}

template <bool HALF>
OrtCustomOp make_attention() {
  constexpr auto kCache = HALF ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  OrtCustomOp op = make_op();
  op.GetName = [](const OrtCustomOp*) { return HALF ? "HalfSlotAttention" : "SlotAttention"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 10; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 3; };
  op.GetInputType = [](const OrtCustomOp*, size_t i) {
    return i == 5 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : i == 3 || i == 4 ? kCache : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetOutputType = [](const OrtCustomOp*, size_t i) { return i > 0 ? kCache : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) { return i == 0 || (i >= 3 && i <= 5) ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL; };
  op.CreateKernelV2 = create_attention<HALF>;
  op.KernelComputeV2 = compute_attention;
  op.KernelDestroy = [](void* kernel) { ((SlotAttention*)kernel)->~SlotAttention(); free(kernel); };
  return op;
}

OrtCustomOp linear, attention, half_attention;
}  // namespace
}  // namespace llamacord

namespace {
// The instructions of this processor and its system, the best first.
struct Choice {
  const llamacord::Kernels* kernels;
  const llamacord::AttentionKernels* (*attention)(bool is_half);
};

size_t choices(Choice* found) {
  size_t num = 0;
#if defined(__x86_64__)
  unsigned a, b, c, d, low, high, b7, c7, a71 = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const bool fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!(c >> 27 & 1) || !fma || !f16c) return 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));  // the registers that the system saves
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return 0;
  if (a >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
  const bool f = b7 >> 16 & 1, dq = b7 >> 17 & 1, bw = b7 >> 30 & 1, vl = b7 >> 31 & 1, vnni = c7 >> 11 & 1;
  if ((low & 0xe6) == 0xe6 && f && dq && bw && vl && vnni) found[num++] = {llamacord::avx512(), llamacord::attention_avx512};
  const bool avx2 = b7 >> 5 & 1, avx_vnni = a71 >> 4 & 1;
  if ((low & 6) == 6 && avx2 && avx_vnni) found[num++] = {llamacord::avxvnni(), nullptr};
#endif
  return num;
}
}  // namespace

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Lets the products use the instructions called `wanted`, or the best ones where that is empty. Returns the name of
// what they use; nullptr: this processor has none that pay, or lacks those.
EXPORT const char* llamacord_choose(const char* wanted) {
  using namespace llamacord;
  Choice found[4];
  const size_t num = choices(found);
  for (size_t i = 0; i < num; i++)
    if (!*wanted || !strcmp(wanted, found[i].kernels->name)) {
      kernels = found[i].kernels;
      attention_kernels = found[i].attention;
      return kernels->name;
    }
  return nullptr;
}

// Whether there is attention too with what was chosen.
EXPORT int llamacord_has_attention() { return llamacord::attention_kernels != nullptr; }

EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace llamacord;
  ort = base->GetApi(ORT_API_VERSION);
  if (!ort) return nullptr;
  if (!kernels && !llamacord_choose("")) return fault("this processor lacks the instructions");
  static OrtCustomOpDomain* domain = nullptr;
  if (!domain) {
    linear = make_op();
    attention = make_attention<false>();
    half_attention = make_attention<true>();
    TRY(ort->CreateCustomOpDomain("llamacord", &domain));
    TRY(ort->CustomOpDomain_Add(domain, &linear));
    TRY(ort->CustomOpDomain_Add(domain, &attention));
    TRY(ort->CustomOpDomain_Add(domain, &half_attention));
  }
  return ort->AddCustomOpDomain(options, domain);
}
