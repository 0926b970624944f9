// The derivative of the update in reverse: from cotangents of all results to those of
// all operands.
//
// Everything of the update is computed again, so that nothing but its operands need be
// kept. A tensor is one thread's, because inner problems that are differentiated
// through are small. Kernels whose blocks have a trailing axis (C > 1) are not known.
#pragma once

#include "kernels.h"

namespace {

// Cotangents of the results, and where those of the operands go.
struct Cotangents {
  const float *u, *m[3], *rms, *row[3], *col[3];
  float *out_g, *out_p, *out_m[3], *out_rms, *out_row[3], *out_col[3];
  float *decays, *weights, *scales;  // added to
};

// What is kept of a tensor between the passes, as `Scratch`.
template <int H>
struct ReverseScratch {
  Scratch<H> forward;
  std::vector<float> new_m[3], new_rms, new_row[3], new_col[3];
  // Cotangents of the first layer's sums; and summed over rows and columns, as those of
  // the factors of fac_g and fac_m.
  std::vector<float> hidden[H], x_hidden[H], y_hidden[H], x_root[3], y_root[3];
  std::vector<float> x_slope, y_slope;  // of the means of g^2, per element
  std::vector<float> old, cotangent;    // of one block's rows
};

template <int H>
class Backward {
 public:
  Backward(const Tensor& t, const Cotangents& c, const Settings& settings, int flags,
           ReverseScratch<H>& scratch)
      : t_(t),
        c_(c),
        s_(settings),
        flags_(flags),
        moments_(t.factored || (flags & kVectorMoments)),
        held_factor_(Update<H>::holds(flags)),
        b_(scratch),
        k_(scratch.forward) {}

  void run() { t_.factored ? run<true>() : run<false>(); }

 private:
  // A vector of elements: where it is, and how many there are.
  struct Place {
    int64_t at, x, y;  // in the tensor, and in what belongs to rows and columns
    int n;
    bool first, last;  // of its row
    L2O_INLINE Vec get(const float* from) const { return load_some(from + at, n); }
    L2O_INLINE Vec get_y(const float* from) const { return load_some(from + y, n); }
    L2O_INLINE void put(float* to, Vec v) const { store_some(to + at, v, n); }
    L2O_INLINE void add_y(float* to, Vec v) const {
      store_some(to + y, get_y(to) + v, n);
    }
    L2O_INLINE Vec part(Vec v) const { return first_some(v, n); }
  };

  // What the features are made of.
  struct Point {
    Vec raw, g, p, m[3], rms, root;
    Vec factor[3];             // of fac_g, and of a matrix's fac_m
    Vec x_root[3], y_root[3];  // a matrix's parts of it
    Vec moment_root[3];        // (v + eps)^-1/2 for a vector's fac_m
  };

  struct Layers {
    Vec first[H], second[H], direction, exponential;
  };

  // Features that are not sums over rows and columns; a vector's `col` is its `row`.
  template <bool FACTORED>
  static constexpr bool seen(int f) {
    if (f < kRow || f >= kFacM) return true;
    return !FACTORED && (f < kCol || (f >= kRsqrtRow && f < kRsqrtCol));
  }

