// The kernels of one record. The generated head defines real, KAPPA, SPARSE, CLOSED (the
// root is 1 / Σ at U = 1), KEEP (the elasticity costs more than memory), DERIVATIVE_AT_ZERO and the functions of
// the record: derivative, elasticity, bend, conjugate_of_ratio, and Shift, whose parts that depend on U alone
// are computed once a row.
//
// A row is read from memory once; what follows finds it in the cache. The unknown is U = p / q of the top
// class, found by Newton's method in the coordinate (U^κ - 1) / κ as in kernels/eager.py. What makes it cheap:
//   - sparse records: U can only fall, and every U above the root bounds the support. Once the classes above
//     that bound are few they are copied together, and nothing else is looked at again;
//   - otherwise the first iterations are made on a sample: the blocks with the highest maxima, and every
//     16th of the rest. Two evaluations of the whole row then are enough.

constexpr int64_t BLOCK = 64;     // classes that share a maximum
constexpr int64_t SAMPLE = 8192;  // rows at least so long are sampled
constexpr int64_t HEAD_BLOCKS = 32, STRIDE = 16;
// |1 - Σp| from which one step of third order on p itself is exact in float32. Not so where the support may
// still change: u = (U^κ - κ gap)^(1/κ) has a kink there, the sharper the larger κ.
constexpr double SETTLED = SPARSE && KAPPA > 0.25 ? 1e-5 : 1e-2, SETTLED_COMPACT = 2e-6;
constexpr double FAR = 2e-2;  // and how much that step may change the top class, relative to itself
constexpr real TINY = 1e-25;  // below, second derivatives might overflow; they do not matter there
constexpr int MOST_STEPS = 80, CHANCES = KAPPA > 1 ? 0 : 10;

enum Status : int32_t { FINE = 0, BAD = 1 };

struct Sums {  // Σp and its derivatives in the score of the top class, the third to what powers of u have
  double mass = 0, weight = 0, second = 0, third = 0;
};
struct Scratch {
  std::vector<float> maxima, sorted, x, q, p, w, dense;
  std::vector<int32_t> index;
};
struct Row {
  const float* x;
  const float* q;  // null: the unit measure
  int64_t n;
  float top;
};
struct Root {
  real ratio, rest;  // U, and what the last Newton step adds to log p, in units of the elasticity
  bool compact;      // the support lies in scratch.index
  int64_t count;     // of candidates
  double v_top() const { return (double)derivative(ratio) + (double)rest; }
};

// With STORE also p, and where KEEP p times the elasticity, which the last step needs.
template <bool Q, bool STORE>
static Sums evaluate(const Row& row, real ratio, float* p, float* kept) {
  const Shift shift(ratio);
  Sums sums;
  for (int64_t start = 0; start < row.n; start += SPAN) {
    const int64_t end = std::min(row.n, start + SPAN);
    vec mass = real(0), weight = real(0), second = real(0), third = real(0), u, e;
    for (int64_t j = start; j < end; j += LANES) {
      shift(real(row.top) - load(row.x + j, end - j, -INFINITY), u, e);
      const vec part = Q ? load(row.q + j, end - j, 1) * u : u;
      const vec w = select(u > 0, part * e, 0);
      mass += part;
      weight += w;
      if (STORE) {
        const mask large = u > TINY;
        const vec b = bend(select(large, u, 1), select(large, e, 1)), wb = w * b;
        second += wb;
        third += select(large, wb * (real(2) * b - e), 0);
        store(p + j, end - j, part);
        if (KEEP) store(kept + j, end - j, w);
      }
    }
    sums.mass += total(mass);
    sums.weight += total(weight);
    sums.second += total(second);
    sums.third += total(third);
  }
  return sums;
}

// The d with mass + weight d + second d² / 2 + third d³ / 6 = 1.
static double last_step(Sums s) {
  double d = (1 - s.mass) / s.weight;
  for (int i = 0; i < 4; ++i) {
    const double value = s.mass - 1 + d * (s.weight + d * (s.second / 2 + d * s.third / 6));
    d -= value / (s.weight + d * (s.second + d * s.third / 2));
  }
  return d;
}

