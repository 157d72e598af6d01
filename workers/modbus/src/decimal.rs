//! Decimals as people write them: a whole number and a power of ten.
//!
//! A profile says `scale: 0.1`, and a register of 2301 then means 230.1, not 230.10000000000002. So a
//! scale is taken as the shortest decimal that names its double, which is what was written; raw values
//! are multiplied with it exactly; and only the result is rounded, once, to the nearest double.

use std::fmt::LowerExp;

/// `mantissa` x 10^`exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decimal {
    mantissa: i128,
    exponent: i32,
}

/// The powers of ten that a double holds exactly.
const EXACT_POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

impl Decimal {
    /// A whole number times a power of ten.
    #[must_use]
    pub fn new(mantissa: i128, exponent: i32) -> Self {
        Self { mantissa, exponent }
    }

    /// The shortest decimal that names this double; `None` for NaN and the infinities.
    #[must_use]
    pub fn from_f64(value: f64) -> Option<Self> {
        value.is_finite().then(|| Self::shortest(value)).flatten()
    }

    /// The shortest decimal that names this single: 230.1, not 230.10000610351562.
    #[must_use]
    pub fn from_f32(value: f32) -> Option<Self> {
        value.is_finite().then(|| Self::shortest(value)).flatten()
    }

    // The standard library's `{:e}` writes the shortest digits that read back as the same number.
    fn shortest(value: impl LowerExp) -> Option<Self> {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e')?;
        let exponent: i32 = exponent.parse().ok()?;
        let decimals = digits
            .split_once('.')
            .map_or(0, |(_, decimals)| decimals.len() as i32);
        let mantissa: i128 = digits.replace('.', "").parse().ok()?;
        Some(Self::new(mantissa, exponent - decimals))
    }

    /// The whole number before the power of ten.
    #[must_use]
    pub fn mantissa(self) -> i128 {
        self.mantissa
    }

    /// The power of ten.
    #[must_use]
    pub fn exponent(self) -> i32 {
        self.exponent
    }

    /// The exact product; `None` where it needs more than 38 digits, which a 64-bit raw value and a
    /// double's scale never do.
    #[must_use]
    pub fn times(self, other: Self) -> Option<Self> {
        Some(Self::new(
            self.mantissa.checked_mul(other.mantissa)?,
            self.exponent.checked_add(other.exponent)?,
        ))
    }

    /// The exact sum; `None` where it needs more than 38 digits.
    #[must_use]
    pub fn plus(self, other: Self) -> Option<Self> {
        if self.mantissa == 0 {
            return Some(other);
        }
        if other.mantissa == 0 {
            return Some(self);
        }
        let exponent = self.exponent.min(other.exponent);
        let sum = self
            .at_exponent(exponent)?
            .checked_add(other.at_exponent(exponent)?)?;
        Some(Self::new(sum, exponent))
    }

    /// The same number negated.
    #[must_use]
    pub fn negated(self) -> Self {
        // No mantissa made here is i128::MIN, the one number without a counterpart.
        Self::new(self.mantissa.saturating_neg(), self.exponent)
    }

    /// This number times 10^`power`.
    #[must_use]
    pub fn shifted(self, power: i32) -> Self {
        Self::new(self.mantissa, self.exponent.saturating_add(power))
    }

    /// The mantissa that this number has at a smaller exponent.
    fn at_exponent(self, exponent: i32) -> Option<i128> {
        let digits = u32::try_from(self.exponent.checked_sub(exponent)?).ok()?;
        self.mantissa.checked_mul(10i128.checked_pow(digits)?)
    }

    /// The number where it is whole and below 38 digits.
    #[must_use]
    pub fn as_integer(self) -> Option<i128> {
        if self.exponent >= 0 {
            return self.at_exponent(0);
        }
        if self.mantissa == 0 {
            return Some(0);
        }
        let power = 10i128.checked_pow(self.exponent.unsigned_abs())?;
        (self.mantissa % power == 0).then_some(self.mantissa / power)
    }

    /// The nearest double; `None` beyond the doubles' range.
    #[must_use]
    pub fn to_f64(self) -> Option<f64> {
        // Both operands are exact doubles here, so the one rounding is that of the result.
        if self.mantissa.unsigned_abs() < 1 << 53
            && let Some(power) = EXACT_POWERS.get(self.exponent.unsigned_abs() as usize)
        {
            let mantissa = self.mantissa as f64;
            return Some(if self.exponent < 0 {
                mantissa / power
            } else {
                mantissa * power
            });
        }
        let value: f64 = self.text().parse().ok()?;
        value.is_finite().then_some(value)
    }

    /// The nearest single; `None` beyond the singles' range.
    #[must_use]
    pub fn to_f32(self) -> Option<f32> {
        let value: f32 = self.text().parse().ok()?;
        value.is_finite().then_some(value)
    }

    fn text(self) -> String {
        format!("{}e{}", self.mantissa, self.exponent)
    }

