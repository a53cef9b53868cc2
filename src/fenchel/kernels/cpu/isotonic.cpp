// Isotonic problems, a row at a time: pool adjacent violators in linear time, in double precision. What the
// kinds are is said in fenchel/kernels/isotonic.py. A block keeps the few numbers that merge; whether it lies
// above a level is known from these, and only a block that stays is solved for its value.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
using std::int64_t;

// The real root of u³ + p u + q = 0 with p >= 0: Cardano's, without a difference.
static double depressed_root(double p, double q) {
  double third = p / 3, half = std::fabs(q) / 2, unit = 1;
  const double size = std::max(third, half);
  if (size == 0) return 0;
  if (size > 1e90 || size < 1e-90) {  // in units in which the larger of the two is one
    unit = std::max(std::sqrt(third), std::cbrt(half));
    third /= unit * unit;
    half /= unit * unit * unit;
  }
  const double t = std::cbrt(half + std::sqrt(half * half + third * third * third)), w = third / t;
  return std::copysign(unit * (2 * half / (t * t + third + w * w)), -q);
}

struct Mean {
  static constexpr double A = 1;  // where a is not given
  double sum, weight, value;
  Mean() = default;
  Mean(double s, double a, double) : sum(a * s), weight(a), value(s) {}
  bool above(double level) const { return sum > level * weight; }
  void absorb(const Mean& x) {
    sum += x.sum;
    weight += x.weight;
  }
  void solve() { value = sum / weight; }
  // What rounding left of the value, from the entries of the block.
  template <class Entries>
  double rest(const Entries& entry, int64_t begin, int64_t end) const {
    double left = 0, mass = 0;
    for (int64_t i = begin; i < end; ++i) {
      const double a = entry.a(i, A);
      left += a * (entry.s(i) - value);
      mass += a;
    }
    return left / mass;
  }
};

struct Cubic {
  static constexpr double A = 0;
  double count = 1, mean, second = 0, third = 0, a, b, value;  // central moments, and the sums of a and b
  Cubic() = default;
  Cubic(double s, double a_, double b_) : mean(s), a(a_), b(b_) {}
  double slope() const { return 3 * second + b; }
  double constant() const { return a + mean * b - third; }
  bool above(double level) const {
    const double u = level - mean;
    return (count * u * u + slope()) * u + constant() < 0;
  }
  void absorb(const Cubic& x) {
    const double total = count + x.count, apart = x.mean - mean, share = x.count / total;
    third += x.third + apart * (apart * apart * count * share * (count - x.count) / total +
                                3 * (count * x.second - x.count * second) / total);
    second += x.second + apart * apart * count * share;
    mean += apart * share;
    count = total;
    a += x.a;
    b += x.b;
  }
  void solve() { value = mean + depressed_root(slope() / count, constant() / count); }
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
  Entropic() = default;
  Entropic(double s, double a, double) : top_s(s), top_a(a) {}
  bool above(double level) const { return mass_s > mass_a * std::exp(level - (top_s - top_a)); }
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
  }
  void solve() { value = (top_s - top_a) + std::log(mass_s / mass_a); }
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

template <class Kind>
struct Block {
  Kind kind;
  int64_t begin;
};

// `blocks` has room for n.
template <class Kind, class Real>
static void solve(const Problem<Real>& entry, int64_t n, Block<Kind>* blocks, Real* v, int64_t* number) {
  int64_t size = 0;
  double level = INFINITY;  // of the last block
  for (int64_t i = 0; i < n; ++i) {
    Kind last(entry.s(i), entry.a(i, Kind::A), entry.b(i));
    int64_t begin = i;
    while (size && last.above(level)) {
      --size;
      last.absorb(blocks[size].kind);
      begin = blocks[size].begin;
      level = size ? blocks[size - 1].kind.value : INFINITY;
    }
    last.solve();
    level = last.value;
    blocks[size++] = {last, begin};
  }
  double least = INFINITY;
  for (int64_t k = 0; k < size; ++k) {
    const int64_t begin = blocks[k].begin, end = k + 1 < size ? blocks[k + 1].begin : n;
    const Kind& kind = blocks[k].kind;
    // Neighbours may be in the wrong order by their rounding.
    least = std::min(least, end - begin > 1 ? kind.value + kind.rest(entry, begin, end) : kind.value);
    std::fill(v + begin, v + end, (Real)least);
    std::fill(number + begin, number + end, k);
  }
}

template <class Kind, class Real>
static void solve_rows(const Real* s, int64_t s_stride, const Real* a, int64_t a_stride, const Real* b,
                       int64_t b_stride, int64_t rows, int64_t n, Real* v, int64_t* number) {
#pragma omp parallel if (rows > 1)
  {
    const std::unique_ptr<Block<Kind>[]> blocks(new Block<Kind>[n]);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < rows; ++i) {
      const Problem<Real> entry{s + i * s_stride, a ? a + i * a_stride : nullptr, b ? b + i * b_stride : nullptr};
      solve(entry, n, blocks.get(), v + i * n, number + i * n);
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
