//! Resource quantities (`k8s.io/apimachinery/pkg/api/resource`): `100m`, `1.5Gi`, `12e6`.
//!
//! Amounts are whole nano units in 128 bits: what is finer is rounded away from zero as upstream
//! does it, what is larger than 2^127 nano units is capped.

use std::{cmp::Ordering, fmt, iter::Sum, ops, str::FromStr};

use serde_json::Value;

const NANO: i128 = 1_000_000_000;

/// Exponents beyond this cannot change the outcome: the amount is capped or rounded.
const EXPONENT_MAX: i64 = 64;

/// How an amount is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// Why a text is no quantity; upstream's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An amount of a resource. Compares by amount alone.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number, written in powers of ten.
    pub fn from_value(value: i64) -> Self {
        Self { nanos: i128::from(value) * NANO, format: Format::DecimalSi }
    }

    /// Thousandths, written in powers of ten (CPU).
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Bytes, written in powers of two (memory).
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// Reads a JSON string or number.
    pub fn from_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Format),
        }
    }

    /// The amount in whole units, rounded away from zero.
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// The amount in thousandths, rounded away from zero.
    pub fn milli_value(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(self, unit: i128) -> i64 {
        let whole = div_away_from_zero(self.nanos, unit);
        whole.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount is a whole number.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    pub fn format(self) -> Format {
        self.format
    }

    /// The amount rounded up to whole thousandths, as resource lists keep it.
    #[must_use]
    pub fn round_up_to_milli(self) -> Self {
        let unit = NANO / 1000;
        Self { nanos: div_away_from_zero(self.nanos, unit) * unit, ..self }
    }

    fn combine(self, other: Self, nanos: i128) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos, format }
    }
}

/// Rewrites a JSON quantity in its canonical form (`1000m` → `1`); what is none stays as it is.
pub fn canonicalize(value: &mut Value) {
    rewrite(value, |quantity| quantity);
}

/// [`canonicalize`] for every entry of a resource list, in whole thousandths.
pub fn canonicalize_list(list: &mut Value) {
    if let Some(list) = list.as_object_mut() {
        list.values_mut().for_each(|value| rewrite(value, Quantity::round_up_to_milli));
    }
}

fn rewrite(value: &mut Value, change: fn(Quantity) -> Quantity) {
    if let Ok(quantity) = Quantity::from_json(value) {
        let text = change(quantity).to_string();
        if value.as_str() != Some(&text) {
            *value = text.into();
        }
    }
}

fn div_away_from_zero(n: i128, unit: i128) -> i128 {
    let whole = n / unit;
    if n % unit == 0 { whole } else { whole + n.signum() }
}

impl ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.combine(other, self.nanos.saturating_add(other.nanos))
    }
}

impl ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.combine(other, self.nanos.saturating_sub(other.nanos))
    }
}

impl ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, ops::Add::add)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// What a suffix says: the base, its exponent and how the amount is written back.
fn suffix(text: &str) -> Option<(i128, i64, Format)> {
    let decimal = |exponent| Some((10, exponent, Format::DecimalSi));
    let binary = |exponent| Some((2, exponent, Format::BinarySi));
    match text {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = text.strip_prefix(['e', 'E'])?.parse::<i64>().ok()?;
            Some((10, exponent, Format::DecimalExponent))
        }
    }
}

/// Splits a text into sign, digits before and after the point, and suffix.
fn split(text: &str) -> Option<(bool, &str, &str, &str)> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let exponent = suffix[letters..].strip_prefix(['+', '-']).unwrap_or(&suffix[letters..]);
    let well_formed = exponent.bytes().all(|b| b.is_ascii_digit()) && !(whole.is_empty() && text.len() < 2);
    well_formed.then_some((negative, whole, fraction, suffix))
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, whole, fraction, suffix_text) = split(text).ok_or(QuantityError::Format)?;
        let (base, exponent, mut format) = suffix(suffix_text).ok_or(QuantityError::Suffix)?;
        let exponent = exponent.clamp(-EXPONENT_MAX, EXPONENT_MAX) as i32;
        // The amount is `digits · 10^-fraction.len() · base^exponent`; in nano units nine more.
        let mut nanos: i128 = 0;
        let mut decimal_shift = 9 - fraction.len() as i32 + if base == 10 { exponent } else { 0 };
        for (i, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
            let next = nanos.checked_mul(10).and_then(|n| n.checked_add(i128::from(digit - b'0')));
            if let Some(next) = next {
                nanos = next;
            } else {
                decimal_shift += (whole.len() + fraction.len() - i) as i32;
                break;
            }
        }
        if base == 2 {
            nanos = nanos.saturating_mul(1 << exponent);
        }
        nanos = if nanos == 0 {
            0
        } else if decimal_shift >= 0 {
            10_i128.checked_pow(decimal_shift as u32).map_or(i128::MAX, |p| nanos.saturating_mul(p))
        } else {
            10_i128.checked_pow(decimal_shift.unsigned_abs()).map_or(1, |p| div_away_from_zero(nanos, p))
        };
        if format == Format::BinarySi {
            nanos = nanos.min(i128::from(i64::MAX) * NANO);
            if nanos > 0 && nanos < NANO {
                format = Format::DecimalSi;
            }
        }
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

impl fmt::Display for Quantity {
    /// The canonical form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !small && self.is_whole() {
            let (mut amount, mut power) = (self.nanos / NANO, 0);
            while power < 6 && amount % 1024 == 0 {
                amount /= 1024;
                power += 1;
            }
            return write!(f, "{amount}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (mut amount, mut power) = (self.nanos, 0);
        while power < 9 && amount % 1000 == 0 {
            amount /= 1000;
            power += 1;
        }
        if self.format == Format::DecimalExponent {
            let exponent = power as i32 * 3 - 9;
            return if exponent == 0 { write!(f, "{amount}") } else { write!(f, "{amount}e{exponent}") };
        }
        write!(f, "{amount}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][power])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_a_canonical_form() {
        let cases = [
            ("0", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("512", "512"),
            ("1000Ki", "1000Ki"),
            ("1500", "1500"),
            ("10000", "10k"),
            ("12e6", "12e6"),
            ("1200e3", "1200e3"),
            ("1E3", "1e3"),
            ("-5Ki", "-5Ki"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("0.1n", "1n"),
            ("+3M", "3M"),
            ("1.", "1"),
            (".5", "500m"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("9999999999999999Ei", "9223372036854775807"),
            ("1e-3", "1e-3"),
            ("100E", "100E"),
        ];
        for (text, canonical) in cases {
            let quantity: Quantity = text.parse().expect(text);
            if canonical.len() < 30 {
                assert_eq!(quantity.to_string(), canonical, "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "abc", "1.5.5", "1x", "1 Gi", "-", "+", ".", "1e3m5"] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError::Format), "{text}");
        }
        for text in ["1kk", "1iK", "1Kim", "1e", "1ki", "--1"] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError::Suffix), "{text}");
        }
    }

    #[test]
    fn amounts_add_compare_and_round_up() {
        let q = |text: &str| text.parse::<Quantity>().expect(text);
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((Quantity::ZERO + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1") - q("1500m")).to_string(), "-500m");
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1"));
        assert_eq!((q("1100m").value(), q("1100m").milli_value(), q("1n").milli_value()), (2, 1100, 1));
        assert_eq!([q("1"), q("250m")].into_iter().sum::<Quantity>().milli_value(), 1250);
    }
}
