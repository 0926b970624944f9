// The whole update of tensors by a per-parameter MLP on Adafactor features.
//
// What it computes is said in l2o/rule/_rule.py, which is also its oracle. Memory
// is read in three passes: one sums g^2 over rows and columns, one updates the
// accumulators and sums the squares of the features, one computes the features again
// and applies the network. A tensor is seen as (A, Na, B, Nb, C), factored over the
// axes of Na and Nb; a vector is not factored.
#pragma once

#include <cmath>
#include <vector>

#include "parallel.h"
#include "simd.h"
#include "xla_ffi.h"

#define L2O_LAMBDA __attribute__((always_inline))

namespace {

// A sum of many terms: in float for a while, then in double.
class Total {
 public:
  L2O_INLINE void add(Vec x) {
    part_ += x;
    if (++count_ == 64) flush();
  }
  double value() {
    flush();
    return total_;
  }

 private:
  void flush() {
    total_ += sum(part_);
    part_ = Vec{};
    count_ = 0;
  }
  Vec part_{};
  double total_ = 0;
  int count_ = 0;
};

struct Yes {
  static constexpr bool value = true;
};
struct No {
  static constexpr bool value = false;
};
template <int N>
struct Count {
  static constexpr int value = N;
};

// Planes in the order of w0's rows.
enum Plane {
  kG,
  kClipG,
  kP,
  kM,
  kRms = kM + 3,
  kMNorm,
  kRsqrtRms = kMNorm + 3,
  kFacG,
  kGNorm = kFacG + 3,
  kRow,
  kCol = kRow + 3,
  kRsqrtRow = kCol + 3,
  kRsqrtCol = kRsqrtRow + 3,
  kFacM = kRsqrtCol + 3,
  kPlanes = kFacM + 3,
};

constexpr float kTiny = 1e-30f;
constexpr float kFloor = 1e-9f;
constexpr float kHeld = 1e8f;  // see `held` in l2o/rule/_rule.py

// Per-parameter settings of a call; l2o/kernels/_native.py fills them in this order.
struct Settings {
  float grad_bound, rms_eps, vector_eps, norm_eps, exp_mult;
};

enum Flags {
  kWithParamScale = 1,   // steps grow with the tensor's root mean square
  kNormalizeStep = 2,    // steps have unit root mean square
  kVectorMoments = 4,    // a vector's second moment is among its features
  kClipped = 8,          // clip_g and g_norm are among the features
  kHolds = 16,           // what has had no gradient makes no step
};

// One tensor of one batch entry.
struct Tensor {
  int64_t a, na, b, nb, c;  // all 1 but nb for a vector
  bool factored, row_is_x;  // whether `row` is indexed by the axis of Na, not of Nb
  const float *g, *p, *m[3], *rms, *row[3], *col[3];
  float *u, *new_m[3], *new_rms, *new_row[3], *new_col[3];
  const float *decays, *weights, *scales;

  int64_t size() const { return a * na * b * nb * c; }
  int64_t blocks() const { return a * b; }
  int64_t width() const { return nb * c; }  // contiguous
  int64_t stride() const { return b * nb * c; }  // from one row to the next
  int64_t offset(int64_t block, int64_t i) const {
    return ((block / b * na + i) * b + block % b) * width();
  }
};

// A piece of a tensor: rows i0 .. i1 and columns j0 .. j1 of one block.
struct Chunk {
  int64_t block, i0, i1, j0, j1;
  int64_t row_tile, column_tile;  // numbers of this piece within its block
};

constexpr int64_t kChunk = 32768;  // elements, about
constexpr int64_t kTile = 2048;    // columns, about
constexpr int kNarrow = 4;         // vectors that a narrow matrix is wide, at most
constexpr int64_t kAhead = 512;    // elements between what is prefetched and used

template <int H>
struct Network {
  alignas(64) float w0[kPlanes][H];  // times the planes' normalisers
  alignas(64) float b0[H], w1[H][H], b1[H], w2[2][H], b2[2];
};


// What is kept of a tensor between the passes; reused, because allocating it takes as
// long as the update of a small tensor.
template <int H>
struct Scratch {
  std::vector<Chunk> chunks;
  int64_t row_tiles, column_tiles;
  std::vector<float> row_sums, column_sums;  // of g^2, per tile
  // Per block: factors of fac_g and fac_m, and what rows and columns add to the first
  // layer. Those of the axis of Na are (.., Na, C), those of the other (.., Nb, C).
  std::vector<float> x_moment[3], y_moment[3], x_root[3], y_root[3], x_hidden[H],
      y_hidden[H];
  std::vector<double> sums;       // per chunk and plane
  std::vector<double> row_means;  // per block and plane from kRow to kFacM
  Network<H> network;
  float scale[kPlanes];  // of the features
  std::vector<double> squares, kept;  // of the steps, per chunk: squares and number
  std::vector<float> x_square, y_square;  // means of g^2, per block
  std::vector<float> mean;
  double p_square;
  float step_square;
};

template <int H>
class Update {
 public:
  Update(const Tensor& t, const Settings& settings, int flags, Scratch<H>& scratch)
      : t_(t), s_(settings), flags_(flags), k_(scratch) {
    plan();
  }

