//! Figures as people say them: three digits and a unit, in powers of ten as networks count.

const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];

/// `0`, `999`, `1.2k`, `12.3M`: for counts.
#[must_use]
pub fn amount(value: u64) -> String {
    let (number, prefix) = scaled(value);
    format!("{number}{prefix}")
}

/// `12.3 Mbit/s`.
#[must_use]
pub fn bits_per_second(value: u64) -> String {
    let (number, prefix) = scaled(value);
    format!("{number} {prefix}bit/s")
}

/// `1.2 GB`.
#[must_use]
pub fn bytes(value: u64) -> String {
    let (number, prefix) = scaled(value);
    format!("{number} {prefix}B")
}

/// The number cut, not rounded, to one digit behind the point: 999.9k is not yet a million.
fn scaled(value: u64) -> (String, &'static str) {
    let mut unit = 1_u64;
    let mut prefix = 0;
    while value / unit >= 1000 && prefix + 1 < PREFIXES.len() {
        unit *= 1000;
        prefix += 1;
    }
    let name = PREFIXES.get(prefix).copied().unwrap_or_default();
    if unit == 1 {
        return (value.to_string(), name);
    }
    (format!("{}.{}", value / unit, value % unit / (unit / 10)), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_their_order_of_magnitude_up_to_the_largest() {
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.0k"),
            (999_999, "999.9k"),
            (12_345_678, "12.3M"),
            (1_000_000_000, "1.0G"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(amount(value), text);
        }
        assert_eq!((bits_per_second(8_000), bytes(500)), ("8.0 kbit/s".to_owned(), "500 B".to_owned()));
    }
}