struct Newton {
  double low, high, ratio;
  int steps = 0;

  void step(Sums sums) {
    const double slope = sums.weight / (sums.mass * (double)elasticity((real)ratio));
    const double log_mass = std::log(sums.mass);
    double factor;
    if (KAPPA == 0)
      factor = std::exp(-log_mass / slope);
    else
      factor = std::exp(std::log1p(std::expm1(-KAPPA * log_mass) / slope) / KAPPA);
    if (sums.mass <= 1) low = std::max(low, ratio);
    if (sums.mass >= 1) high = std::min(high, ratio);
    const double moved = ratio * factor;
    const bool bisect = steps % 2 && steps > CHANCES;
    const bool inside = !bisect && (moved == ratio || (moved > low && moved < high));
    ratio = (double)(real)(inside ? moved : std::sqrt(low * high));
    ++steps;
  }
};

static Status find_maxima(Row& row, Scratch& scratch) {
  const int64_t blocks = (row.n + BLOCK - 1) / BLOCK;
  scratch.maxima.resize(blocks);
  row.top = -INFINITY;
  constexpr int wide = BYTES / 4;
  ints fine = ints{} - 1;
  bool bad = false;
  for (int64_t b = 0; b < blocks; ++b) {
    const float* x = row.x + b * BLOCK;
    const int64_t n = std::min(BLOCK, row.n - b * BLOCK);
    float most = -INFINITY;
    if (n == BLOCK) {
      floats high = floats{} - INFINITY, part;
      for (int j = 0; j < BLOCK; j += wide) {
        std::memcpy(&part, x + j, sizeof(part));
        high = part > high ? part : high;
        fine &= part < INFINITY;  // false for NaN
      }
      for (int i = 0; i < wide; ++i) most = std::max(most, high[i]);
    } else {
      for (int64_t j = 0; j < n; ++j) {
        most = std::max(most, x[j]);
        bad |= !(x[j] < INFINITY);
      }
    }
    scratch.maxima[b] = most;
    row.top = std::max(row.top, most);
  }
  for (int i = 0; i < wide; ++i) bad |= !fine[i];
  return bad || row.top == -INFINITY ? BAD : FINE;
}

// A start from the blocks with the highest maxima and every 16th of the others.
template <bool Q>
static void start_from_sample(const Row& row, Scratch& scratch, Newton& newton) {
  const std::vector<float>& maxima = scratch.maxima;
  const int64_t blocks = maxima.size() - 1;  // the last may be shorter: it is left out
  scratch.sorted.assign(maxima.begin(), maxima.begin() + blocks);
  std::nth_element(scratch.sorted.begin(), scratch.sorted.begin() + HEAD_BLOCKS, scratch.sorted.end(),
                   std::greater<float>());
  const float bound = scratch.sorted[HEAD_BLOCKS];
  int64_t size = 0, others = 0, sampled = 0;
  const int64_t most = (HEAD_BLOCKS + blocks / STRIDE + 2) * BLOCK;
  scratch.x.resize(most);
  if (Q) scratch.q.resize(most);
  const auto take = [&](int64_t b) {
    std::memcpy(&scratch.x[size], row.x + b * BLOCK, BLOCK * sizeof(float));
    if (Q) std::memcpy(&scratch.q[size], row.q + b * BLOCK, BLOCK * sizeof(float));
    size += BLOCK;
  };
  for (int64_t b = 0; b < blocks; ++b)
    if (maxima[b] > bound) take(b);
  const int64_t head = size;
  for (int64_t b = 0; b < blocks; ++b)
    if (!(maxima[b] > bound) && others++ % STRIDE == 0) take(b), ++sampled;
  const double share = (double)others / sampled;
  const float* q = Q ? scratch.q.data() : nullptr;
  const Row first{scratch.x.data(), q, head, row.top};
  const Row rest{scratch.x.data() + head, Q ? q + head : nullptr, size - head, row.top};
  Newton search = newton;
  for (int i = 0; i < 12; ++i) {
    Sums sums = evaluate<Q, false>(first, (real)search.ratio, nullptr, nullptr);
    const Sums more = evaluate<Q, false>(rest, (real)search.ratio, nullptr, nullptr);
    sums.mass += share * more.mass;
    sums.weight += share * more.weight;
    search.step(sums);
    if (std::fabs(1 - sums.mass) < 1e-2) break;
  }
  newton.ratio = search.ratio;
}

