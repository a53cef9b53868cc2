// Relaxed choices of the k largest, a row at a time. What the operations are, is said in fenchel/kernels/topk.py.
// The k-th score is found by counting: a count is one pass over a row in the cache, and a few of them leave so
// few scores that these are copied out. Then only scores close to it can have a term strictly between 0 and 1.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
using std::int64_t;

constexpr int64_t FEW = 128;     // scores worth copying out
constexpr int COUNTS = 16;       // after which they are copied out anyway
constexpr int STEPS = 200;       // each at least halves a bracket, of which 1100 halves are 0
constexpr double EXACT = 4e-16;  // of the sum, relative to k

struct Line {
  double e() const { return 1; }
  double value(double r) const { return r; }
  double slope(double, double) const { return 1; }
};
struct Cube {
  double e() const { return 3; }
  double value(double r) const { return r * r * r; }
  double slope(double r, double) const { return 3 * r * r; }
};
struct Power {
  double exponent;
  double e() const { return exponent; }
  double value(double r) const { return r > 0 && r < 1 ? std::pow(r, exponent) : r; }
  double slope(double r, double value) const { return exponent * value / r; }
};

static double clip(double r) { return r < 0 ? 0 : r > 1 ? 1 : r; }

template <class Real>
static int64_t count_from(const Real* x, int64_t n, Real level) {
  int64_t count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t i = 0; i < n; ++i) count += x[i] >= level;
  return count;
}

// The k-th largest and the one after it, of scores between `least` and `top` and -inf; `room` has n.
template <class Real>
static void cut(const Real* x, int64_t n, int64_t k, int64_t finite, Real least, Real top, double* room, double& kth,
                double& following) {
  Real low = least, high = top;  // count(x >= low) >= k
  int64_t from_low = finite, from_high = 0;
  bool open = false;  // whether count(x >= high) < k, or `high` is still the top
  for (int i = 0; i < COUNTS && from_low - from_high > FEW; ++i) {
    // By the ranks of the ends, and every third time by halves, for scores that are spread unevenly.
    const double share = i % 3 == 2 ? 0.5 : (double)(from_low - k) / (from_low - from_high);
    const Real level = (Real)(low + (high - low) * std::min(std::max(share, 0.02), 0.98));
    if (!(level > low && level < high)) break;
    const int64_t count = count_from(x, n, level);
    if (count >= k) {
      low = level;
      from_low = count;
    } else {
      high = level;
      from_high = count;
      open = true;
    }
  }
  int64_t size = 0;
  double below = -INFINITY;
  for (int64_t i = 0; i < n; ++i) {
    room[size] = x[i];
    size += x[i] >= low && (x[i] < high || !open);
  }
  const int64_t rank = k - from_high;  // among these, from 1
  std::nth_element(room, room + rank - 1, room + size, std::greater<double>());
  kth = room[rank - 1];
  for (int64_t i = rank; i < size; ++i) below = std::max(below, room[i]);
  if (rank == size)
    for (int64_t i = 0; i < n; ++i) below = x[i] < low ? std::max(below, (double)x[i]) : below;
  following = below;
}

// The root of a falling function in [low, high]: Newton's method that keeps within the bracket. `at` gives the
// function, relative to k, and minus its derivative.
template <class Function>
static double falling_root(double low, double high, double k, Function at) {
  double root = high, step = high - low;
  for (int i = 0; i < STEPS; ++i) {
    double rest, slope;
    at(root, rest, slope);
    (rest >= 0 ? low : high) = root;
    const double newton = root + rest / slope, change = std::fabs(newton - root);
    const bool within = newton >= low && newton <= high;
    if (std::fabs(rest) <= EXACT * k) return within ? newton : root;
    const bool good = within && 2 * change <= step;
    const double next = good ? newton : low + (high - low) / 2;
    if (next == root) break;
    step = good ? change : high - low;
    root = next;
  }
  return root;
}

// The scores at which terms are between 0 and 1 for a root in [low, high], into `room`; returns how many are 1.
template <class At>
static int64_t between(int64_t n, double low, double whole, At at, double* room, int64_t& size) {
  int64_t ones = 0;
  size = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double z = at(i);
    ones += z >= whole;
    room[size] = z;
    size += z > low && z < whole;
  }
  return ones;
}

struct Mask {
  static constexpr double LEAST = -INFINITY;  // that counts as no score

  template <class Real, class Shape>
  static void solve(const Real* x, int64_t n, int64_t k, double kth, double following, double l, Shape shape,
                    double* room, Real* y) {
    const double low = -1, high = (following - kth) / l;
    if (high <= low) {
      for (int64_t i = 0; i < n; ++i) y[i] = x[i] >= kth;
      return;
    }
    auto at = [&](int64_t i) { return (x[i] - kth) / l; };
    int64_t size;
    const int64_t ones = between(n, low, 1 + high, at, room, size);
    const double root = falling_root(low, high, k, [&](double t, double& rest, double& slope) {
      double sum = 0, growth = 0;
#pragma omp simd reduction(+ : sum, growth)
      for (int64_t j = 0; j < size; ++j) {
        const double r = clip(room[j] - t), value = shape.value(r);
        sum += value;
        growth += r > 0 && r < 1 ? shape.slope(r, value) : 0;
      }
      rest = (double)(ones - k) + sum;
      slope = growth;
    });
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = (Real)shape.value(clip(at(i) - root));
  }

