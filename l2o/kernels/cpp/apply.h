// Third pass: the features again, the network, and the steps or updates.
#pragma once

#include "network.h"
#include "steps.h"

namespace {

// What the third pass over a chunk of a matrix reads, from its first element on; a
// copy, as `Streams`.
template <int H>
struct Inputs {
  const float *g, *p, *m[3], *rms;
  const float *x_root[3], *x_hidden[H], *y_root[3], *y_hidden[H];
  float bound, eps, exp_mult;
  bool clips;

  // More streams than the hardware follows, and more work between than it looks ahead.
  L2O_INLINE void prefetch(int64_t at, const float* u) const {
    for (const float* from : {g, p, rms, m[0], m[1], m[2]})
      __builtin_prefetch(from + at + kAhead);
    __builtin_prefetch(u + at + kAhead, 1);
  }
};

// Where a vector lies: in the tensor, and in what belongs to its row and columns.
struct Place {
  int64_t at, x, y;
};

// Steps of U vectors, which all have `rest` elements if PART.
template <int U, bool PART, bool X_VECTOR, int H>
L2O_INLINE void matrix_steps(const Network<H>& net, const Inputs<H>& r,
                             const Place* places, int rest, Vec* step, Vec* params) {
  auto get = [&](const float* from, int u) L2O_LAMBDA {
    return PART ? load(from + places[u].at, rest) : load(from + places[u].at);
  };
  auto get_x = [&](const float* from, int u) L2O_LAMBDA {
    if (!X_VECTOR) return splat(from[places[u].x]);
    return PART ? load(from + places[u].x, rest) : load(from + places[u].x);
  };
  auto get_y = [&](const float* from, int u) L2O_LAMBDA {
    return PART ? load(from + places[u].y, rest) : load(from + places[u].y);
  };
  Vec hidden[U][H];
  for (int h = 0; h < H; ++h)
    for (int u = 0; u < U; ++u)
      hidden[u][h] = get_y(r.y_hidden[h], u) + get_x(r.x_hidden[h], u);
  Vec x[U], g[U], root[U], m[U];
  auto see = [&](int f, auto value) L2O_LAMBDA {
    for (int u = 0; u < U; ++u) x[u] = value(u);
    plane<U>(net, f, x, hidden);
  };
  see(kG, [&](int u) L2O_LAMBDA { return g[u] = clip(get(r.g, u), r.bound); });
  see(kP, [&](int u) L2O_LAMBDA { return params[u] = get(r.p, u); });
  see(kRms, [&](int u) L2O_LAMBDA { return get(r.rms, u); });
  see(kRsqrtRms, [&](int u) L2O_LAMBDA { return root[u] = rsqrt(x[u] + r.eps); });
  if (r.clips) {
    see(kClipG, [&](int u) L2O_LAMBDA { return clip(g[u], 0.1f); });
    see(kGNorm, [&](int u) L2O_LAMBDA { return g[u] * root[u]; });
  }
  for (int d = 0; d < 3; ++d) {
    see(kM + d, [&](int u) L2O_LAMBDA { return m[u] = get(r.m[d], u); });
    see(kMNorm + d, [&](int u) L2O_LAMBDA { return m[u] * root[u]; });
    Vec factor[U];
    for (int u = 0; u < U; ++u)
      factor[u] = get_y(r.y_root[d], u) * get_x(r.x_root[d], u);
    see(kFacG + d, [&](int u) L2O_LAMBDA { return g[u] * factor[u]; });
    see(kFacM + d, [&](int u) L2O_LAMBDA { return m[u] * factor[u]; });
  }
  head<U>(net, r.exp_mult, hidden, step);
}

// Makes steps of U vectors and writes them.
template <int U, bool PART, bool X_VECTOR, int H>
L2O_INLINE void write_steps(const Network<H>& net, const Inputs<H>& r,
                            const Place* places, int rest, float* update, Out& out) {
  Vec step[U], params[U];
  matrix_steps<U, PART, X_VECTOR>(net, r, places, rest, step, params);
  for (int u = 0; u < U; ++u) {
    const int64_t at = places[u].at;
    const Vec m = PART ? load(r.m[0] + at, rest) : load(r.m[0] + at);
    const Vec rms = PART ? load(r.rms + at, rest) : load(r.rms + at);
    write<PART>(update + at, rest, step[u], params[u], m, rms, out);
  }
}

template <int H>
L2O_INLINE Inputs<H> inputs_of(const Work& w, const Folded<H>& folded, const Chunk& k) {
  const Tensor& t = w.t;
  const int64_t start = t.offset(k.block, k.i0) + k.j0;
  const int64_t x_start = (k.block * t.na + k.i0) * t.c;
  const int64_t y_start = k.block * t.width() + k.j0;
  Inputs<H> r;
  r.bound = w.s.grad_bound, r.eps = w.s.rms_eps, r.exp_mult = w.s.exp_mult;
  r.clips = w.clips();
  r.g = t.g + start, r.p = t.p + start, r.rms = t.new_rms + start;
  for (int d = 0; d < 3; ++d) {
    r.m[d] = t.new_m[d] + start;
    r.x_root[d] = &w.kept.x_root[d][x_start];
    r.y_root[d] = &w.kept.y_root[d][y_start];
  }
  for (int h = 0; h < H; ++h) {
    r.x_hidden[h] = &folded.x_hidden[h][x_start];
    r.y_hidden[h] = &folded.y_hidden[h][y_start];
  }
  return r;
}

// A matrix without a trailing axis.
template <int H>
void apply_matrix(const Work& w, const Folded<H>& folded, int64_t number) {
  constexpr int U = H <= 8 ? 2 : 1;
  const Network<H> net = folded.network;
  const Chunk& k = w.kept.chunks[number];
  const Inputs<H> r = inputs_of(w, folded, k);
  float* update = w.t.u + w.t.offset(k.block, k.i0) + k.j0;
  Out out = out_of(w);
  auto steps = [&](auto part, auto count, const Place* places, int rest) L2O_LAMBDA {
    constexpr int M = decltype(count)::value;
    constexpr bool PART = decltype(part)::value;
    write_steps<M, PART, false>(net, r, places, rest, update, out);
  };
  // Vectors of short rows are taken together, so that one need not wait for another.
  const int64_t rows = k.i1 - k.i0, n = k.j1 - k.j0, whole = n / kLanes;
  const int64_t stride = w.t.stride();
  const bool large = w.t.size() > kChunk;
  const int rest = n % kLanes;
  Place places[U];
  int64_t i = 0, j = 0;
  double squares = 0, kept = 0;
  const auto flush = [&] {
    squares += sum(out.squares), kept += sum(out.kept);
    out.squares = out.kept = Vec{};
  };
  for (int64_t left = rows * whole; left > 0; left -= U) {
    for (int u = 0; u < U && u < left; ++u) {
      places[u] = {i * stride + j, i, j};
      if (large) r.prefetch(places[u].at, update);
      j += kLanes;
      if (j + kLanes > n) j = 0, ++i;
    }
    if (left >= U) {
      steps(No(), Count<U>(), places, kLanes);
    } else {
      for (int u = 0; u < left; ++u) steps(No(), Count<1>(), places + u, kLanes);
    }
    if (out.finishes && (left & 255) < U) flush();  // few enough terms for float
  }
  for (i = 0; rest && i < rows; i += U) {
    for (int u = 0; u < U; ++u)
      places[u] = {(i + u) * stride + n - rest, i + u, n - rest};
    if (i + U <= rows) {
      steps(Yes(), Count<U>(), places, rest);
    } else {
      for (int u = 0; u < rows - i; ++u) steps(Yes(), Count<1>(), places + u, rest);
    }
  }
  flush();
  w.kept.step_squares[number] = squares;
  w.kept.step_counts[number] = kept;
}

// A matrix with a trailing axis: what belongs to a row is a vector too.
template <int H>
void apply_trailing(const Work& w, const Folded<H>& folded, int64_t number) {
  const Network<H> net = folded.network;
  const Tensor& t = w.t;
  const Chunk& k = w.kept.chunks[number];
  const int64_t x_start = (k.block * t.na + k.i0) * t.c, n = k.j1 - k.j0;
  Inputs<H> r = inputs_of(w, folded, k);
  float* update = t.u + t.offset(k.block, k.i0) + k.j0;
  Out out = out_of(w);
  std::vector<float> roots, hidden;
  for (int64_t i = 0; i < k.i1 - k.i0; ++i) {
    expand(w.kept.x_root, 3, x_start + i * t.c, n, t.c, roots);
    expand(folded.x_hidden, H, x_start + i * t.c, n, t.c, hidden);
    for (int d = 0; d < 3; ++d) r.x_root[d] = &roots[d * n];
    for (int h = 0; h < H; ++h) r.x_hidden[h] = &hidden[h * n];
    for (int64_t j = 0; j < n; j += kLanes) {
      const Place place{i * t.stride() + j, j, j};
      const int rest = std::min<int64_t>(kLanes, n - j);
      write_steps<1, true, true>(net, r, &place, rest, update, out);
    }
  }
  w.kept.step_squares[number] = sum(out.squares);
  w.kept.step_counts[number] = sum(out.kept);
}

template <int H>
void apply_vector(const Work& w, const Folded<H>& folded, int64_t number) {
  const Network<H>& net = folded.network;
  const Tensor& t = w.t;
  const Chunk& k = w.kept.chunks[number];
  const bool moment = w.flags & kVectorMoments, clips = w.clips();
  Out out = out_of(w);
  auto part = [&](auto is_part, int64_t j, int rest) {
    constexpr bool PART = decltype(is_part)::value;
    auto get = [&](const float* from) {
      return PART ? load(from + j, rest) : load(from + j);
    };
    Vec hidden[1][H];
    for (int h = 0; h < H; ++h) hidden[0][h] = splat(net.b0[h]);
    auto see = [&](int f, Vec x) { plane<1>(net, f, &x, hidden); };
    const Vec g = clip(get(t.g), w.s.grad_bound), p = get(t.p), rms = get(t.new_rms);
    const Vec root = rsqrt(rms + w.s.rms_eps);
    see(kG, g);
    see(kP, p);
    see(kRms, rms);
    see(kRsqrtRms, root);
    if (clips) {
      see(kClipG, clip(g, 0.1f));
      see(kGNorm, g * root);
    }
    for (int d = 0; d < 3; ++d) {
      const Vec m = get(t.new_m[d]), v = get(t.new_row[d]);
      see(kM + d, m);
      see(kMNorm + d, m * root);
      see(kFacG + d, g * rsqrt_floored(v + kFloor));
      if (moment) {
        see(kRow + d, v);
        see(kRsqrtRow + d, rsqrt(v + 1e-8f));
        see(kFacM + d, m * rsqrt(v + w.s.vector_eps));
      }
    }
    Vec step[1];
    head<1>(net, w.s.exp_mult, hidden, step);
    write<PART>(t.u + j, rest, step[0], p, get(t.new_m[0]), rms, out);
  };
  int64_t j = k.j0;
  for (; j + kLanes <= k.j1; j += kLanes) part(No(), j, kLanes);
  if (j < k.j1) part(Yes(), j, k.j1 - j);
  w.kept.step_squares[number] = sum(out.squares);
  w.kept.step_counts[number] = sum(out.kept);
}

// Third pass over a chunk: the steps, or the updates where nothing is to follow.
template <int H>
void apply(const Work& w, const Folded<H>& folded, int64_t number) {
  if (!w.t.factored) {
    apply_vector(w, folded, number);
  } else if (w.t.c == 1) {
    apply_matrix(w, folded, number);
  } else {
    apply_trailing(w, folded, number);
  }
}

}  // namespace