#if defined(__AVX512F__)
static const __m512i FIRST_PLACES = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif

static int64_t count_above(const float* x, int64_t n, float bound) {
  int count = 0;  // rows have fewer than 2^31 classes
  for (int64_t j = 0; j < n; ++j) count += x[j] >= bound;
  return count;
}

// A bound of the root from above: the root if only the top class of each block were there.
template <bool Q>
static double root_of_maxima(const Row& row, Scratch& scratch, Newton newton) {
  const int64_t blocks = scratch.maxima.size();
  if (Q) {
    scratch.q.resize(blocks);
    for (int64_t b = 0; b < blocks; ++b) {
      int64_t j = b * BLOCK;
      while (row.x[j] != scratch.maxima[b]) ++j;
      scratch.q[b] = row.q[j];
    }
  }
  const Row tops{scratch.maxima.data(), Q ? scratch.q.data() : nullptr, blocks, row.top};
  for (int i = 0; i < 12; ++i) {
    const Sums sums = evaluate<Q, false>(tops, (real)newton.ratio, nullptr, nullptr);
    const double grown = newton.ratio / sums.mass;  // for powers of u at least as large as the root
    newton.step(sums);
    if (std::fabs(1 - sums.mass) < 1e-2) return std::min(newton.high, std::max(grown, newton.ratio) * (1 + 1e-4));
  }
  return newton.high;
}

// f'(u) - f'(0): at U = u the support has the classes whose gap is less. Candidates too many do no harm, so
// there is a margin for what the difference cancels.
static double reach(double ratio) {
  const double slope = derivative((real)ratio), size = std::fabs(slope) + std::fabs(DERIVATIVE_AT_ZERO);
  return (slope - DERIVATIVE_AT_ZERO) * (1 + 1e-5) + 8 * std::numeric_limits<real>::epsilon() * size;
}

// Copies the classes above the bound that `ratio` (at or above the root) sets, if they are few.
template <bool Q>
static bool gather_candidates(const Row& row, Scratch& scratch, double ratio, Row& candidates) {
  const float bound = row.top - (float)reach(ratio);
  const int64_t blocks = scratch.maxima.size();
  int64_t hits = 0;
  for (int64_t b = 0; b < blocks; ++b) hits += scratch.maxima[b] >= bound;
  // Copying costs about as much as one evaluation, so it pays where a quarter is left at most.
  if (hits * 8 > blocks && row.n > 512 && count_above(row.x, row.n, bound) * 4 > row.n) return false;
  const int64_t most = std::min(hits * BLOCK, row.n) + 16;  // whole vectors are written
  scratch.index.resize(most);
  scratch.x.resize(most);
  if (Q) scratch.q.resize(most);
  int64_t count = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (!(scratch.maxima[b] >= bound)) continue;
    int64_t j = b * BLOCK;
    const int64_t end = std::min(row.n, j + BLOCK);
#if defined(__AVX512F__)
    for (; j + 16 <= end; j += 16) {
      const __m512 x = _mm512_loadu_ps(row.x + j);
      const __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_GE_OQ);
      const __m512i places = _mm512_add_epi32(_mm512_set1_epi32(j), FIRST_PLACES);
      _mm512_storeu_ps(&scratch.x[count], _mm512_maskz_compress_ps(above, x));
      _mm512_storeu_si512(&scratch.index[count], _mm512_maskz_compress_epi32(above, places));
      if (Q) _mm512_storeu_ps(&scratch.q[count], _mm512_maskz_compress_ps(above, _mm512_loadu_ps(row.q + j)));
      count += __builtin_popcount(above);
    }
#endif
    for (; j < end; ++j) {
      scratch.index[count] = j;
      scratch.x[count] = row.x[j];
      if (Q) scratch.q[count] = row.q[j];
      count += row.x[j] >= bound;
    }
  }
  candidates = {scratch.x.data(), Q ? scratch.q.data() : nullptr, count, row.top};
  return true;
}