  // All but the steps.
  void prepare(const Threads& threads) {
    if (t_.factored) {
      each(threads, &Update::reduce);
      factor();
    }
    each(threads, &Update::accumulate);
    normalize();
  }

  void run(const Threads& threads) {
    prepare(threads);
    each(threads, &Update::apply);
    if (!finishes()) return;
    double total = 0, kept = 0;
    for (int64_t i = 0; i < chunks(); ++i) total += k_.squares[i], kept += k_.kept[i];
    k_.step_square = static_cast<float>(total / std::max(kept, 1.0));
    each(threads, &Update::finish);
  }

  // The factor for `unless_held`.
  static float holds(int flags) { return flags & kHolds ? kHeld : INFINITY; }

  // exp(x mult); 1 for mult = 0, but for what is not finite.
  L2O_INLINE static Vec exp_of(Vec x, float mult) {
    return mult == 0 ? 1.0f + x * 0.0f : exponential(x * mult);
  }

 private:
  void each(const Threads& threads, void (Update::*pass)(int64_t)) {
    threads.each(chunks(), [&](int64_t i) { (this->*pass)(i); });
  }

  int64_t chunks() const { return k_.chunks.size(); }

  void plan() {
    k_.chunks.clear();
    const int64_t n = t_.width();
    const int64_t tile = std::min(n, std::max<int64_t>(kTile / t_.c, 1) * t_.c);
    const int64_t rows = std::max<int64_t>(kChunk / tile, 1);
    k_.column_tiles = (n + tile - 1) / tile;
    k_.row_tiles = (t_.na + rows - 1) / rows;
    for (int64_t q = 0; q < t_.blocks(); ++q)
      for (int64_t i = 0; i < k_.row_tiles; ++i)
        for (int64_t j = 0; j < k_.column_tiles; ++j)
          k_.chunks.push_back({q, i * rows, std::min(t_.na, (i + 1) * rows), j * tile,
                               std::min(n, (j + 1) * tile), i, j});
    k_.sums.assign(chunks() * kPlanes, 0.0);
    k_.squares.assign(chunks(), 0.0);
    k_.kept.assign(chunks(), 0.0);
    if (t_.factored) {
      k_.row_sums.resize(t_.blocks() * k_.column_tiles * t_.na * t_.c);
      k_.column_sums.resize(t_.blocks() * k_.row_tiles * n);
    }
  }

