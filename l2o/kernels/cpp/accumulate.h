// Second pass: the accumulators, and the sums of the features' squares.
#pragma once

#include "work.h"

namespace {

// What a loop over elements reads; a copy, because stores may change what `Work` points
// to.
struct Streams {
  explicit Streams(const Tensor& t) : g(t.g), p(t.p), rms(t.rms), new_rms(t.new_rms) {
    for (int d = 0; d < 3; ++d) {
      m[d] = t.m[d];
      new_m[d] = t.new_m[d];
    }
    for (int d = 0; d < 4; ++d) {
      decay[d] = splat(t.decays[d]);
      rest[d] = splat(1 - t.decays[d]);
    }
  }
  const float *g, *p, *m[3], *rms;
  float *new_m[3], *new_rms;
  Vec decay[4], rest[4];

  L2O_INLINE void prefetch(int64_t at) const {
    for (const float* from : {g, p, rms, m[0], m[1], m[2]})
      __builtin_prefetch(from + at + kAhead);
  }
};

// Momenta and second moment of kLanes elements, written to memory.
template <bool PART>
L2O_INLINE void moments(const Streams& t, float bound, int64_t at, int rest, Vec& g,
                        Vec& p, Vec* m, Vec& rms) {
  auto get = [&](const float* from) {
    return PART ? load(from + at, rest) : load(from + at);
  };
  auto put = [&](float* to, Vec v) {
    PART ? store(to + at, v, rest) : store(to + at, v);
  };
  g = clip(get(t.g), bound);
  p = get(t.p);
  for (int d = 0; d < 3; ++d) {
    m[d] = get(t.m[d]) * t.decay[d] + g * t.rest[d];
    put(t.new_m[d], m[d]);
  }
  rms = get(t.rms) * t.decay[3] + g * g * t.rest[3];
  put(t.new_rms, rms);
}

// Of the squares of features, lane by lane.
struct Sums {
  Vec g{}, clip{}, p{}, m[3]{}, rms{}, m_norm[3]{}, root{}, fac_g[3]{}, g_norm{},
      fac_m[3]{};