// The root; p is left in `p` (n), or where `compact` in scratch.p (count), not yet corrected by `rest`.
template <bool Q>
static Root find_root(const Row& row, Scratch& scratch, float* p) {
  double mass = row.n, top_mass = 0;
  if (Q) {
    mass = 0;
    for (int64_t j = 0; j < row.n; ++j) mass += row.q[j];
  }
  for (int64_t b = 0; b < (int64_t)scratch.maxima.size(); ++b) {
    if (scratch.maxima[b] != row.top) continue;
    for (int64_t j = b * BLOCK; j < std::min(row.n, (b + 1) * BLOCK); ++j)
      if (row.x[j] == row.top) top_mass += Q ? row.q[j] : 1;
  }
  if (CLOSED) {
    const Sums sums = evaluate<Q, false>(row, 1, nullptr, nullptr);
    const real ratio = (real)(1 / sums.mass);
    evaluate<Q, true>(row, ratio, p, nullptr);
    return {ratio, 0, false, 0};
  }
  Newton newton{1 / mass, 1 / top_mass, (double)(real)(1 / top_mass)};
  Row looked = row;
  double gathered = newton.high;
  bool compact = false;
  if (SPARSE) {
    gathered = root_of_maxima<Q>(row, scratch, newton);
    compact = gather_candidates<Q>(row, scratch, gathered, looked);
    if (compact) newton.ratio = (double)(real)gathered;
  }
  if (!compact && row.n >= SAMPLE) start_from_sample<Q>(row, scratch, newton);
  for (;;) {
    if (compact) scratch.p.resize(looked.n);
    if (KEEP) scratch.w.resize(looked.n);
    float* const found = compact ? scratch.p.data() : p;
    const Sums sums = evaluate<Q, true>(looked, (real)newton.ratio, found, scratch.w.data());
    const double change = (1 - sums.mass) / sums.weight;
    const bool near = std::fabs(1 - sums.mass) <= (compact ? SETTLED_COMPACT : SETTLED) &&
                      std::fabs(change) * (double)elasticity((real)newton.ratio) <= FAR;
    const bool last = near || newton.steps == MOST_STEPS;
    if (last && compact && newton.ratio > gathered) {
      // The root of the candidates is no lower than that of the row, so its own bound misses nothing.
      gathered = newton.ratio * (1 + 1e-4);
      newton = {1 / mass, 1 / top_mass, (double)(real)gathered};
      compact = gather_candidates<Q>(row, scratch, gathered, looked);
      if (!compact) looked = row;
      continue;
    }
    if (last) return {(real)newton.ratio, (real)last_step(sums), compact, looked.n};
    newton.step(sums);
    if (SPARSE && !compact && newton.high < gathered) {
      gathered = newton.high;
      compact = gather_candidates<Q>(row, scratch, gathered, looked);
    }
  }
}

// Adds the last Newton step to n values p = q u, in place; returns Σ q (f*(f'(u)) + f(0)), the value but for v_top.
template <bool Q, bool VALUE>
static double settle(float* p, const float* kept, const float* q, int64_t n, real rest) {
  double sum = 0;
  for (int64_t start = 0; start < n; start += SPAN) {
    const int64_t end = std::min(n, start + SPAN);
    vec value = real(0);
    for (int64_t j = start; j < end; j += LANES) {
      vec part = load(p + j, end - j, 0);
      const vec measure = Q ? load(q + j, end - j, 1) : vec(1);
      const mask active = part > 0;
      const vec u = select(active, Q ? part / measure : part, 1);
      if (!CLOSED) {
        const vec e = KEEP ? select(active, load(kept + j, end - j, 0) / part, 0) : vec(elasticity(u));
        const vec b = bend(maximum(u, TINY), e);
        const vec growth = e * rest * (real(1) + b * (rest / 2) * (real(1) + (real(2) * b - e) * (rest / 3)));
        part = maximum(select(active, part + part * growth, 0), 0);
        store(p + j, end - j, part);
      }
      if (VALUE) {
        const vec at = CLOSED ? u : select(part > 0, Q ? part / measure : part, 1);
        value += select(part > 0, measure * vec(conjugate_of_ratio(at)), 0);
      }
    }
    sum += total(value);
  }
  return sum;
}

