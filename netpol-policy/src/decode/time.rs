//! RFC 3339 timestamps, as far as `metav1.Time` uses them.

/// Seconds of the epoch; fractions are dropped. `None` if it is no RFC 3339 timestamp.
pub(crate) fn seconds_of_epoch(text: &str) -> Option<i64> {
    let (date, rest) = text.split_once('T')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let zone_at = rest.find(['Z', '+', '-'])?;
    let (time, zone) = rest.split_at_checked(zone_at)?;
    let whole = match time.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit()) => whole,
        Some(_) => return None,
        None => time,
    };
    let [hour, minute, second] = numbers(whole, ':', [2, 2, 2])?;
    let offset = match zone.split_at_checked(1)? {
        ("Z", "") => 0,
        (sign, ahead) => {
            let [hours, minutes] = numbers(ahead, ':', [2, 2])?;
            let ahead = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
            if sign == "-" { -ahead } else { ahead }
        }
    };
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    valid.then(|| days_of_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

/// Exactly `N` decimal numbers of the given widths.
fn numbers<const N: usize>(text: &str, separator: char, widths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, width) in numbers.iter_mut().zip(widths) {
        let part = parts.next()?;
        if part.len() != width || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Days from 1970-01-01 in the Gregorian calendar. The year is taken to begin in March, so that the leap day is its
/// last, and 400 years have 146,097 days.
fn days_of_epoch(year: i64, month: i64, day: i64) -> i64 {
    let march_year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (march_year.div_euclid(400), march_year.rem_euclid(400));
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The reverse of [`seconds_of_epoch`], in UTC.
pub(crate) fn rfc3339(seconds: i64) -> String {
    let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let from_march_0 = days.saturating_add(719_468);
    let (era, day_of_era) = (from_march_0.div_euclid(146_097), from_march_0.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_read_in_any_zone_and_fractions_dropped() {
        let table = [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:30:45Z", 951_827_445),
            ("2026-08-22T10:00:00Z", 1_787_392_800),
            ("2026-08-22T12:00:00+02:00", 1_787_392_800),
            ("2026-08-22T04:30:00.123456-05:30", 1_787_392_800),
            ("1969-12-31T23:59:59Z", -1),
        ];
        for (text, seconds) in table {
            assert_eq!(seconds_of_epoch(text), Some(seconds), "{text}");
        }
        for bad in [
            "",
            "T",
            "2026-08-22",
            "2026-08-22T10:00:00",
            "2026-13-22T10:00:00Z",
            "2026-08-22T24:00:00Z",
            "2026-08-22T10:00:00.Z",
            "2026-08-22T10:00Z",
            "2026-8-22T10:00:00Z",
            "2026-08-22T10:00:00+2",
            "2026-08-22Tä",
        ] {
            assert_eq!(seconds_of_epoch(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for seconds in [0, -1, 951_827_445, 1_787_392_800, 4_102_444_799, -62_135_596_800] {
            assert_eq!(seconds_of_epoch(&rfc3339(seconds)), Some(seconds));
        }
    }
}
