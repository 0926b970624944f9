// Mean and variance of arrays.
#pragma once

#include <cstdint>

#include "simd.h"

namespace {

// Of some numbers: how many, their mean, and the sum of squared distances from it.
struct Spread {
  double count = 0, mean = 0, squares = 0;

  void add(const Spread& other) {
    const double total = count + other.count, step = other.mean - mean;
    mean += step * other.count / total;
    squares += other.squares + step * step * count * other.count / total;
    count = total;
  }
};

constexpr int64_t kBlock = 4096;  // elements that stay in the first cache

// Distances are from the mean of each block, so that nothing cancels.
inline Spread spread(const float* x, int64_t n) {
  Spread all;
  for (int64_t start = 0; start < n; start += kBlock, x += kBlock) {
    const int64_t size = n - start < kBlock ? n - start : kBlock;
    Vec sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= size; i += 4 * kLanes)
      for (int k = 0; k < 4; ++k) sums[k] += load(x + i + k * kLanes);
    for (; i < size; i += kLanes) {
      const int count = size - i < kLanes ? size - i : kLanes;
      sums[0] += load_some(x + i, count);
    }
    const float mean = sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / size;
    Vec squares[4] = {};
    for (i = 0; i + 4 * kLanes <= size; i += 4 * kLanes)
      for (int k = 0; k < 4; ++k) {
        const Vec d = load(x + i + k * kLanes) - mean;
        squares[k] += d * d;
      }
    for (; i < size; i += kLanes) {
      const int count = size - i < kLanes ? size - i : kLanes;
      const Vec d = first_some(load_some(x + i, count) - mean, count);
      squares[0] += d * d;
    }
    Spread block;
    block.count = size;
    block.mean = mean;
    block.squares = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    all.add(block);
  }
  return all;
}

}  // namespace
