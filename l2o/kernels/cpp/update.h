// The whole update of tensors by a per-parameter MLP on Adafactor features.
//
// What it computes is said in l2o/rule/_rule.py, which is also its oracle. Memory
// is read in three passes. One sums g^2 over rows and columns (reduce.h, factor.h). One
// updates the accumulators and sums the squares of the features (accumulate.h). One
// computes the features again and applies the network (apply.h, network.h, steps.h).
#pragma once

#include "accumulate.h"
#include "apply.h"
#include "factor.h"
#include "parallel.h"
#include "reduce.h"

namespace {

// What the updates of tensors by networks of one width reuse.
template <int H>
struct Scratch {
  Kept kept;
  Folded<H> folded;
};

template <int H>
class Update {
 public:
  Update(const Tensor& t, const Settings& settings, int flags, Scratch<H>& scratch)
      : work_{t, settings, flags, scratch.kept}, folded_(scratch.folded) {
    plan(work_);
  }

  // All but the steps.
  void prepare(const Threads& threads) {
    if (work_.t.factored) {
      each(threads, reduce);
      factor(work_);
    }
    each(threads, accumulate);
    normalize(work_);
    fold(work_, folded_);
  }

  void run(const Threads& threads) {
    prepare(threads);
    threads.each(chunks(), [&](int64_t i) { apply(work_, folded_, i); });
    if (!work_.finishes()) return;
    average(work_);
    each(threads, finish);
  }

 private:
  int64_t chunks() const { return work_.kept.chunks.size(); }
  void each(const Threads& threads, void (*pass)(const Work&, int64_t)) {
    threads.each(chunks(), [&](int64_t i) { pass(work_, i); });
  }

  const Work work_;
  Folded<H>& folded_;
};

}  // namespace
