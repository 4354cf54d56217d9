#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include "types.hpp"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace halfbyte {
namespace {

// Longer than the gap between two kernels. Time, not rounds: a pause takes 15 to 50 ns.
constexpr std::chrono::microseconds kSpinTime(150);
constexpr int kSpinRounds = 64;

void pause_briefly() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Whether `done` came true within the spin time.
template <class Condition>
bool spin_until(const Condition& done) {
    const auto end = std::chrono::steady_clock::now() + kSpinTime;
    do {
        for (int i = 0; i < kSpinRounds; ++i) {
            if (done()) return true;
            pause_briefly();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

// A worker first raises `active`, then looks at `open`; the caller first clears `open`, then waits
// for `active` to fall to 0. So no worker touches a job whose caller has returned.
struct Pool {
    explicit Pool(int workers) : workers(workers) {}

    const int workers;
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> epoch{0};
    std::atomic<bool> open{false};
    std::atomic<int> active{0};
    std::atomic<int64_t> next{0};
    std::atomic<int> parked{0};
    Task function = nullptr;
    const void* context = nullptr;
    int64_t count = 0;
    std::mutex mutex;
    std::condition_variable wake;

    void work() {
        for (int64_t task = next.fetch_add(1); task < count; task = next.fetch_add(1)) {
            function(context, task);
        }
    }

    void wait_for_job(uint64_t seen) {
        if (spin_until([&] { return epoch.load() != seen; })) return;
        std::unique_lock<std::mutex> lock(mutex);
        parked.fetch_add(1);
        wake.wait(lock, [&] { return epoch.load() != seen; });
        parked.fetch_sub(1);
    }

    void worker(uint64_t seen) {
        for (;;) {
            wait_for_job(seen);
            seen = epoch.load();
            if (stop.load()) return;
            active.fetch_add(1);
            if (open.load()) work();
            active.fetch_sub(1);
        }
    }

    void announce() {
        epoch.fetch_add(1);
        if (parked.load() == 0) return;
        const std::lock_guard<std::mutex> lock(mutex);
        wake.notify_all();
    }

    void run(Task task_function, const void* task_context, int64_t task_count) {
        function = task_function;
        context = task_context;
        count = task_count;
        next.store(0);
        open.store(true);
        announce();
        work();
        open.store(false);
        if (spin_until([&] { return active.load() == 0; })) return;
        // A worker without a processor gets ours once waiting has lasted long.
        while (active.load() != 0) std::this_thread::yield();
    }
};

int available_processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Never destroyed: workers may still run while the process exits.
struct Owner {
    std::mutex mutex;
    std::shared_ptr<Pool> pool;
    std::atomic<int> threads{available_processors()};
};

Owner* make_owner();
Owner* g_owner = make_owner();

// A forked child has none of the workers: it starts with a new, empty owner.
void forget_workers() {
    const int threads = g_owner->threads.load();
    g_owner = new Owner;
    g_owner->threads.store(threads);
}

Owner* make_owner() {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, forget_workers);
#endif
    return new Owner;
}

void stop_workers(Owner& owner) {
    if (!owner.pool) return;
    owner.pool->stop.store(true);
    owner.pool->announce();
    owner.pool.reset();
}

void start_workers(Owner& owner) {
    const int workers = owner.threads.load() - 1;
    if (owner.pool && owner.pool->workers == workers) return;
    stop_workers(owner);
    auto pool = std::make_shared<Pool>(workers);
    for (int i = 0; i < workers; ++i) {
        std::thread([pool] { pool->worker(0); }).detach();
    }
    owner.pool = std::move(pool);
}

thread_local bool t_inside = false;

}  // namespace

void run_tasks(Task function, const void* context, int64_t count) {
    Owner& owner = *g_owner;
    if (count > 1 && owner.threads.load() > 1 && !t_inside && owner.mutex.try_lock()) {
        const std::lock_guard<std::mutex> lock(owner.mutex, std::adopt_lock);
        start_workers(owner);
        t_inside = true;
        owner.pool->run(function, context, count);
        t_inside = false;
        return;
    }
    for (int64_t task = 0; task < count; ++task) function(context, task);
}

void set_thread_count(int count) {
    Owner& owner = *g_owner;
    const std::lock_guard<std::mutex> lock(owner.mutex);
    owner.threads.store(std::max(1, count));
    if (owner.pool && owner.pool->workers != owner.threads.load() - 1) stop_workers(owner);
}

int thread_count() { return g_owner->threads.load(); }

void* thread_scratch(Scratch slot, int64_t bytes) {
    struct Memory {
        void* data = nullptr;
        int64_t bytes = 0;
        ~Memory() { ::operator delete(data, std::align_val_t(kAlign)); }
    };
    thread_local Memory slots[static_cast<int>(Scratch::count)];
    Memory& memory = slots[static_cast<int>(slot)];
    if (memory.bytes < bytes) {
        ::operator delete(memory.data, std::align_val_t(kAlign));
        memory.data = nullptr;
        memory.bytes = 0;
        memory.data =
            ::operator new(static_cast<size_t>(round_up(bytes, kAlign)), std::align_val_t(kAlign));
        memory.bytes = bytes;
    }
    return memory.data;
}

}  // namespace halfbyte