  template <class Real>
  static void all(const Real* x, int64_t n, Real* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] > -(Real)INFINITY;
  }
};

struct Magnitude {
  static constexpr double LEAST = 0;

  // All relative to the k-th magnitude, from it where l is weak and from 0 where it is strong.
  template <class Real, class Shape>
  static void solve(const Real* s, int64_t n, int64_t k, double kth, double following, double l, Shape shape,
                    double* room, Real* y) {
    const double strength = l * std::pow(kth, 1 / shape.e() - 1), origin = strength < 1 ? 1 : 0;
    auto at = [&](int64_t i) { return (s[i] - origin * kth) / kth; };
    auto width = [&](double t) { return strength * std::pow(origin + t, 1 / shape.e()); };
    const double high = (following - origin * kth) / kth;
    if (1 - origin - high > width(high)) {
      for (int64_t i = 0; i < n; ++i) y[i] = s[i] >= kth ? (Real)INFINITY : 0;
      return;
    }
    // At the least τ the k-th has a term of 1; one below what rounding is drops nothing.
    const double tiny = std::numeric_limits<Real>::epsilon();
    const double least = std::pow(std::min(1 / (2 * strength), std::pow(0.5, 1 / shape.e())), shape.e());
    const double low = origin ? std::max(least - 1, -strength) : std::max(least, tiny);
    int64_t size;
    const int64_t ones = between(n, origin ? low : std::min(low, tiny), high + width(high), at, room, size);
    auto excess = [&](double t, double& rest, double& slope) {
      const double tau = origin + t, w = width(t);
      double sum = 0, growth = 0;
      int64_t whole = ones;
#pragma omp simd reduction(+ : sum, growth, whole)
      for (int64_t j = 0; j < size; ++j) {
        const double r = clip((room[j] - t) / w), value = shape.value(r);
        const bool inside = r > 0 && r < 1;
        whole += r >= 1;
        sum += inside ? value : 0;
        growth += inside ? shape.slope(r, value) : 0;
      }
      rest = (double)(whole - k) + sum;  // whole numbers first, so that a little above k is not lost in k
      slope = (k - whole) / tau + growth / w;
    };
    double rest, slope;
    if (!origin) excess(tiny, rest, slope);
    if (!origin && rest <= 0) return all(s, n, y);
    const double root = falling_root(low, high, k, excess), w = width(root);
    for (int64_t i = 0; i < n; ++i) {
      const double apart = at(i) - root;
      y[i] = (Real)(apart >= w ? INFINITY : apart > 0 ? kth * apart : 0);
    }
  }

  template <class Real>
  static void all(const Real*, int64_t n, Real* y) {
    std::fill(y, y + n, (Real)INFINITY);
  }
};

// Whether the row has such a choice; `room` has n.
template <class Kind, class Real, class Shape>
static bool choose(const Real* x, int64_t n, int64_t k, double l, Shape shape, double* room, Real* y) {
  Real least = INFINITY, top = -INFINITY;
  int64_t there = 0, odd = 0;
#pragma omp simd reduction(min : least) reduction(max : top) reduction(+ : there, odd)
  for (int64_t i = 0; i < n; ++i) {
    const bool counts = x[i] > (Real)Kind::LEAST;
    there += counts;
    odd += !(x[i] < (Real)INFINITY);
    least = std::min(least, counts ? x[i] : (Real)INFINITY);
    top = std::max(top, x[i]);
  }
  if (odd) return false;
  if (k == 0) {
    std::fill(y, y + n, (Real)0);
  } else if (there <= k) {
    if (there < k && Kind::LEAST < 0) return false;
    Kind::all(x, n, y);
  } else {
    double kth, following;
    cut(x, n, k, there, least, top, room, kth, following);
    Kind::solve(x, n, k, kth, following, l, shape, room, y);
  }
  return true;
}

template <class Kind, class Real, class Shape>
static void rows_of(const Real* x, int64_t stride, const int64_t* k, int64_t k_stride, int64_t rows, int64_t n, double l,
                    Shape shape, Real* y, int64_t* bad) {
  int64_t first = rows;
#pragma omp parallel if (rows > 1) reduction(min : first)
  {
    const std::unique_ptr<double[]> room(new double[n + 1]);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < rows; ++i)
      if (!choose<Kind>(x + i * stride, n, k[i * k_stride], l, shape, room.get(), y + i * n)) first = std::min(first, i);
  }
  *bad = first;
}

#define OPERATION(name, Kind, Real)                                                                             \
  void name(const Real* x, int64_t stride, const int64_t* k, int64_t k_stride, int64_t rows, int64_t n, double l, \
            double e, Real* y, int64_t* bad) {                                                                  \
    if (e == 1)                                                                                                 \
      rows_of<Kind>(x, stride, k, k_stride, rows, n, l, Line{}, y, bad);                                        \
    else if (e == 3)                                                                                            \
      rows_of<Kind>(x, stride, k, k_stride, rows, n, l, Cube{}, y, bad);                                        \
    else                                                                                                        \
      rows_of<Kind>(x, stride, k, k_stride, rows, n, l, Power{e}, y, bad);                                      \
  }

extern "C" {
OPERATION(mask_float32, Mask, float)
OPERATION(mask_float64, Mask, double)
OPERATION(magnitude_float32, Magnitude, float)
OPERATION(magnitude_float64, Magnitude, double)
}