  template <bool FACTORED>
  void run() {
    const int64_t n = t_.size();
    again();
    for (auto& x : b_.hidden) x.resize(n);
    for (auto* x : {b_.x_hidden, b_.y_hidden}) {
      const int64_t size = x == b_.x_hidden ? rows() : columns();
      for (int h = 0; h < H; ++h) x[h].assign(size, 0.0f);
    }
    for (int d = 0; d < 3; ++d) {
      b_.x_root[d].assign(rows(), 0.0f);
      b_.y_root[d].assign(columns(), 0.0f);
    }
    float step_root = 1, along = 0;
    if (flags_ & kNormalizeStep) {
      // sum of step^2, of its cotangent times it, and the number of those not held
      Total square, product, kept;
      each([&](const Place& at) {
        Layers layers;
        Vec phi[kPlanes];
        const Point point = look<FACTORED>(at, phi);
        const Vec step = unless_held(forward<FACTORED>(at, phi, layers), point);
        square.add(step * step);
        product.add(step * at.get(c_.u));
        kept.add(at.part(unless_held(splat(1.0f), point)));
      });
      const double m = std::max(kept.value(), 1.0);
      step_root = 1 / std::sqrt(static_cast<float>(square.value() / m) + s_.norm_eps);
      along = static_cast<float>(product.value() * -t_.scales[0] / m) * step_root *
              step_root * step_root;
    }
    float param_scale = 1;
    if (flags_ & kWithParamScale)
      param_scale = std::sqrt(static_cast<float>(k_.p_square) + 1e-9f);

    // Through the network.
    const float factor = -t_.scales[0] * param_scale;
    Total by_scale, by_decay;
    Vec row[H] = {};
    each([&](const Place& at) {
      Layers layers;
      Vec *phi = waiting_[count_].phi, *d_first = waiting_[count_].d_first;
      const Point point = look<FACTORED>(at, phi);
      const Vec step = unless_held(forward<FACTORED>(at, phi, layers), point);
      const Vec u = at.get(c_.u);
      by_scale.add(at.part(u * step));
      by_decay.add(at.part(u * point.p));
      const Vec of_step = at.part(u * (factor * step_root) - step * along);
      const Vec d_step = unless_held(of_step, point);
      through_layers(layers, step, d_step, d_first);
      for (int h = 0; h < H; ++h) at.put(b_.hidden[h].data(), d_first[h]);
      for (int h = 0; FACTORED && h < H; ++h) {
        row[h] = at.first ? d_first[h] : row[h] + d_first[h];
        if (at.last) b_.x_hidden[h][at.x] = sum(row[h]);
        at.add_y(b_.y_hidden[h].data(), d_first[h]);
      }
      if (++count_ == kWaiting) add_waiting<FACTORED, true>();
    });
    add_waiting<FACTORED, false>();
    const double d_scale = -by_scale.value();
    finish_weights<FACTORED>();
    feature_slopes();

    // Through the features.
    const float d_param_scale =
        flags_ & kWithParamScale
            ? static_cast<float>(d_scale) * t_.scales[0] / (n * param_scale)
            : 0.0f;
    c_.scales[0] += static_cast<float>(d_scale) * param_scale * step_root;
    c_.scales[1] -= static_cast<float>(by_decay.value());
    Vec root_row[3] = {};
    each([&](const Place& at) {
      through_features<FACTORED>(at, d_param_scale, root_row);
    });
    if (FACTORED) {
      factored_moments();
      each([&](const Place& at) {
        const Vec raw = at.get(t_.g), g = clip(raw, s_.grad_bound);
        const Vec slope = b_.x_slope[at.x] + at.get_y(b_.y_slope.data());
        const Vec d = at.get(c_.out_g) + 2.0f * g * slope;
        at.put(c_.out_g, inside(raw, s_.grad_bound, d));
      });
    }
    for (int d = 0; d < 7; ++d) c_.decays[d] += sum(d_decays_[d]);
  }

  int64_t rows() const { return t_.blocks() * t_.na; }
  int64_t columns() const { return t_.blocks() * t_.width(); }

  template <typename Body>
  void each(const Body& body) {
    const int64_t width = t_.width();
    for (int64_t q = 0; q < t_.blocks(); ++q)
      for (int64_t i = 0; i < t_.na; ++i) {
        const int64_t start = t_.offset(q, i);
        for (int64_t j = 0; j < width; j += kLanes) {
          const int n = std::min<int64_t>(kLanes, width - j);
          const bool last = j + kLanes >= width;
          body(Place{start + j, q * t_.na + i, q * width + j, n, j == 0, last});
        }
      }
  }

