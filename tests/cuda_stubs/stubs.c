// What a stub of CUDA must do, so that ONNX Runtime believes in a GPU of the H100's kind whose memory is this
// process's and whose kernels do nothing. Every other function succeeds at once: build.py adds those.
//
// LLAMACORD_STUB_GPU changes what is found: none, old_driver, turing, or full (1 MiB of memory is free).
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { NO_MEMORY = 2, NO_DEVICE = 100, BROKEN_CAPTURE = 900, DEVICE_MEMORY = 2 };
enum { NUM_KNOWN = 1 << 16 };

static char handle[64];
static size_t allocated;
static int captures;
static int launches;
static int capturing;
static struct { void *start; size_t size; } known[NUM_KNOWN];

static int is(const char *name) {
    const char *wanted = getenv("LLAMACORD_STUB_GPU");
    return wanted && strcmp(wanted, name) == 0;
}

static size_t total_bytes(void) { return is("full") ? (size_t)1 << 20 : (size_t)80 << 30; }

static int capability(void) { return is("turing") ? 75 : 90; }

// Allocations are remembered, for who asks where a pointer lies and what is free. Memory starts as 0xff bytes:
// what is read before it was written is no number.
static int take(void **pointer, size_t size) {
    if (capturing) return BROKEN_CAPTURE;
    if (allocated + size > total_bytes()) return NO_MEMORY;
    if (posix_memalign(pointer, 256, size ? size : 1)) return NO_MEMORY;
    if (size < (1 << 20)) memset(*pointer, 0xff, size);
    for (int i = 0; i < NUM_KNOWN; i++) {
        if (!known[i].start) {
            known[i].start = *pointer;
            known[i].size = size;
            break;
        }
    }
    allocated += size;
    return 0;
}

static int give(void *pointer) {
    if (capturing) return BROKEN_CAPTURE;
    for (int i = 0; pointer && i < NUM_KNOWN; i++) {
        if (known[i].start == pointer) {
            allocated -= known[i].size;
            known[i].start = NULL;
            free(pointer);
            return 0;
        }
    }
    return 0;
}

static int on_device(const void *pointer) {
    for (int i = 0; i < NUM_KNOWN; i++) {
        const char *start = known[i].start;
        if (start && (const char *)pointer >= start && (const char *)pointer < start + known[i].size) return 1;
    }
    return 0;
}

static int hand_out(void **out) {
    *out = handle;
    return 0;
}

int cudaMalloc(void **p, size_t size) { return take(p, size); }
int cudaMallocFromPoolAsync(void **p, size_t size, void *pool, void *stream) { return take(p, size); }
int cudaFree(void *p) { return give(p); }
int cudaFreeAsync(void *p, void *stream) { return give(p); }
int cudaMallocHost(void **p, size_t size) { return posix_memalign(p, 256, size ? size : 1) ? NO_MEMORY : 0; }
int cudaHostAlloc(void **p, size_t size, unsigned flags) { return cudaMallocHost(p, size); }
int cudaFreeHost(void *p) {
    free(p);
    return 0;
}
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = total_bytes();
    *free_bytes = *total - allocated;
    return 0;
}

int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    if (capturing) return BROKEN_CAPTURE;
    memmove(to, from, size);
    return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    memmove(to, from, size);
    return 0;
}
int cudaMemcpy2DAsync(void *to, size_t pitch, const void *from, size_t from_pitch, size_t width, size_t rows,
                      int kind, void *stream) {
    for (size_t row = 0; row < rows; row++) memmove((char *)to + row * pitch, (char *)from + row * from_pitch, width);
    return 0;
}
int cudaMemset(void *p, int value, size_t size) {
    if (capturing) return BROKEN_CAPTURE;
    memset(p, value, size);
    return 0;
}
int cudaMemsetAsync(void *p, int value, size_t size, void *stream) {
    memset(p, value, size);
    return 0;
}

