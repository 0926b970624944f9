// A tensor, and what its call asks of it.
#pragma once

#include <cstdint>

namespace {

// Per-parameter settings of a call; l2o/kernels/_native.py fills them in this order.
struct Settings {
  float grad_bound, rms_eps, vector_eps, norm_eps, exp_mult;
};

enum Flags {
  kWithParamScale = 1,   // steps grow with the tensor's root mean square
  kNormalizeStep = 2,    // steps have unit root mean square
  kVectorMoments = 4,    // a vector's second moment is among its features
  kClipped = 8,          // clip_g and g_norm are among the features
  kHolds = 16,           // what has had no gradient makes no step
};

// One tensor of one batch entry. It is seen as (A, Na, B, Nb, C), factored over the
// axes of Na and Nb; a vector is not factored.
struct Tensor {
  int64_t a, na, b, nb, c;  // all 1 but nb for a vector
  bool factored, row_is_x;  // whether `row` is indexed by the axis of Na, not of Nb
  const float *g, *p, *m[3], *rms, *row[3], *col[3];
  float *u, *new_m[3], *new_rms, *new_row[3], *new_col[3];
  const float *decays, *weights, *scales;

  int64_t size() const { return a * na * b * nb * c; }
  int64_t blocks() const { return a * b; }
  int64_t width() const { return nb * c; }  // contiguous
  int64_t stride() const { return b * nb * c; }  // from one row to the next
  int64_t offset(int64_t block, int64_t i) const {
    return ((block / b * na + i) * b + block % b) * width();
  }
  // Moments of the axis of Na lie as (A, Na, B, C), those of Nb as (A, B, Nb, C).
  int64_t x_offset(int64_t block, int64_t i) const {
    return ((block / b * na + i) * b + block % b) * c;
  }
  int64_t y_offset(int64_t block) const { return block * width(); }
};

}  // namespace