  // The forward passes but for the last, with results in memory of our own.
  void again() {
    const int64_t n = t_.size();
    Tensor t = t_;
    for (int d = 0; d < 3; ++d) {
      t.new_m[d] = fit(b_.new_m[d], n);
      const int64_t row = !t_.factored ? n : t_.row_is_x ? rows() : columns();
      t.new_row[d] = fit(b_.new_row[d], row);
      t.new_col[d] = fit(b_.new_col[d], t_.row_is_x ? columns() : rows());
    }
    t.new_rms = fit(b_.new_rms, n);
    Update<H>(t, s_, flags_, k_).prepare(Threads());
  }

  static float* fit(std::vector<float>& x, int64_t n) {
    x.resize(n);
    return x.data();
  }

  L2O_INLINE Vec unless_held(Vec x, const Point& at) const {
    return ::unless_held(x, at.m[0], at.rms, held_factor_);
  }

  bool present(int f) const {
    if ((f == kClipG || f == kGNorm) && !(flags_ & kClipped)) return false;
    return moments_ || f < kRow;
  }

  template <bool FACTORED>
  L2O_INLINE Point look(const Place& at, Vec* phi) const {
    Point o;
    o.raw = at.get(t_.g);
    o.g = clip(o.raw, s_.grad_bound);
    o.p = at.get(t_.p);
    o.rms = at.get(b_.new_rms.data());
    o.root = rsqrt(o.rms + s_.rms_eps);
    phi[kG] = o.g;
    phi[kClipG] = clip(o.g, 0.1f);
    phi[kP] = o.p;
    phi[kRms] = o.rms;
    phi[kRsqrtRms] = o.root;
    phi[kGNorm] = o.g * o.root;
    for (int d = 0; d < 3; ++d) {
      o.m[d] = at.get(b_.new_m[d].data());
      phi[kM + d] = o.m[d];
      phi[kMNorm + d] = o.m[d] * o.root;
      if (FACTORED) {
        o.x_root[d] = splat(k_.x_root[d][at.x]);
        o.y_root[d] = at.get_y(k_.y_root[d].data());
        o.factor[d] = o.x_root[d] * o.y_root[d];
        phi[kFacM + d] = o.m[d] * o.factor[d];
      } else {
        const Vec v = at.get(b_.new_row[d].data()), floor = splat(kFloor);
        o.factor[d] = rsqrt(v + kFloor < floor ? floor : v + kFloor);
        // Zero where it has no weights or there is no element: it may be infinite.
        o.moment_root[d] = moments_ ? at.part(rsqrt(v + s_.vector_eps)) : Vec{};
        phi[kRow + d] = moments_ ? v : Vec{};
        phi[kRsqrtRow + d] = moments_ ? rsqrt(v + 1e-8f) : Vec{};
        phi[kFacM + d] = o.m[d] * o.moment_root[d];
      }
      phi[kFacG + d] = o.g * o.factor[d];
    }
    return o;
  }

  template <bool FACTORED>
  L2O_INLINE Vec forward(const Place& at, const Vec* phi, Layers& layers) const {
    const Network<H>& net = k_.network;
    for (int h = 0; h < H; ++h)
      layers.first[h] = FACTORED ? k_.x_hidden[h][at.x] + at.get_y(k_.y_hidden[h].data())
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
    layers.exponential = at.part(Update<H>::exp_of(magnitude, s_.exp_mult));
    return layers.direction * layers.exponential;
  }

