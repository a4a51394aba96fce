//! Progress of downloads and uploads: a bar with rate and time left on a terminal, one line elsewhere.

use std::io::IsTerminal;

use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::say;

const BAR: &str = "{prefix} {bar:24.cyan} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  eta {eta}  {wide_msg}";
const WITHOUT_END: &str = "{prefix} {decimal_bytes}  {decimal_bytes_per_sec}  {wide_msg}";

/// Downloads below this are over before a line about them is read.
const WORTH_A_LINE: u64 = 5_000_000;

/// Progress of the files of one repository.
pub(super) struct Progress {
    bar: ProgressBar,
    /// What is done, for the line.
    verb: &'static str,
    /// Bytes of the files before the present one.
    before: u64,
    shown: bool,
}

impl Progress {
    /// Shows the download of `total` bytes from `name`; `None`: each file says how many it has.
    pub(super) fn new(name: &str, total: Option<u64>, shown: bool) -> Self {
        Self::of("downloading", name, total, shown)
    }

    /// Shows the upload of `total` bytes to `name`.
    pub(super) fn upload(name: &str, total: u64, shown: bool) -> Self {
        Self::of("uploading", name, Some(total), shown)
    }

    fn of(verb: &'static str, name: &str, total: Option<u64>, shown: bool) -> Self {
        let target = match shown {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style(WITHOUT_END));
        bar.set_prefix(name.to_owned());
        let progress = Self {
            bar,
            verb,
            before: 0,
            shown,
        };
        progress.announce(total);
        progress
    }

    /// Sets the number of bytes, if it is known.
    fn announce(&self, total: Option<u64>) {
        let Some(total) = total else { return };
        self.bar.set_length(total);
        self.bar.set_style(style(BAR));
        if self.shown && total >= WORTH_A_LINE && !std::io::stderr().is_terminal() {
            say(&format!(
                "{} {} ({})",
                self.verb,
                self.bar.prefix(),
                decimal(total)
            ));
        }
    }

    /// Begins a file of `size` bytes, of which the cache has the first `present` ones.
    pub(super) fn begin(&self, file: &str, present: u64, size: Option<u64>) {
        if self.bar.length().is_none() {
            self.announce(size);
        }
        self.bar.set_message(file.to_owned());
        self.at(present);
        // The rate is that of the network, not of what was there.
        self.bar.reset_eta();
    }

    /// Moves the bar to byte `position` of the present file.
    pub(super) fn at(&self, position: u64) {
        self.bar.set_position(self.before + position);
    }

    /// Ends a file.
    pub(super) fn end(&mut self, bytes: u64) {
        self.before += bytes;
        self.at(0);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Bytes as the hub's pages show them: `269.1 MB`.
pub fn decimal(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates above are well-formed")
        .progress_chars("━╸─")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_counts_the_files_of_a_repository() {
        let mut progress = Progress::new("me/m", Some(300), false);
        progress.begin("a", 0, Some(100));
        progress.at(40);
        assert_eq!(
            (progress.bar.position(), progress.bar.length()),
            (40, Some(300))
        );
        progress.end(100);
        // Continued.
        progress.begin("b", 150, Some(200));
        assert_eq!(progress.bar.position(), 250);
        let progress = Progress::new("me/m", None, false);
        progress.begin("a", 0, Some(7));
        assert_eq!(progress.bar.length(), Some(7));
        assert_eq!(decimal(269_060_552), "269.06 MB");
    }
}
