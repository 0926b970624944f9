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

template <int H>
class Backward {
 public:
  Backward(const Tensor& t, const Cotangents& c, const Settings& settings, int flags)
      : t_(t), c_(c), s_(settings), flags_(flags) {}

  void run() {
    again();
    const int64_t n = t_.size();
    const bool normalizes = flags_ & kNormalizeStep;
    for (int f = 0; f < kPlanes; ++f)
      if (present(f)) planes_[planes_count_++] = f;
    for (auto& x : d_hidden_) x.assign(n, 0.0f);
    float step_root = 1, along = 0;
    if (normalizes) {
      // sum of step^2 and of its cotangent times it
      double square = 0, product = 0;
      each([&](const Place& at) {
        Layers layers;
        Vec phi[kPlanes];
        look(at, phi);
        const Vec step = forward(at, phi, layers);
        square += sum(step * step);
        product += sum(step * at.get(c_.u)) * -t_.scales[0];
      });
      step_root = 1 / std::sqrt(static_cast<float>(square / n) + s_.norm_eps);
      along = static_cast<float>(product / n) * step_root * step_root * step_root;
    }
    float param_scale = 1;
    if (flags_ & kWithParamScale)
      param_scale = std::sqrt(static_cast<float>(k_.p_square) + 1e-9f);

    // Through the network.
    const float factor = -t_.scales[0] * param_scale;
    double d_scale = 0, d_decay = 0;
    each([&](const Place& at) {
      Layers layers;
      Vec phi[kPlanes];
      const Point point = look(at, phi);
      const Vec step = forward(at, phi, layers), u = at.get(c_.u);
      d_scale -= sum(at.part(u * step));
      d_decay -= sum(at.part(u * point.p));
      const Vec d_step = at.part(u * (factor * step_root) - step * along);
      through_layers(at, phi, layers, step, d_step);
    });
    finish_weights();
    float k[kPlanes];
    feature_slopes(k);

    // Through the features.
    const float d_param_scale =
        flags_ & kWithParamScale
            ? static_cast<float>(d_scale) * t_.scales[0] / (n * param_scale)
            : 0.0f;
    c_.scales[0] += static_cast<float>(d_scale) * param_scale * step_root;
    c_.scales[1] += static_cast<float>(d_decay);
    rows_.assign(9 * t_.blocks() * t_.na, 0.0f);
    columns_.assign(9 * t_.blocks() * t_.width(), 0.0f);
    for (auto& x : d_decays_) x = Vec{};
    each([&](const Place& at) { through_features(at, k, d_param_scale); });
    if (t_.factored) {
      factored_moments();
      each([&](const Place& at) {
        const Vec raw = at.get(t_.g), g = clip(raw, s_.grad_bound);
        const Vec by_row = splat(x_slope_[at.q * t_.na + at.i]);
        const Vec by_column = at.get_y(y_slope_.data() + at.q * t_.width());
        const Vec d = at.get(c_.out_g) + 2.0f * g * (by_row + by_column);
        at.put(c_.out_g, inside(raw, s_.grad_bound, d));
      });
    }
    for (int d = 0; d < 7; ++d) c_.decays[d] += sum(d_decays_[d]);
  }

 private:
  // A vector of elements: where it is, and how many there are.
  struct Place {
    int64_t q, i, j, at;
    int n;
    Vec get(const float* from) const {
      return n == kLanes ? load(from + at) : load(from + at, n);
    }
    Vec get_y(const float* from) const {
      return n == kLanes ? load(from + j) : load(from + j, n);
    }
    void put(float* to, Vec v) const {
      n == kLanes ? store(to + at, v) : store(to + at, v, n);
    }
    void add_y(float* to, Vec v) const {
      v += get_y(to);
      n == kLanes ? store(to + j, v) : store(to + j, v, n);
    }
    Vec part(Vec v) const { return n == kLanes ? v : first(v, n); }
  };

  // What the features are made of.
  struct Point {
    Vec raw, g, p, m[3], rms, root;
    Vec factor[3];                  // of fac_g and fac_m, of a vector for fac_g
    Vec x_root[3], y_root[3];       // their parts
    Vec moment[3], moment_root[3];  // a vector's v and (v + eps)^-1/2 for fac_m
  };

  struct Layers {
    Vec first[H], second[H], direction, exponential;
  };

