// Threads. PyTorch's OpenMP runtime is already in the process, and its workers spin for a while after each parallel
// region: threads of our own beside them would fight for the same cores. So the work is given to that runtime, through
// the one function that every OpenMP runtime of GCC and LLVM exports under the same name. Without it, workers of our own.
#include "quarterdeck.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace quarterdeck {
namespace {

struct Job {
    void (*work)(void*, int64_t);
    void* context;
    int64_t chunks;
    std::atomic<int64_t> next{0};
};

void take_chunks(void* data) {
    Job& job = *static_cast<Job*>(data);
    for (int64_t chunk; (chunk = job.next.fetch_add(1, std::memory_order_relaxed)) < job.chunks;) {
        job.work(job.context, chunk);
    }
}

using OpenMPParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

OpenMPParallel find_openmp() {
#if defined(_WIN32)
    return nullptr;
#else
    return reinterpret_cast<OpenMPParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

// Workers that sleep between jobs; one job at a time, and whoever finds the pool busy works alone.
class Pool {
  public:
    void run(int threads, Job& job) {
        std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
        if (!busy.owns_lock()) return take_chunks(&job);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (int(workers_.size()) < threads - 1) workers_.emplace_back([this] { serve(); }).detach();
            job_ = &job;
            wanted_ = threads - 1;
        }
        wake_.notify_all();
        take_chunks(&job);
        std::unique_lock<std::mutex> lock(mutex_);
        job_ = nullptr;  // nobody may join any more
        done_.wait(lock, [this] { return working_ == 0; });
    }

  private:
    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return job_ != nullptr && wanted_ > 0; });
            Job* job = job_;
            --wanted_;
            ++working_;
            lock.unlock();
            take_chunks(job);
            lock.lock();
            if (--working_ == 0) done_.notify_all();
        }
    }

    std::mutex busy_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    int wanted_ = 0, working_ = 0;
};

}  // namespace

const char* thread_pool_name() { return find_openmp() ? "PyTorch's OpenMP" : "own"; }

void parallel(int threads, int64_t chunks, void (*work)(void*, int64_t), void* context) {
    Job job{work, context, chunks};
    if (chunks < threads) threads = int(chunks);
    if (threads <= 1) return take_chunks(&job);
    static const OpenMPParallel openmp = find_openmp();
    if (openmp) return openmp(take_chunks, &job, unsigned(threads), 0);
    static Pool* pool = new Pool;  // never destroyed: its workers may outlive main
    pool->run(threads, job);
}

}  // namespace quarterdeck
