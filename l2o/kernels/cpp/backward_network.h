// The network of a vector of elements, and the way back through it to its weights.
#pragma once

#include "backward_features.h"

namespace {

template <int H>
struct Layers {
  Vec first[H], second[H], direction, exponential;
};

template <bool FACTORED, int H>
L2O_INLINE Vec forward(const Reverse<H>& r, const Elements& at, const Vec* phi,
                       Layers<H>& layers) {
  const Network<H>& net = r.net;
  const Folded<H>& folded = r.b.forward.folded;
  for (int h = 0; h < H; ++h)
    layers.first[h] =
        FACTORED ? folded.x_hidden[h][at.x] + at.get_y(folded.y_hidden[h].data())
                 : splat(net.b0[h]);
#pragma GCC unroll 30
  for (int f = 0; f < kPlanes; ++f) {
    if (!seen<FACTORED>(f)) continue;
    for (int h = 0; h < H; ++h) layers.first[h] += phi[f] * net.w0[f][h];
  }
  for (int h = 0; h < H; ++h) {
    layers.first[h] = relu(layers.first[h]);
    layers.second[h] = splat(net.b1[h]);
  }
  for (int i = 0; i < H; ++i)
    for (int h = 0; h < H; ++h) layers.second[h] += layers.first[i] * net.w1[i][h];
  layers.direction = splat(net.b2[0]);
  Vec magnitude = splat(net.b2[1]);
  for (int h = 0; h < H; ++h) {
    layers.second[h] = relu(layers.second[h]);
    layers.direction += layers.second[h] * net.w2[0][h];
    magnitude += layers.second[h] * net.w2[1][h];
  }
  // Where there is no element it may be infinite, and is multiplied by zero.
  layers.exponential = at.part(exp_of(magnitude, r.w.s.exp_mult));
  return layers.direction * layers.exponential;
}

// Cotangents of the weights, summed lane by lane.
template <int H>
struct WeightSums {
  static constexpr int kWaiting = 8;
  struct {
    Vec phi[kPlanes], d_first[H];
  } waiting[kWaiting];
  int count = 0;  // of those waiting
  Vec w0[kPlanes][H] = {}, b0[H] = {}, w1[H][H] = {}, b1[H] = {}, w2[2][H] = {},
      b2[2] = {};

  L2O_INLINE void through_layers(const Network<H>& net, float exp_mult,
                                 const Layers<H>& layers, Vec step, Vec d_step,
                                 Vec* d_first) {
    const Vec d_direction = d_step * layers.exponential;
    const Vec d_magnitude = d_step * step * exp_mult;
    b2[0] += d_direction;
    b2[1] += d_magnitude;
    Vec d_second[H];
    for (int h = 0; h < H; ++h) {
      w2[0][h] += layers.second[h] * d_direction;
      w2[1][h] += layers.second[h] * d_magnitude;
      const Vec d = d_direction * net.w2[0][h] + d_magnitude * net.w2[1][h];
      d_second[h] = layers.second[h] > 0.0f ? d : Vec{};
      b1[h] += d_second[h];
    }
    for (int i = 0; i < H; ++i) {
      Vec d = {};
      for (int h = 0; h < H; ++h) {
        w1[i][h] += layers.first[i] * d_second[h];
        d += d_second[h] * net.w1[i][h];
      }
      d_first[i] = layers.first[i] > 0.0f ? d : Vec{};
      b0[i] += d_first[i];
    }
  }

  // The first layer's gradient, of several vectors at once: it is in memory.
  template <bool FACTORED, bool ALL>
  void add_waiting() {
    const int n = ALL ? kWaiting : count;
#pragma GCC unroll 30
    for (int f = 0; f < kPlanes; ++f) {
      if (!seen<FACTORED>(f)) continue;
      Vec total[H];
      for (int h = 0; h < H; ++h) total[h] = w0[f][h];
      for (int k = 0; k < n; ++k)
        for (int h = 0; h < H; ++h)
          total[h] += waiting[k].phi[f] * waiting[k].d_first[h];
      for (int h = 0; h < H; ++h) w0[f][h] = total[h];
    }
    count = 0;
  }
};

// Of the weights of moments of rows or columns, and of their inverse roots.
template <int H>
void moment_slopes(Reverse<H>& r, int plane, const std::vector<float>& moment,
                   const std::vector<float>* d_hidden) {
  Vec by_moment[H] = {}, by_inverse[H] = {};
  const int64_t n = moment.size();
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = std::min<int64_t>(kLanes, n - i);
    const Vec v = load_some(&moment[i], count), inverse = rsqrt(v + 1e-8f);
    for (int h = 0; h < H; ++h) {
      const Vec d = load_some(&d_hidden[h][i], count);
      by_moment[h] += v * d;
      by_inverse[h] += inverse * d;
    }
  }
  for (int h = 0; h < H; ++h) {
    r.slope[plane][h] = sum(by_moment[h]);
    r.slope[root_plane(plane)][h] = sum(by_inverse[h]);
  }
}

// Sums over elements become gradients of the packed weights.
template <bool FACTORED, int H>
void finish_weights(Reverse<H>& r, const WeightSums<H>& sums) {
  const Work& w = r.w;
  for (int f = 0; f < kPlanes; ++f)
    for (int h = 0; h < H; ++h)
      r.slope[f][h] = w.present(f) && seen<FACTORED>(f) ? sum(sums.w0[f][h]) : 0;
  for (int d = 0; FACTORED && d < 3; ++d) {
    moment_slopes(r, w.x_plane() + d, w.kept.x_moment[d], r.b.x_hidden);
    moment_slopes(r, w.y_plane() + d, w.kept.y_moment[d], r.b.y_hidden);
  }
  for (int d = 0; !FACTORED && d < 3; ++d)
    for (int h = 0; h < H; ++h) {
      r.slope[kCol + d][h] = r.slope[kRow + d][h];
      r.slope[kRsqrtCol + d][h] = r.slope[kRsqrtRow + d][h];
    }
  float* out = r.c.weights;
  for (int f = 0; f < kPlanes; ++f) {
    if (!w.known(f)) continue;
    for (int h = 0; h < H; ++h) out[h] += r.slope[f][h] * w.kept.scale[f];
    out += H;
  }
  for (int h = 0; h < H; ++h) *out++ += sum(sums.b0[h]);
  for (int i = 0; i < H; ++i)
    for (int h = 0; h < H; ++h) *out++ += sum(sums.w1[i][h]);
  for (int h = 0; h < H; ++h) *out++ += sum(sums.b1[h]);
  for (int h = 0; h < H; ++h)
    for (int o = 0; o < 2; ++o) *out++ += sum(sums.w2[o][h]);
  for (int o = 0; o < 2; ++o) *out++ += sum(sums.b2[o]);
}

// What a feature's normaliser takes from its cotangent, per unit of the feature.
template <int H>
void feature_slopes(Reverse<H>& r) {
  const Work& w = r.w;
  const float* weights = w.t.weights;
  for (int f = 0; f < kPlanes; ++f) {
    r.along[f] = 0;
    if (!w.known(f)) continue;
    if (w.present(f)) {
      double d_scale = 0;
      for (int h = 0; h < H; ++h) d_scale += weights[h] * r.slope[f][h];
      const double s = w.kept.scale[f];
      r.along[f] = static_cast<float>(d_scale * s * s * s / w.t.size());
    }
    weights += H;
  }
  for (int d = 0; !w.t.factored && d < 3; ++d) {
    r.along[kRow + d] += r.along[kCol + d];
    r.along[kRsqrtRow + d] += r.along[kRsqrtCol + d];
  }
}

}  // namespace
