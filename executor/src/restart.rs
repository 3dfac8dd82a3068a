//! Whether and when a task that ended is started again.

use std::fmt;
use std::time::Duration;

use cofferdam_shim::Exit;
use serde::{Deserialize, Serialize};

use crate::request::Refusal;

/// First pause before a restart.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause: a task that fails at once costs at most one launch a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A task that ran this long is taken to have worked: the pauses begin anew.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// When a task is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When it failed, at most this often in a row (for ever without a number).
    OnFailure(Option<u32>),
    /// Whenever it ends by itself.
    Always,
    /// Like `Always`. The difference is one for daemons that start at boot, which we are not.
    UnlessStopped,
}

impl RestartPolicy {
    /// Reads `no`, `on-failure`, `on-failure:3`, `always`, `unless-stopped`.
    pub fn parse(text: &str) -> Result<RestartPolicy, Refusal> {
        match text.split_once(':') {
            None => match text {
                "no" | "" => Ok(RestartPolicy::No),
                "on-failure" => Ok(RestartPolicy::OnFailure(None)),
                "always" => Ok(RestartPolicy::Always),
                "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
                _ => Err(refuse(text)),
            },
            Some(("on-failure", count)) => match count.parse() {
                Ok(count) => Ok(RestartPolicy::OnFailure(Some(count))),
                Err(_) => Err(refuse(text)),
            },
            Some(_) => Err(refuse(text)),
        }
    }

    /// Whether a task that ended so, after `restarts` restarts in a row, is started again.
    pub fn wants_restart(self, exit: Exit, restarts: u32) -> bool {
        match self {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure(limit) => {
                !exit.is_success() && limit.is_none_or(|limit| restarts < limit)
            }
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        }
    }
}

fn refuse(text: &str) -> Refusal {
    Refusal::new("restart policy", text, "expected no, on-failure[:TIMES], always or unless-stopped")
}

/// The pause before restart number `restarts + 1` in a row.
pub(crate) fn pause_before(restarts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << restarts.min(20)).min(LONGEST_PAUSE)
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestartPolicy::No => out.write_str("no"),
            RestartPolicy::OnFailure(None) => out.write_str("on-failure"),
            RestartPolicy::OnFailure(Some(count)) => write!(out, "on-failure:{count}"),
            RestartPolicy::Always => out.write_str("always"),
            RestartPolicy::UnlessStopped => out.write_str("unless-stopped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_parse_and_print() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(RestartPolicy::parse(text).unwrap().to_string(), text);
        }
        for text in ["never", "always:3", "on-failure:", "on-failure:x"] {
            assert!(RestartPolicy::parse(text).is_err());
        }
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        assert_eq!(pause_before(0), Duration::from_millis(100));
        assert_eq!(pause_before(3), Duration::from_millis(800));
        assert_eq!(pause_before(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn on_failure_counts_failures_only() {
        let policy = RestartPolicy::OnFailure(Some(2));
        assert!(!policy.wants_restart(Exit::Code(0), 0));
        assert!(policy.wants_restart(Exit::Signal(9), 1));
        assert!(!policy.wants_restart(Exit::Code(1), 2));
    }
}
