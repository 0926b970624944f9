// The features of a parameter, called planes, and the constants in them.
#pragma once

#include "simd.h"

namespace {

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

// That of the inverse roots of a plane of moments of rows or columns.
inline int root_plane(int plane) { return plane + kRsqrtRow - kRow; }

constexpr float kTiny = 1e-30f;
constexpr float kFloor = 1e-9f;
constexpr float kHeld = 1e8f;  // see `held` in l2o/rule/_rule.py

L2O_INLINE Vec rsqrt_floored(Vec x) {
  const Vec floor = splat(kFloor);
  return rsqrt(x < floor ? floor : x);
}

}  // namespace
