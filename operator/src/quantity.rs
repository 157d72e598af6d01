//! Amounts of CPU and memory: whether two ways to write one mean the same.

/// A suffix, and the power of ten (`false`) or of 1024 (`true`) that it stands for.
const SUFFIXES: [(&str, bool, i32); 15] = [
    ("Ki", true, 1),
    ("Mi", true, 2),
    ("Gi", true, 3),
    ("Ti", true, 4),
    ("Pi", true, 5),
    ("Ei", true, 6),
    ("n", false, -9),
    ("u", false, -6),
    ("m", false, -3),
    ("k", false, 3),
    ("M", false, 6),
    ("G", false, 9),
    ("T", false, 12),
    ("P", false, 15),
    ("E", false, 18),
];

/// Whether two quantities, such as `1000m` and `1`, are the same amount. What is none is compared as text.
#[must_use]
pub fn same(one: &str, other: &str) -> bool {
    one == other || matches!((nano(one), nano(other)), (Some(one), Some(other)) if one == other)
}

/// An amount in billionths, the finest that Kubernetes knows; finer ones are rounded up, as it does.
fn nano(text: &str) -> Option<i128> {
    let (number, binary, power) = SUFFIXES
        .iter()
        .find_map(|(suffix, binary, power)| Some((text.strip_suffix(suffix)?, *binary, *power)))
        .unwrap_or((text, false, 0));
    // `1E3` and `1e3` are exponents; `1E` is a suffix, and was taken off.
    let (number, exponent) = match number.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    let value: i128 = digits.parse().ok()?;
    let decimal = if binary { 0 } else { power } + exponent + 9 - i32::try_from(fraction.len()).ok()?;
    let value = if binary {
        value.checked_mul(1024_i128.checked_pow(u32::try_from(power).ok()?)?)?
    } else {
        value
    };
    let ten = 10_i128.checked_pow(decimal.unsigned_abs())?;
    if decimal >= 0 {
        value.checked_mul(ten)
    } else {
        Some((value + ten - 1).div_euclid(ten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_same_amount_however_it_is_written() {
        for (one, other) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1k", "1000"),
            ("1e3", "1k"),
            ("1E3", "1000"),
            ("2E", "2000P"),
            ("100u", "100000n"),
            ("128974848", "123Mi"),
            ("not one", "not one"),
        ] {
            assert!(same(one, other) && same(other, one), "{one} and {other}");
        }
        for (one, other) in [
            ("1", "1001m"),
            ("1k", "1Ki"),
            ("1", "x"),
            ("", "0"),
            ("1m", "1M"),
            ("99999999999999999999Ei", "1"),
        ] {
            assert!(!same(one, other), "{one} and {other}");
        }
    }
}
