//! Dates as Python's `strftime` writes them.

/// C's `strftime` for the fields that chat templates use, in UTC; an unknown field stays as written.
pub(super) fn strftime(unix_seconds: i64, format: &str) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
    ];
    let (days, seconds) = (
        unix_seconds.div_euclid(86_400),
        unix_seconds.rem_euclid(86_400),
    );
    let (year, month, day) = civil_date(days);
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize]; // 1970-01-01 was a Thursday
    let month_name = MONTHS[month as usize - 1];
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut field = chars.next();
        let bare = field == Some('-'); // %-d: without the leading zero
        if bare {
            field = chars.next();
        }
        let two = |n: i64| {
            if bare {
                n.to_string()
            } else {
                format!("{n:02}")
            }
        };
        match field {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&two(year.rem_euclid(100))),
            Some('m') => out.push_str(&two(month)),
            Some('d') => out.push_str(&two(day)),
            Some('e') => out.push_str(&if bare {
                day.to_string()
            } else {
                format!("{day:2}")
            }),
            Some('j') => out.push_str(&format!("{:03}", day_of_year(days, year))),
            Some('F') => out.push_str(&strftime(unix_seconds, "%Y-%m-%d")),
            Some('D') => out.push_str(&strftime(unix_seconds, "%m/%d/%y")),
            Some('T') => out.push_str(&strftime(unix_seconds, "%H:%M:%S")),
            Some('R') => out.push_str(&strftime(unix_seconds, "%H:%M")),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&two(hour)),
            Some('I') => out.push_str(&two((hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&two(minute)),
            Some('S') => out.push_str(&two(second)),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    out
}

/// Gregorian year, month and day of a day number (0 = 1970-01-01).
///
/// # Source
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// Day of the year, 1 for the first of January.
fn day_of_year(days: i64, year: i64) -> i64 {
    let mut first = days - 366;
    while civil_date(first).0 < year {
        first += 1;
    }
    days - first + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        // date -u -d @951782400 => Tue Feb 29 00:00:00 UTC 2000
        assert_eq!(
            strftime(951_782_400, "%d %b %Y %A %-m %H:%M:%S %I%p %y %q %%"),
            "29 Feb 2000 Tuesday 2 00:00:00 12AM 00 %q %"
        );
        // date -u -d @1735689599 => Tue Dec 31 23:59:59 UTC 2024
        assert_eq!(
            strftime(1_735_689_599, "%Y-%m-%d %B %a %I%p"),
            "2024-12-31 December Tue 11PM"
        );
        assert_eq!(strftime(-86_400, "%Y-%m-%d %a"), "1969-12-31 Wed");
        // date -u -d @1735689599 '+%F %D %T %R %e %j %h'
        assert_eq!(
            strftime(1_735_689_599, "%F %D %T %R %e %j %h"),
            "2024-12-31 12/31/24 23:59:59 23:59 31 366 Dec"
        );
        // date -u -d 2023-01-02 '+%e %-e %j %-d/%-m'
        assert_eq!(strftime(1_672_617_600, "%e %-e %j %-d/%-m"), " 2 2 002 2/1");
    }
}
