// Vectors of `real` of the width of this machine, UNROLL of them at a time so that their chains of dependent
// operations overlap, and elementwise functions of scalars and vectors under the same names. `real` is
// defined by the generated head of the file. Functions are exact to a few units in the last place; results
// below 2.5e-38 become 0, since arithmetic on subnormal numbers is slow, and log has no meaning below 0.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>
using std::int32_t;
using std::int64_t;
#define INLINE inline __attribute__((always_inline))
#define EACH for (int k = 0; k < UNROLL; ++k)

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int UNROLL = 4;
constexpr int WIDTH = BYTES / sizeof(real);
constexpr int LANES = WIDTH * UNROLL;
constexpr int64_t SPAN = 1024;  // classes that are summed in single precision
constexpr real INF = std::numeric_limits<real>::infinity();
typedef float floats __attribute__((vector_size(BYTES)));
typedef double doubles __attribute__((vector_size(BYTES)));
typedef int32_t ints __attribute__((vector_size(BYTES)));
typedef int64_t longs __attribute__((vector_size(BYTES)));
using native = std::conditional_t<sizeof(real) == 4, floats, doubles>;
using native_mask = std::conditional_t<sizeof(real) == 4, ints, longs>;

struct mask {
  native_mask v[UNROLL];
};
struct vec {
  native v[UNROLL];
  vec() = default;
  INLINE vec(real x) { EACH v[k] = native{} + x; }
};

#define BINARY(sign)                                                             \
  INLINE vec operator sign(vec a, vec b) { EACH a.v[k] = a.v[k] sign b.v[k]; return a; } \
  INLINE vec operator sign(vec a, real b) { return a sign vec(b); }              \
  INLINE vec operator sign(real a, vec b) { return vec(a) sign b; }
BINARY(+) BINARY(-) BINARY(*) BINARY(/)
#undef BINARY
#define COMPARISON(sign)                                                         \
  INLINE mask operator sign(vec a, vec b) { mask m; EACH m.v[k] = a.v[k] sign b.v[k]; return m; } \
  INLINE mask operator sign(vec a, real b) { return a sign vec(b); }             \
  INLINE mask operator sign(real a, vec b) { return vec(a) sign b; }
COMPARISON(<) COMPARISON(<=) COMPARISON(>) COMPARISON(>=) COMPARISON(==) COMPARISON(!=)
#undef COMPARISON
INLINE vec operator-(vec a) { EACH a.v[k] = -a.v[k]; return a; }
INLINE vec& operator+=(vec& a, vec b) { return a = a + b; }
INLINE mask operator&(mask a, mask b) { EACH a.v[k] &= b.v[k]; return a; }
INLINE mask operator|(mask a, mask b) { EACH a.v[k] |= b.v[k]; return a; }
INLINE mask invert(mask a) { EACH a.v[k] = ~a.v[k]; return a; }
INLINE bool invert(bool a) { return !a; }
INLINE vec select(mask m, vec a, vec b) { EACH a.v[k] = m.v[k] ? a.v[k] : b.v[k]; return a; }
INLINE real select(bool m, real a, real b) { return m ? a : b; }
INLINE vec select(bool m, vec a, vec b) { return m ? a : b; }
INLINE vec maximum(vec a, vec b) { EACH a.v[k] = a.v[k] > b.v[k] ? a.v[k] : b.v[k]; return a; }
INLINE vec minimum(vec a, vec b) { EACH a.v[k] = a.v[k] < b.v[k] ? a.v[k] : b.v[k]; return a; }
INLINE real maximum(real a, real b) { return a > b ? a : b; }
INLINE real minimum(real a, real b) { return a < b ? a : b; }

INLINE vec load(const float* x, int64_t n, float beyond) {
  vec a;
  if (n >= LANES) {
    if constexpr (sizeof(real) == 4) {
      std::memcpy(&a, x, sizeof(a));
    } else {
      EACH for (int i = 0; i < WIDTH; ++i) a.v[k][i] = x[k * WIDTH + i];
    }
  } else {
    a = vec(beyond);
    for (int i = 0; i < n; ++i) a.v[i / WIDTH][i % WIDTH] = x[i];
  }
  return a;
}
INLINE void store(float* x, int64_t n, vec a) {
  if (n >= LANES && sizeof(real) == 4) {
    std::memcpy(x, &a, sizeof(a));
  } else {
    for (int i = 0; i < std::min<int64_t>(n, LANES); ++i) x[i] = a.v[i / WIDTH][i % WIDTH];
  }
}
INLINE double total(vec a) {
  native both = a.v[0];
  for (int k = 1; k < UNROLL; ++k) both += a.v[k];
  double sum = 0;
  for (int i = 0; i < WIDTH; ++i) sum += both[i];
  return sum;
}

