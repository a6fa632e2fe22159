//! Times as people write them on a command line and read them.

const SECOND_MS: i64 = 1000;
const DAY_MS: i64 = 86_400 * SECOND_MS;

/// Milliseconds since 1970 of `2026-11-27 07:30:00+00`, RFC 3339's `2026-11-27T07:30:00.5Z`, or seconds since 1970; for the command-line
/// parser. A date without its offset is refused: nobody knows which clock is meant.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a time like '2026-11-27 07:30:00+00', or seconds since 1970");
    let text = text.trim();
    let milliseconds = match text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        true => parse_seconds(text),
        false => parse_date(text),
    };
    milliseconds.and_then(|ms| u64::try_from(ms).ok()).ok_or_else(wrong)
}

/// Seconds, with or without a fraction.
fn parse_seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let seconds: i64 = digits(whole, 1..=12)?;
    Some(seconds * SECOND_MS + milliseconds(fraction)?)
}

/// A fraction of a second, cut after its third digit.
fn milliseconds(fraction: &str) -> Option<i64> {
    digits(fraction, 1..=9)?;
    let three: String = fraction.chars().chain("000".chars()).take(3).collect();
    three.parse().ok()
}

fn digits(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let plain = length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn parse_date(text: &str) -> Option<i64> {
    let date = text.get(..10)?;
    let rest = text.get(10..)?.strip_prefix([' ', 'T', 't'])?;
    let offset_at = rest.find(['Z', 'z', '+', '-', ' '])?;
    let (time, offset) = (rest.get(..offset_at)?, rest.get(offset_at..)?.trim());
    let mut parts = date.split('-');
    let (year, month, day) =
        (digits(parts.next()?, 4..=4)?, digits(parts.next()?, 2..=2)?, digits(parts.next()?, 2..=2)?);
    let days = days_since_1970(year, month, day).filter(|days| date_of(*days) == (year, month, day))?;
    Some(days * DAY_MS + parse_clock(time)? - parse_offset(offset)?)
}

fn parse_clock(text: &str) -> Option<i64> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = clock.split(':');
    let (hour, minute) = (digits(parts.next()?, 2..=2)?, digits(parts.next()?, 2..=2)?);
    let second = parts.next().map_or(Some(0), |second| digits(second, 2..=2))?;
    let good = hour < 24 && minute < 60 && second < 61 && parts.next().is_none();
    good.then_some(((hour * 60 + minute) * 60 + second) * SECOND_MS + milliseconds(fraction)?)
}

/// `Z`, `+00`, `+0530` or `+05:30`.
fn parse_offset(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("z") || text.eq_ignore_ascii_case("utc") {
        return Some(0);
    }
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let minutes = rest.get(2..)?;
    let hours = digits(rest.get(..2)?, 2..=2)?;
    let minutes = match minutes.strip_prefix(':').unwrap_or(minutes) {
        "" => 0,
        minutes => digits(minutes, 2..=2)?,
    };
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes) * 60 * SECOND_MS)
}

/// Days from 1970-01-01 in the Gregorian calendar. Years begin in March, so that a leap day is the last one of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year;
    // 1970-01-01, counted from 0000-03-01.
    Some(days - 719_468)
}

/// Year, month and day of so many days after 1970-01-01.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

/// A time as `2026-11-27 07:30:00.250+00`, which [`parse`] reads.
pub fn show(milliseconds: u64) -> String {
    let ms = i64::try_from(milliseconds).unwrap_or(i64::MAX);
    let (days, of_day) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
    let (year, month, day) = date_of(days);
    let (second, ms) = (of_day / SECOND_MS, of_day % SECOND_MS);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}+00")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        // date -u -d '2026-11-27 07:30:00' +%s
        let ms = 1_795_764_600_000;
        for text in [
            "2026-11-27 07:30:00+00",
            "2026-11-27T07:30:00Z",
            "2026-11-27 07:30+00:00",
            "2026-11-27 13:00:00 +0530",
            "2026-11-26T23:30:00.000-08",
            "1795764600",
        ] {
            assert_eq!(parse(text), Ok(ms), "{text}");
        }
        assert_eq!(parse("1795764600.25"), Ok(ms + 250));
        assert_eq!(parse("2026-11-27T07:30:00.1239Z"), Ok(ms + 123));
        assert_eq!(show(ms + 123), "2026-11-27 07:30:00.123+00");
        assert_eq!(show(0), "1970-01-01 00:00:00.000+00");
    }

    #[test]
    fn what_is_no_time_or_nobody_knows_whose_is_refused() {
        for text in [
            "",
            "yesterday",
            "2026-11-27 07:30:00",
            "2026-02-29 00:00:00Z",
            "2026-13-01 00:00:00Z",
            "2026-11-27 24:00:00Z",
            "2026-11-27 07:30:00+99",
            "2026-11-27é07:30:00Z",
            "1.2.3",
            "99999999999999999999",
            "1960-01-01 00:00:00Z",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read() {
        for day in (0..60_000).step_by(13) {
            let ms = day * 86_400_000 + day * 7919 % 86_400_000;
            assert_eq!(parse(&show(ms)), Ok(ms));
        }
        assert_eq!(parse("2024-02-29 00:00:00Z"), Ok(1_709_164_800_000));
    }
}