  L2O_INLINE void through_layers(const Layers& layers, Vec step, Vec d_step,
                                 Vec* d_first) {
    const Network<H>& net = k_.network;
    const Vec d_direction = d_step * layers.exponential;
    const Vec d_magnitude = d_step * step * s_.exp_mult;
    d_b2_[0] += d_direction;
    d_b2_[1] += d_magnitude;
    Vec d_second[H];
    for (int h = 0; h < H; ++h) {
      d_w2_[0][h] += layers.second[h] * d_direction;
      d_w2_[1][h] += layers.second[h] * d_magnitude;
      const Vec d = d_direction * net.w2[0][h] + d_magnitude * net.w2[1][h];
      d_second[h] = layers.second[h] > 0.0f ? d : Vec{};
      d_b1_[h] += d_second[h];
    }
    for (int i = 0; i < H; ++i) {
      Vec d = {};
      for (int h = 0; h < H; ++h) {
        d_w1_[i][h] += layers.first[i] * d_second[h];
        d += d_second[h] * net.w1[i][h];
      }
      d_first[i] = layers.first[i] > 0.0f ? d : Vec{};
      d_b0_[i] += d_first[i];
    }
  }

  // The first layer's gradient, of several vectors at once: it is in memory.
  template <bool FACTORED, bool ALL>
  void add_waiting() {
    const int count = ALL ? kWaiting : count_;
#pragma GCC unroll 30
    for (int f = 0; f < kPlanes; ++f) {
      if (!seen<FACTORED>(f)) continue;
      Vec total[H];
      for (int h = 0; h < H; ++h) total[h] = d_w0_[f][h];
      for (int k = 0; k < count; ++k)
        for (int h = 0; h < H; ++h) total[h] += waiting_[k].phi[f] * waiting_[k].d_first[h];
      for (int h = 0; h < H; ++h) d_w0_[f][h] = total[h];
    }
    count_ = 0;
  }

  // Sums over elements become gradients of the packed weights.
  template <bool FACTORED>
  void finish_weights() {
    for (int f = 0; f < kPlanes; ++f)
      for (int h = 0; h < H; ++h)
        slope_[f][h] = present(f) && seen<FACTORED>(f) ? sum(d_w0_[f][h]) : 0;
    for (int d = 0; FACTORED && d < 3; ++d) {
      moment_slopes(x_plane() + d, k_.x_moment[d], b_.x_hidden);
      moment_slopes(y_plane() + d, k_.y_moment[d], b_.y_hidden);
    }
    for (int d = 0; !FACTORED && d < 3; ++d)
      for (int h = 0; h < H; ++h) {
        slope_[kCol + d][h] = slope_[kRow + d][h];
        slope_[kRsqrtCol + d][h] = slope_[kRsqrtRow + d][h];
      }
    float* out = c_.weights;
    for (int f = 0; f < kPlanes; ++f) {
      if (absent(f)) continue;
      for (int h = 0; h < H; ++h) out[h] += slope_[f][h] * k_.scale[f];
      out += H;
    }
    for (int h = 0; h < H; ++h) *out++ += sum(d_b0_[h]);
    for (int i = 0; i < H; ++i)
      for (int h = 0; h < H; ++h) *out++ += sum(d_w1_[i][h]);
    for (int h = 0; h < H; ++h) *out++ += sum(d_b1_[h]);
    for (int h = 0; h < H; ++h)
      for (int o = 0; o < 2; ++o) *out++ += sum(d_w2_[o][h]);
    for (int o = 0; o < 2; ++o) *out++ += sum(d_b2_[o]);
  }

  int x_plane() const { return t_.row_is_x ? kRow : kCol; }
  int y_plane() const { return t_.row_is_x ? kCol : kRow; }
  // Whether w0 has no such row.
  bool absent(int f) const {
    return (f == kClipG || f == kGNorm) && !(flags_ & kClipped);
  }

  // Of the weights of moments of rows or columns, and of their inverse roots.
  void moment_slopes(int plane, const std::vector<float>& moment,
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
      slope_[plane][h] = sum(by_moment[h]);
      slope_[plane + kRsqrtRow - kRow][h] = sum(by_inverse[h]);
    }
  }