namespace f {  // apart from the functions of the same names in the global namespace
INLINE real exp(real x) { return std::exp(x); }
INLINE real expm1(real x) { return std::expm1(x); }
INLINE real log(real x) { return std::log(x); }
INLINE real log1p(real x) { return std::log1p(x); }
INLINE real sqrt(real x) { return std::sqrt(x); }
INLINE real abs(real x) { return std::fabs(x); }
INLINE bool isfinite(real x) { return std::isfinite(x); }
INLINE real pow(real x, real y) { return std::pow(x, y); }

INLINE vec abs(vec x) { return maximum(x, -x); }
INLINE mask isfinite(vec x) { return abs(x) < INF; }
INLINE native sqrt_of(native x) {
  for (int i = 0; i < WIDTH; ++i) x[i] = std::sqrt(x[i]);
  return x;
}
INLINE vec sqrt(vec x) { EACH x.v[k] = sqrt_of(x.v[k]); return x; }

// Cephes' polynomials; |r| <= ln 2 / 2, and n whole.
struct Reduced {
  floats expm1;
  ints n;
};
INLINE Reduced reduce(floats x) {
  const floats shifted = x * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
  const floats r = whole * 1.90465430e-9f + (whole * -0.693147182f + x);
  floats p = r * 1.98756915e-4f + 1.39819995e-3f;
  p = p * r + 8.33345205e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666657e-1f;
  p = p * r + 5.00000000e-1f;
  return {p * (r * r) + r, (ints)shifted - 0x4B400000};
}
INLINE floats power_of_two(ints n) { return (floats)((n + 127) << 23); }
INLINE floats exp_of(floats x) {
  const floats most = x > 88.8f ? floats{} + 88.8f : x;
  const Reduced a = reduce(most < -86.6f ? floats{} - 86.6f : most);
  const floats value = (a.expm1 + 1.0f) * power_of_two(a.n - 1) * 2.0f;
  return x < -86.6f ? floats{} : value;
}
INLINE floats expm1_of(floats x) {
  const floats most = x > 88.8f ? floats{} + 88.8f : x;
  const Reduced a = reduce(most < -86.6f ? floats{} - 86.6f : most);
  const floats half = power_of_two(a.n - 1);
  const floats large = (a.expm1 + 1.0f) * half * 2.0f - 1.0f;  // 2^128 is not a float, e^88.7 is
  return a.n > 64 ? large : half * a.expm1 * 2.0f + (half * 2.0f - 1.0f);
}
INLINE floats log_of(floats x) {
  const ints small = x < 1.17549435e-38f;
  const floats y = small ? x * 8388608.0f : x;
  const ints i = (ints)y - 0x3F3504F3;  // the mantissa in [sqrt ½, sqrt 2)
  const floats e = __builtin_convertvector(i >> 23, floats) - (small ? floats{} + 23.0f : floats{});
  const floats m = (floats)((i & 0x007FFFFF) + 0x3F3504F3) - 1.0f, m2 = m * m;
  floats p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  floats r = e * 0.693359375f + (m + (m2 * -0.5f + (e * -2.12194440e-4f + p * m * m2)));
  r = x > 3.4028235e38f ? x : r;
  return x == 0.0f ? floats{} - INFINITY : r;
}
INLINE floats log1p_of(floats x) {  // Kahan: the error of 1 + x cancels in the quotient
  const floats u = 1.0f + x, d = u - 1.0f, l = log_of(u);
  const floats r = d == 0.0f ? x : l * (x / d);
  return x > 1e30f ? l : r;
}
#define FUNCTION(name)                                                       \
  INLINE doubles name##_of(doubles x) {                                      \
    for (int i = 0; i < BYTES / 8; ++i) x[i] = std::name(x[i]);              \
    return x;                                                                \
  }                                                                          \
  INLINE vec name(vec x) { EACH x.v[k] = name##_of(x.v[k]); return x; }
FUNCTION(exp) FUNCTION(expm1) FUNCTION(log) FUNCTION(log1p)
#undef FUNCTION
INLINE vec pow(vec x, real y) { return exp(y * log(x)); }
INLINE vec pow(real x, vec y) { return exp(y * log(x)); }
INLINE vec pow(vec x, vec y) { return exp(y * log(x)); }
}  // namespace f