  // First pass over a chunk: sums of g^2 + 1e-30.
  void reduce(int64_t number) {
    const Chunk& k = k_.chunks[number];
    const int64_t n = t_.width(), c = t_.c;
    float* columns =
        &k_.column_sums[(k.block * k_.row_tiles + k.row_tile) * n];
    float* rows = &k_.row_sums[(k.block * k_.column_tiles + k.column_tile) * t_.na * c];
    if (c == 1 && n <= kNarrow * kLanes) return reduce_narrow(k, rows, columns);
    std::fill(columns + k.j0, columns + k.j1, 0.0f);
    for (int64_t i = k.i0; i < k.i1; ++i) {
      const float* g = t_.g + t_.offset(k.block, i);
      if (c > 1) {
        std::fill(rows + i * c, rows + (i + 1) * c, 0.0f);
        for (int64_t j = k.j0; j < k.j1; j += c)
          for (int64_t r = 0; r < c; ++r) {
            const float x = bounded(g[j + r]), square = x * x + kTiny;
            columns[j + r] += square;
            rows[i * c + r] += square;
          }
        continue;
      }
      Vec total = {};
      int64_t j = k.j0;
      for (; j + kLanes <= k.j1; j += kLanes) {
        const Vec x = bounded(load(g + j)), square = x * x + kTiny;
        store(columns + j, load(columns + j) + square);
        total += square;
      }
      if (const int rest = k.j1 - j) {
        const Vec x = bounded(load(g + j, rest));
        const Vec square = first(x * x + kTiny, rest);
        store(columns + j, load(columns + j, rest) + square, rest);
        total += square;
      }
      rows[i] = sum(total);
    }
  }

  // As `reduce`, with all columns in registers.
  void reduce_narrow(const Chunk& k, float* rows, float* columns) {
    const int64_t n = t_.width();
    const int whole = n / kLanes, rest = n % kLanes;
    Vec sums[kNarrow + 1] = {};
    double totals[(kNarrow + 1) * kLanes] = {};
    const auto flush = [&] {
      for (int v = 0; v <= kNarrow; ++v) {
        for (int l = 0; l < kLanes; ++l) totals[v * kLanes + l] += sums[v][l];
        sums[v] = Vec{};
      }
    };
    for (int64_t i = k.i0; i < k.i1; ++i) {
      if ((i & 63) == 63) flush();  // few enough terms for float
      const float* g = t_.g + t_.offset(k.block, i);
      Vec total = {};
      for (int v = 0; v < kNarrow; ++v) {
        if (v >= whole) break;
        const Vec x = bounded(load(g + v * kLanes)), square = x * x + kTiny;
        sums[v] += square;
        total += square;
      }
      if (rest) {
        const Vec x = bounded(load(g + whole * kLanes, rest));
        const Vec square = first(x * x + kTiny, rest);
        sums[kNarrow] += square;
        total += square;
      }
      rows[i] = sum(total);
    }
    flush();
    const double* last = totals + kNarrow * kLanes;
    for (int64_t j = 0; j < n; ++j) {
      const bool in_rest = j >= whole * kLanes;
      columns[j] = static_cast<float>(in_rest ? last[j - whole * kLanes] : totals[j]);
    }
  }

  // The new factored moments of all blocks, and what follows from them alone.
  void factor() {
    const int64_t nx = t_.na * t_.c, ny = t_.width(), blocks = t_.blocks();
    k_.row_means.assign(blocks * kPlanes, 0.0);
    k_.x_square.resize(blocks * nx);
    k_.y_square.resize(blocks * ny);
    for (int d = 0; d < 3; ++d) {
      for (auto* x : {k_.x_moment, k_.x_root}) x[d].resize(blocks * nx);
      for (auto* y : {k_.y_moment, k_.y_root}) y[d].resize(blocks * ny);
    }
    for (int64_t q = 0; q < blocks; ++q) {
      fold(&k_.row_sums[q * k_.column_tiles * nx], k_.column_tiles, nx, 1.0f / t_.nb,
           &k_.x_square[q * nx]);
      fold(&k_.column_sums[q * k_.row_tiles * ny], k_.row_tiles, ny, 1.0f / t_.na,
           &k_.y_square[q * ny]);
      for (int d = 0; d < 3; ++d) {
        const float decay = t_.decays[4 + d];
        float *x = &k_.x_moment[d][q * nx], *y = &k_.y_moment[d][q * ny];
        float *xr = &k_.x_root[d][q * nx], *yr = &k_.y_root[d][q * ny];
        const float* old_x = t_.row_is_x ? t_.row[d] : t_.col[d];
        const float* old_y = t_.row_is_x ? t_.col[d] : t_.row[d];
        float* new_x = t_.row_is_x ? t_.new_row[d] : t_.new_col[d];
        float* new_y = t_.row_is_x ? t_.new_col[d] : t_.new_row[d];
        for (int64_t i = 0; i < t_.na; ++i)
          std::copy_n(old_x + x_index(q, i), t_.c, x + i * t_.c);
        std::copy_n(old_y + y_index(q), ny, y);
        decayed(decay, &k_.x_square[q * nx], nx, x);
        decayed(decay, &k_.y_square[q * ny], ny, y);
        for (int64_t i = 0; i < t_.na; ++i)
          std::copy_n(x + i * t_.c, t_.c, new_x + x_index(q, i));
        std::copy_n(y, ny, new_y + y_index(q));
        const int x_plane = t_.row_is_x ? kRow : kCol;
        const int y_plane = t_.row_is_x ? kCol : kRow;
        mean_squares(q, x, nx, x_plane + d);
        mean_squares(q, y, ny, y_plane + d);
        roots(x, t_.na, t_.row_is_x, xr);
        roots(y, t_.nb, !t_.row_is_x, yr);
      }
    }
  }

