// Powers of 2 and GELU on vectors; include after one of the vec_*.h files.
#pragma once

namespace {

template <int N>
inline Vec polynomial(Vec x, const float (&coefficients)[N]) {
  Vec y = Vec::set(coefficients[N - 1]);
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, Vec::set(coefficients[i]));
  return y;
}

// 2^x for x in [-126, 127], relative error under 2e-7; smaller x give 2^-126, which softmax cannot tell from 0.
// 2^x = 2^n 2^r with n = round(x); a minimax fit of 2^r on |r| <= 1/2 (error 9e-8).
inline Vec exp2(Vec x) {
  static constexpr float fit[] = {1.f,
                                  0.6931470036506653f,
                                  0.24022242426872253f,
                                  0.05550733581185341f,
                                  0.009671512991189957f,
                                  0.001326472731307149f};
  x = max(Vec::set(-126.f), x);
  const Vec n = round(x);
  return scale_by_power(polynomial(x - n, fit), n);
}

// Exact GELU: x Phi(x), with Phi(x) = 1/2 + x P(x^2)/Q(x^2) on |x| <= 5.6, a minimax fit of x^2 P/Q (error 3e-8).
// Below -5.6 the true value lies within 1e-7 of 0. Absolute error under 1e-6 (relative under 2e-7 for large x).
inline Vec gelu(Vec x) {
  static constexpr float numerator[] = {0.3989419043064117f,     0.035847317427396774f, 0.004805427975952625f,
                                        0.00019015674479305744f, 6.590598786715418e-06f, 2.1710539144237373e-08f};
  static constexpr float denominator[] = {1.f, 0.2565186321735382f, 0.029804036021232605f, 0.002003362402319908f,
                                          8.101152343442664e-05f, 1.1851536783069605e-06f};
  const Vec low = max(Vec::set(-5.6f), x), clamped = min(Vec::set(5.6f), low), square = clamped * clamped;
  const Vec ratio = polynomial(square, numerator) / polynomial(square, denominator);
  return low * fma(clamped, ratio, Vec::set(0.5f));
}

}  // namespace
