// One persistent thread pool of our own. Tasks are claimed one by one, so a worker that the system
// has not scheduled delays nobody; results never depend on which thread runs a task.
#pragma once

#include <cstdint>

namespace halfbyte {

using Task = void (*)(const void* context, int64_t task);

// Run function(context, 0 .. count - 1) on the calling thread and the workers; returns when all
// are done. A second caller at the same time runs its tasks on its own thread.
void run_tasks(Task function, const void* context, int64_t count);

void set_thread_count(int count);
int thread_count();

template <class Function>
void parallel(int64_t count, const Function& function) {
    run_tasks(
        [](const void* context, int64_t task) { (*static_cast<const Function*>(context))(task); },
        &function, count);
}

// Below this many floating-point operations a second thread costs more than it saves.
constexpr int64_t kParallelOperations = 1 << 21;

template <class Function>
void parallel_if_worth(int64_t operations, int64_t count, const Function& function) {
    if (operations >= kParallelOperations) return parallel(count, function);
    for (int64_t task = 0; task < count; ++task) function(task);
}

}  // namespace halfbyte
