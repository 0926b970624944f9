// An update in progress: how its tensor is cut, and what is kept between the passes.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "planes.h"
#include "tensor.h"

namespace {

// A piece of a tensor: rows i0 .. i1 and columns j0 .. j1 of one block.
struct Chunk {
  int64_t block, i0, i1, j0, j1;
  int64_t row_tile, column_tile;  // numbers of this piece within its block
};

constexpr int64_t kChunk = 32768;  // elements, about
constexpr int64_t kTile = 2048;    // columns, about
constexpr int64_t kAhead = 512;    // elements between what is prefetched and used

// What is kept of a tensor between the passes; reused, because allocating it takes as
// long as the update of a small tensor.
struct Kept {
  std::vector<Chunk> chunks;
  int64_t row_tiles, column_tiles;
  std::vector<float> row_sums, column_sums;  // of g^2, per tile
  std::vector<float> x_square, y_square;     // means of g^2, per block
  // Per block: moments, and factors of fac_g and fac_m. Those of the axis of Na are
  // (.., Na, C), those of the other (.., Nb, C).
  std::vector<float> x_moment[3], y_moment[3], x_root[3], y_root[3];
  std::vector<float> mean;
  std::vector<double> sums;       // per chunk and plane
  std::vector<double> row_means;  // per block and plane from kRow to kFacM
  float scale[kPlanes];           // of the features
  double p_square;
  std::vector<double> step_squares, step_counts;  // per chunk
  float step_square;
};

struct Work {
  const Tensor t;
  const Settings s;
  const int flags;
  Kept& kept;

  bool clips() const { return flags & kClipped; }  // else no clip_g and g_norm
  bool finishes() const { return flags & kNormalizeStep; }
  // Whether second moments are among the features.
  bool moments() const { return t.factored || (flags & kVectorMoments); }
  // Whether w0 has such a row, and whether the tensor has such a feature.
  bool known(int f) const { return clips() || (f != kClipG && f != kGNorm); }
  bool present(int f) const { return known(f) && (moments() || f < kRow); }
  // The first plane of the moments of the axis of Na, and of the other's.
  int x_plane() const { return t.row_is_x ? kRow : kCol; }
  int y_plane() const { return t.row_is_x ? kCol : kRow; }
  // The factor for `unless_held`.
  float held_factor() const { return flags & kHolds ? kHeld : INFINITY; }
};

// Cuts the tensor, by its shape alone.
inline void plan(const Work& w) {
  const Tensor& t = w.t;
  Kept& kept = w.kept;
  kept.chunks.clear();
  const int64_t n = t.width();
  const int64_t tile = std::min(n, std::max<int64_t>(kTile / t.c, 1) * t.c);
  const int64_t rows = std::max<int64_t>(kChunk / tile, 1);
  kept.column_tiles = (n + tile - 1) / tile;
  kept.row_tiles = (t.na + rows - 1) / rows;
  for (int64_t q = 0; q < t.blocks(); ++q)
    for (int64_t i = 0; i < kept.row_tiles; ++i)
      for (int64_t j = 0; j < kept.column_tiles; ++j)
        kept.chunks.push_back({q, i * rows, std::min(t.na, (i + 1) * rows), j * tile,
                               std::min(n, (j + 1) * tile), i, j});
  const int64_t chunks = kept.chunks.size();
  kept.sums.assign(chunks * kPlanes, 0.0);
  kept.step_squares.assign(chunks, 0.0);
  kept.step_counts.assign(chunks, 0.0);
  if (t.factored) {
    kept.row_sums.resize(t.blocks() * kept.column_tiles * t.na * t.c);
    kept.column_sums.resize(t.blocks() * kept.row_tiles * n);
  }
}

// Repeats the c values of a row along n columns, for each of `count` arrays.
inline void expand(const std::vector<float>* from, int count, int64_t at, int64_t n,
                   int64_t c, std::vector<float>& to) {
  to.resize(count * n);
  for (int d = 0; d < count; ++d)
    for (int64_t j = 0; j < n; ++j) to[d * n + j] = from[d][at + j % c];
}

}  // namespace