int cudaGetDevice(int *device) {
    *device = 0;
    return 0;
}
int cudaGetDeviceCount(int *count) {
    *count = !is("none");
    return is("none") ? NO_DEVICE : is("old_driver") ? 35 : 0;
}
int cudaDriverGetVersion(int *version) {
    *version = is("old_driver") ? 12040 : 13000;
    return 0;
}
int cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return 0;
}

struct properties {
    char name[256], uuid[16], luid[8];
    unsigned node_mask;
    size_t total_memory, shared_per_block;
    int registers, warp_size;
    size_t pitch;
    int threads_per_block, block_size[3], grid_size[3];
    size_t constant_memory;
    int major, minor;
    size_t texture_alignment, texture_pitch_alignment;
    int multiprocessors, integrated, maps_host_memory, textures[39];
    size_t surface_alignment;
    int concurrent_kernels, ecc, bus, slot, domain, tcc, engines, unified, bus_width, l2_cache, persisting_l2;
    int threads_per_multiprocessor, priorities, global_l1, local_l1;
    size_t shared_per_multiprocessor;
    int registers_per_multiprocessor, managed, multi, group, atomics, pageable, concurrent_managed, preemption;
    int host_pointers, cooperative;
    size_t shared_per_block_optin;
    int pageable_tables, direct, blocks_per_multiprocessor, policy;
    size_t reserved_shared;
};

int cudaGetDeviceProperties(struct properties *p, int device) {
    struct properties found = {.name = "Stub GPU", .total_memory = total_bytes(), .shared_per_block = 48 << 10,
                               .registers = 65536, .warp_size = 32, .pitch = 1u << 30, .threads_per_block = 1024,
                               .block_size = {1024, 1024, 64}, .grid_size = {2147483647, 65535, 65535},
                               .constant_memory = 64 << 10, .major = capability() / 10, .minor = capability() % 10,
                               .texture_alignment = 512, .multiprocessors = 132, .maps_host_memory = 1,
                               .concurrent_kernels = 1, .engines = 3, .unified = 1, .bus_width = 5120,
                               .l2_cache = 50 << 20, .threads_per_multiprocessor = 2048, .priorities = 1,
                               .shared_per_multiprocessor = 228 << 10, .registers_per_multiprocessor = 65536,
                               .cooperative = 1, .shared_per_block_optin = 227 << 10,
                               .blocks_per_multiprocessor = 32, .reserved_shared = 1 << 10};
    *p = found;
    return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 1: *value = 1024; break;           // threads per block
        case 8: *value = 48 << 10; break;       // shared memory per block
        case 10: *value = 32; break;            // warp size
        case 12: *value = 65536; break;         // registers per block
        case 16: *value = 132; break;           // multiprocessors
        case 36: *value = 2619000; break;       // kHz of the memory
        case 37: *value = 5120; break;          // bits of its bus
        case 38: *value = 50 << 20; break;      // L2 cache
        case 39: *value = 2048; break;          // threads per multiprocessor
        case 75: *value = capability() / 10; break;
        case 76: *value = capability() % 10; break;
        case 81: *value = 228 << 10; break;     // shared memory per multiprocessor
        case 82: *value = 65536; break;         // registers per multiprocessor
        case 95: *value = 1; break;             // cooperative launch
        case 97: *value = 227 << 10; break;     // shared memory per block on request
        case 106: *value = 32; break;           // blocks per multiprocessor
        default: *value = 1;
    }
    return 0;
}

int cudaPointerGetAttributes(void *out, const void *pointer) {
    struct { int type, device; void *on_device, *on_host; } found = {
        on_device(pointer) ? DEVICE_MEMORY : 0, 0, (void *)pointer, NULL};
    memcpy(out, &found, sizeof found);
    return 0;
}

int cudaFuncGetAttributes(void *attributes, const void *function) {
    memset(attributes, 0, 64);
    return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads, size_t shared,
                                                           unsigned flags) {
    *blocks = 2;
    return 0;
}

int cudaStreamCreate(void **out) { return hand_out(out); }
int cudaStreamCreateWithFlags(void **out, unsigned flags) { return hand_out(out); }
int cudaEventCreate(void **out) { return hand_out(out); }
int cudaEventCreateWithFlags(void **out, unsigned flags) { return hand_out(out); }
int cudaEventElapsedTime(float *milliseconds, void *from, void *to) {
    *milliseconds = 1;
    return 0;
}
int cudaMemPoolCreate(void **out, const void *properties) { return hand_out(out); }

