//! Numbers and times in the ways in which records print them.
//!
//! [`parse`] and [`print()`] are exact inverses: what would not print as it was read is not a number here.
//! A number is a mantissa in the [`Format::unit`] of its format, so that numbers of one column can be
//! subtracted from each other.

use super::template::{date_len, time_len};

/// How a number is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    /// So many decimals; 0: an integer without a dot.
    Fixed(u8),
    /// An integer of at least so many digits, zeros in front.
    Padded(u8),
    /// Up to so many decimals, zeros at the end dropped, and the dot with the last.
    Trimmed(u8),
    /// The same, at least one decimal.
    TrimmedToOne(u8),
    /// So many hexadecimal digits.
    Hex { digits: u8, is_upper: bool },
    /// `hh:mm:ss`, so many decimals after a dot or a comma.
    TimeOfDay { has_comma: bool, decimals: u8 },
    /// `yyyy-mm-ddThh:mm:ss`, decimals likewise, then the zone.
    DateTime {
        has_space: bool,
        has_comma: bool,
        decimals: u8,
        /// 0: none, 1: `Z`, else quarters of an hour east of Greenwich, plus [`ZONE_0`].
        zone: u8,
    },
}

/// Longest text of a number.
pub(crate) const MAX_NUMBER_LEN: usize = 40;

/// Most digits of a decimal number, if 63 bits hold them: nanoseconds since 1970 have as many.
const MAX_DIGITS: usize = 19;
/// Most digits to which a number is widened by decimals that it does not show.
const MAX_WIDE_DIGITS: usize = 18;
const MAX_SCALE: u8 = 18;
const MAX_DECIMALS: u8 = 9;
const MIN_HEX: usize = 4;
const MAX_HEX: usize = 16;

const ZONE_NONE: u8 = 0;
const ZONE_Z: u8 = 1;
const ZONE_0: u8 = 66;
/// Most quarters of an hour from Greenwich.
const MAX_ZONE: u8 = 63;

const CODE_PADDED: u32 = 32;
const CODE_TRIMMED: u32 = 64;
const CODE_TRIMMED_TO_ONE: u32 = 96;
const CODE_HEX: u32 = 128;
const CODE_TIME: u32 = 192;
const CODE_DATE_TIME: u32 = 1 << 15;

const SECONDS_A_DAY: i64 = 86_400;

const POW_10: [i64; 19] = {
    let mut powers = [1; 19];
    let mut at = 1;
    while at < 19 {
        powers[at] = powers[at - 1] * 10;
        at += 1;
    }
    powers
};

fn pow_10(exponent: u8) -> i64 {
    POW_10.get(usize::from(exponent)).copied().unwrap_or(1)
}

impl Format {
    /// A number for the wire.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Fixed(scale) => scale.into(),
            Self::Padded(width) => CODE_PADDED + u32::from(width),
            Self::Trimmed(scale) => CODE_TRIMMED + u32::from(scale),
            Self::TrimmedToOne(scale) => CODE_TRIMMED_TO_ONE + u32::from(scale),
            Self::Hex { digits, is_upper } => {
                CODE_HEX + 2 * u32::from(digits) + u32::from(is_upper)
            }
            Self::TimeOfDay {
                has_comma,
                decimals,
            } => CODE_TIME + 16 * u32::from(has_comma) + u32::from(decimals),
            Self::DateTime {
                has_space,
                has_comma,
                decimals,
                zone,
            } => {
                CODE_DATE_TIME
                    | u32::from(has_space) << 13
                    | u32::from(has_comma) << 12
                    | u32::from(decimals) << 8
                    | u32::from(zone)
            }
        }
    }

    /// The format of a code; `None` when there is none.
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        let low = code.to_le_bytes()[0];
        let format = match code {
            0..CODE_PADDED => Self::Fixed(low),
            CODE_PADDED..CODE_TRIMMED => Self::Padded(low & 31),
            CODE_TRIMMED..CODE_TRIMMED_TO_ONE => Self::Trimmed(low & 31),
            CODE_TRIMMED_TO_ONE..CODE_HEX => Self::TrimmedToOne(low & 31),
            CODE_HEX..CODE_TIME => Self::Hex {
                digits: (low & 63) >> 1,
                is_upper: low & 1 != 0,
            },
            CODE_TIME..256 => Self::TimeOfDay {
                has_comma: low & 16 != 0,
                decimals: low & 15,
            },
            _ => Self::DateTime {
                has_space: code >> 13 & 1 != 0,
                has_comma: code >> 12 & 1 != 0,
                decimals: (code >> 8).to_le_bytes()[0] & 15,
                zone: low,
            },
        };
        (format.is_valid() && format.code() == code).then_some(format)
    }

    fn is_valid(self) -> bool {
        match self {
            Self::Fixed(n) => n <= MAX_SCALE,
            Self::Padded(n) => (1..=MAX_DIGITS).contains(&usize::from(n)),
            Self::Trimmed(n) | Self::TrimmedToOne(n) => (1..=MAX_SCALE).contains(&n),
            Self::Hex { digits, .. } => (MIN_HEX..=MAX_HEX).contains(&usize::from(digits)),
            Self::TimeOfDay { decimals, .. } => decimals <= MAX_DECIMALS,
            Self::DateTime { decimals, zone, .. } => {
                decimals <= MAX_DECIMALS && (zone <= ZONE_Z || zone.abs_diff(ZONE_0) <= MAX_ZONE)
            }
        }
    }

    /// What one of the mantissa is; only mantissas of one unit can be compared. Below 32: a number with
    /// so many decimals (see [`rescale`]).
    pub(crate) fn unit(self) -> u8 {
        match self {
            Self::Fixed(scale) | Self::Trimmed(scale) | Self::TrimmedToOne(scale) => scale,
            Self::Padded(_) => 0,
            Self::DateTime { decimals, .. } => 32 + decimals,
            Self::TimeOfDay { decimals, .. } => 64 + decimals,
            Self::Hex { .. } => 96,
        }
    }
}