  // What a feature's normaliser takes from its cotangent, per unit of the feature.
  void feature_slopes() {
    const float* w = t_.weights;
    for (int f = 0; f < kPlanes; ++f) {
      along_[f] = 0;
      if (absent(f)) continue;
      if (present(f)) {
        double d_scale = 0;
        for (int h = 0; h < H; ++h) d_scale += w[h] * slope_[f][h];
        const double s = k_.scale[f];
        along_[f] = static_cast<float>(d_scale * s * s * s / t_.size());
      }
      w += H;
    }
    for (int d = 0; !t_.factored && d < 3; ++d) {
      along_[kRow + d] += along_[kCol + d];
      along_[kRsqrtRow + d] += along_[kRsqrtCol + d];
    }
  }

  // What reaches x through its cut to the bound: half at the bound, as JAX has it.
  L2O_INLINE static Vec inside(Vec x, float bound, Vec d) {
    d = x >= -bound && x <= bound ? d : Vec{};
    return x == -bound || x == bound ? 0.5f * d : d;
  }

  template <bool FACTORED>
  L2O_INLINE void through_features(const Place& at, float d_param_scale, Vec* root_row) {
    const Network<H>& net = k_.network;
    Vec phi[kPlanes], d_phi[kPlanes];
    const Point o = look<FACTORED>(at, phi);
    Vec d_hidden[H];
    for (int h = 0; h < H; ++h) d_hidden[h] = at.get(b_.hidden[h].data());
#pragma GCC unroll 30
    for (int f = 0; f < kPlanes; ++f) {
      if (!seen<FACTORED>(f)) continue;
      Vec d = phi[f] * -along_[f];
      for (int h = 0; h < H; ++h) d += d_hidden[h] * net.w0[f][h];
      d_phi[f] = d;
    }
    const Vec u = at.get(c_.u);
    at.put(c_.out_p, d_phi[kP] + o.p * d_param_scale - u * t_.scales[1]);

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
        if (at.last) b_.x_root[d][at.x] = sum(root_row[d]);
        at.add_y(b_.y_root[d].data(), d_factor * o.x_root[d]);
        continue;
      }
      Vec d_v = at.get(c_.row[d]);
      const Vec fac_root = o.factor[d];
      d_v += d_fac_g * o.g * -0.5f * fac_root * fac_root * fac_root;
      if (moments_) {
        const Vec root = o.moment_root[d], inverse = phi[kRsqrtRow + d];
        d_m[d] += d_fac_m * root;
        d_v += d_fac_m * o.m[d] * -0.5f * root * root * root;  // root^3 may be infinite
        d_v += d_phi[kRow + d];
        d_v += d_phi[kRsqrtRow + d] * -0.5f * inverse * inverse * inverse;
      }
      const float decay = t_.decays[4 + d];
      at.put(c_.out_row[d], d_v * decay);
      d_g += d_v * (1 - decay) * 2.0f * o.g;
      const Vec change = at.get(t_.row[d]) - (o.g * o.g + kTiny);
      d_decays_[4 + d] += at.part(d_v * change);
    }
    const Vec root3 = o.root * o.root * o.root;
    const Vec d_rms = at.get(c_.rms) + d_phi[kRms] - 0.5f * d_root * root3;
    at.put(c_.out_rms, d_rms * t_.decays[3]);
    d_g += d_rms * (1 - t_.decays[3]) * 2.0f * o.g;
    d_decays_[3] += at.part(d_rms * (at.get(t_.rms) - o.g * o.g));
    for (int d = 0; d < 3; ++d) {
      d_m[d] += at.get(c_.m[d]);
      at.put(c_.out_m[d], d_m[d] * t_.decays[d]);
      d_g += d_m[d] * (1 - t_.decays[d]);
      d_decays_[d] += at.part(d_m[d] * (at.get(t_.m[d]) - o.g));
    }
    // A matrix still lacks what comes through rows and columns.
    at.put(c_.out_g, FACTORED ? d_g : inside(o.raw, s_.grad_bound, d_g));
  }

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

  // From factors and features of rows and columns to the old moments and to g^2.
  void factored_moments() {
    const bool x = t_.row_is_x;
    const Axis axes[] = {
        {x_plane(), t_.na, t_.nb, true, k_.x_moment, k_.x_root, b_.x_root, b_.x_hidden,
         k_.x_square.data(), x ? t_.row : t_.col, x ? c_.row : c_.col,
         x ? c_.out_row : c_.out_col, &b_.x_slope},
        {y_plane(), t_.nb, t_.na, false, k_.y_moment, k_.y_root, b_.y_root, b_.y_hidden,
         k_.y_square.data(), x ? t_.col : t_.row, x ? c_.col : c_.row,
         x ? c_.out_col : c_.out_row, &b_.y_slope},
    };
    for (const Axis& axis : axes) {
      axis.slope->assign(t_.blocks() * axis.n, 0.0f);
      for (int64_t q = 0; q < t_.blocks(); ++q)
        for (int d = 0; d < 3; ++d) moments_back(axis, q, d);
    }
  }

  void moments_back(const Axis& a, int64_t q, int d) {
    const int64_t n = a.n, start = q * n;
    const float *v = &a.moment[d][start], *r = &a.root[d][start];
    const float *d_root = &a.d_root[d][start], *square = a.square + start;
    // In memory blocks may alternate.
    const int64_t stride = a.by_row ? t_.b : 1;
    const int64_t from = a.by_row ? q / t_.b * n * t_.b + q % t_.b : start;
    const float *old = a.old[d] + from, *cotangent = a.cotangent[d] + from;
    float* out = a.out[d] + from;
    if (stride > 1) {
      for (auto* x : {&b_.old, &b_.cotangent}) {
        const float* y = x == &b_.old ? old : cotangent;
        x->resize(n);
        for (int64_t i = 0; i < n; ++i) (*x)[i] = y[i * stride];
      }
      old = b_.old.data(), cotangent = b_.cotangent.data();
      out = b_.old.data();
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
          d_mean += 0.5 * d_root[i] * r[i] * r[i] * r[i] * v[i];
      d_mean /= n * static_cast<double>(over) * over;
    }
    const float decay = t_.decays[4 + d];
    const int f = a.plane + d, inverse_f = f + kRsqrtRow - kRow;
    const float along = -along_[f] * a.summed, inverse_along = -along_[inverse_f] * a.summed;
    const Network<H>& net = k_.network;
    const Vec scale = splat(-0.5f / over), mean = splat(static_cast<float>(d_mean));
    Vec d_decay = {};
    for (int64_t i = 0; i < n; i += kLanes) {
      const int count = std::min<int64_t>(kLanes, n - i);
      const auto get = [&](const float* x) { return load_some(x + i, count); };
      const Vec moment = get(v), root = get(r), inverse = rsqrt(moment + 1e-8f);
      Vec by_moment = moment * along, by_inverse = inverse * inverse_along;
      for (int h = 0; h < H; ++h) {
        const Vec d_hidden = get(&a.d_hidden[h][start]);
        by_moment += d_hidden * net.w0[f][h];
        by_inverse += d_hidden * net.w0[inverse_f][h];
      }
      const Vec by_root = scale * get(d_root) * root * root * root;
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
    c_.decays[4 + d] += sum(d_decay);
  }

  const Tensor t_;
  const Cotangents c_;
  const Settings s_;
  const int flags_;
  const bool moments_;  // whether second moments are among the features
  const float held_factor_;
  ReverseScratch<H>& b_;
  Scratch<H>& k_;
  float slope_[kPlanes][H], along_[kPlanes];
  static constexpr int kWaiting = 8;
  struct {
    Vec phi[kPlanes], d_first[H];
  } waiting_[kWaiting];
  int count_ = 0;  // of those waiting
  Vec d_w0_[kPlanes][H] = {}, d_b0_[H] = {}, d_w1_[H][H] = {}, d_b1_[H] = {},
      d_w2_[2][H] = {}, d_b2_[2] = {}, d_decays_[7] = {};
};

}  // namespace
