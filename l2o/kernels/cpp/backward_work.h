// A derivative in progress: its cotangents, and what is kept between its passes.
#pragma once

#include "update.h"

namespace {

// Cotangents of the results, and where those of the operands go.
struct Cotangents {
  const float *u, *m[3], *rms, *row[3], *col[3];
  float *out_g, *out_p, *out_m[3], *out_rms, *out_row[3], *out_col[3];
  float *decays, *weights, *scales;  // added to
};

// What is kept of a tensor between the passes, as `Kept`.
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

inline float* fit(std::vector<float>& x, int64_t n) {
  x.resize(n);
  return x.data();
}

// The tensor, with results in memory of our own.
template <int H>
Tensor with_results(Tensor t, ReverseScratch<H>& b) {
  const int64_t n = t.size();
  const int64_t rows = t.blocks() * t.na, columns = t.blocks() * t.width();
  for (int d = 0; d < 3; ++d) {
    t.new_m[d] = fit(b.new_m[d], n);
    t.new_row[d] = fit(b.new_row[d], !t.factored ? n : t.row_is_x ? rows : columns);
    t.new_col[d] = fit(b.new_col[d], t.row_is_x ? columns : rows);
  }
  t.new_rms = fit(b.new_rms, n);
  return t;
}

template <int H>
struct Reverse {
  Reverse(const Tensor& t, const Cotangents& c, const Settings& s, int flags,
          ReverseScratch<H>& b)
      : w{with_results(t, b), s, flags, b.forward.kept},
        c(c),
        moments(w.moments()),
        held_factor(w.held_factor()),
        b(b),
        net(b.forward.folded.network) {}

  const Work w;
  const Cotangents c;
  const bool moments;  // whether second moments are among the features
  const float held_factor;
  ReverseScratch<H>& b;
  const Network<H>& net;
  float slope[kPlanes][H];  // of w0 as it is in `net`
  float along[kPlanes];     // see `feature_slopes`
  Vec d_decays[7] = {};

  int64_t rows() const { return w.t.blocks() * w.t.na; }
  int64_t columns() const { return w.t.blocks() * w.t.width(); }
};

// A vector of elements: where it is, and how many there are.
struct Elements {
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

// Calls body for all elements of a tensor, row after row.
template <typename Body>
void each(const Tensor& t, const Body& body) {
  const int64_t width = t.width();
  for (int64_t q = 0; q < t.blocks(); ++q)
    for (int64_t i = 0; i < t.na; ++i) {
      const int64_t start = t.offset(q, i);
      for (int64_t j = 0; j < width; j += kLanes) {
        const int n = std::min<int64_t>(kLanes, width - j);
        const bool last = j + kLanes >= width;
        body(Elements{start + j, q * t.na + i, q * width + j, n, j == 0, last});
      }
    }
}

}  // namespace
