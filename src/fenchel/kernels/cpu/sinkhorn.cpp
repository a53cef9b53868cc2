// Sinkhorn's scaling, with one pass over the kernel for each update: a row's sum with t, its s, and its share
// of the sums of the columns with s. What the operation is, is said in fenchel/kernels/sinkhorn.py.
#include <cstdint>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
using std::int64_t;

template <class Real>
struct Problem {
  const Real *kernel, *a, *b, *spare_a, *spare_b;
  Real *s, *t, *reached;
  int64_t m, n;
};

template <class Real>
static Real dot(const Real* x, const Real* y, int64_t n) {
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j] * y[j];
  return sum;
}

// The sums of the columns with s, of the rows [begin, end), whose s is found on the way.
template <class Real>
static void rows(const Problem<Real>& p, int64_t begin, int64_t end, Real* columns) {
  for (int64_t j = 0; j < p.n; ++j) columns[j] = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Real* row = p.kernel + i * p.n;
    const Real s = p.a[i] / (p.spare_a[i] + dot(row, p.t, p.n));
    p.s[i] = s;
#pragma omp simd
    for (int64_t j = 0; j < p.n; ++j) columns[j] += s * row[j];
  }
}

template <class Real>
static void solve(const Problem<Real>& p, int64_t updates, int threads) {
  std::vector<std::vector<Real>> columns(threads, std::vector<Real>(p.n));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#ifdef _OPENMP
    const int me = omp_get_thread_num(), all = omp_get_num_threads();
#else
    const int me = 0, all = 1;
#endif
    const int64_t begin = p.m * me / all, end = p.m * (me + 1) / all;
    for (int64_t u = 0; u < updates; ++u) {
      rows(p, begin, end, columns[me].data());
#pragma omp barrier
      for (int64_t j = p.n * me / all; j < p.n * (me + 1) / all; ++j) {
        Real sum = p.spare_b[j];
        for (int other = 0; other < all; ++other) sum += columns[other][j];
        p.t[j] = p.b[j] / sum;
      }
#pragma omp barrier
    }
    for (int64_t i = begin; i < end; ++i) p.reached[i] = p.spare_a[i] + dot(p.kernel + i * p.n, p.t, p.n);
  }
}

template <class Real>
static void solve_all(const Problem<Real>& first, int64_t problems, int64_t updates) {
#ifdef _OPENMP
  const int all = omp_get_max_threads();
#else
  const int all = 1;
#endif
  const int64_t m = first.m, n = first.n;
  auto at = [&](int64_t i) {
    return Problem<Real>{first.kernel + i * m * n, first.a + i * m,       first.b + i * n, first.spare_a + i * m,
                         first.spare_b + i * n,    first.s + i * m,       first.t + i * n, first.reached + i * m,
                         m,                        n};
  };
  if (problems == 1) {  // threads share a problem only where it is large
    solve(at(0), updates, m * n < (1 << 18) ? 1 : all);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < problems; ++i) solve(at(i), updates, 1);
}

#define OPERATION(name, Real)                                                                                 \
  void name(const Real* kernel, const Real* a, const Real* b, const Real* spare_a, const Real* spare_b,       \
            Real* s, Real* t, Real* reached, int64_t problems, int64_t m, int64_t n, int64_t updates) {       \
    solve_all<Real>({kernel, a, b, spare_a, spare_b, s, t, reached, m, n}, problems, updates);                \
  }

extern "C" {
OPERATION(sinkhorn_float32, float)
OPERATION(sinkhorn_float64, double)
}
