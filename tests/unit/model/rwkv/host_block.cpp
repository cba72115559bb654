// Runs a CUDA kernel of this project without a GPU: one thread block at a time, its threads as host threads.
#include <barrier>
#include <cmath>
#include <cstddef>
#include <thread>
#include <vector>

struct Index {
    int x;
};
static thread_local Index threadIdx, blockIdx;
static std::barrier<>* everyone;

#define __global__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(size)
#define __syncthreads() everyone->arrive_and_wait()

#include KERNEL

extern "C" void run(int rows, int backwards, int batch, int length, int heads, const float* q, const float* k,
                    const float* v, const float* w, const float* first, float* out, float* last) {
    constexpr int SIZE = 8;
    for (int block = 0; block < batch * heads; ++block) {
        std::barrier<> barrier(SIZE);
        everyone = &barrier;
        std::vector<std::thread> threads;
        for (int thread = 0; thread < SIZE; ++thread)
            threads.emplace_back([=] {
                threadIdx = {thread};
                blockIdx = {block};
                auto kernel = rows ? scan<SIZE, true> : scan<SIZE, false>;
                kernel(length, heads, backwards != 0, q, k, v, w, first, out, last);
            });
        for (auto& thread : threads) thread.join();
    }
}
