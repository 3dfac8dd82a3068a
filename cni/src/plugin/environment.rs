//! What a program is told by its environment: the verb, and about which attachment.

use std::path::PathBuf;

use super::{Code, PluginError};
use crate::error::Verb;
use crate::name::{ContainerId, IfName};

/// Which variables which verbs cannot do without, as the reference library has it.
const NEEDED: [(&str, &[Verb]); 4] = [
    ("CNI_CONTAINERID", &[Verb::Add, Verb::Del, Verb::Check]),
    ("CNI_NETNS", &[Verb::Add, Verb::Check]),
    ("CNI_IFNAME", &[Verb::Add, Verb::Del, Verb::Check]),
    ("CNI_PATH", &[Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status]),
];

/// The variables of one call, checked.
#[derive(Debug)]
pub(super) struct Environment {
    pub(super) verb: Verb,
    /// Placeholders for verbs that are about no attachment.
    pub(super) container: ContainerId,
    pub(super) if_name: IfName,
    pub(super) netns: Option<PathBuf>,
    pub(super) args: Vec<(String, String)>,
    pub(super) path: Vec<PathBuf>,
}

impl Environment {
    /// Reads the variables; `Ok(None)` if nobody asks for anything.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, PluginError> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let Some(command) = given("CNI_COMMAND") else { return Ok(None) };
        let verb = verb(&command)?;
        let missing: Vec<&str> = NEEDED
            .into_iter()
            .filter(|(name, verbs)| verbs.contains(&verb) && given(name).is_none())
            .map(|(name, _)| name)
            .collect();
        if !missing.is_empty() {
            return Err(refused(format!("required variables are missing: {}", missing.join(", "))));
        }
        let is_about_one = matches!(verb, Verb::Add | Verb::Del | Verb::Check);
        let name = |key| given(key).filter(|_| is_about_one).unwrap_or_else(|| "none".into());
        Ok(Some(Self {
            verb,
            container: ContainerId::parse(&name("CNI_CONTAINERID"))
                .map_err(|error| refused(format!("CNI_CONTAINERID: {error}")))?,
            if_name: IfName::parse(&name("CNI_IFNAME"))
                .map_err(|error| refused(format!("CNI_IFNAME: {error}")))?,
            netns: given("CNI_NETNS").filter(|_| is_about_one).map(PathBuf::from),
            args: args(&given("CNI_ARGS").unwrap_or_default())?,
            path: std::env::split_paths(&given("CNI_PATH").unwrap_or_default()).collect(),
        }))
    }
}

fn refused(message: String) -> PluginError {
    PluginError::new(Code::INVALID_ENVIRONMENT, message)
}

fn verb(command: &str) -> Result<Verb, PluginError> {
    let all = [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status, Verb::Version];
    let known = all.into_iter().find(|verb| verb.to_string() == command);
    known.ok_or_else(|| refused(format!("unknown CNI_COMMAND: {command}")))
}

/// `K=V;K=V`.
fn args(text: &str) -> Result<Vec<(String, String)>, PluginError> {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.contains('=') => Ok((key.into(), value.into())),
        _ => Err(refused(format!("CNI_ARGS: {pair:?} is no pair KEY=VALUE"))),
    };
    text.split(';').filter(|part| !part.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_variable_is_named_at_once() {
        let error = Environment::read(|name| (name == "CNI_COMMAND").then(|| "ADD".into())).unwrap_err();
        assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
        for (name, _) in NEEDED {
            assert!(error.message.contains(name), "{error}");
        }
    }

    #[test]
    fn arguments_are_pairs() {
        assert_eq!(args("").unwrap(), []);
        assert_eq!(args("A=1;B=").unwrap(), [("A".into(), "1".into()), ("B".into(), String::new())]);
        for bad in ["A", "=1", "A=1=2"] {
            assert!(args(bad).is_err(), "{bad}");
        }
    }
}
