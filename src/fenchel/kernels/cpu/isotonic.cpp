// Isotonic problems, a row at a time: pool adjacent violators in linear time, in double precision. What the
// kinds are is said in fenchel/kernels/isotonic.py. A block keeps the few numbers that merge.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>
using std::int64_t;

// The real root of u³ + p u + q = 0 with p >= 0, without a difference.
static double depressed_root(double p, double q) {
  const double third = p / 3, half = std::fabs(q) / 2;
  const double unit = std::max(std::sqrt(third), std::cbrt(half));
  if (unit == 0) return 0;
  const double x = third / (unit * unit), h = half / (unit * unit * unit);
  const double t = std::cbrt(h + std::sqrt(h * h + x * x * x)), w = x / t;
  return std::copysign(unit * (2 * h / (t * t + x + w * w)), -q);
}

struct Mean {
  static constexpr double A = 1;  // where a is not given
  double weight, value;
  Mean(double s, double a, double) : weight(a), value(s) {}
  void absorb(const Mean& x) {
    weight += x.weight;
    value += (x.value - value) * (x.weight / weight);
  }
  // What rounding left of the value, from the entries of the block.
  template <class Entries>
  double rest(const Entries& entry, int64_t begin, int64_t end) const {
    double sum = 0, mass = 0;
    for (int64_t i = begin; i < end; ++i) {
      const double a = entry.a(i, A);
      sum += a * (entry.s(i) - value);
      mass += a;
    }
    return sum / mass;
  }
};

struct Cubic {
  static constexpr double A = 0;
  double count = 1, mean, second = 0, third = 0, a, b, value;  // central moments, and the sums of a and b
  Cubic(double s, double a_, double b_) : mean(s), a(a_), b(b_) { solve(); }
  void solve() {
    value = mean + depressed_root((3 * second + b) / count, (a + mean * b - third) / count);
  }
  void absorb(const Cubic& x) {
    const double total = count + x.count, apart = x.mean - mean, share = x.count / total;
    third += x.third + apart * apart * apart * count * share * (count - x.count) / total +
             3 * apart * (count * x.second - x.count * second) / total;
    second += x.second + apart * apart * count * share;
    mean += apart * share;
    count = total;
    a += x.a;
    b += x.b;
    solve();
  }
  template <class Entries>
  double rest(const Entries& entry, int64_t begin, int64_t end) const {
    double residual = 0, slope = 0;
    for (int64_t i = begin; i < end; ++i) {
      const double apart = entry.s(i) - value, a = entry.a(i, A), b = entry.b(i);
      residual += apart * apart * apart - a - value * b;
      slope += 3 * apart * apart + b;
    }
    return slope > 0 ? residual / slope : 0;
  }
};

struct Entropic {
  static constexpr double A = 0;
  double top_s, mass_s = 1, top_a, mass_a = 1, value;
  Entropic(double s, double a, double) : top_s(s), top_a(a), value(s - a) {}
  static void add(double& top, double& mass, double other, double more) {
    if (other > top) {
      mass = mass * std::exp(top - other) + more;
      top = other;
    } else {
      mass += more * std::exp(other - top);
    }
  }
  void absorb(const Entropic& x) {
    add(top_s, mass_s, x.top_s, x.mass_s);
    add(top_a, mass_a, x.top_a, x.mass_a);
    value = (top_s - top_a) + std::log(mass_s / mass_a);
  }
  template <class Entries>
  double rest(const Entries&, int64_t, int64_t) const {
    return 0;
  }
};

template <class Real>
struct Problem {
  const Real *s_, *a_, *b_;
  double s(int64_t i) const { return s_[i]; }
  double a(int64_t i, double otherwise) const { return a_ ? a_[i] : otherwise; }
  double b(int64_t i) const { return b_ ? b_[i] : 0; }
};

template <class Kind, class Real>
static void solve(const Problem<Real>& entry, int64_t n, std::vector<Kind>& block, std::vector<int64_t>& start,
                  Real* v, int64_t* number) {
  block.clear();
  start.clear();
  for (int64_t i = 0; i < n; ++i) {
    block.emplace_back(entry.s(i), entry.a(i, Kind::A), entry.b(i));
    start.push_back(i);
    while (block.size() > 1 && block[block.size() - 2].value < block.back().value) {
      block[block.size() - 2].absorb(block.back());
      block.pop_back();
      start.pop_back();
    }
  }
  const int64_t blocks = block.size();
  start.push_back(n);
  double least = INFINITY;
  for (int64_t k = 0; k < blocks; ++k) {
    const double value = block[k].value + block[k].rest(entry, start[k], start[k + 1]);
    least = std::min(least, value);  // neighbours may be in the wrong order by their rounding
    std::fill(v + start[k], v + start[k + 1], (Real)least);
    std::fill(number + start[k], number + start[k + 1], k);
  }
}

template <class Kind, class Real>
static void solve_rows(const Real* s, int64_t s_stride, const Real* a, int64_t a_stride, const Real* b,
                       int64_t b_stride, int64_t rows, int64_t n, Real* v, int64_t* number) {
#pragma omp parallel if (rows > 1)
  {
    std::vector<Kind> block;
    std::vector<int64_t> start;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < rows; ++i) {
      const Problem<Real> entry{s + i * s_stride, a ? a + i * a_stride : nullptr, b ? b + i * b_stride : nullptr};
      solve(entry, n, block, start, v + i * n, number + i * n);
    }
  }
}

#define OPERATION(name, Kind, Real)                                                                       \
  void name(const Real* s, int64_t s_stride, const Real* a, int64_t a_stride, const Real* b,              \
            int64_t b_stride, int64_t rows, int64_t n, Real* v, int64_t* number) {                        \
    solve_rows<Kind>(s, s_stride, a, a_stride, b, b_stride, rows, n, v, number);                          \
  }

extern "C" {
OPERATION(mean_float32, Mean, float)
OPERATION(mean_float64, Mean, double)
OPERATION(cubic_float32, Cubic, float)
OPERATION(cubic_float64, Cubic, double)
OPERATION(entropic_float32, Entropic, float)
OPERATION(entropic_float64, Entropic, double)
}
