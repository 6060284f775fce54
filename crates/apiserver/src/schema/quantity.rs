//! Resource quantities in canonical form (apimachinery's `resource.Quantity`): the text that comes back is the same for
//! every spelling of an amount, so that an unchanged manifest stays unchanged.

/// Upstream's words for text that is no quantity.
pub const FORMAT_ERROR: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const SUFFIX_ERROR: &str = "unable to parse quantity's suffix";

const BINARY: &[(&str, u32)] = &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: &[(&str, i32)] =
    &[("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

enum Suffix {
    /// Power of two.
    Binary(u32),
    /// Power of ten; `true` when written as an exponent.
    Decimal(i32, bool),
}

/// The canonical spelling of `text`.
pub fn canonical(text: &str) -> Result<String, &'static str> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    if number.is_empty() || number == "." || number.matches('.').count() > 1 {
        return Err(FORMAT_ERROR);
    }
    let suffix = parse_suffix(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    // Longer numbers than a 128-bit nano count can hold are kept as they came: nobody computes with them here.
    if whole.len() > 24 || fraction.len() > 18 {
        return Ok(text.to_owned());
    }
    let digits: i128 = format!("0{whole}{fraction}").parse().map_err(|_| FORMAT_ERROR)?;
    let scale = -(fraction.len() as i32);
    if digits == 0 {
        return Ok("0".into());
    }
    let sign = if negative { "-" } else { "" };
    Ok(match suffix {
        Suffix::Binary(power) => binary(sign, digits, scale, power).unwrap_or_else(|| text.to_owned()),
        Suffix::Decimal(power, exponent) => decimal(sign, digits, scale + power, exponent),
    })
}

fn parse_suffix(suffix: &str) -> Result<Suffix, &'static str> {
    if let Some((_, power)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok(Suffix::Binary(*power));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok(Suffix::Decimal(*power, false));
    }
    match suffix.strip_prefix(['e', 'E']) {
        Some(exponent) => exponent
            .parse::<i32>()
            .ok()
            .filter(|e| (-18..=18).contains(e))
            .map(|e| Suffix::Decimal(e, true))
            .ok_or(SUFFIX_ERROR),
        None if suffix.bytes().all(|b| b"eEinumkKMGTP+-0123456789".contains(&b)) => Err(SUFFIX_ERROR),
        None => Err(FORMAT_ERROR),
    }
}

/// `digits * 10^scale * 2^power`: the largest binary suffix without a fraction, or decimal below one unit.
fn binary(sign: &str, digits: i128, scale: i32, power: u32) -> Option<String> {
    let mut amount = digits.checked_mul(1i128.checked_shl(power)?)?;
    let mut scale = scale;
    while scale < 0 && amount % 10 == 0 {
        amount /= 10;
        scale += 1;
    }
    if scale < 0 {
        // A fraction of a byte: upstream turns to milli units.
        return Some(decimal(sign, amount, scale, false));
    }
    let (suffix, shift) =
        BINARY.iter().rev().find(|(_, p)| amount % (1i128 << p) == 0).map_or(("", 0), |(s, p)| (*s, *p));
    Some(format!("{sign}{}{suffix}", amount >> shift))
}

/// `digits * 10^scale`: the largest power of 1000 without a fraction; finer than nano is rounded up.
fn decimal(sign: &str, mut digits: i128, mut scale: i32, exponent: bool) -> String {
    while scale < -9 {
        let up = digits % 10 != 0;
        digits = digits / 10 + i128::from(up);
        scale += 1;
    }
    while digits % 10 == 0 {
        digits /= 10;
        scale += 1;
    }
    let step = scale.div_euclid(3) * 3;
    let step = step.clamp(-9, 18);
    let digits = digits.saturating_mul(10i128.saturating_pow((scale - step) as u32));
    if exponent {
        return if step == 0 { format!("{sign}{digits}") } else { format!("{sign}{digits}e{step}") };
    }
    let suffix = DECIMAL.iter().find(|(_, p)| *p == step).map_or("", |(s, _)| *s);
    format!("{sign}{digits}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (given, want) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1", "1"),
            ("100m", "100m"),
            ("1024Mi", "1Gi"),
            ("128Mi", "128Mi"),
            ("1.5Gi", "1536Mi"),
            ("1Ki", "1Ki"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("100000000", "100M"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("0", "0"),
            ("0Mi", "0"),
            ("-5m", "-5m"),
            ("+2", "2"),
            ("0.0001", "100u"),
            ("110", "110"),
        ] {
            assert_eq!(canonical(given).as_deref(), Ok(want), "{given}");
            assert_eq!(canonical(want).as_deref(), Ok(want), "{want} is stable");
        }
        for bad in ["", "abc", "1..2", ".", "1 Gi", "ten", "1GiB"] {
            assert!(canonical(bad).is_err(), "{bad}");
        }
        assert_eq!(canonical("1Kii"), Err(SUFFIX_ERROR));
        for huge in
            ["9".repeat(60), "0.".to_owned() + &"1".repeat(60), "1e18".into(), "999999999999999999999999E".into()]
        {
            canonical(&huge).expect("no overflow");
        }
    }
}
