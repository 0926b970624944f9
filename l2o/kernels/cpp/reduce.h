// First pass: sums of g^2 over rows and columns.
#pragma once

#include "work.h"

namespace {

constexpr int kNarrow = 4;  // vectors that a narrow matrix is wide, at most

inline float bounded(float x, float bound) {
  if (x != x) return 0;
  return std::min(std::max(x, -bound), bound);
}

// As `reduce`, with all columns in registers.
inline void reduce_narrow(const Work& w, const Chunk& k, float* rows, float* columns) {
  const int64_t n = w.t.width();
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
    const float* g = w.t.g + w.t.offset(k.block, i);
    Vec total = {};
    for (int v = 0; v < kNarrow; ++v) {
      if (v >= whole) break;
      const Vec x = clip(load(g + v * kLanes), w.s.grad_bound), square = x * x + kTiny;
      sums[v] += square;
      total += square;
    }
    if (rest) {
      const Vec x = clip(load(g + whole * kLanes, rest), w.s.grad_bound);
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

// First pass over a chunk: sums of g^2 + 1e-30.
inline void reduce(const Work& w, int64_t number) {
  const Tensor& t = w.t;
  Kept& kept = w.kept;
  const float bound = w.s.grad_bound;
  const Chunk& k = kept.chunks[number];
  const int64_t n = t.width(), c = t.c;
  float* columns = &kept.column_sums[(k.block * kept.row_tiles + k.row_tile) * n];
  const int64_t column_tile = k.block * kept.column_tiles + k.column_tile;
  float* rows = &kept.row_sums[column_tile * t.na * c];
  if (c == 1 && n <= kNarrow * kLanes) return reduce_narrow(w, k, rows, columns);
  std::fill(columns + k.j0, columns + k.j1, 0.0f);
  for (int64_t i = k.i0; i < k.i1; ++i) {
    const float* g = t.g + t.offset(k.block, i);
    if (c > 1) {
      std::fill(rows + i * c, rows + (i + 1) * c, 0.0f);
      for (int64_t j = k.j0; j < k.j1; j += c)
        for (int64_t r = 0; r < c; ++r) {
          const float x = bounded(g[j + r], bound), square = x * x + kTiny;
          columns[j + r] += square;
          rows[i * c + r] += square;
        }
      continue;
    }
    Vec total = {};
    int64_t j = k.j0;
    for (; j + kLanes <= k.j1; j += kLanes) {
      const Vec x = clip(load(g + j), bound), square = x * x + kTiny;
      store(columns + j, load(columns + j) + square);
      total += square;
    }
    if (const int rest = k.j1 - j) {
      const Vec x = clip(load(g + j, rest), bound);
      const Vec square = first(x * x + kTiny, rest);
      store(columns + j, load(columns + j, rest) + square, rest);
      total += square;
    }
    rows[i] = sum(total);
  }
}

}  // namespace
