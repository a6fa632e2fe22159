//! As much of DER as is read here and by no function of `rustls-webpki`: until when a certificate is valid, and what the
//! signature of a revocation list is over. Bytes come from files; nothing here panics on any of them.
//!
//! The formats are those of RFC 5280: `Certificate` in section 4.1, `CertificateList` in section 5.1.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const BIT_STRING: u8 = 0x03;
const INTEGER: u8 = 0x02;
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version of a certificate, `[0] EXPLICIT`.
const VERSION: u8 = 0xA0;

/// One element: its tag, what is in it, all of it with its head, and what follows it.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
    rest: &'a [u8],
}

/// The first element. Lengths of up to four bytes are known, more than any file here has.
fn element(bytes: &[u8]) -> Option<Element<'_>> {
    let (&tag, after_tag) = bytes.split_first()?;
    let (&first, after_first) = after_tag.split_first()?;
    let (length, body) = match first {
        0..=0x7F => (usize::from(first), after_first),
        0x81..=0x84 => {
            let (digits, body) = after_first.split_at_checked(usize::from(first & 0x7F))?;
            (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), body)
        }
        _ => return None,
    };
    let (content, rest) = body.split_at_checked(length)?;
    let (whole, _) = bytes.split_at_checked(bytes.len() - rest.len())?;
    Some(Element { tag, content, whole, rest })
}

/// The first element, which has to be of this kind.
fn expect(bytes: &[u8], tag: u8) -> Option<Element<'_>> {
    element(bytes).filter(|element| element.tag == tag)
}

/// What a signature is over, the algorithm's identifier without its head, and the signature.
pub(super) struct Signed<'a> {
    pub(super) message: &'a [u8],
    pub(super) algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// The parts of a certificate or a revocation list: `SEQUENCE { what is signed, algorithm, signature }`. `None` if it is neither.
pub(super) fn signed(der: &[u8]) -> Option<Signed<'_>> {
    let outer = expect(der, SEQUENCE).filter(|outer| outer.rest.is_empty())?;
    let message = expect(outer.content, SEQUENCE)?;
    let algorithm = expect(message.rest, SEQUENCE)?;
    let signature = expect(algorithm.rest, BIT_STRING).filter(|signature| signature.rest.is_empty())?;
    // The count of unused bits, which no signature has.
    let (0, signature) = signature.content.split_first().map(|(&unused, bits)| (unused, bits))? else {
        return None;
    };
    Some(Signed { message: message.whole, algorithm: algorithm.content, signature })
}

/// Until when a certificate is valid; `None` if it does not say so in a way that is understood.
pub(super) fn expires(certificate: &[u8]) -> Option<SystemTime> {
    let fields = expect(signed(certificate)?.message, SEQUENCE)?.content;
    // The version is left out by the first one.
    let after_version = expect(fields, VERSION).map_or(fields, |version| version.rest);
    let serial = expect(after_version, INTEGER)?;
    let algorithm = expect(serial.rest, SEQUENCE)?;
    let issuer = expect(algorithm.rest, SEQUENCE)?;
    let validity = expect(issuer.rest, SEQUENCE)?;
    let since = element(validity.content)?;
    let until = element(since.rest)?;
    match until.tag {
        UTC_TIME => {
            let (year, rest) = number(until.content, 2)?;
            // RFC 5280, section 4.1.2.5.1.
            time(if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => number(until.content, 4).and_then(|(year, rest)| time(year, rest)),
        _ => None,
    }
}

/// A number of so many digits, and what follows.
fn number(text: &[u8], digits: usize) -> Option<(u64, &[u8])> {
    let (digits, rest) = text.split_at_checked(digits)?;
    let value = digits.iter().try_fold(0, |value: u64, digit| {
        digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0'))
    })?;
    Some((value, rest))
}

/// The moment of `MMDDHHMMSSZ` in a year.
fn time(year: u64, text: &[u8]) -> Option<SystemTime> {
    let mut rest = text;
    let mut next = |allowed: std::ops::RangeInclusive<u64>| {
        let (value, after) = number(rest, 2)?;
        rest = after;
        allowed.contains(&value).then_some(value)
    };
    let (month, day) = (next(1..=12)?, next(1..=31)?);
    let (hour, minute, second) = (next(0..=23)?, next(0..=59)?, next(0..=60)?);
    if rest != b"Z" || year < 1970 {
        return None;
    }
    // Years that begin in March end with the day that leap years add.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_since_0 = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    /// From the first of March of the year 0 to 1970.
    const DAYS_TO_1970: u64 = 719_468;
    let days = days_since_0.checked_sub(DAYS_TO_1970)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(((days * 24 + hour) * 60 + minute) * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(text: &[u8], year: u64) -> Option<u64> {
        time(year, text).map(|time| time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs())
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        // As `date -u +%s -d …` has them.
        assert_eq!(seconds(b"0101000000Z", 1970), Some(0));
        assert_eq!(seconds(b"0229120000Z", 2000), Some(951_825_600));
        assert_eq!(seconds(b"0301000000Z", 2100), Some(4_107_542_400));
        assert_eq!(seconds(b"1127235959Z", 2026), Some(1_795_823_999));
        assert_eq!(seconds(b"1231235959Z", 9999), Some(253_402_300_799));
        for wrong in [&b"1327235959Z"[..], b"1127245959Z", b"1127235959", b"112723595Z", b"1127235959Z0", b""]
        {
            assert_eq!(seconds(wrong, 2026), None, "{wrong:?}");
        }
    }

    #[test]
    fn lengths_beyond_the_end_are_no_elements() {
        for wrong in
            [&[][..], &[0x30], &[0x30, 1], &[0x30, 0x80], &[0x30, 0x84, 255, 255, 255, 255], &[0x30, 0x85]]
        {
            assert!(element(wrong).is_none(), "{wrong:?}");
        }
        let found = element(&[0x30, 0x81, 1, 7, 9]).expect("an element");
        assert_eq!((found.content, found.whole, found.rest), (&[7][..], &[0x30, 0x81, 1, 7][..], &[9][..]));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (signed(&bytes).is_some(), expires(&bytes));
        }
    }
}
