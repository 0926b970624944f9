// The derivative of the update in reverse: from cotangents of all results to those of
// all operands.
//
// Everything of the update is computed again, so that nothing but its operands need be
// kept. A tensor is one thread's, because inner problems that are differentiated
// through are small. Kernels whose blocks have a trailing axis (C > 1) are not known.
//
// After the passes of the update but the last, one pass goes back through the network
// (backward_network.h) and one through the features (backward_features.h); a matrix's
// factored moments come last (backward_moments.h).
#pragma once

#include "backward_moments.h"
#include "backward_network.h"

namespace {

template <int H>
class Backward {
 public:
  Backward(const Tensor& t, const Cotangents& c, const Settings& settings, int flags,
           ReverseScratch<H>& scratch)
      : r_(t, c, settings, flags, scratch) {}

  void run() { r_.w.t.factored ? run<true>() : run<false>(); }

 private:
  // Of the normalisation of steps: its factor, and what it takes from their cotangents.
  struct Normalizer {
    float root = 1, along = 0;
  };

  template <bool FACTORED>
  void run() {
    const Work& w = r_.w;
    Update<H>(w.t, w.s, w.flags, r_.b.forward).prepare(Threads());
    clear();
    float param_scale = 1;
    if (w.flags & kWithParamScale)
      param_scale = std::sqrt(static_cast<float>(w.kept.p_square) + 1e-9f);
    const double d_scale = through_network<FACTORED>(param_scale);
    const float d_param_scale =
        w.flags & kWithParamScale
            ? static_cast<float>(d_scale) * w.t.scales[0] / (w.t.size() * param_scale)
            : 0.0f;
    Vec root_row[3] = {};
    each(w.t, [&](const Elements& at) L2O_LAMBDA {
      through_features<FACTORED>(r_, at, d_param_scale, root_row);
    });
    if (FACTORED) through_moments(r_);
    for (int d = 0; d < 7; ++d) r_.c.decays[d] += sum(r_.d_decays[d]);
  }

  void clear() {
    for (auto& x : r_.b.hidden) x.resize(r_.w.t.size());
    for (auto& x : r_.b.x_hidden) x.assign(r_.rows(), 0.0f);
    for (auto& x : r_.b.y_hidden) x.assign(r_.columns(), 0.0f);
    for (auto& x : r_.b.x_root) x.assign(r_.rows(), 0.0f);
    for (auto& x : r_.b.y_root) x.assign(r_.columns(), 0.0f);
  }

  template <bool FACTORED>
  Normalizer normalizer() {
    // sum of step^2, of its cotangent times it, and the number of those not held
    Total square, product, kept;
    each(r_.w.t, [&](const Elements& at) {
      Layers<H> layers;
      Vec phi[kPlanes];
      const Point point = look<FACTORED>(r_.w, r_.moments, at, phi);
      const Vec step =
          point.unless_held(forward<FACTORED>(r_, at, phi, layers), r_.held_factor);
      square.add(step * step);
      product.add(step * at.get(r_.c.u));
      kept.add(at.part(point.unless_held(splat(1.0f), r_.held_factor)));
    });
    const double m = std::max(kept.value(), 1.0);
    const float mean = static_cast<float>(square.value() / m);
    const float root = 1 / std::sqrt(mean + r_.w.s.norm_eps);
    const double slope = product.value() * -r_.w.t.scales[0] / m;
    return {root, static_cast<float>(slope) * root * root * root};
  }

  // Leaves the cotangents of the first layer's sums, and adds to those of the weights
  // and scales. The result is that of the scale of steps, over what else multiplies it.
  template <bool FACTORED>
  double through_network(float param_scale) {
    Normalizer normal;
    if (r_.w.flags & kNormalizeStep) normal = normalizer<FACTORED>();
    const float factor = -r_.w.t.scales[0] * param_scale;
    Total by_scale, by_decay;
    Vec row[H] = {};
    each(r_.w.t, [&](const Elements& at) {
      Layers<H> layers;
      Vec *phi = sums_.waiting[sums_.count].phi;
      Vec *d_first = sums_.waiting[sums_.count].d_first;
      const Point point = look<FACTORED>(r_.w, r_.moments, at, phi);
      const Vec step =
          point.unless_held(forward<FACTORED>(r_, at, phi, layers), r_.held_factor);
      const Vec u = at.get(r_.c.u);
      by_scale.add(at.part(u * step));
      by_decay.add(at.part(u * point.p));
      const Vec of_step = at.part(u * (factor * normal.root) - step * normal.along);
      const Vec d_step = point.unless_held(of_step, r_.held_factor);
      sums_.through_layers(r_.net, r_.w.s.exp_mult, layers, step, d_step, d_first);
      for (int h = 0; h < H; ++h) at.put(r_.b.hidden[h].data(), d_first[h]);
      for (int h = 0; FACTORED && h < H; ++h) {
        row[h] = at.first ? d_first[h] : row[h] + d_first[h];
        if (at.last) r_.b.x_hidden[h][at.x] = sum(row[h]);
        at.add_y(r_.b.y_hidden[h].data(), d_first[h]);
      }
      if (++sums_.count == sums_.kWaiting) sums_.template add_waiting<FACTORED, true>();
    });
    sums_.template add_waiting<FACTORED, false>();
    finish_weights<FACTORED>(r_, sums_);
    feature_slopes(r_);
    const double d_scale = -by_scale.value();
    r_.c.scales[0] += static_cast<float>(d_scale) * param_scale * normal.root;
    r_.c.scales[1] -= static_cast<float>(by_decay.value());
    return d_scale;
  }

  Reverse<H> r_;
  WeightSums<H> sums_;
};

}  // namespace
