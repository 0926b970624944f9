// Loops over the threads that XLA has anyway.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>

#include "xla_ffi.h"

#if defined(__x86_64__)
#define L2O_PAUSE() __builtin_ia32_pause()
#else
#define L2O_PAUSE() ((void)0)
#endif

namespace {

class Threads {
 public:
  Threads() : api_(nullptr), context_(nullptr), count_(1) {}  // only the caller's
  explicit Threads(const xla_ffi::CallFrame* frame)
      : api_(frame->api), context_(frame->context), count_(1) {
    int64_t count = 1;
    xla_ffi::NumThreadsArgs args{sizeof args, nullptr, context_, &count};
    if (xla_ffi::Error* error = api_->num_threads(&args)) {
      destroy(error);
    } else {
      count_ = std::max<int64_t>(count, 1);
    }
  }

  // Calls body(i) for i < n, in any order, some of them in other threads.
  //
  // The caller works too and waits only for what another thread has begun, so that a
  // pool without a free thread is no deadlock.
  template <typename Body>
  void each(int64_t n, const Body& body) const {
    const int64_t helpers = std::min(n, count_) - 1;
    if (helpers < 1) {
      for (int64_t i = 0; i < n; ++i) body(i);
      return;
    }
    auto* job = new Job{n, &body, [](const void* b, int64_t i) {
                          (*static_cast<const Body*>(b))(i);
                        }};
    job->owners.store(helpers + 1);
    for (int64_t i = 0; i < helpers; ++i) {
      xla_ffi::ScheduleArgs args{sizeof args, nullptr, context_, &Job::help, job};
      if (xla_ffi::Error* error = api_->schedule(&args)) {
        destroy(error);
        job->release();
      }
    }
    job->work();
    for (int spins = 0; job->done.load(std::memory_order_acquire) < n; ++spins)
      spins < 1000 ? L2O_PAUSE() : std::this_thread::yield();
    job->release();
  }

 private:
  struct Job {
    int64_t n;
    const void* body;
    void (*call)(const void*, int64_t);
    std::atomic<int64_t> next{0}, done{0}, owners{0};

    void work() {
      for (int64_t i; (i = next.fetch_add(1)) < n;) {
        call(body, i);
        done.fetch_add(1, std::memory_order_release);
      }
    }
    void release() {
      if (owners.fetch_sub(1) == 1) delete this;
    }
    static void help(void* data) {
      auto* job = static_cast<Job*>(data);
      job->work();  // a late one finds nothing and does not touch `body`
      job->release();
    }
  };

  void destroy(xla_ffi::Error* error) const {
    xla_ffi::ErrorDestroyArgs args{sizeof args, nullptr, error};
    api_->error_destroy(&args);
  }

  const xla_ffi::Api* api_;
  xla_ffi::Context* context_;
  int64_t count_;
};

}  // namespace