impl Format {
    /// How far a date's zone is east of Greenwich, in ms.
    pub(crate) fn zone_ms(self) -> i64 {
        match self {
            Self::DateTime { zone, .. } if zone > ZONE_Z => {
                (i64::from(zone) - i64::from(ZONE_0)) * 15 * 60_000
            }
            Self::DateTime { .. }
            | Self::Fixed(_)
            | Self::Padded(_)
            | Self::Trimmed(_)
            | Self::TrimmedToOne(_)
            | Self::Hex { .. }
            | Self::TimeOfDay { .. } => 0,
        }
    }
}

/// The same number in a finer unit, wrapping; `None` when the units have nothing in common.
pub(crate) fn rescale(mantissa: i64, from_unit: u8, to_unit: u8) -> Option<i64> {
    if to_unit >= 32 || from_unit > to_unit {
        return None;
    }
    Some(mantissa.wrapping_mul(pow_10(to_unit - from_unit)))
}

/// Reads a slot as a number, in the `preferred` format (the last of its column) where it can.
#[inline]
pub(crate) fn parse(token: &[u8], preferred: Option<Format>) -> Option<(Format, i64)> {
    let first = *token.first()?;
    if token.len() > MAX_NUMBER_LEN || !(first == b'-' || first.is_ascii_hexdigit()) {
        return None;
    }
    if token.get(2) == Some(&b':') && time_len(token) == token.len() {
        return parse_time(token);
    }
    if token.len() >= 19 && date_len(token) > 0 {
        return parse_date_time(token);
    }
    if let Some(Format::Hex { digits, is_upper }) = preferred
        && usize::from(digits) == token.len()
        && let Some((is_upper, mantissa)) = hex(token, is_upper)
    {
        return Some((Format::Hex { digits, is_upper }, mantissa));
    }
    parse_decimal(token, preferred).or_else(|| parse_hex(token))
}

fn parse_hex(token: &[u8]) -> Option<(Format, i64)> {
    if !(MIN_HEX..=MAX_HEX).contains(&token.len()) {
        return None;
    }
    let digits = u8::try_from(token.len()).ok()?;
    let (is_upper, mantissa) = hex(token, true)?;
    Some((Format::Hex { digits, is_upper }, mantissa))
}

/// Value and case; `is_upper` decides when there is no letter.
fn hex(token: &[u8], is_upper: bool) -> Option<(bool, i64)> {
    let (mut value, mut has_upper, mut has_lower) = (0_u64, false, false);
    for byte in token {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => {
                has_lower = true;
                byte - b'a' + 10
            }
            b'A'..=b'F' => {
                has_upper = true;
                byte - b'A' + 10
            }
            _ => return None,
        };
        value = value << 4 | u64::from(digit);
    }
    let is_upper = has_upper || (is_upper && !has_lower);
    (!(has_upper && has_lower)).then_some((is_upper, value.cast_signed()))
}

