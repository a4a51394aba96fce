//! What clients may cost.

use std::time::Duration;

/// Limits of a server. A client that goes beyond one gets an answer that says so, or loses its connection if it does not even
/// send a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limits {
    /// Largest body of a request in bytes: 413.
    pub(crate) body: usize,
    /// Time to send the head of a request, and then its body: 408.
    pub(crate) read: Duration,
    /// Connections at once; further ones wait to be accepted.
    pub(crate) connections: usize,
    /// Requests a second of one address over a short while, if limited: 429. Twice as many may come at once.
    pub(crate) rate: Option<f64>,
    /// Time for answers under way after the stop.
    pub(crate) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1 << 20,
            read: Duration::from_secs(10),
            connections: 256,
            rate: Some(200.0),
            drain: Duration::from_secs(10),
        }
    }
}

/// A bucket of one address: it fills by `rate` a second up to twice the rate, and each request takes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    left: f64,
    /// Seconds on the server's clock.
    at: f64,
}

impl Bucket {
    pub(crate) fn full(rate: f64, now: f64) -> Self {
        Self {
            left: 2.0 * rate,
            at: now,
        }
    }

    /// Takes one request, or gives the seconds until there is one.
    pub(crate) fn take(&mut self, rate: f64, now: f64) -> Result<(), f64> {
        self.left = (self.left + (now - self.at) * rate).min(2.0 * rate);
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err((1.0 - self.left) / rate)
    }

    /// Whether forgetting the bucket changes nothing.
    pub(crate) fn is_full(&self, rate: f64, now: f64) -> bool {
        self.left + (now - self.at) * rate >= 2.0 * rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_twice_the_rate_at_once_and_then_the_rate() {
        let mut bucket = Bucket::full(10.0, 0.0);
        assert_eq!(
            (0..30).filter(|_| bucket.take(10.0, 0.0).is_ok()).count(),
            20
        );
        assert!((bucket.take(10.0, 0.0).unwrap_err() - 0.1).abs() < 1e-9);
        assert_eq!(
            (0..30).filter(|_| bucket.take(10.0, 1.0).is_ok()).count(),
            10
        );
        assert!(!bucket.is_full(10.0, 2.0) && bucket.is_full(10.0, 3.0));
    }
}