  template <typename Body>
  void each(const Body& body) {
    const int64_t width = t_.width();
    for (int64_t q = 0; q < t_.blocks(); ++q)
      for (int64_t i = 0; i < t_.na; ++i)
        for (int64_t j = 0; j < width; j += kLanes)
          body(Place{q, i, j, t_.offset(q, i) + j,
                     static_cast<int>(std::min<int64_t>(kLanes, width - j))});
  }

  // The forward passes but for the last, with results in memory of our own.
  void again() {
    const int64_t n = t_.size();
    Tensor t = t_;
    for (int d = 0; d < 3; ++d) {
      t.new_m[d] = fit(new_m_[d], n);
      const int64_t x = t_.blocks() * t_.na, y = t_.blocks() * t_.width();
      const int64_t row = !t_.factored ? n : t_.row_is_x ? x : y;
      t.new_row[d] = fit(new_row_[d], row);
      t.new_col[d] = fit(new_col_[d], t_.row_is_x ? y : x);
    }
    t.new_rms = fit(new_rms_, n);
    Update<H>(t, s_, flags_, k_).prepare(Threads());
  }

  static float* fit(std::vector<float>& x, int64_t n) {
    x.resize(n);
    return x.data();
  }

  bool moments() const { return t_.factored || (flags_ & kVectorMoments); }
  bool present(int f) const {
    if ((f == kClipG || f == kGNorm) && !(flags_ & kClipped)) return false;
    return moments() || f < kRow;
  }

  Point look(const Place& at, Vec* phi) const {
    Point o;
    o.raw = at.get(t_.g);
    o.g = clip(o.raw, s_.grad_bound);
    o.p = at.get(t_.p);
    o.rms = at.get(new_rms_.data());
    o.root = rsqrt(o.rms + s_.rms_eps);
    phi[kG] = o.g;
    phi[kClipG] = clip(o.g, 0.1f);
    phi[kP] = o.p;
    phi[kRms] = o.rms;
    phi[kRsqrtRms] = o.root;
    phi[kGNorm] = o.g * o.root;
    const int64_t x_at = at.q * t_.na + at.i, y_at = at.q * t_.width();
    for (int d = 0; d < 3; ++d) {
      o.m[d] = at.get(new_m_[d].data());
      phi[kM + d] = o.m[d];
      phi[kMNorm + d] = o.m[d] * o.root;
      if (t_.factored) {
        o.x_root[d] = splat(k_.x_root[d][x_at]);
        o.y_root[d] = at.get_y(&k_.y_root[d][y_at]);
        o.factor[d] = o.x_root[d] * o.y_root[d];
        const Vec x = splat(k_.x_moment[d][x_at]), y = at.get_y(&k_.y_moment[d][y_at]);
        phi[kRow + d] = t_.row_is_x ? x : y;
        phi[kCol + d] = t_.row_is_x ? y : x;
        phi[kFacM + d] = o.m[d] * o.factor[d];
      } else {
        const Vec v = at.get(new_row_[d].data()), floor = splat(kFloor);
        o.moment[d] = v;
        o.factor[d] = rsqrt(v + kFloor < floor ? floor : v + kFloor);
        o.moment_root[d] = rsqrt(v + s_.vector_eps);
        phi[kRow + d] = phi[kCol + d] = v;
        phi[kFacM + d] = o.m[d] * o.moment_root[d];
      }
      phi[kRsqrtRow + d] = rsqrt(phi[kRow + d] + 1e-8f);
      phi[kRsqrtCol + d] = rsqrt(phi[kCol + d] + 1e-8f);
      phi[kFacG + d] = o.g * o.factor[d];
    }
    return o;
  }

  // A vector's `col` is its `row`; its weights are added to those.
  bool merged(int f) const {
    return !t_.factored && ((f >= kCol && f < kCol + 3) || (f >= kRsqrtCol && f < kFacM));
  }