// The solution of one row: p in `p` (n), by default scratch.dense, or where the root is compact in scratch.p.
template <bool Q>
static Root solve_with(const Row& row, Scratch& scratch, float* p, float* value) {
  const Root root = find_root<Q>(row, scratch, p);
  const float* q = !Q ? nullptr : root.compact ? scratch.q.data() : row.q;
  float* part = root.compact ? scratch.p.data() : p;
  const int64_t n = root.compact ? root.count : row.n;
  if (value)
    *value = settle<Q, true>(part, scratch.w.data(), q, n, root.rest) - root.v_top();
  else
    settle<Q, false>(part, scratch.w.data(), q, n, root.rest);
  return root;
}
static Root solve(const Row& row, Scratch& scratch, float* value, float* p = nullptr) {
  if (!p) {
    scratch.dense.resize(row.n);
    p = scratch.dense.data();
  }
  return row.q ? solve_with<true>(row, scratch, p, value) : solve_with<false>(row, scratch, p, value);
}

template <class Each>
static void for_rows(int64_t rows, const Each& each) {
#pragma omp parallel if (rows > 1)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < rows; ++i) each(i, scratch);
  }
}

struct Batch {  // rows of scores and of their measure; a stride of 0 repeats the same row
  const float* x;
  int64_t x_stride;
  const float* q;
  int64_t q_stride, rows, n;
  Row row(int64_t i) const { return {x + i * x_stride, q ? q + i * q_stride : nullptr, n, 0}; }
};