  // Second pass over a chunk: new momenta and second moment, sums of the features'
  // squares.
  void accumulate(int64_t number) {
    const Chunk& k = k_.chunks[number];
    if (!t_.factored) {
      accumulate_vector(k, &k_.sums[number * kPlanes]);
    } else if (t_.c == 1) {
      accumulate_matrix<false>(k, &k_.sums[number * kPlanes]);
    } else {
      accumulate_matrix<true>(k, &k_.sums[number * kPlanes]);
    }
  }

  // The network with normalised features, and what rows and columns add to it.
  void normalize() {
    const int64_t nx = t_.na * t_.c, ny = t_.width(), blocks = t_.blocks();
    double total[kPlanes] = {};
    for (int64_t i = 0; i < chunks(); ++i)
      for (int f = 0; f < kPlanes; ++f) total[f] += k_.sums[i * kPlanes + f];
    for (int f = 0; f < kPlanes; ++f) total[f] /= t_.size();
    for (int f = kRow; t_.factored && f < kFacM; ++f) {
      total[f] = 0;
      for (int64_t q = 0; q < blocks; ++q) total[f] += k_.row_means[q * kPlanes + f];
      total[f] /= blocks;
    }
    for (int f = 0; f < kPlanes; ++f)
      k_.scale[f] = static_cast<float>(total[f]) + s_.norm_eps;
    for (int f = 0; f < kPlanes; f += kLanes) {
      const int count = std::min(kLanes, kPlanes - f);
      store_some(k_.scale + f, rsqrt(load_some(k_.scale + f, count)), count);
    }
    k_.p_square = total[kP];
    fill(&k_.network, k_.scale);
    if (!t_.factored) return;
    for (int h = 0; h < H; ++h) {
      k_.x_hidden[h].resize(blocks * nx);
      k_.y_hidden[h].resize(blocks * ny);
    }
    for (int64_t q = 0; q < blocks; ++q) {
      const Network<H>& net = k_.network;
      const int x_plane = t_.row_is_x ? kRow : kCol;
      const int y_plane = t_.row_is_x ? kCol : kRow;
      hidden_part(net, x_plane, true, k_.x_moment, q * nx, nx, k_.x_hidden);
      hidden_part(net, y_plane, false, k_.y_moment, q * ny, ny, k_.y_hidden);
    }
  }

  // Third pass over a chunk: the steps, or the updates where nothing is to follow.
  void apply(int64_t number) {
    const Chunk& k = k_.chunks[number];
    if (!t_.factored) {
      apply_vector(number, k);
    } else if (t_.c == 1) {
      apply_matrix<false>(number, k);
    } else {
      apply_matrix<true>(number, k);
    }
  }

