// The features of a vector of elements, and the way back through them.
#pragma once

#include "backward_work.h"

namespace {

// What the features are made of.
struct Point {
  Vec raw, g, p, m[3], rms, root;
  Vec factor[3];             // of fac_g, and of a matrix's fac_m
  Vec x_root[3], y_root[3];  // a matrix's parts of it
  Vec moment_root[3];        // (v + eps)^-1/2 for a vector's fac_m

  L2O_INLINE Vec unless_held(Vec x, float factor) const {
    return ::unless_held(x, m[0], rms, factor);
  }
};

// Features that are not sums over rows and columns; a vector's `col` is its `row`.
template <bool FACTORED>
constexpr bool seen(int f) {
  if (f < kRow || f >= kFacM) return true;
  return !FACTORED && (f < kCol || (f >= kRsqrtRow && f < kRsqrtCol));
}

template <bool FACTORED>
L2O_INLINE Point look(const Work& w, bool moments, const Elements& at, Vec* phi) {
  Point o;
  o.raw = at.get(w.t.g);
  o.g = clip(o.raw, w.s.grad_bound);
  o.p = at.get(w.t.p);
  o.rms = at.get(w.t.new_rms);
  o.root = rsqrt(o.rms + w.s.rms_eps);
  phi[kG] = o.g;
  phi[kClipG] = clip(o.g, 0.1f);
  phi[kP] = o.p;
  phi[kRms] = o.rms;
  phi[kRsqrtRms] = o.root;
  phi[kGNorm] = o.g * o.root;
  for (int d = 0; d < 3; ++d) {
    o.m[d] = at.get(w.t.new_m[d]);
    phi[kM + d] = o.m[d];
    phi[kMNorm + d] = o.m[d] * o.root;
    if (FACTORED) {
      o.x_root[d] = splat(w.kept.x_root[d][at.x]);
      o.y_root[d] = at.get_y(w.kept.y_root[d].data());
      o.factor[d] = o.x_root[d] * o.y_root[d];
      phi[kFacM + d] = o.m[d] * o.factor[d];
    } else {
      const Vec v = at.get(w.t.new_row[d]);
      o.factor[d] = rsqrt_floored(v + kFloor);
      // Zero where it has no weights or there is no element: it may be infinite.
      o.moment_root[d] = moments ? at.part(rsqrt(v + w.s.vector_eps)) : Vec{};
      phi[kRow + d] = moments ? v : Vec{};
      phi[kRsqrtRow + d] = moments ? rsqrt(v + 1e-8f) : Vec{};
      phi[kFacM + d] = o.m[d] * o.moment_root[d];
    }
    phi[kFacG + d] = o.g * o.factor[d];
  }
  return o;
}

// What reaches x through its cut to the bound: half at the bound, as JAX has it.
L2O_INLINE Vec inside(Vec x, float bound, Vec d) {
  d = x >= -bound && x <= bound ? d : Vec{};
  return x == -bound || x == bound ? 0.5f * d : d;
}

// From the cotangents of the first layer's sums to those of the operands.
template <bool FACTORED, int H>
L2O_INLINE void through_features(Reverse<H>& r, const Elements& at, float d_param_scale,
                                 Vec* root_row) {
  const Tensor& t = r.w.t;
  const Cotangents& c = r.c;
  Vec phi[kPlanes], d_phi[kPlanes];
  const Point o = look<FACTORED>(r.w, r.moments, at, phi);
  Vec d_hidden[H];
  for (int h = 0; h < H; ++h) d_hidden[h] = at.get(r.b.hidden[h].data());
#pragma GCC unroll 30
  for (int f = 0; f < kPlanes; ++f) {
    if (!seen<FACTORED>(f)) continue;
    Vec d = phi[f] * -r.along[f];
    for (int h = 0; h < H; ++h) d += d_hidden[h] * r.net.w0[f][h];
    d_phi[f] = d;
  }
  const Vec u = at.get(c.u);
  at.put(c.out_p, d_phi[kP] + o.p * d_param_scale - u * t.scales[1]);

  Vec d_g = d_phi[kG] + inside(o.g, 0.1f, d_phi[kClipG]) + d_phi[kGNorm] * o.root;
  Vec d_root = d_phi[kRsqrtRms] + d_phi[kGNorm] * o.g;
  Vec d_m[3];
  for (int d = 0; d < 3; ++d) {
    const Vec d_fac_g = d_phi[kFacG + d], d_fac_m = d_phi[kFacM + d];
    d_m[d] = d_phi[kM + d] + d_phi[kMNorm + d] * o.root;
    d_root += d_phi[kMNorm + d] * o.m[d];
    d_g += d_fac_g * o.factor[d];
    if (FACTORED) {
      d_m[d] += d_fac_m * o.factor[d];
      const Vec d_factor = at.part(d_fac_g * o.g + d_fac_m * o.m[d]);
      const Vec by_x = d_factor * o.y_root[d];
      root_row[d] = at.first ? by_x : root_row[d] + by_x;
      if (at.last) r.b.x_root[d][at.x] = sum(root_row[d]);
      at.add_y(r.b.y_root[d].data(), d_factor * o.x_root[d]);
      continue;
    }
    Vec d_v = at.get(c.row[d]);
    const Vec fac_root = o.factor[d];
    d_v += d_fac_g * o.g * -0.5f * fac_root * fac_root * fac_root;
    if (r.moments) {
      const Vec root = o.moment_root[d], inverse = phi[kRsqrtRow + d];
      d_m[d] += d_fac_m * root;
      d_v += d_fac_m * o.m[d] * -0.5f * root * root * root;  // root^3 may be infinite
      d_v += d_phi[kRow + d];
      d_v += d_phi[kRsqrtRow + d] * -0.5f * inverse * inverse * inverse;
    }
    const float decay = t.decays[4 + d];
    at.put(c.out_row[d], d_v * decay);
    d_g += d_v * (1 - decay) * 2.0f * o.g;
    const Vec change = at.get(t.row[d]) - (o.g * o.g + kTiny);
    r.d_decays[4 + d] += at.part(d_v * change);
  }
  const Vec root3 = o.root * o.root * o.root;
  const Vec d_rms = at.get(c.rms) + d_phi[kRms] - 0.5f * d_root * root3;
  at.put(c.out_rms, d_rms * t.decays[3]);
  d_g += d_rms * (1 - t.decays[3]) * 2.0f * o.g;
  r.d_decays[3] += at.part(d_rms * (at.get(t.rms) - o.g * o.g));
  for (int d = 0; d < 3; ++d) {
    d_m[d] += at.get(c.m[d]);
    at.put(c.out_m[d], d_m[d] * t.decays[d]);
    d_g += d_m[d] * (1 - t.decays[d]);
    r.d_decays[d] += at.part(d_m[d] * (at.get(t.m[d]) - o.g));
  }
  // A matrix still lacks what comes through rows and columns.
  at.put(c.out_g, FACTORED ? d_g : inside(o.raw, r.w.s.grad_bound, d_g));
}

}  // namespace