    /// The quotient, rounded half away from zero to a whole number; `None` for a divisor of zero and
    /// where the quotient has more than about 38 digits.
    #[must_use]
    pub fn divided_to_integer(self, divisor: Self) -> Option<i128> {
        let shift = self.exponent.checked_sub(divisor.exponent)?;
        if divisor.mantissa == 0 {
            return None;
        }
        if self.mantissa == 0 {
            return Some(0);
        }
        let power = 10i128.checked_pow(shift.unsigned_abs());
        let (dividend, divisor) = if shift >= 0 {
            (self.mantissa.checked_mul(power?)?, divisor.mantissa)
        } else {
            // A divisor beyond 38 digits leaves nothing of a dividend that fits in them.
            match power.and_then(|power| divisor.mantissa.checked_mul(power)) {
                Some(divisor) => (self.mantissa, divisor),
                None => return Some(0),
            }
        };
        let (quotient, rest) = (dividend / divisor, dividend % divisor);
        let up = rest.unsigned_abs() >= divisor.unsigned_abs().div_ceil(2);
        let sign = if (dividend < 0) == (divisor < 0) { 1 } else { -1 };
        Some(if up { quotient + sign } else { quotient })
    }

    /// The quotient to at least 18 digits; `None` for a divisor of zero.
    #[must_use]
    pub fn divided(self, divisor: Self) -> Option<Self> {
        // As many digits as the dividend can carry are moved in front of the point before dividing.
        let digits = self.mantissa.unsigned_abs().checked_ilog10().unwrap_or(0);
        let spare = 36u32.saturating_sub(digits);
        let dividend = self.mantissa.checked_mul(10i128.checked_pow(spare)?)?;
        let quotient = Self::new(dividend, 0).divided_to_integer(Self::new(divisor.mantissa, 0))?;
        let exponent = self
            .exponent
            .checked_sub(divisor.exponent)?
            .checked_sub(spare as i32)?;
        Some(Self::new(quotient, exponent))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn is_what_was_written() {
        for (value, mantissa, exponent) in [
            (0.1, 1, -1),
            (1000.0, 1, 3),
            (-273.15, -27315, -2),
            (0.0, 0, 0),
            (2.5e-7, 25, -8),
            (1.0, 1, 0),
        ] {
            assert_eq!(
                Decimal::from_f64(value),
                Some(Decimal::new(mantissa, exponent)),
                "{value}"
            );
        }
        assert_eq!(Decimal::from_f32(230.1), Some(Decimal::new(2301, -1)));
        assert_eq!(Decimal::from_f64(f64::NAN), None);
        assert_eq!(Decimal::from_f32(f32::INFINITY), None);
    }

    #[test]
    fn tells_whole_numbers_from_others() {
        for (decimal, integer) in [
            (Decimal::new(12, 3), Some(12_000)),
            (Decimal::new(1200, -2), Some(12)),
            (Decimal::new(1201, -2), None),
            (Decimal::new(0, -400), Some(0)),
            (Decimal::new(1, 60), None),
        ] {
            assert_eq!(decimal.as_integer(), integer, "{decimal:?}");
        }
    }

    #[test]
    fn rounds_quotients_half_away_from_zero() {
        for (dividend, divisor, quotient) in [
            ((25, -1), (1, 0), 3),
            ((-25, -1), (1, 0), -3),
            ((24, -1), (1, 0), 2),
            ((10, 0), (3, 0), 3),
            ((11, 0), (3, 0), 4),
            ((2301, -1), (1, -1), 2301),
            ((1, -90), (1, 0), 0),
        ] {
            let (dividend, divisor) = (
                Decimal::new(dividend.0, dividend.1),
                Decimal::new(divisor.0, divisor.1),
            );
            assert_eq!(
                dividend.divided_to_integer(divisor),
                Some(quotient),
                "{dividend:?} / {divisor:?}"
            );
        }
        assert_eq!(Decimal::new(1, 0).divided_to_integer(Decimal::new(0, 0)), None);
        assert_eq!(Decimal::new(1, 90).divided_to_integer(Decimal::new(1, 0)), None);
    }

    #[test]
    fn divides_the_widest_mantissas() {
        let wide = Decimal::new(-(10i128.pow(38) + 1), 0);
        assert_eq!(wide.divided(Decimal::new(1, 3)).unwrap().to_f64(), Some(-1e35));
        assert_eq!(
            Decimal::new(1, 0).divided(Decimal::new(3, 0)).unwrap().to_f64(),
            Some(1.0 / 3.0)
        );
    }

    proptest! {
        #[test]
        fn a_double_survives(value in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL) {
            prop_assert_eq!(Decimal::from_f64(value).unwrap().to_f64(), Some(value));
        }

        #[test]
        fn the_short_way_to_a_double_is_the_long_way(mantissa in -(1i64 << 53)..(1 << 53), exponent in -30i32..30) {
            let decimal = Decimal::new(i128::from(mantissa), exponent);
            prop_assert_eq!(decimal.to_f64(), decimal.text().parse().ok());
        }

        #[test]
        fn division_undoes_multiplication(a in any::<u64>(), b in 1..10_000_000i128, e in -9i32..9) {
            let (a, b) = (Decimal::new(i128::from(a), 0), Decimal::new(b, e));
            let product = a.times(b).unwrap();
            prop_assert_eq!(product.divided_to_integer(b), Some(a.mantissa));
            prop_assert_eq!(product.divided(b).unwrap().as_integer(), Some(a.mantissa));
        }

        #[test]
        fn sums_are_exact(a in -(1i128 << 70)..(1 << 70), b in -(1i128 << 70)..(1 << 70), d in 0i32..15) {
            let sum = Decimal::new(a, 0).plus(Decimal::new(b, -d)).unwrap();
            let power = 10i128.pow(d.unsigned_abs());
            prop_assert_eq!(sum.shifted(d).as_integer(), Some(a * power + b));
        }
    }
}
