// The way back through a matrix's factored moments.
#pragma once

#include "backward_features.h"

namespace {

// The moments of an axis, and what is known of their cotangents.
struct Axis {
  int plane;          // of the first of them
  int64_t n, summed;  // sizes of the axis and of the other
  bool by_row;        // whether a block's moments lie apart in memory
  const std::vector<float>*moment, *root, *d_root, *d_hidden;
  const float *square, *const *old, *const *cotangent;
  float* const* out;
  std::vector<float>* slope;
};

template <int H>
void moments_back(Reverse<H>& r, const Axis& a, int64_t q, int d) {
  const int64_t n = a.n, start = q * n, b = r.w.t.b;
  const float *v = &a.moment[d][start], *root = &a.root[d][start];
  const float *d_root = &a.d_root[d][start], *square = a.square + start;
  // In memory blocks may alternate.
  const int64_t stride = a.by_row ? b : 1;
  const int64_t from = a.by_row ? q / b * n * b + q % b : start;
  const float *old = a.old[d] + from, *cotangent = a.cotangent[d] + from;
  float* out = a.out[d] + from;
  if (stride > 1) {
    for (auto* x : {&r.b.old, &r.b.cotangent}) {
      const float* y = x == &r.b.old ? old : cotangent;
      x->resize(n);
      for (int64_t i = 0; i < n; ++i) (*x)[i] = y[i * stride];
    }
    old = r.b.old.data(), cotangent = r.b.cotangent.data();
    out = r.b.old.data();
  }
  const bool is_row = a.plane == kRow;
  float over = 1;
  double d_mean = 0;
  if (is_row) {
    // Factors are of the moments over their mean.
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += v[i];
    over = static_cast<float>(total / n) + kFloor;
    for (int64_t i = 0; i < n; ++i)
      if (v[i] > kFloor * over)
        d_mean += 0.5 * d_root[i] * root[i] * root[i] * root[i] * v[i];
    d_mean /= n * static_cast<double>(over) * over;
  }
  const float decay = r.w.t.decays[4 + d];
  const int f = a.plane + d, inverse_f = root_plane(f);
  const float along = -r.along[f] * a.summed;
  const float inverse_along = -r.along[inverse_f] * a.summed;
  const Network<H>& net = r.net;
  const Vec scale = splat(-0.5f / over), mean = splat(static_cast<float>(d_mean));
  Vec d_decay = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = std::min<int64_t>(kLanes, n - i);
    const auto get = [&](const float* x) { return load_some(x + i, count); };
    const Vec moment = get(v), roots = get(root), inverse = rsqrt(moment + 1e-8f);
    Vec by_moment = moment * along, by_inverse = inverse * inverse_along;
    for (int h = 0; h < H; ++h) {
      const Vec d_hidden = get(&a.d_hidden[h][start]);
      by_moment += d_hidden * net.w0[f][h];
      by_inverse += d_hidden * net.w0[inverse_f][h];
    }
    const Vec by_root = scale * get(d_root) * roots * roots * roots;
    Vec total = by_moment + mean + get(cotangent);
    total += moment > kFloor * over ? by_root : Vec{};
    total += -0.5f * by_inverse * inverse * inverse * inverse;
    d_decay += first_some(total * (get(old) - get(square)), count);
    store_some(out + i, decay * total, count);
    float* slope = a.slope->data() + start;
    const Vec new_slope = get(slope) + total * ((1 - decay) / a.summed);
    store_some(slope + i, new_slope, count);
  }
  for (int64_t i = 0; stride > 1 && i < n; ++i) a.out[d][from + i * stride] = out[i];
  r.c.decays[4 + d] += sum(d_decay);
}

// From factors and features of rows and columns to the old moments and to g.
template <int H>
void through_moments(Reverse<H>& r) {
  const Tensor& t = r.w.t;
  const Cotangents& c = r.c;
  const Kept& kept = r.w.kept;
  const bool x = t.row_is_x;
  const Axis axes[] = {
      {r.w.x_plane(), t.na, t.nb, true, kept.x_moment, kept.x_root, r.b.x_root,
       r.b.x_hidden, kept.x_square.data(), x ? t.row : t.col, x ? c.row : c.col,
       x ? c.out_row : c.out_col, &r.b.x_slope},
      {r.w.y_plane(), t.nb, t.na, false, kept.y_moment, kept.y_root, r.b.y_root,
       r.b.y_hidden, kept.y_square.data(), x ? t.col : t.row, x ? c.col : c.row,
       x ? c.out_col : c.out_row, &r.b.y_slope},
  };
  for (const Axis& axis : axes) {
    axis.slope->assign(t.blocks() * axis.n, 0.0f);
    for (int64_t q = 0; q < t.blocks(); ++q)
      for (int d = 0; d < 3; ++d) moments_back(r, axis, q, d);
  }
  each(t, [&](const Elements& at) {
    const Vec raw = at.get(t.g), g = clip(raw, r.w.s.grad_bound);
    const Vec slope = r.b.x_slope[at.x] + at.get_y(r.b.y_slope.data());
    const Vec d = at.get(c.out_g) + 2.0f * g * slope;
    at.put(c.out_g, inside(raw, r.w.s.grad_bound, d));
  });
}

}  // namespace