  Vec forward(const Place& at, const Vec* phi, Layers& layers) const {
    const Network<H>& net = k_.network;
    for (int h = 0; h < H; ++h) layers.first[h] = splat(net.b0[h]);
    for (int l = 0; l < planes_count_; ++l) {
      const int f = planes_[l];
      if (merged(f)) continue;
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

  void through_layers(const Place& at, const Vec* phi, const Layers& layers, Vec step,
                      Vec d_step) {
    const Network<H>& net = k_.network;
    const Vec d_direction = d_step * layers.exponential;
    const Vec d_magnitude = d_step * step * s_.exp_mult;
    d_b2_[0] += d_direction;
    d_b2_[1] += d_magnitude;
    Vec d_second[H], d_first[H];
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
      at.put(d_hidden_[i].data(), d_first[i]);
    }
    for (int l = 0; l < planes_count_; ++l) {
      const int f = planes_[l];
      if (merged(f)) continue;
      for (int h = 0; h < H; ++h) d_w0_[f][h] += phi[f] * d_first[h];
    }
  }

  // Sums over elements become gradients of the packed weights.
  void finish_weights() {
    float* out = c_.weights;
    const bool clips = flags_ & kClipped;
    for (int f = 0; f < kPlanes; ++f) {
      if (!clips && (f == kClipG || f == kGNorm)) continue;
      const int from = merged(f) ? f - 3 : f;
      for (int h = 0; h < H; ++h) {
        slope_[f][h] = present(f) ? sum(d_w0_[from][h]) : 0;
        out[h] += slope_[f][h] * k_.scale[f];
      }
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

  // What a feature's normaliser takes from its cotangent, per unit of the feature.
  void feature_slopes(float* k) const {
    const float* w = t_.weights;
    for (int f = 0; f < kPlanes; ++f) {
      k[f] = 0;
      if (!(flags_ & kClipped) && (f == kClipG || f == kGNorm)) continue;
      if (present(f)) {
        double d_scale = 0;
        for (int h = 0; h < H; ++h) d_scale += w[h] * slope_[f][h];
        const double s = k_.scale[f];
        k[f] = static_cast<float>(d_scale * s * s * s / t_.size());
      }
      w += H;
    }
    for (int f = 0; f < kPlanes; ++f)
      if (merged(f)) k[f - 3] += k[f];
  }

  static Vec inside(Vec x, float bound, Vec d) {
    d = x > -bound ? d : Vec{};
    return x < bound ? d : Vec{};
  }

  void through_features(const Place& at, const float* k, float d_param_scale) {
    const Network<H>& net = k_.network;
    Vec phi[kPlanes], d_phi[kPlanes] = {};
    const Point o = look(at, phi);
    Vec d_hidden[H];
    for (int h = 0; h < H; ++h) d_hidden[h] = at.get(d_hidden_[h].data());
    for (int l = 0; l < planes_count_; ++l) {
      const int f = planes_[l];
      if (merged(f)) continue;
      Vec d = phi[f] * -k[f];
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
      if (t_.factored) {
        d_m[d] += d_fac_m * o.factor[d];
        const Vec d_factor = at.part(d_fac_g * o.g + d_fac_m * o.m[d]);
        const int x_plane = t_.row_is_x ? kRow : kCol, x_inverse = x_plane + 6;
        const int y_plane = t_.row_is_x ? kCol : kRow, y_inverse = y_plane + 6;
        add_row(at, d, d_factor * o.y_root[d]);
        add_row(at, 3 + d, d_phi[x_plane + d]);
        add_row(at, 6 + d, d_phi[x_inverse + d]);
        add_column(at, d, d_factor * o.x_root[d]);
        add_column(at, 3 + d, d_phi[y_plane + d]);
        add_column(at, 6 + d, d_phi[y_inverse + d]);
        continue;
      }
      Vec d_v = at.get(c_.row[d]);
      const Vec fac_root = o.factor[d];
      d_v += d_fac_g * o.g * -0.5f * fac_root * fac_root * fac_root;
      if (moments()) {
        const Vec root = o.moment_root[d], inverse = phi[kRsqrtRow + d];
        d_m[d] += d_fac_m * root;
        d_v += d_fac_m * o.m[d] * -0.5f * root * root * root;
        d_v += d_phi[kRow + d];
        d_v += d_phi[kRsqrtRow + d] * -0.5f * inverse * inverse * inverse;
      }
      const float decay = t_.decays[4 + d];
      at.put(c_.out_row[d], d_v * decay);
      d_g += d_v * (1 - decay) * 2.0f * o.g;
      const Vec change = at.get(t_.row[d]) - (o.g * o.g + kTiny);
      d_decays_[4 + d] += at.part(d_v * change);
    }
    const Vec d_rms = at.get(c_.rms) + d_phi[kRms] - 0.5f * d_root * o.root * o.root * o.root;
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
    at.put(c_.out_g, t_.factored ? d_g : inside(o.raw, s_.grad_bound, d_g));
  }

  void add_row(const Place& at, int kind, Vec v) {
    rows_[(kind * t_.blocks() + at.q) * t_.na + at.i] += sum(at.part(v));
  }
  void add_column(const Place& at, int kind, Vec v) {
    at.add_y(&columns_[(kind * t_.blocks() + at.q) * t_.width()], v);
  }

  // From factors and features of rows and columns to the old moments and to g^2.
  void factored_moments() {
    const int64_t nx = t_.na, ny = t_.width();
    x_slope_.assign(t_.blocks() * nx, 0.0f);
    y_slope_.assign(t_.blocks() * ny, 0.0f);
    for (int64_t q = 0; q < t_.blocks(); ++q)
      for (int d = 0; d < 3; ++d) {
        const float *row = t_.row[d], *col = t_.col[d];
        const auto &c_row = c_.row[d], &c_col = c_.col[d];
        float *out_row = c_.out_row[d], *out_col = c_.out_col[d];
        moments_back(q, d, nx, ny, rows_, k_.x_moment[d], k_.x_root[d], &k_.x_square[q * nx],
                     t_.row_is_x, t_.row_is_x ? row : col, t_.row_is_x ? c_row : c_col,
                     t_.row_is_x ? out_row : out_col, true, x_slope_);
        moments_back(q, d, ny, nx, columns_, k_.y_moment[d], k_.y_root[d],
                     &k_.y_square[q * ny], !t_.row_is_x, t_.row_is_x ? col : row,
                     t_.row_is_x ? c_col : c_row, t_.row_is_x ? out_col : out_row, false,
                     y_slope_);
      }
  }

  void moments_back(int64_t q, int d, int64_t n, int64_t other,
                    const std::vector<float>& sums, const std::vector<float>& moment,
                    const std::vector<float>& root, const float* square, bool is_row,
                    const float* old, const float* cotangent, float* out, bool x,
                    std::vector<float>& slope) {
    const float *d_root = &sums[(d * t_.blocks() + q) * n];
    const float *d_moment = &sums[((3 + d) * t_.blocks() + q) * n];
    const float *d_inverse = &sums[((6 + d) * t_.blocks() + q) * n];
    const float *v = &moment[q * n], *r = &root[q * n];
    double mean = 0, d_mean = 0;
    for (int64_t i = 0; i < n; ++i) mean += v[i];
    const float over = is_row ? static_cast<float>(mean / n) + kFloor : 1.0f;
    for (int64_t i = 0; is_row && i < n; ++i)
      if (v[i] / over > kFloor)
        d_mean += 0.5 * d_root[i] * r[i] * r[i] * r[i] * v[i] / (over * over);
    const float decay = t_.decays[4 + d];
    double d_decay = 0;
    for (int64_t i = 0; i < n; ++i) {
      float total = d_moment[i] + static_cast<float>(d_mean / n);
      if (v[i] / over > kFloor) total -= 0.5f * d_root[i] * r[i] * r[i] * r[i] / over;
      const float inverse = 1 / std::sqrt(v[i] + 1e-8f);
      total -= 0.5f * d_inverse[i] * inverse * inverse * inverse;
      const int64_t at =
          x ? (q / t_.b * t_.na + i) * t_.b + q % t_.b : q * n + i;  // in memory
      total += cotangent[at];
      out[at] = decay * total;
      d_decay += total * (old[at] - square[i]);
      slope[q * n + i] += (1 - decay) * total / other;
    }
    c_.decays[4 + d] += static_cast<float>(d_decay);
  }

  const Tensor t_;
  const Cotangents c_;
  const Settings s_;
  const int flags_;
  Scratch<H> k_;
  int planes_[kPlanes], planes_count_ = 0;
  float slope_[kPlanes][H] = {};
  Vec d_w0_[kPlanes][H] = {}, d_b0_[H] = {}, d_w1_[H][H] = {}, d_b1_[H] = {},
      d_w2_[2][H] = {}, d_b2_[2] = {}, d_decays_[7] = {};
  std::vector<float> new_m_[3], new_rms_, new_row_[3], new_col_[3], d_hidden_[H];
  std::vector<float> rows_, columns_, x_slope_, y_slope_;
};

}  // namespace
