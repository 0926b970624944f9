// Between the first pass and the second: the new factored moments of all blocks, and
// what follows from them alone.
#pragma once

#include "work.h"

namespace {

// Means, from `count` parts of n sums each.
inline void fold(const float* parts, int64_t count, int64_t n, float scale,
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

inline void decayed(float decay, const float* value, int64_t n, float* moment) {
  const float rest = 1 - decay;
  for (int64_t i = 0; i < n; ++i) moment[i] = decay * moment[i] + rest * value[i];
}

// Of a plane of moments, and of its inverse root.
inline void mean_squares(const float* x, int64_t n, int plane, double* means) {
  Total square, inverse;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = std::min<int64_t>(kLanes, n - i);
    const Vec v = load_some(x + i, count);
    const Vec r = first_some(rsqrt(v + 1e-8f), count);
    square.add(v * v);
    inverse.add(r * r);
  }
  means[plane] = square.value() / n;
  means[root_plane(plane)] = inverse.value() / n;
}

// The factors of fac_g and fac_m: of `row` over its mean, of `col` as it is.
inline void roots(const float* x, int64_t n, int64_t c, bool is_row,
                  std::vector<float>& mean, float* out) {
  mean.assign(c, 1.0f);
  for (int64_t r = 0; is_row && r < c; ++r) {
    double total = 0;
    if (c == 1) {
      Total parts;
      for (int64_t i = 0; i < n; i += kLanes)
        parts.add(load_some(x + i, std::min<int64_t>(kLanes, n - i)));
      total = parts.value();
    }
    for (int64_t i = 0; c > 1 && i < n; ++i) total += x[i * c + r];
    mean[r] = static_cast<float>(total / n) + kFloor;
  }
  if (c > 1) {
    for (int64_t i = 0; i < n * c; ++i) {
      const float v = x[i] / mean[i % c];
      out[i] = 1.0f / std::sqrt(v < kFloor ? kFloor : v);
    }
    return;
  }
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = std::min<int64_t>(kLanes, n - i);
    store_some(out + i, rsqrt_floored(load_some(x + i, count) / mean[0]), count);
  }
}

inline void factor(const Work& w) {
  const Tensor& t = w.t;
  Kept& kept = w.kept;
  const int64_t nx = t.na * t.c, ny = t.width(), blocks = t.blocks();
  kept.row_means.assign(blocks * kPlanes, 0.0);
  kept.x_square.resize(blocks * nx);
  kept.y_square.resize(blocks * ny);
  for (int d = 0; d < 3; ++d) {
    for (auto* x : {kept.x_moment, kept.x_root}) x[d].resize(blocks * nx);
    for (auto* y : {kept.y_moment, kept.y_root}) y[d].resize(blocks * ny);
  }
  for (int64_t q = 0; q < blocks; ++q) {
    double* means = &kept.row_means[q * kPlanes];
    fold(&kept.row_sums[q * kept.column_tiles * nx], kept.column_tiles, nx,
         1.0f / t.nb, &kept.x_square[q * nx]);
    fold(&kept.column_sums[q * kept.row_tiles * ny], kept.row_tiles, ny, 1.0f / t.na,
         &kept.y_square[q * ny]);
    for (int d = 0; d < 3; ++d) {
      const float decay = t.decays[4 + d];
      float *x = &kept.x_moment[d][q * nx], *y = &kept.y_moment[d][q * ny];
      float *xr = &kept.x_root[d][q * nx], *yr = &kept.y_root[d][q * ny];
      const float* old_x = t.row_is_x ? t.row[d] : t.col[d];
      const float* old_y = t.row_is_x ? t.col[d] : t.row[d];
      float* new_x = t.row_is_x ? t.new_row[d] : t.new_col[d];
      float* new_y = t.row_is_x ? t.new_col[d] : t.new_row[d];
      for (int64_t i = 0; i < t.na; ++i)
        std::copy_n(old_x + t.x_offset(q, i), t.c, x + i * t.c);
      std::copy_n(old_y + t.y_offset(q), ny, y);
      decayed(decay, &kept.x_square[q * nx], nx, x);
      decayed(decay, &kept.y_square[q * ny], ny, y);
      for (int64_t i = 0; i < t.na; ++i)
        std::copy_n(x + i * t.c, t.c, new_x + t.x_offset(q, i));
      std::copy_n(y, ny, new_y + t.y_offset(q));
      mean_squares(x, nx, w.x_plane() + d, means);
      mean_squares(y, ny, w.y_plane() + d, means);
      roots(x, t.na, t.c, t.row_is_x, kept.mean, xr);
      roots(y, t.nb, t.c, !t.row_is_x, kept.mean, yr);
    }
  }
}

}  // namespace
