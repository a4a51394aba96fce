//! Dates as Python's `strftime` writes them.

use chrono::DateTime;
use chrono::format::StrftimeItems;

/// C's `strftime` in UTC; an unknown field stays as written, as in Python.
pub(super) fn strftime(unix_seconds: i64, format: &str) -> String {
    DateTime::from_timestamp(unix_seconds, 0)
        .unwrap_or_default()
        .format_with_items(StrftimeItems::new_lenient(format))
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        // date -u -d @951782400 => Tue Feb 29 00:00:00 UTC 2000
        assert_eq!(
            strftime(951_782_400, "%d %b %Y %A %-m %H:%M:%S %I%p %y %i %%"),
            "29 Feb 2000 Tuesday 2 00:00:00 12AM 00 %i %"
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
        assert_eq!(strftime(0, "100 %"), "100 %");
        // date -u -d 2023-01-02 '+%e %-e %j %-d/%-m'
        assert_eq!(strftime(1_672_617_600, "%e %-e %j %-d/%-m"), " 2 2 002 2/1");
    }
}