fn parse_decimal(token: &[u8], preferred: Option<Format>) -> Option<(Format, i64)> {
    let is_negative = token.first() == Some(&b'-');
    let (mut mantissa, mut digits, mut dot) = (0_i64, 0_usize, None);
    for byte in token.get(usize::from(is_negative)..)? {
        match byte {
            b'0'..=b'9' if digits < MAX_DIGITS => {
                mantissa = mantissa
                    .checked_mul(10)?
                    .checked_add((byte - b'0').into())?;
                digits += 1;
            }
            b'.' if dot.is_none() && digits > 0 => dot = Some(digits),
            _ => return None,
        }
    }
    let whole = dot.unwrap_or(digits);
    let scale = u8::try_from(digits - whole).ok()?;
    if digits == 0 || (dot.is_some() && scale == 0) || (is_negative && mantissa == 0) {
        return None;
    }
    let leads_with_zero = whole > 1 && token.get(usize::from(is_negative)) == Some(&b'0');
    let ends_with_zero = scale > 0 && mantissa % 10 == 0;
    if is_negative {
        mantissa = -mantissa;
    }
    if leads_with_zero {
        return (scale == 0).then_some((Format::Padded(u8::try_from(whole).ok()?), mantissa));
    }
    // the same number with more decimals, which the format drops when it prints
    let widened = |to: u8| {
        let to = to.max(scale);
        (whole + usize::from(to) <= MAX_WIDE_DIGITS).then(|| (to, mantissa * pow_10(to - scale)))
    };
    let trimmed = |to| widened(to).map(|(to, mantissa)| (Format::Trimmed(to), mantissa));
    let to_one = |to| widened(to).map(|(to, mantissa)| (Format::TrimmedToOne(to), mantissa));
    let preferred = match preferred {
        Some(Format::Padded(width)) if scale == 0 && whole >= usize::from(width) => {
            Some((Format::Padded(width), mantissa))
        }
        Some(Format::Trimmed(to)) if !ends_with_zero => trimmed(to),
        Some(Format::TrimmedToOne(to)) if scale == 1 || (scale > 1 && !ends_with_zero) => {
            to_one(to)
        }
        // the number of decimals varies: from here on they are trimmed
        Some(Format::Fixed(to)) if to != scale && scale == 1 && ends_with_zero => to_one(to),
        Some(Format::Fixed(to)) if to != scale && !ends_with_zero => trimmed(to),
        _ => None,
    };
    Some(preferred.unwrap_or((Format::Fixed(scale), mantissa)))
}

/// Digits that were checked before.
fn number(digits: &[u8]) -> i64 {
    digits
        .iter()
        .fold(0, |n, b| n * 10 + i64::from(b.wrapping_sub(b'0').min(9)))
}

/// Seconds of `hh:mm:ss`, if minutes and seconds are below 60.
fn seconds(time: &[u8]) -> Option<i64> {
    let part = |from: usize| time.get(from..from + 2).map(number);
    let (hours, minutes, seconds) = (part(0)?, part(3)?, part(6)?);
    (minutes < 60 && seconds < 60).then_some(hours * 3600 + minutes * 60 + seconds)
}

/// Seconds with the decimals of the time behind them, the number of those, and whether after a comma.
fn with_decimals(seconds: i64, time: &[u8]) -> Option<(i64, u8, bool)> {
    let digits = time.get(9..).unwrap_or_default();
    let decimals = u8::try_from(digits.len()).ok()?;
    let mantissa = seconds
        .checked_mul(pow_10(decimals))?
        .checked_add(number(digits))?;
    Some((mantissa, decimals, time.get(8) == Some(&b',')))
}

fn parse_time(token: &[u8]) -> Option<(Format, i64)> {
    let (mantissa, decimals, has_comma) = with_decimals(seconds(token)?, token)?;
    Some((
        Format::TimeOfDay {
            has_comma,
            decimals,
        },
        mantissa,
    ))
}

fn parse_date_time(token: &[u8]) -> Option<(Format, i64)> {
    let has_space = match token.get(10)? {
        b' ' => true,
        b'T' => false,
        _ => return None,
    };
    let rest = token.get(11..)?;
    let (time, zone) = rest.split_at_checked(time_len(rest))?;
    let zone = parse_zone(zone)?;
    let part = |from: usize, to: usize| token.get(from..to).map(number);
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let seconds = seconds(time).filter(|seconds| *seconds < SECONDS_A_DAY)?;
    let days = days_of_date(year, month, day);
    if date_of_days(days) != (year, month, day) {
        return None;
    }
    let (mantissa, decimals, has_comma) = with_decimals(days * SECONDS_A_DAY + seconds, time)?;
    let format = Format::DateTime {
        has_space,
        has_comma,
        decimals,
        zone,
    };
    Some((format, mantissa))
}

fn parse_zone(zone: &[u8]) -> Option<u8> {
    match zone {
        [] => Some(ZONE_NONE),
        b"Z" => Some(ZONE_Z),
        [sign @ (b'+' | b'-'), h1, h0, b':', m1, m0]
            if [h1, h0, m1, m0].iter().all(|b| b.is_ascii_digit()) =>
        {
            let minutes = number(&[*m1, *m0]);
            let quarters = number(&[*h1, *h0]) * 4 + minutes / 15;
            let quarters = u8::try_from(quarters).ok().filter(|q| *q <= MAX_ZONE)?;
            let is_west = *sign == b'-';
            if minutes % 15 != 0 || minutes >= 60 || (is_west && quarters == 0) {
                return None;
            }
            Some(if is_west {
                ZONE_0 - quarters
            } else {
                ZONE_0 + quarters
            })
        }
        _ => None,
    }
}

