// The network: a tensor's features are normalised in its first weights, and what rows
// and columns add to the first layer is computed at their own size.
#pragma once

#include "work.h"

namespace {

template <int H>
struct Network {
  alignas(64) float w0[kPlanes][H];  // times the planes' normalisers
  alignas(64) float b0[H], w1[H][H], b1[H], w2[2][H], b2[2];
};

// The network of one tensor, and what its rows and columns add to the first layer: per
// block, those of the axis of Na as (.., Na, C), those of the other as (.., Nb, C).
template <int H>
struct Folded {
  Network<H> network;
  std::vector<float> x_hidden[H], y_hidden[H];
};

template <int H>
void fill(const Work& w, Network<H>* net) {
  const float* from = w.t.weights;
  for (int f = 0; f < kPlanes; ++f) {
    for (int h = 0; h < H; ++h)
      net->w0[f][h] = w.present(f) ? from[h] * w.kept.scale[f] : 0;
    if (w.known(f)) from += H;
  }
  auto take = [&](float* to, int n) {
    for (int i = 0; i < n; ++i) to[i] = *from++;
  };
  take(net->b0, H);
  take(&net->w1[0][0], H * H);
  take(net->b1, H);
  for (int h = 0; h < H; ++h)
    for (int o = 0; o < 2; ++o) net->w2[o][h] = *from++;
  take(net->b2, 2);
  if (!w.t.factored && (w.flags & kVectorMoments))
    // A vector's rows are its columns.
    for (int d = 0; d < 3; ++d)
      for (int h = 0; h < H; ++h) {
        net->w0[kRow + d][h] += net->w0[kCol + d][h];
        net->w0[kRsqrtRow + d][h] += net->w0[kRsqrtCol + d][h];
      }
}

// What the moments of rows or columns add to the first layer.
template <int H>
void hidden_part(const Network<H>& net, int plane, bool bias,
                 const std::vector<float>* moments, int64_t at, int64_t n,
                 std::vector<float>* out) {
  const int root = root_plane(plane);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = std::min<int64_t>(kLanes, n - i);
    Vec v[3], r[3];
    for (int d = 0; d < 3; ++d) {
      v[d] = load_some(&moments[d][at + i], count);
      r[d] = rsqrt(v[d] + 1e-8f);
    }
    for (int h = 0; h < H; ++h) {
      Vec total = splat(bias ? net.b0[h] : 0.0f);
      for (int d = 0; d < 3; ++d)
        total += v[d] * net.w0[plane + d][h] + r[d] * net.w0[root + d][h];
      store_some(&out[h][at + i], total, count);
    }
  }
}

// After `normalize`.
template <int H>
void fold(const Work& w, Folded<H>& out) {
  fill(w, &out.network);
  if (!w.t.factored) return;
  const Network<H>& net = out.network;
  const int64_t nx = w.t.na * w.t.c, ny = w.t.width(), blocks = w.t.blocks();
  for (int h = 0; h < H; ++h) {
    out.x_hidden[h].resize(blocks * nx);
    out.y_hidden[h].resize(blocks * ny);
  }
  for (int64_t q = 0; q < blocks; ++q) {
    hidden_part(net, w.x_plane(), true, w.kept.x_moment, q * nx, nx, out.x_hidden);
    hidden_part(net, w.y_plane(), false, w.kept.y_moment, q * ny, ny, out.y_hidden);
  }
}

// exp(x mult); 1 for mult = 0, but for what is not finite.
L2O_INLINE Vec exp_of(Vec x, float mult) {
  return mult == 0 ? 1.0f + x * 0.0f : exponential(x * mult);
}

// A plane of U vectors meets the first layer.
template <int U, int H>
L2O_INLINE void plane(const Network<H>& net, int f, const Vec* x, Vec (&hidden)[U][H]) {
  for (int h = 0; h < H; ++h) {
    const Vec w = splat(net.w0[f][h]);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) hidden[u][h] += x[u] * w;
  }
}

// From the first layer's sums to the steps d exp(lambda a).
template <int U, int H>
L2O_INLINE void head(const Network<H>& net, float exp_mult, Vec (&hidden)[U][H],
                     Vec* step) {
  Vec second[U][H];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u)
    for (int h = 0; h < H; ++h) {
      hidden[u][h] = relu(hidden[u][h]);
      second[u][h] = splat(net.b1[h]);
    }
  for (int i = 0; i < H; ++i)
    for (int h = 0; h < H; ++h) {
      const Vec w = splat(net.w1[i][h]);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) second[u][h] += hidden[u][i] * w;
    }
  Vec direction[U], magnitude[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    direction[u] = splat(net.b2[0]);
    magnitude[u] = splat(net.b2[1]);
  }
  for (int h = 0; h < H; ++h)
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const Vec x = relu(second[u][h]);
      direction[u] += x * net.w2[0][h];
      magnitude[u] += x * net.w2[1][h];
    }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u)
    step[u] = direction[u] * exp_of(magnitude[u], exp_mult);
}

}  // namespace
