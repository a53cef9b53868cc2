// D_f(p_T, p_S) of rows of logits, or of k + 1 buckets, and its gradient in the student's. The generated head
// defines perspective(log p, log q) = q f(p/q) and its derivative in log q.

struct Softmax {
  real top, log_mass, scale;
  bool plain;  // all logits are finite
  INLINE vec log_p(vec x) const { return (x - top) * scale - log_mass; }
};

// Σ exp((x - top) scale)
static double mass_of(const float* x, int64_t n, real top, real scale) {
  double mass = 0;
  for (int64_t start = 0; start < n; start += SPAN) {
    vec sum = real(0);
    for (int64_t j = start; j < std::min(n, start + SPAN); j += LANES)
      sum += exp((load(x + j, n - j, -INFINITY) - top) * scale);
    mass += total(sum);
  }
  return mass;
}

static Softmax normalise(const float* x, int64_t n, real scale) {
  vec high = -INF, low = INF;
  mask fine = high < INF;
  for (int64_t j = 0; j < n; j += LANES) {
    const vec part = load(x + j, n - j, x[0]);
    high = maximum(high, part);
    low = minimum(low, part);
    fine = fine & (part < INF);  // false for NaN
  }
  real top = -INF, bottom = INF;
  bool plain = true;
  EACH for (int i = 0; i < WIDTH; ++i) {
    top = std::max(top, high.v[k][i]);
    bottom = std::min(bottom, low.v[k][i]);
    plain &= fine.v[k][i] != 0;
  }
  return {top, (real)std::log(mass_of(x, n, top, scale)), scale, plain && top < INF && bottom > -INF};
}

extern "C" {

// Both scaled by `scale` = 1 / T. The gradient is in the scaled logits; `out` may be null or the student's
// own rows. A row with a logit that is not finite is left as it is: its status is 1.
void distillation(const float* student, int64_t student_stride, const float* teacher, int64_t teacher_stride,
                  int64_t rows, int64_t n, float scale, float* out, int64_t out_stride, float* loss,
                  int32_t* status) {
#pragma omp parallel for schedule(dynamic, 1) if (rows > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const float *x = student + i * student_stride, *t = teacher + i * teacher_stride;
    const Softmax q = normalise(x, n, scale), p = normalise(t, n, scale);
    status[i] = !(q.plain && p.plain);
    if (status[i]) continue;
    double value = 0, moment = 0;
    for (int64_t start = 0; start < n; start += SPAN) {
      vec sum = real(0), slopes = real(0);
      for (int64_t j = start; j < std::min(n, start + SPAN); j += LANES) {
        const vec log_q = q.log_p(load(x + j, n - j, 0)), log_p = p.log_p(load(t + j, n - j, 0));
        const vec each = perspective(log_p, log_q), slope = slope_in_q(log_p, log_q);
        if (n - j >= LANES) {
          sum += each;
          slopes += slope;
        } else {  // beyond the end of the row are no classes
          for (int i = 0; i < n - j; ++i) {
            value += each.v[i / WIDTH][i % WIDTH];
            moment += slope.v[i / WIDTH][i % WIDTH];
          }
        }
      }
      value += total(sum);
      moment += total(slopes);
    }
    loss[i] = value;
    if (!out) continue;
    float* gradient = out + i * out_stride;
    for (int64_t j = 0; j < n; j += LANES) {
      const vec log_q = q.log_p(load(x + j, n - j, 0)), log_p = p.log_p(load(t + j, n - j, 0));
      store(gradient + j, n - j, slope_in_q(log_p, log_q) - exp(log_q) * (real)moment);
    }
  }
}

// The same between k + 1 buckets: k classes (-1: an empty slot) and all others, whose mass is a sum of its own.
// A row with a logit, a probability or a class that is none is left as it is: its status is 1.
void topk_distillation(const float* student, int64_t student_stride, const int64_t* indices, const float* log_probs,
                       const float* log_tail, int64_t k, int64_t rows, int64_t n, float scale, float* out,
                       int64_t out_stride, float* loss, int32_t* status) {
#pragma omp parallel if (rows > 1)
  {
    std::vector<float> tail(n), log_p(k + 1), log_q(k + 1), slopes(k + 1);
    std::vector<int64_t> known(k);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < rows; ++i) {
      const float* x = student + i * student_stride;
      const Softmax q = normalise(x, n, scale);
      std::copy_n(x, n, tail.begin());
      int64_t size = 0;
      bool plain = q.plain;
      for (int64_t slot = i * k; slot < (i + 1) * k; ++slot) {
        const int64_t j = indices[slot];
        if (j < 0) continue;
        plain &= j < n && std::isfinite(log_probs[slot]);
        if (!plain) break;
        known[size] = j;
        log_p[size] = log_probs[slot];
        log_q[size++] = (x[j] - q.top) * scale - q.log_mass;
        tail[j] = -INFINITY;
      }
      status[i] = !(plain && size < n && std::isfinite(log_tail[i]));
      if (status[i]) continue;
      const float top = *std::max_element(tail.begin(), tail.end());
      log_p[size] = log_tail[i];
      const Softmax others{top, (real)std::log(mass_of(tail.data(), n, top, scale)), scale, true};
      log_q[size] = (top - q.top) * scale + others.log_mass - q.log_mass;
      double value = 0, moment = 0;
      for (int64_t start = 0; start <= size; start += LANES) {
        const int64_t count = size + 1 - start;
        const vec p = load(&log_p[start], count, 0), student_p = load(&log_q[start], count, 0);
        const vec each = perspective(p, student_p);
        store(&slopes[start], count, slope_in_q(p, student_p));
        for (int64_t s = 0; s < std::min<int64_t>(count, LANES); ++s) {
          value += each.v[s / WIDTH][s % WIDTH];
          moment += slopes[start + s];
        }
      }
      loss[i] = value;
      if (!out) continue;
      float* gradient = out + i * out_stride;
      const real all_others = slopes[size] - (real)moment * std::exp(log_q[size]);
      for (int64_t j = 0; j < n; j += LANES)
        store(gradient + j, n - j, exp(others.log_p(load(&tail[j], n - j, 0))) * all_others);
      for (int64_t s = 0; s < size; ++s) gradient[known[s]] = slopes[s] - (real)moment * std::exp(log_q[s]);
    }
  }
}
}