  // Fourth pass over a chunk: normalises the steps.
  void finish(int64_t number) {
    const Chunk& k = k_.chunks[number];
    const float scale = -t_.scales[0] / std::sqrt(k_.step_square + s_.norm_eps);
    const float decay = -t_.scales[1];
    for (int64_t i = k.i0; i < k.i1; ++i) {
      const int64_t at = t_.offset(k.block, i);
      const float* p = t_.p + at;
      float* u = t_.u + at;
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

  bool clips() const { return flags_ & kClipped; }  // else no clip_g and g_norm
  bool finishes() const { return flags_ & kNormalizeStep; }

  float bounded(float x) const {
    if (x != x) return 0;
    return std::min(std::max(x, -s_.grad_bound), s_.grad_bound);
  }
  L2O_INLINE Vec bounded(Vec x) const { return clip(x, s_.grad_bound); }

  // Moments of the axis of Na lie as (A, Na, B, C), those of Nb as (A, B, Nb, C).
  int64_t x_index(int64_t q, int64_t i) const {
    return ((q / t_.b * t_.na + i) * t_.b + q % t_.b) * t_.c;
  }
  int64_t y_index(int64_t q) const { return q * t_.width(); }

  static void fold(const float* parts, int64_t count, int64_t n, float scale,
                   float* out) {
    if (count == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = parts[i] * scale;
      return;
    }
    constexpr int64_t kBlock = 64;
    for (int64_t start = 0; start < n; start += kBlock) {
      const int64_t size = std::min(kBlock, n - start);
      double total[kBlock] = {};
      for (int64_t k = 0; k < count; ++k)
        for (int64_t i = 0; i < size; ++i) total[i] += parts[k * n + start + i];
      for (int64_t i = 0; i < size; ++i)
        out[start + i] = static_cast<float>(total[i] * scale);
    }
  }

  static void decayed(float decay, const float* value, int64_t n, float* moment) {
    const float rest = 1 - decay;
    for (int64_t i = 0; i < n; ++i) moment[i] = decay * moment[i] + rest * value[i];
  }

  // Of a plane of moments, and of its inverse root.
  void mean_squares(int64_t q, const float* x, int64_t n, int plane) {
    const int root = plane < kCol ? plane - kRow + kRsqrtRow : plane - kCol + kRsqrtCol;
    Total square, inverse;
    for (int64_t i = 0; i < n; i += kLanes) {
      const int count = std::min<int64_t>(kLanes, n - i);
      const Vec v = load_some(x + i, count);
      const Vec r = first_some(rsqrt(v + 1e-8f), count);
      square.add(v * v);
      inverse.add(r * r);
    }
    k_.row_means[q * kPlanes + plane] = square.value() / n;
    k_.row_means[q * kPlanes + root] = inverse.value() / n;
  }

  // The factors of fac_g and fac_m: of `row` over its mean, of `col` as it is.
  void roots(const float* x, int64_t n, bool is_row, float* out) {
    const int64_t c = t_.c;
    const Vec floor = splat(kFloor);
    k_.mean.assign(c, 1.0f);
    for (int64_t r = 0; is_row && r < c; ++r) {
      double total = 0;
      if (c == 1) {
        Total parts;
        for (int64_t i = 0; i < n; i += kLanes)
          parts.add(load_some(x + i, std::min<int64_t>(kLanes, n - i)));
        total = parts.value();
      }
      for (int64_t i = 0; c > 1 && i < n; ++i) total += x[i * c + r];
      k_.mean[r] = static_cast<float>(total / n) + kFloor;
    }
    if (c > 1) {
      for (int64_t i = 0; i < n * c; ++i) {
        const float v = x[i] / k_.mean[i % c];
        out[i] = 1.0f / std::sqrt(v < kFloor ? kFloor : v);
      }
      return;
    }
    for (int64_t i = 0; i < n; i += kLanes) {
      const int count = std::min<int64_t>(kLanes, n - i);
      const Vec v = load_some(x + i, count) / k_.mean[0];
      store_some(out + i, rsqrt(v < floor ? floor : v), count);
    }
  }

  void fill(Network<H>* net, const float* scale) const {
    const bool moments = t_.factored || (flags_ & kVectorMoments);
    const float* w = t_.weights;
    for (int f = 0; f < kPlanes; ++f) {
      const bool known = clips() || (f != kClipG && f != kGNorm);
      for (int h = 0; h < H; ++h)
        net->w0[f][h] = known && (moments || f < kRow) ? w[h] * scale[f] : 0;
      if (known) w += H;
    }
    const float* from = w;
    auto take = [&](float* to, int n) {
      for (int i = 0; i < n; ++i) to[i] = *from++;
    };
    take(net->b0, H);
    take(&net->w1[0][0], H * H);
    take(net->b1, H);
    for (int h = 0; h < H; ++h)
      for (int o = 0; o < 2; ++o) net->w2[o][h] = *from++;
    take(net->b2, 2);
    if (!t_.factored && (flags_ & kVectorMoments))
      // A vector's rows are its columns.
      for (int d = 0; d < 3; ++d)
        for (int h = 0; h < H; ++h) {
          net->w0[kRow + d][h] += net->w0[kCol + d][h];
          net->w0[kRsqrtRow + d][h] += net->w0[kRsqrtCol + d][h];
        }
  }

  // What the moments of rows or columns add to the first layer.
  static void hidden_part(const Network<H>& net, int plane, bool bias,
                          const std::vector<float>* moments, int64_t at, int64_t n,
                          std::vector<float>* out) {
    const int root = plane == kRow ? kRsqrtRow : kRsqrtCol;
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

  // What a loop over elements reads; a copy, because stores may change what `this`
  // points to.
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
  static L2O_INLINE void moments(const Streams& t, float bound, int64_t at, int rest,
                                 Vec& g, Vec& p, Vec* m, Vec& rms) {
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

  struct Sums {
    Vec g{}, clip{}, p{}, m[3]{}, rms{}, m_norm[3]{}, root{}, fac_g[3]{}, g_norm{},
        fac_m[3]{};
  };

  template <bool PART, bool X_VECTOR>
  static L2O_INLINE void add_squares(Sums& s, const Streams& t, float bound, float eps,
                                     bool clips, int64_t at, int rest,
                                     const float* const* y, const Vec* x,
                                     const float* const* xs) {
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

  void add(const Sums& s, double* sums) const {
    sums[kG] += sum(s.g);
    sums[kP] += sum(s.p);
    sums[kRms] += sum(s.rms);
    sums[kRsqrtRms] += sum(s.root);
    if (clips()) {
      sums[kClipG] += sum(s.clip);
      sums[kGNorm] += sum(s.g_norm);
    }
    for (int d = 0; d < 3; ++d) {
      sums[kM + d] += sum(s.m[d]);
      sums[kMNorm + d] += sum(s.m_norm[d]);
      sums[kFacG + d] += sum(s.fac_g[d]);
      sums[kFacM + d] += sum(s.fac_m[d]);
    }
  }

  // Repeats the `c` values of a row along n columns.
  void expand(const std::vector<float>* from, int count, int64_t at, int64_t n,
              std::vector<float>& to) const {
    to.resize(count * n);
    for (int d = 0; d < count; ++d)
      for (int64_t j = 0; j < n; ++j) to[d * n + j] = from[d][at + j % t_.c];
  }

  template <bool X_VECTOR>
  void accumulate_matrix(const Chunk& k, double* sums) {
    const int64_t nx = t_.na * t_.c, ny = t_.width();
    const Streams streams(t_);
    const float bound = s_.grad_bound, eps = s_.rms_eps;
    const bool clips = this->clips(), large = t_.size() > kChunk;
    std::vector<float> expanded;
    Sums s;
    for (int64_t i = k.i0; i < k.i1; ++i) {
      const int64_t at = t_.offset(k.block, i), n = k.j1 - k.j0;
      Vec x[3];
      const float *y[3], *xs[3] = {};
      if (X_VECTOR) expand(k_.x_root, 3, k.block * nx + i * t_.c, n, expanded);
      for (int d = 0; d < 3; ++d) {
        x[d] = splat(k_.x_root[d][k.block * nx + i * t_.c]);
        y[d] = &k_.y_root[d][k.block * ny + k.j0];
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
        add(s, sums);
        s = Sums();
      }
    }
    add(s, sums);
  }

  template <int U>
  L2O_INLINE static void plane(const Network<H>& net, int f, const Vec* x,
                               Vec (&hidden)[U][H]) {
    for (int h = 0; h < H; ++h) {
      const Vec w = splat(net.w0[f][h]);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) hidden[u][h] += x[u] * w;
    }
  }

  // From the first layer's sums to the steps d exp(lambda a).
  template <int U>
  L2O_INLINE static void head(const Network<H>& net, float exp_mult,
                              Vec (&hidden)[U][H], Vec* step) {
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

  // What the third pass reads; a copy, as `Streams`.
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
  template <int U, bool PART, bool X_VECTOR>
  static L2O_INLINE void matrix_steps(const Network<H>& net, const Inputs& r,
                                      const Place* places, int rest, Vec* step,
                                      Vec* params) {
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

  // How steps become updates, and what is summed of them if they are to be normalised.
  struct Out {
    bool finishes;
    float scale, decay, held;
    Vec squares{}, kept{};
  };

  Out out() const {
    return {finishes(), scale(), t_.scales[1], holds(flags_)};
  }

  // Writes steps that are yet to be normalised, or the updates; m and rms decide which
  // are held.
  template <bool PART>
  static L2O_INLINE void write(float* u, int rest, Vec step, Vec params, Vec m, Vec rms,
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

  float scale() const {
    float scale = -t_.scales[0];
    if (flags_ & kWithParamScale)
      scale *= std::sqrt(static_cast<float>(k_.p_square) + 1e-9f);
    return scale;
  }

  template <bool X_VECTOR>
  void apply_matrix(int64_t number, const Chunk& k) {
    constexpr int U = H <= 8 && !X_VECTOR ? 2 : 1;
    const Network<H> net = k_.network;
    const int64_t nx = t_.na * t_.c, ny = t_.width(), n = k.j1 - k.j0;
    Out out = this->out();
    Inputs r;
    r.bound = s_.grad_bound, r.eps = s_.rms_eps, r.exp_mult = s_.exp_mult;
    r.clips = clips();
    // Offsets are of the chunk's first element.
    const int64_t start = t_.offset(k.block, k.i0) + k.j0, stride = t_.stride();
    const int64_t x_start = k.block * nx + k.i0 * t_.c, y_start = k.block * ny + k.j0;
    r.g = t_.g + start, r.p = t_.p + start, r.rms = t_.new_rms + start;
    for (int d = 0; d < 3; ++d) {
      r.m[d] = t_.new_m[d] + start;
      r.x_root[d] = &k_.x_root[d][x_start];
      r.y_root[d] = &k_.y_root[d][y_start];
    }
    for (int h = 0; h < H; ++h) {
      r.x_hidden[h] = &k_.x_hidden[h][x_start];
      r.y_hidden[h] = &k_.y_hidden[h][y_start];
    }
    float* update = t_.u + start;
    auto steps = [&](auto part, auto count, const Place* places, int rest) L2O_LAMBDA {
      constexpr int M = decltype(count)::value;
      constexpr bool PART = decltype(part)::value;
      Vec step[M], params[M];
      matrix_steps<M, PART, X_VECTOR>(net, r, places, rest, step, params);
      for (int u = 0; u < M; ++u) {
        const int64_t at = places[u].at;
        const Vec m = PART ? load(r.m[0] + at, rest) : load(r.m[0] + at);
        const Vec rms = PART ? load(r.rms + at, rest) : load(r.rms + at);
        write<PART>(update + at, rest, step[u], params[u], m, rms, out);
      }
    };
    if (X_VECTOR) {
      std::vector<float> roots, hidden;
      for (int64_t i = 0; i < k.i1 - k.i0; ++i) {
        expand(k_.x_root, 3, x_start + i * t_.c, n, roots);
        expand(k_.x_hidden, H, x_start + i * t_.c, n, hidden);
        for (int d = 0; d < 3; ++d) r.x_root[d] = &roots[d * n];
        for (int h = 0; h < H; ++h) r.x_hidden[h] = &hidden[h * n];
        for (int64_t j = 0; j < n; j += kLanes) {
          const Place place{i * stride + j, j, j};
          steps(Yes(), Count<1>(), &place, std::min<int64_t>(kLanes, n - j));
        }
      }
      k_.squares[number] = sum(out.squares);
      k_.kept[number] = sum(out.kept);
      return;
    }
    // Vectors of short rows are taken together, so that one need not wait for another.
    const int64_t rows = k.i1 - k.i0, whole = n / kLanes;
    const bool large = t_.size() > kChunk;
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
      for (int u = 0; u < U; ++u) places[u] = {(i + u) * stride + n - rest, i + u, n - rest};
      if (i + U <= rows) {
        steps(Yes(), Count<U>(), places, rest);
      } else {
        for (int u = 0; u < rows - i; ++u) steps(Yes(), Count<1>(), places + u, rest);
      }
    }
    flush();
    k_.squares[number] = squares;
    k_.kept[number] = kept;
  }

  void accumulate_vector(const Chunk& k, double* sums) {
    const bool moment = flags_ & kVectorMoments, clips = this->clips();
    const Streams streams(t_);
    Sums s;
    Vec row[3] = {}, root_row[3] = {};
    auto part = [&](auto is_part, int64_t j, int rest) L2O_LAMBDA {
      constexpr bool PART = decltype(is_part)::value;
      auto get = [&](const float* from) {
        return PART ? load(from + j, rest) : load(from + j);
      };
      Vec g, p, m[3], rms;
      moments<PART>(streams, s_.grad_bound, j, rest, g, p, m, rms);
      const Vec g2 = g * g, root = rsqrt(rms + s_.rms_eps);
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
        const float decay = t_.decays[4 + d];
        Vec v = get(t_.row[d]) * decay + (g2 + kTiny) * (1 - decay);
        PART ? store(t_.new_row[d] + j, v, rest) : store(t_.new_row[d] + j, v);
        if (PART) v = first(v, rest);
        const Vec m2 = m[d] * m[d];
        const Vec fac_g = g * rsqrt_floored(v + kFloor);
        s.m[d] += m2;
        s.m_norm[d] += m2 * root2;
        s.fac_g[d] += fac_g * fac_g;
        if (moment) {
          Vec fac_m = m[d] * rsqrt(v + s_.vector_eps);
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
    add(s, sums);
    for (int d = 0; d < 3; ++d) {
      sums[kRow + d] = sums[kCol + d] = sum(row[d]);
      sums[kRsqrtRow + d] = sums[kRsqrtCol + d] = sum(root_row[d]);
    }
  }

  L2O_INLINE static Vec rsqrt_floored(Vec x) {
    const Vec floor = splat(kFloor);
    return rsqrt(x < floor ? floor : x);
  }

  void apply_vector(int64_t number, const Chunk& k) {
    const Network<H>& net = k_.network;
    const bool moment = flags_ & kVectorMoments, clips = this->clips();
    Out out = this->out();
    auto part = [&](auto is_part, int64_t j, int rest) {
      constexpr bool PART = decltype(is_part)::value;
      auto get = [&](const float* from) {
        return PART ? load(from + j, rest) : load(from + j);
      };
      Vec hidden[1][H];
      for (int h = 0; h < H; ++h) hidden[0][h] = splat(net.b0[h]);
      auto see = [&](int f, Vec x) { plane<1>(net, f, &x, hidden); };
      const Vec g = clip(get(t_.g), s_.grad_bound), p = get(t_.p), rms = get(t_.new_rms);
      const Vec root = rsqrt(rms + s_.rms_eps);
      see(kG, g);
      see(kP, p);
      see(kRms, rms);
      see(kRsqrtRms, root);
      if (clips) {
        see(kClipG, clip(g, 0.1f));
        see(kGNorm, g * root);
      }
      for (int d = 0; d < 3; ++d) {
        const Vec m = get(t_.new_m[d]), v = get(t_.new_row[d]);
        see(kM + d, m);
        see(kMNorm + d, m * root);
        see(kFacG + d, g * rsqrt_floored(v + kFloor));
        if (moment) {
          see(kRow + d, v);
          see(kRsqrtRow + d, rsqrt(v + 1e-8f));
          see(kFacM + d, m * rsqrt(v + s_.vector_eps));
        }
      }
      Vec step[1];
      head<1>(net, s_.exp_mult, hidden, step);
      write<PART>(t_.u + j, rest, step[0], p, get(t_.new_m[0]), rms, out);
    };
    int64_t j = k.j0;
    for (; j + kLanes <= k.j1; j += kLanes) part(No(), j, kLanes);
    if (j < k.j1) part(Yes(), j, k.j1 - j);
    k_.squares[number] = sum(out.squares);
    k_.kept[number] = sum(out.kept);
  }

  const Tensor t_;
  const Settings s_;
  const int flags_;
  Scratch<H>& k_;
};

}  // namespace
