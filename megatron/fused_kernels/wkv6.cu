// The linear recurrence behind RWKV v6 (arXiv 2404.05892). Per batch row and head, with a state S [SIZE, SIZE]:
//
//     out_t = q_t^T S  (columns)  or  S q_t  (rows),   then   S <- diag(exp(w_t)) S + k_t v_t^T
//
// forwards or backwards in time. Gradients of the recurrence are recurrences of the same kind, so this is all there is.
// Tensors are fp32, contiguous: q, k, v, w, out [batch, length, heads, SIZE], states [batch, heads, SIZE, SIZE].
//
// One thread block works on one head of one batch row. A thread holds one column (rows: one row) of the state in
// registers; what the others need of a time step passes through shared memory.

#include <cuda_runtime.h>

template <int SIZE, bool ROWS>
__global__ void __launch_bounds__(SIZE)
    scan(int length, int heads, bool backwards, const float* __restrict__ q, const float* __restrict__ k,
         const float* __restrict__ v, const float* __restrict__ w, const float* __restrict__ first,
         float* __restrict__ out, float* __restrict__ last) {
    const int own = threadIdx.x;
    const size_t step = (size_t)heads * SIZE;
    const size_t start = (blockIdx.x / heads) * length * step + (blockIdx.x % heads) * SIZE + own;
    // Element (i, j) of the state is at i * SIZE + j; a thread walks along the other index than its own.
    const size_t corner = (size_t)blockIdx.x * SIZE * SIZE + (ROWS ? own * SIZE : own);
    const int stride = ROWS ? 1 : SIZE;

    __shared__ float query[SIZE], other[SIZE], decay[SIZE];
    float state[SIZE];
#pragma unroll
    for (int i = 0; i < SIZE; ++i) state[i] = first[corner + i * stride];

    for (int n = 0; n < length; ++n) {
        const size_t at = start + (backwards ? length - 1 - n : n) * step;
        const float own_decay = expf(w[at]);
        const float factor = ROWS ? k[at] : v[at];
        __syncthreads();
        query[own] = q[at];
        other[own] = ROWS ? v[at] : k[at];
        if (!ROWS) decay[own] = own_decay;
        __syncthreads();
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < SIZE; ++i) {
            sum += query[i] * state[i];
            state[i] = (ROWS ? own_decay : decay[i]) * state[i] + other[i] * factor;
        }
        out[at] = sum;
    }
#pragma unroll
    for (int i = 0; i < SIZE; ++i) last[corner + i * stride] = state[i];
}

template <int SIZE>
static void launch(bool rows, int blocks, cudaStream_t stream, int length, int heads, bool backwards, const float* q,
                   const float* k, const float* v, const float* w, const float* first, float* out, float* last) {
    auto kernel = rows ? scan<SIZE, true> : scan<SIZE, false>;
    kernel<<<blocks, SIZE, 0, stream>>>(length, heads, backwards, q, k, v, w, first, out, last);
}

// 0, or the number of the CUDA error; -1 for a head size that there is no kernel for.
extern "C" int wkv6_scan(int rows, int backwards, int batch, int length, int heads, int size, const float* q,
                         const float* k, const float* v, const float* w, const float* first, float* out, float* last,
                         void* stream) {
    auto call = [&](auto launcher) {
        launcher(rows != 0, batch * heads, (cudaStream_t)stream, length, heads, backwards != 0, q, k, v, w, first, out,
                 last);
        return (int)cudaGetLastError();
    };
    switch (size) {
        case 8: return call(launch<8>);
        case 16: return call(launch<16>);
        case 32: return call(launch<32>);
        case 64: return call(launch<64>);
        case 128: return call(launch<128>);
    }
    return -1;
}