extern "C" {

// p, the top score, and the value and the threshold, both less the top score.
void softargmax(const Batch* batch, float* p, float* value, float* threshold, float* top, int32_t* status) {
  for_rows(batch->rows, [&](int64_t i, Scratch& scratch) {
    Row row = batch->row(i);
    status[i] = find_maxima(row, scratch);
    if (status[i]) return;
    float* out = p + i * row.n;
    const Root root = solve(row, scratch, value ? &value[i] : nullptr, out);
    if (root.compact) {
      std::memset(out, 0, row.n * sizeof(float));
      for (int64_t k = 0; k < root.count; ++k) out[scratch.index[k]] = scratch.p[k];
    }
    threshold[i] = -root.v_top();
    top[i] = row.top;
  });
}

// The rows of the batch are p. Each gradient may be null.
void softargmax_gradient(const Batch* batch, const float* grad_p, const float* grad_value,
                         const float* grad_threshold, float* out) {
  for_rows(batch->rows, [&](int64_t i, Scratch&) {
    const Row row = batch->row(i);
    const float* given = grad_p ? grad_p + i * row.n : nullptr;
    float* found = out + i * row.n;
    const auto weight = [&](int64_t j, vec p) {
      const vec measure = row.q ? load(row.q + j, row.n - j, 1) : vec(1);
      return select(p > 0, p * vec(elasticity(select(p > 0, p / measure, 1))), 0);
    };
    double mass = 0, moment = 0;
    if (given || grad_threshold) {
      for (int64_t start = 0; start < row.n; start += SPAN) {
        vec w = real(0), m = real(0);
        for (int64_t j = start; j < std::min(row.n, start + SPAN); j += LANES) {
          const vec each = weight(j, load(row.x + j, row.n - j, 0));
          w += each;
          if (given) m += each * load(given + j, row.n - j, 0);
        }
        mass += total(w);
        moment += total(m);
      }
    }
    const real value = grad_value ? grad_value[i] : 0;
    const real level = (grad_threshold ? grad_threshold[i] : 0) / mass - moment / mass;
    for (int64_t j = 0; j < row.n; j += LANES) {
      const vec p = load(row.x + j, row.n - j, 0);
      vec grad = p * value;
      if (given) grad += weight(j, p) * (load(given + j, row.n - j, 0) + level);
      else if (grad_threshold) grad += weight(j, p) * level;
      store(found + j, row.n - j, grad);
    }
  });
}

// The loss of each row with a target >= 0, but for the constant D_f(y, q), and its gradient p - y where
// `out` is not null; it may be the scores themselves. Other rows give 0. The target is smoothed as
// (1 - smoothing) e_y + smoothing / (classes that are not at -inf) on these.
void token_loss(const Batch* batch, const int64_t* target, float* out, int64_t out_stride, float smoothing,
                float* loss, int32_t* status) {
  for_rows(batch->rows, [&](int64_t i, Scratch& scratch) {
    Row row = batch->row(i);
    float* gradient = out ? out + i * out_stride : nullptr;
    const int64_t y = target[i];
    loss[i] = 0;
    status[i] = FINE;
    if (y < 0) {
      if (gradient) std::memset(gradient, 0, row.n * sizeof(float));
      return;
    }
    status[i] = find_maxima(row, scratch);
    if (status[i]) return;
    double cost = row.top - row.x[y], share = 0;
    if (smoothing > 0) {
      double spread = 0, present = 0;
      for (int64_t j = 0; j < row.n; ++j) {
        const bool finite = row.x[j] > -INFINITY;
        spread += finite ? row.top - row.x[j] : 0;
        present += finite;
      }
      share = smoothing / present;
      cost = (1 - smoothing) * cost + share * spread;
    }
    float value;
    const Root root = solve(row, scratch, &value);
    loss[i] = value + cost;
    if (!gradient) return;
    if (smoothing > 0) {
      for (int64_t j = 0; j < row.n; ++j) {
        const float p = root.compact ? 0 : scratch.dense[j];
        gradient[j] = row.x[j] > -INFINITY ? p - (float)share : p;
      }
    } else if (root.compact) {
      std::memset(gradient, 0, row.n * sizeof(float));
    } else {
      std::memcpy(gradient, scratch.dense.data(), row.n * sizeof(float));
    }
    if (root.compact)
      for (int64_t k = 0; k < root.count; ++k) gradient[scratch.index[k]] += scratch.p[k];
    gradient[y] -= 1 - smoothing;
  });
}

// The same for sparse records without smoothing, but the gradient of a row is given as `count` classes and
// numbers. A row that has more than `capacity` gives none: its count is -1.
void token_support(const Batch* batch, const int64_t* target, int64_t capacity, int32_t* index, float* gradient,
                   int32_t* count, float* loss, int32_t* status) {
  for_rows(batch->rows, [&](int64_t i, Scratch& scratch) {
    Row row = batch->row(i);
    const int64_t y = target[i];
    loss[i] = 0;
    count[i] = 0;
    status[i] = FINE;
    if (y < 0) return;
    status[i] = find_maxima(row, scratch);
    if (status[i]) return;
    float value;
    const Root root = solve(row, scratch, &value);
    loss[i] = value + (row.top - row.x[y]);
    const float* p = root.compact ? scratch.p.data() : scratch.dense.data();
    const int64_t n = root.compact ? root.count : row.n;
    int32_t* classes = index + i * capacity;
    float* numbers = gradient + i * capacity;
    int64_t size = 0;
    bool labelled = false;
    for (int64_t k = 0; k < n && size <= capacity; ++k) {
      const int64_t j = root.compact ? scratch.index[k] : k;
      if (p[k] == 0 && j != y) continue;
      labelled |= j == y;
      if (size < capacity) classes[size] = j, numbers[size] = j == y ? p[k] - 1 : p[k];
      ++size;
    }
    if (!labelled && size < capacity) classes[size] = y, numbers[size] = -1;
    size += !labelled;
    count[i] = size <= capacity ? size : -1;
  });
}

// Puts the rows of token_support one after the other.
void pack(const int32_t* index, const float* gradient, const int32_t* count, int64_t rows, int64_t capacity,
          int64_t* classes, float* numbers) {
  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(index + i * capacity, count[i], classes);
    std::copy_n(gradient + i * capacity, count[i], numbers);
    classes += count[i];
    numbers += count[i];
  }
}
}