int cudaStreamBeginCapture(void *stream, int mode) {
    capturing = 1;
    return 0;
}
int cudaStreamIsCapturing(void *stream, int *status) {
    *status = capturing;
    return 0;
}
int cudaStreamEndCapture(void *stream, void **graph) {
    capturing = 0;
    captures++;
    return hand_out(graph);
}
int cudaGraphInstantiate(void **out, void *graph, unsigned long long flags) { return hand_out(out); }
// While a stream is being captured nothing may wait, allocate, or copy at once: that would end the capture.
int cudaStreamSynchronize(void *stream) { return capturing ? BROKEN_CAPTURE : 0; }
int cudaDeviceSynchronize(void) { return capturing ? BROKEN_CAPTURE : 0; }
int cudaEventSynchronize(void *event) { return capturing ? BROKEN_CAPTURE : 0; }
int cudaGraphLaunch(void *graph, void *stream) {
    launches++;
    return 0;
}
int llamacord_stub_captures(void) { return captures; }
int llamacord_stub_launches(void) { return launches; }

const char *cudaGetErrorString(int error) { return error == NO_MEMORY ? "out of memory" : "stub error"; }
const char *cudaGetErrorName(int error) { return "cudaStubError"; }
const char *cublasGetStatusString(int status) { return "stub status"; }
const char *cublasGetStatusName(int status) { return "stub status"; }

void **__cudaRegisterFatBinary(void *binary) {
    static void *registered;
    return &registered;
}
void __cudaRegisterFatBinaryEnd(void **binary) {}
void __cudaUnregisterFatBinary(void **binary) {}
void __cudaRegisterFunction(void **b, const char *h, char *d, const char *n, int t, void *x, void *y, void *z,
                            void *w, int *s) {}
void __cudaRegisterVar(void **b, char *h, char *d, const char *n, int e, size_t s, int c, int g) {}
int __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void *stream) {
    memset(grid, 0, 12);
    memset(block, 0, 12);
    *shared = 0;
    *(void **)stream = NULL;
    return 0;
}
int __cudaGetKernel(void **out, const void *function) { return hand_out(out); }
int cudaLibraryLoadData(void **out) { return hand_out(out); }
int cudaLibraryGetKernel(void **out) { return hand_out(out); }
static int nothing(void) { return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags,
                                     int *status) {
    *function = (void *)nothing;
    if (status) *status = 0;
    return 0;
}

int cublasCreate_v2(void **out) { return hand_out(out); }
int cublasGetMathMode(void *h, int *mode) {
    *mode = 0;
    return 0;
}
int cublasLtCreate(void **out) { return hand_out(out); }
int cublasLtMatmulDescCreate(void **out) { return hand_out(out); }
int cublasLtMatmulPreferenceCreate(void **out) { return hand_out(out); }
int cublasLtMatrixLayoutCreate(void **out) { return hand_out(out); }
int cublasLtMatrixTransformDescCreate(void **out) { return hand_out(out); }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e, void *p, int wanted,
                                   void *results, int *found) {
    memset(results, 0, 128);
    *found = 1;
    return 0;
}

int cuInit(unsigned flags) { return is("none") ? NO_DEVICE : 0; }
int cuDriverGetVersion(int *version) { return cudaDriverGetVersion(version); }
int cuDeviceGetCount(int *count) {
    *count = 1;
    return 0;
}
int cuDeviceGet(int *device, int ordinal) { return cudaGetDevice(device); }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, "Stub GPU", length);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = total_bytes();
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    return cudaDeviceGetAttribute(value, attribute, device);
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return hand_out(context); }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxPushCurrent_v2(void *context) { return 0; }
int cuCtxPopCurrent_v2(void **context) { return hand_out(context); }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { return cudaMemGetInfo(free_bytes, total); }
int cuTensorMapEncodeTiled(void) { return 0; }