  void add_to(double* sums, bool clips) const {
    sums[kG] += sum(g);
    sums[kP] += sum(p);
    sums[kRms] += sum(rms);
    sums[kRsqrtRms] += sum(root);
    if (clips) {
      sums[kClipG] += sum(clip);
      sums[kGNorm] += sum(g_norm);
    }
    for (int d = 0; d < 3; ++d) {
      sums[kM + d] += sum(m[d]);
      sums[kMNorm + d] += sum(m_norm[d]);
      sums[kFacG + d] += sum(fac_g[d]);
      sums[kFacM + d] += sum(fac_m[d]);
    }
  }
};

template <bool PART, bool X_VECTOR>
L2O_INLINE void add_squares(Sums& s, const Streams& t, float bound, float eps,
                            bool clips, int64_t at, int rest, const float* const* y,
                            const Vec* x, const float* const* xs) {
  Vec g, p, m[3], rms;
  moments<PART>(t, bound, at, rest, g, p, m, rms);
  const Vec g2 = g * g;
  const Vec root = rsqrt(rms + eps);
  Vec root2 = root * root;
  s.g += g2;
  s.p += p * p;
  s.rms += rms * rms;
  if (clips) {
    const Vec cut = clip(g, 0.1f);
    s.clip += cut * cut;
    s.g_norm += g2 * root2;
  }
  for (int d = 0; d < 3; ++d) {
    const Vec m2 = m[d] * m[d];
    s.m[d] += m2;
    s.m_norm[d] += m2 * root2;
    Vec factor = PART ? load(y[d], rest) : load(y[d]);
    if (X_VECTOR) {
      factor *= PART ? load(xs[d], rest) : load(xs[d]);
    } else {
      factor *= x[d];
    }
    factor *= factor;
    s.fac_g[d] += g2 * factor;
    s.fac_m[d] += m2 * factor;
  }
  if (PART) root2 = first(root2, rest);
  s.root += root2;
}

template <bool X_VECTOR>
void accumulate_matrix(const Work& w, const Chunk& k, double* sums) {
  const Tensor& t = w.t;
  const Kept& kept = w.kept;
  const int64_t nx = t.na * t.c, ny = t.width();
  const Streams streams(t);
  const float bound = w.s.grad_bound, eps = w.s.rms_eps;
  const bool clips = w.clips(), large = t.size() > kChunk;
  std::vector<float> expanded;
  Sums s;
  for (int64_t i = k.i0; i < k.i1; ++i) {
    const int64_t at = t.offset(k.block, i), n = k.j1 - k.j0;
    Vec x[3];
    const float *y[3], *xs[3] = {};
    if (X_VECTOR) expand(kept.x_root, 3, k.block * nx + i * t.c, n, t.c, expanded);
    for (int d = 0; d < 3; ++d) {
      x[d] = splat(kept.x_root[d][k.block * nx + i * t.c]);
      y[d] = &kept.y_root[d][k.block * ny + k.j0];
      if (X_VECTOR) xs[d] = &expanded[d * n];
    }
    int64_t j = k.j0;
    auto next = [&] {
      for (int d = 0; d < 3; ++d) {
        y[d] += kLanes;
        if (X_VECTOR) xs[d] += kLanes;
      }
    };
    for (; j + kLanes <= k.j1; j += kLanes, next()) {
      if (large) streams.prefetch(at + j);
      add_squares<false, X_VECTOR>(s, streams, bound, eps, clips, at + j, kLanes, y, x,
                                   xs);
    }
    if (j < k.j1)
      add_squares<true, X_VECTOR>(s, streams, bound, eps, clips, at + j, k.j1 - j, y, x,
                                  xs);
    if ((i & 63) == 63) {  // few enough terms for float
      s.add_to(sums, clips);
      s = Sums();
    }
  }
  s.add_to(sums, clips);
}

inline void accumulate_vector(const Work& w, const Chunk& k, double* sums) {
  const Tensor& t = w.t;
  const bool moment = w.flags & kVectorMoments, clips = w.clips();
  const Streams streams(t);
  Sums s;
  Vec row[3] = {}, root_row[3] = {};
  auto part = [&](auto is_part, int64_t j, int rest) L2O_LAMBDA {
    constexpr bool PART = decltype(is_part)::value;
    auto get = [&](const float* from) {
      return PART ? load(from + j, rest) : load(from + j);
    };
    Vec g, p, m[3], rms;
    moments<PART>(streams, w.s.grad_bound, j, rest, g, p, m, rms);
    const Vec g2 = g * g, root = rsqrt(rms + w.s.rms_eps);
    Vec root2 = root * root;
    s.g += g2;
    s.p += p * p;
    s.rms += rms * rms;
    if (clips) {
      const Vec cut = clip(g, 0.1f);
      s.clip += cut * cut;
      s.g_norm += g2 * root2;
    }
    for (int d = 0; d < 3; ++d) {
      const float decay = t.decays[4 + d];
      Vec v = get(t.row[d]) * decay + (g2 + kTiny) * (1 - decay);
      PART ? store(t.new_row[d] + j, v, rest) : store(t.new_row[d] + j, v);
      if (PART) v = first(v, rest);
      const Vec m2 = m[d] * m[d];
      const Vec fac_g = g * rsqrt_floored(v + kFloor);
      s.m[d] += m2;
      s.m_norm[d] += m2 * root2;
      s.fac_g[d] += fac_g * fac_g;
      if (moment) {
        Vec fac_m = m[d] * rsqrt(v + w.s.vector_eps);
        Vec inverse = rsqrt(v + 1e-8f);
        if (PART) {
          fac_m = first(fac_m, rest);
          inverse = first(inverse, rest);
        }
        s.fac_m[d] += fac_m * fac_m;
        row[d] += v * v;
        root_row[d] += inverse * inverse;
      }
    }
    if (PART) root2 = first(root2, rest);
    s.root += root2;
  };
  int64_t j = k.j0;
  for (; j + kLanes <= k.j1; j += kLanes) part(No(), j, kLanes);
  if (j < k.j1) part(Yes(), j, k.j1 - j);
  s.add_to(sums, clips);
  for (int d = 0; d < 3; ++d) {
    sums[kRow + d] = sums[kCol + d] = sum(row[d]);
    sums[kRsqrtRow + d] = sums[kRsqrtCol + d] = sum(root_row[d]);
  }
}

// Second pass over a chunk: new momenta and second moment, sums of the features'
// squares.
inline void accumulate(const Work& w, int64_t number) {
  const Chunk& k = w.kept.chunks[number];
  double* sums = &w.kept.sums[number * kPlanes];
  if (!w.t.factored) {
    accumulate_vector(w, k, sums);
  } else if (w.t.c == 1) {
    accumulate_matrix<false>(w, k, sums);
  } else {
    accumulate_matrix<true>(w, k, sums);
  }
}

// After the second pass: the normalisers of all features.
inline void normalize(const Work& w) {
  Kept& kept = w.kept;
  const int64_t blocks = w.t.blocks(), chunks = kept.chunks.size();
  double total[kPlanes] = {};
  for (int64_t i = 0; i < chunks; ++i)
    for (int f = 0; f < kPlanes; ++f) total[f] += kept.sums[i * kPlanes + f];
  for (int f = 0; f < kPlanes; ++f) total[f] /= w.t.size();
  for (int f = kRow; w.t.factored && f < kFacM; ++f) {
    total[f] = 0;
    for (int64_t q = 0; q < blocks; ++q) total[f] += kept.row_means[q * kPlanes + f];
    total[f] /= blocks;
  }
  for (int f = 0; f < kPlanes; ++f)
    kept.scale[f] = static_cast<float>(total[f]) + w.s.norm_eps;
  for (int f = 0; f < kPlanes; f += kLanes) {
    const int count = std::min(kLanes, kPlanes - f);
    store_some(kept.scale + f, rsqrt(load_some(kept.scale + f, count)), count);
  }
  kept.p_square = total[kP];
}

}  // namespace
