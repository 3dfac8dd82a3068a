//! Spans of time and moments relative to now.

use std::time::Duration;

use cofferdam_shim::Timestamp;

use super::Refusal;

/// Longest span taken: a year is more than any grace, and no deadline overflows.
const LIMIT: Duration = Duration::from_secs(366 * 86_400);

/// Reads `10` (seconds), `1.5s`, `250ms`, `5m`, `1h30m`, `2d`.
pub fn parse_span(text: &str) -> Result<Duration, Refusal> {
    let refuse = |problem: &str| Refusal::new("time span", text, problem);
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(refuse("expected a span such as 10s or 1h30m"));
    }
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: f64 = number.parse().map_err(|_| refuse("expected a number before each unit"))?;
        let seconds = match unit {
            "ms" => number / 1000.0,
            "s" | "" => number,
            "m" => number * 60.0,
            "h" => number * 3600.0,
            "d" => number * 86_400.0,
            _ => return Err(refuse("the unit is none of ms, s, m, h, d")),
        };
        let part = Duration::try_from_secs_f64(seconds).map_err(|_| refuse("it is too long"))?;
        total =
            total.checked_add(part).filter(|sum| *sum <= LIMIT).ok_or_else(|| refuse("it is over a year"))?;
        rest = tail;
    }
    Ok(total)
}

/// Reads a moment: RFC 3339, seconds since 1970, or a span that counts back from `now`.
pub fn parse_moment(text: &str, now: Timestamp) -> Result<Timestamp, Refusal> {
    if let Ok(time) = Timestamp::parse(text) {
        return Ok(time);
    }
    match text.parse::<i64>() {
        Ok(seconds) => Ok(Timestamp::from_unix_seconds(seconds)),
        Err(_) => parse_span(text).map(|span| now.before(span)).map_err(|_| {
            Refusal::new("moment", text, "expected a time such as 2026-01-31T12:00:00Z or a span such as 10m")
        }),
    }
}

/// Prints how long ago something was, as tables do: `3 seconds`, `5 minutes`, `2 days`.
pub fn show_span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read() {
        for (text, millis) in [("10", 10_000), ("250ms", 250), ("1h30m", 5_400_000), ("1.5s", 1500), ("0", 0)]
        {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1", "5 minutes", "1e400s", "400d", "."] {
            assert!(parse_span(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn moments_are_absolute_or_relative() {
        let now = Timestamp::from_unix_seconds(1000);
        assert_eq!(parse_moment("10s", now), Ok(Timestamp::from_unix_seconds(990)));
        assert_eq!(parse_moment("500", now), Ok(Timestamp::from_unix_seconds(500)));
        assert_eq!(parse_moment("1970-01-01T00:00:01Z", now), Ok(Timestamp::from_unix_seconds(1)));
        assert!(parse_moment("yesterday", now).is_err());
    }
}
