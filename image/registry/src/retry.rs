//! When to try again, and after how long.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::Error;

/// How often a request is tried, and how long is waited in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts altogether, at least one.
    pub attempts: u32,
    /// The delay after the first failure; it doubles after each further one.
    pub first_delay: Duration,
    /// The longest delay, which also caps what a registry asks for by Retry-After.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    /// Five attempts over about eight seconds: long enough for a restart behind a load balancer, short enough for a person.
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts: 5,
            first_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(60),
        }
    }
}

/// An address that refuses connections rarely changes its mind: one more attempt covers a restart.
const CONNECT_ATTEMPTS: u32 = 2;

impl RetryPolicy {
    /// The delay after failed attempt number `attempt` (from 1), with a jitter of a quarter either way.
    pub(crate) fn delay(&self, attempt: u32) -> Duration {
        let doubled = self.first_delay.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let jitter = 0.75 + f64::from(nanoseconds % 1000) / 2000.0;
        doubled.min(self.max_delay).mul_f64(jitter)
    }

    /// Whether a failure may go away by itself, given that `attempt` attempts were made.
    pub(crate) fn covers(&self, error: &Error, attempt: u32) -> bool {
        match error {
            Error::Connect { .. } => attempt < self.attempts.min(CONNECT_ATTEMPTS),
            Error::Timeout { .. } | Error::Transfer { .. } => attempt < self.attempts,
            _ => false,
        }
    }

    /// The delay that a Retry-After header asks for: seconds or a date, capped; `None` if it is neither.
    pub(crate) fn retry_after(&self, header: &str, now: SystemTime) -> Option<Duration> {
        let asked = match header.trim().parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => parse_http_date(header.trim())?.duration_since(now).unwrap_or_default(),
        };
        Some(asked.min(self.max_delay))
    }
}

/// Statuses that say "later" rather than "no".
pub(crate) fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7), the only form that may still be sent.
fn parse_http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_once(", ")?.1.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok()?;
    let mut clock = parts.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if parts.next() != Some("GMT") || !(1970..9999).contains(&year) || day == 0 || day > 31 {
        return None;
    }
    // Days of the civil calendar, counted in years that start in March.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = (y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1).checked_sub(719_468)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(days * 86_400 + hour * 3_600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms_and_capped() {
        let policy = RetryPolicy::default();
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (header, seconds) in [
            ("2", Some(2)),
            ("86400", Some(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1984 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 2094 08:49:37 GMT", Some(60)),
            ("-1", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(policy.retry_after(header, now), seconds.map(Duration::from_secs), "{header}");
        }
    }

    #[test]
    fn delays_double_up_to_the_cap() {
        let policy = RetryPolicy { max_delay: Duration::from_secs(3), ..RetryPolicy::default() };
        for (attempt, expected) in [(1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (40, 3.0)] {
            let delay = policy.delay(attempt).as_secs_f64();
            assert!((expected * 0.74..=expected * 1.26).contains(&delay), "{attempt}: {delay}");
        }
    }
}