/// Days since 1970 of a date of the proleptic Gregorian calendar; the day may lie outside its month.
fn days_of_date(year: i64, month: i64, day: i64) -> i64 {
    // years begin in March, so that the day that leaps is the last
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn date_of_days(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Appends a number as its format prints it; any mantissa in a valid format prints something of at most
/// [`MAX_NUMBER_LEN`] bytes.
pub(crate) fn print(format: Format, mantissa: i64, out: &mut Vec<u8>) {
    match format {
        Format::Fixed(0) => put_signed(out, mantissa, 1),
        Format::Padded(width) => put_signed(out, mantissa, width.into()),
        Format::Fixed(scale) => put_decimal(out, mantissa, scale, scale),
        Format::Trimmed(scale) => put_decimal(out, mantissa, scale, 0),
        Format::TrimmedToOne(scale) => put_decimal(out, mantissa, scale, 1),
        Format::Hex { digits, is_upper } => put_hex(out, mantissa, digits, is_upper),
        Format::TimeOfDay {
            has_comma,
            decimals,
        } => put_time(out, mantissa, decimals, has_comma),
        Format::DateTime {
            has_space,
            has_comma,
            decimals,
            zone,
        } => {
            let day = SECONDS_A_DAY.saturating_mul(pow_10(decimals));
            let (year, month, date) = date_of_days(mantissa.div_euclid(day));
            put_signed(out, year, 4);
            out.push(b'-');
            put_signed(out, month, 2);
            out.push(b'-');
            put_signed(out, date, 2);
            out.push(if has_space { b' ' } else { b'T' });
            put_time(out, mantissa.rem_euclid(day), decimals, has_comma);
            put_zone(out, zone);
        }
    }
}

fn put_zone(out: &mut Vec<u8>, zone: u8) {
    match zone {
        ZONE_NONE => {}
        ZONE_Z => out.push(b'Z'),
        _ => {
            let quarters = zone.abs_diff(ZONE_0);
            out.push(if zone < ZONE_0 { b'-' } else { b'+' });
            put_digits(out, u64::from(quarters / 4), 2);
            out.push(b':');
            put_digits(out, u64::from(quarters % 4) * 15, 2);
        }
    }
}

fn put_time(out: &mut Vec<u8>, mantissa: i64, decimals: u8, has_comma: bool) {
    let one = pow_10(decimals);
    let (seconds, fraction) = (mantissa.div_euclid(one), mantissa.rem_euclid(one));
    put_signed(out, seconds.div_euclid(3600), 2);
    out.push(b':');
    put_signed(out, seconds.rem_euclid(3600) / 60, 2);
    out.push(b':');
    put_signed(out, seconds.rem_euclid(60), 2);
    if decimals > 0 {
        out.push(if has_comma { b',' } else { b'.' });
        put_digits(out, fraction.unsigned_abs(), decimals.into());
    }
}

fn put_decimal(out: &mut Vec<u8>, mantissa: i64, scale: u8, least: u8) {
    if mantissa < 0 {
        out.push(b'-');
    }
    let one = pow_10(scale).unsigned_abs();
    let (whole, mut fraction) = (mantissa.unsigned_abs() / one, mantissa.unsigned_abs() % one);
    let mut decimals = scale;
    while decimals > least && fraction.is_multiple_of(10) {
        fraction /= 10;
        decimals -= 1;
    }
    put_digits(out, whole, 1);
    if decimals > 0 {
        out.push(b'.');
        put_digits(out, fraction, decimals.into());
    }
}

fn put_signed(out: &mut Vec<u8>, value: i64, width: usize) {
    if value < 0 {
        out.push(b'-');
    }
    put_digits(out, value.unsigned_abs(), width);
}

/// At least `width` digits.
fn put_digits(out: &mut Vec<u8>, mut value: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        if value == 0 {
            break;
        }
        *digit = b'0' + (value % 10).to_le_bytes()[0];
        value /= 10;
        start = at;
    }
    start = start.min(digits.len().saturating_sub(width));
    out.extend_from_slice(digits.get(start..).unwrap_or_default());
}

fn put_hex(out: &mut Vec<u8>, mantissa: i64, digits: u8, is_upper: bool) {
    let alphabet = if is_upper {
        b"0123456789ABCDEF"
    } else {
        b"0123456789abcdef"
    };
    let value = mantissa.cast_unsigned();
    for place in (0..digits.min(16)).rev() {
        let digit = (value >> (4 * u32::from(place)) & 15).to_le_bytes()[0];
        out.push(alphabet[usize::from(digit)]);
    }
}
