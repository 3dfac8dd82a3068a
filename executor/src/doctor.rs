//! What this host can do for containers: one line a finding, what works, what is missing, and what that costs.
//!
//! ```no_run
//! use std::path::Path;
//! use cofferdam_executor::doctor::{State, examine};
//!
//! for check in examine(Path::new("/var/lib/cofferdam"), Path::new("/run/cofferdam")) {
//!     if check.state != State::Works {
//!         println!("{check}");
//!     }
//! }
//! ```
//! Nothing is assumed from a version where it can be tried. What is tried leaves nothing behind: file systems are mounted
//! detached, namespaces end with the thread or process that made them, a probe cgroup and a probe folder are removed again.
//! Nothing is refused to an unprivileged caller, who then learns what he lacks. Takes a few milliseconds; blocks.

mod backends;
mod cgroups;
mod files;
mod host;
mod limits;
mod namespaces;
mod network;
mod privileges;
mod system_calls;
mod tools;

use std::fmt;
use std::path::Path;

use serde::Serialize;

/// Whether something can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there and does what is needed.
    Works,
    /// It is there, with a restriction.
    Degraded,
    /// It is not there, or not for this caller.
    Missing,
}

/// Whether tasks can be run without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Nothing runs without it.
    Essential,
    /// Some things do not work without it.
    Optional,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// What it belongs to: `kernel`, `privileges`, `cgroups` …; findings of one area follow one another.
    pub area: &'static str,
    /// What was looked at.
    pub subject: String,
    /// The verdict.
    pub state: State,
    /// Whether tasks can be run without it.
    pub need: Need,
    /// What was found.
    pub found: String,
    /// What is lost by it, unless it works.
    pub costs: Option<String>,
    /// What can be done about it, where something can.
    pub remedy: Option<String>,
}

impl Check {
    fn works(area: &'static str, subject: impl Into<String>, found: impl Into<String>) -> Check {
        Check {
            area,
            subject: subject.into(),
            state: State::Works,
            need: Need::Optional,
            found: found.into(),
            costs: None,
            remedy: None,
        }
    }

    fn lacks(
        area: &'static str,
        state: State,
        subject: impl Into<String>,
        found: impl Into<String>,
        costs: impl Into<String>,
    ) -> Check {
        Check { state, costs: Some(costs.into()), ..Check::works(area, subject, found) }
    }

    fn missing(
        area: &'static str,
        subject: impl Into<String>,
        found: impl Into<String>,
        costs: impl Into<String>,
    ) -> Check {
        Check::lacks(area, State::Missing, subject, found, costs)
    }

    fn degraded(
        area: &'static str,
        subject: impl Into<String>,
        found: impl Into<String>,
        costs: impl Into<String>,
    ) -> Check {
        Check::lacks(area, State::Degraded, subject, found, costs)
    }

    fn remedy(self, remedy: impl Into<String>) -> Check {
        if self.state == State::Works { self } else { Check { remedy: Some(remedy.into()), ..self } }
    }

    fn essential(self) -> Check {
        Check { need: Need::Essential, ..self }
    }
}

/// `subject: found`, and what it costs and what to do on lines of their own.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.found)?;
        if let Some(costs) = &self.costs {
            write!(f, "\n  costs: {costs}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  remedy: {remedy}")?;
        }
        Ok(())
    }
}

/// Looks at everything. `root` is the data root, `state` the state root; neither has to exist.
pub fn examine(root: &Path, state: &Path) -> Vec<Check> {
    let mut checks = host::examine();
    checks.extend(privileges::examine());
    checks.extend(system_calls::examine());
    checks.extend(namespaces::examine());
    checks.extend(cgroups::examine());
    checks.extend(files::examine(root, state));
    checks.extend(network::examine());
    checks.extend(limits::examine());
    checks.extend(tools::examine());
    checks
}

/// Whether tasks can be run at all: nothing essential is missing.
pub fn is_usable(checks: &[Check]) -> bool {
    !checks.iter().any(|check| check.need == Need::Essential && check.state == State::Missing)
}

/// A small file of the kernel's without its line end; nothing if it cannot be read.
fn kernel_text(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_that_does_not_work_says_what_it_costs() {
        let scratch = tempfile::tempdir().expect("a folder");
        let checks = examine(&scratch.path().join("root"), &scratch.path().join("state"));
        assert!(checks.len() > 40, "{}", checks.len());
        for check in &checks {
            println!("{:?} {} · {check}", check.state, check.area);
            assert!(!check.found.is_empty(), "{check}");
            assert_eq!(check.state == State::Works, check.costs.is_none(), "{check}");
        }
        let left: Vec<_> = std::fs::read_dir(scratch.path()).expect("the folder").collect();
        assert!(left.is_empty(), "a probe left something behind: {left:?}");
    }

    #[test]
    fn a_root_caller_finds_every_essential_here() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let scratch = tempfile::tempdir().expect("a folder");
        let checks = examine(scratch.path(), scratch.path());
        let missing: Vec<_> =
            checks.iter().filter(|c| c.need == Need::Essential && c.state == State::Missing).collect();
        assert!(is_usable(&checks), "{missing:?}");
    }

    #[test]
    fn findings_are_plain_json() {
        let check = Check::missing("kernel", "x", "no", "y").remedy("z").essential();
        assert_eq!(
            serde_json::to_string(&check).expect("json"),
            r#"{"area":"kernel","subject":"x","state":"missing","need":"essential","found":"no","costs":"y","remedy":"z"}"#
        );
    }

    #[test]
    fn a_remedy_for_what_works_is_left_out() {
        assert_eq!(Check::works("kernel", "x", "yes").remedy("z").remedy, None);
    }
}
