// D_f(p_T, p_S) of two rows of logits, and its gradient in the student's. The generated head defines
// perspective(log p, log q) = q f(p/q) and its derivative in log q.

constexpr int64_t SPAN = 1024;

struct Softmax {
  real top, log_mass, scale;
  bool plain;  // all logits are finite
  INLINE vec log_p(vec x) const { return (x - top) * scale - log_mass; }
};

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
  double mass = 0;
  for (int64_t start = 0; start < n; start += SPAN) {
    vec sum = real(0);
    for (int64_t j = start; j < std::min(n, start + SPAN); j += LANES)
      sum += exp((load(x + j, n - j, -INFINITY) - top) * scale);
    mass += total(sum);
  }
  return {top, (real)std::log(mass), scale, plain && top < INF && bottom > -INF};
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
}
