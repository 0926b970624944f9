// How steps become updates: at once, or normalised in a fourth pass.
#pragma once

#include "work.h"

namespace {

// What is done with steps, and what is summed of them if they are to be normalised.
struct Out {
  bool finishes;
  float scale, decay, held;
  Vec squares{}, kept{};
};

inline Out out_of(const Work& w) {
  float scale = -w.t.scales[0];
  if (w.flags & kWithParamScale)
    scale *= std::sqrt(static_cast<float>(w.kept.p_square) + 1e-9f);
  return {w.finishes(), scale, w.t.scales[1], w.held_factor()};
}

// Writes steps that are yet to be normalised, or the updates; m and rms decide which
// are held.
template <bool PART>
L2O_INLINE void write(float* u, int rest, Vec step, Vec params, Vec m, Vec rms,
                      Out& o) {
  Vec out = unless_held(step, m, rms, o.held);
  if (o.finishes) {
    Vec kept = unless_held(splat(1.0f), m, rms, o.held);
    if (PART) out = first(out, rest), kept = first(kept, rest);
    o.squares += out * out;
    o.kept += kept;
  } else {
    out = out * o.scale - params * o.decay;
  }
  PART ? store(u, out, rest) : store(u, out);
}

// The mean square of the steps that are not held.
inline void average(const Work& w) {
  Kept& kept = w.kept;
  double total = 0, count = 0;
  for (double x : kept.step_squares) total += x;
  for (double x : kept.step_counts) count += x;
  kept.step_square = static_cast<float>(total / std::max(count, 1.0));
}

// Fourth pass over a chunk: normalises the steps.
inline void finish(const Work& w, int64_t number) {
  const Tensor& t = w.t;
  const Chunk& k = w.kept.chunks[number];
  const float scale = -t.scales[0] / std::sqrt(w.kept.step_square + w.s.norm_eps);
  const float decay = -t.scales[1];
  for (int64_t i = k.i0; i < k.i1; ++i) {
    const int64_t at = t.offset(k.block, i);
    const float* p = t.p + at;
    float* u = t.u + at;
    int64_t j = k.j0;
    if (decay == 0) {
      for (; j + kLanes <= k.j1; j += kLanes) store(u + j, load(u + j) * scale);
      for (; j < k.j1; ++j) u[j] *= scale;
    } else {
      for (; j + kLanes <= k.j1; j += kLanes)
        store(u + j, load(u + j) * scale + load(p + j) * decay);
      for (; j < k.j1; ++j) u[j] = u[j] * scale + p[j] * decay;
    }
  }
}

}  // namespace
