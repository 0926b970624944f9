// Vectors of float for the instruction set that this file is compiled for, and what
// loops over them need.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define L2O_INLINE inline __attribute__((always_inline))
#define L2O_LAMBDA __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

L2O_INLINE Vec splat(float x) { return x - Vec{}; }

L2O_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

L2O_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

#if defined(__AVX512F__)
L2O_INLINE __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
#elif defined(__AVX2__)
L2O_INLINE __m256i mask(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
#endif

// The first n < kLanes; the others are zero.
L2O_INLINE Vec load(const float* p, int n) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(mask(n), p);
#elif defined(__AVX2__)
  return (Vec)_mm256_maskload_ps(p, mask(n));
#else
  Vec v = {};
  std::memcpy(&v, p, 4 * n);
  return v;
#endif
}

L2O_INLINE void store(float* p, Vec v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, mask(n), (__m512)v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, mask(n), (__m256)v);
#else
  std::memcpy(p, &v, 4 * n);
#endif
}

// x with zeros from lane n on.
L2O_INLINE Vec first(Vec x, int n) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_mov_ps(mask(n), (__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_and_ps((__m256)x, _mm256_castsi256_ps(mask(n)));
#else
  Vec v = {};
  std::memcpy(&v, &x, 4 * n);
  return v;
#endif
}

// As these, for n <= kLanes.
L2O_INLINE Vec load_some(const float* p, int n) {
#if defined(__AVX512F__)
  return load(p, n);
#else
  return n == kLanes ? load(p) : load(p, n);
#endif
}
L2O_INLINE void store_some(float* p, Vec v, int n) {
  n == kLanes ? store(p, v) : store(p, v, n);
}
L2O_INLINE Vec first_some(Vec x, int n) { return n == kLanes ? x : first(x, n); }

// max(x, 0), and NaN stays NaN.
L2O_INLINE Vec relu(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x);
#else
  return x < 0 ? Vec{} : x;
#endif
}

// x cut to [-bound, bound], and zero for NaN.
L2O_INLINE Vec clip(Vec x, float bound) {
#if defined(__AVX512F__)
  const __mmask16 number = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_ORD_Q);
  const __m512 low = _mm512_max_ps(_mm512_set1_ps(-bound), (__m512)x);
  return (Vec)_mm512_maskz_min_ps(number, _mm512_set1_ps(bound), low);
#elif defined(__AVX2__)
  const __m256 number = _mm256_cmp_ps((__m256)x, (__m256)x, _CMP_ORD_Q);
  const __m256 low = _mm256_max_ps(_mm256_set1_ps(-bound), (__m256)x);
  return (Vec)_mm256_and_ps(_mm256_min_ps(_mm256_set1_ps(bound), low), number);
#else
  x = x == x ? x : Vec{};
  x = x < -bound ? splat(-bound) : x;
  return x > bound ? splat(bound) : x;
#endif
}

// x, and zero where (factor m)^2 <= v; x if the factor is infinite.
L2O_INLINE Vec unless_held(Vec x, Vec m, Vec v, float factor) {
  const Vec size = m * factor;
#if defined(__AVX512F__)
  const __m512 square = (__m512)(size * size);
  return (Vec)_mm512_maskz_mov_ps(
      _mm512_cmp_ps_mask(square, (__m512)v, _CMP_NLE_UQ), (__m512)x);
#elif defined(__AVX2__)
  const __m256 square = (__m256)(size * size);
  return (Vec)_mm256_and_ps((__m256)x,
                            _mm256_cmp_ps(square, (__m256)v, _CMP_NLE_UQ));
#else
  return size * size <= v ? Vec{} : x;
#endif
}

L2O_INLINE Vec square_root(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// x^-1/2, for 0 and infinity too.
L2O_INLINE Vec rsqrt(Vec x) {
#if defined(__AVX512F__)
  // 14 bits, one step of Newton's for 1/y^2 - x; where that is 0 * infinity, the
  // estimate is exact.
  __m512 y = _mm512_rsqrt14_ps((__m512)x);
  __m512 half = _mm512_mul_ps(_mm512_set1_ps(0.5f), y);
  __m512 xy = _mm512_mul_ps((__m512)x, y);
  __m512 error = _mm512_fnmadd_ps(xy, y, _mm512_set1_ps(1.0f));
  __m512 better = _mm512_fmadd_ps(half, error, y);
  __mmask16 edge = _mm512_fpclass_ps_mask((__m512)x, 0x0e);  // +-0, +infinity
  return (Vec)_mm512_mask_mov_ps(better, edge, y);
#else
  return 1.0f / square_root(x);
#endif
}

L2O_INLINE bool all_within(Vec x, float bound) {
#if defined(__AVX512F__)
  const __m512 size = _mm512_abs_ps((__m512)x);
  return _mm512_cmp_ps_mask(size, _mm512_set1_ps(bound), _CMP_NLE_UQ) == 0;
#elif defined(__AVX2__)
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), (__m256)x);
  const __m256 out = _mm256_cmp_ps(size, _mm256_set1_ps(bound), _CMP_NLE_UQ);
  return _mm256_movemask_ps(out) == 0;
#else
  for (int i = 0; i < kLanes; ++i)
    if (!(x[i] >= -bound && x[i] <= bound)) return false;
  return true;
#endif
}

// exp(r) for |r| <= log(2) / 2, within two units in the last place.
L2O_INLINE Vec small_exponential(Vec r) {
  Vec p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  return p * r + 1.0f;
}

// exp(-87) below -87, infinity above 88; NaN stays NaN.
L2O_INLINE Vec exponential(Vec x) {
  if (__builtin_expect(all_within(x, 0.34f), 1)) return small_exponential(x);
  const Vec low = splat(-87.0f), high = splat(88.8f);
  Vec y = x < low ? low : x;
  y = y > high ? high : y;
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: rounds to an integer
  const Vec shifted = y * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  // 2^n in two factors: n may be 128.
  Ints exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent = exponent - 0x4b400000;
  const Ints half = exponent >> 1;
  const Ints one = (half + 127) << 23, two = (exponent - half + 127) << 23;
  Vec a, b;
  std::memcpy(&a, &one, sizeof a);
  std::memcpy(&b, &two, sizeof b);
  return small_exponential(r) * a * b;
}

L2O_INLINE float sum(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
#endif
}

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

// Arguments that are known when a lambda is compiled.
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

}  // namespace
