//! One call of one plugin: its input, its environment, who does it, and what it answered.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::caller::{Caller, NetnsFate, Prefer};
use crate::config::{NetworkList, PluginConfig};
use crate::error::{Error, Failure, Kind, Verb};
use crate::exec::{self, ExecError};
use crate::name::{ContainerId, IfName, NetworkName};
use crate::object::Object;
use crate::plugin::{Code, Delegate, Plugin, PluginError, Request};
use crate::record::Implementation;
use crate::result::AddResult;
use crate::version::Version;

/// Variables of our environment that every plugin may see.
const PASSED: [&str; 13] = [
    "HOME",
    "TZ",
    "LANG",
    "LC_ALL",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "TRACEPARENT",
    "TRACESTATE",
    "BAGGAGE",
];
/// Plugins start programs that live in sbin.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The first pause before an ADD that answered "try again later" is tried again; doubled each time.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// Who a call is about.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) container: &'a ContainerId,
    pub(crate) if_name: &'a IfName,
    pub(crate) netns: Option<&'a Path>,
    pub(crate) fate: NetnsFate,
    pub(crate) args: &'a [(String, String)],
}

/// Who does a call.
#[derive(Clone)]
pub(crate) enum Resolved {
    Builtin(&'static dyn Plugin),
    External(PathBuf),
}

impl Resolved {
    pub(crate) fn implementation(&self) -> Implementation {
        match self {
            Self::Builtin(_) => Implementation::Builtin,
            Self::External(path) => Implementation::Path(path.clone()),
        }
    }
}

/// What a plugin answered: its own bytes, and what we read in them.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) raw: Option<Box<RawValue>>,
    pub(crate) result: AddResult,
}

/// What all calls of one operation have in common.
pub(crate) struct Operation<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) network: &'a NetworkName,
    pub(crate) version: Version,
    pub(crate) verb: Verb,
    /// Absent for GC and STATUS.
    pub(crate) subject: Option<Subject<'a>>,
    pub(crate) deadline: Instant,
}

/// What goes into the input besides the configuration.
#[derive(Default)]
pub(crate) struct Extra<'a> {
    pub(crate) capabilities: Option<&'a Object>,
    pub(crate) previous: Option<&'a RawValue>,
    pub(crate) valid: Option<Box<RawValue>>,
}

/// Derives the input of a plugin from its configuration: name and version are set, capabilities become arguments.
pub(crate) fn input(
    list: &NetworkList,
    plugin: &PluginConfig,
    extra: Extra<'_>,
) -> Result<Object, serde_json::Error> {
    let mut object = plugin.object.clone();
    object.remove_keys(|key| key == "capabilities");
    object.set("cniVersion", &list.version.to_string())?;
    object.set("name", &list.name)?;
    let mut arguments = Object::new();
    let given = extra.capabilities.cloned().unwrap_or_default();
    for capability in given.keys().filter(|key| plugin.declares(key)) {
        if let Some(value) = given.raw(capability) {
            arguments.set_raw(capability, value.to_owned());
        }
    }
    if arguments.keys().next().is_some() {
        object.set("runtimeConfig", &arguments)?;
    }
    if let Some(previous) = extra.previous {
        object.set_raw("prevResult", previous.to_owned());
    }
    if let Some(valid) = extra.valid {
        // The text of the specification and one release of its library disagree on the name.
        object.set_raw("cni.dev/attachments", valid.clone());
        object.set_raw("cni.dev/valid-attachments", valid);
    }
    Ok(object)
}

impl Caller {
    /// Decides who does the calls of a plugin.
    pub(crate) fn resolve(
        &self,
        kind: &str,
        config: &Object,
        network: &NetworkName,
    ) -> Result<Resolved, Error> {
        let builtin = self.options.builtins.iter().copied().find(|plugin| plugin.kind() == kind);
        let external = || find_program(&self.options.plugin_path, kind);
        let chosen = match (self.options.prefer, builtin) {
            (Prefer::Builtin, Some(builtin)) => Some(Resolved::Builtin(builtin)),
            (Prefer::Auto, Some(builtin)) if builtin.supports(config).is_ok() => {
                Some(Resolved::Builtin(builtin))
            }
            _ => external().program.map(Resolved::External),
        };
        // Better our own plugin with its own error than no plugin.
        chosen.or_else(|| builtin.map(Resolved::Builtin)).ok_or_else(|| Error::PluginMissing {
            plugin: kind.into(),
            network: network.clone(),
            searched: self.options.plugin_path.clone(),
            note: external().note,
        })
    }

    /// Decides who does the calls of a plugin whose ADD is on record.
    pub(crate) fn resolve_again(
        &self,
        recorded: Option<&Implementation>,
        plugin: &PluginConfig,
        network: &NetworkName,
    ) -> Result<Resolved, Error> {
        match recorded {
            Some(Implementation::Builtin) => {
                let builtin =
                    self.options.builtins.iter().copied().find(|builtin| builtin.kind() == plugin.kind);
                if let Some(builtin) = builtin {
                    return Ok(Resolved::Builtin(builtin));
                }
            }
            Some(Implementation::Path(path)) if is_program(path) => {
                return Ok(Resolved::External(path.clone()));
            }
            _ => {}
        }
        self.resolve(&plugin.kind, &plugin.object, network)
    }
}

struct Found {
    program: Option<PathBuf>,
    note: String,
}

/// The first executable file of that name; what is there but not executable is noted.
fn find_program(path: &[PathBuf], kind: &str) -> Found {
    let mut note = String::new();
    for candidate in
        path.iter().filter(|directory| directory.is_absolute()).map(|directory| directory.join(kind))
    {
        if is_program(&candidate) {
            return Found { program: Some(candidate), note };
        }
        if candidate.exists() {
            note = format!("; {} is there but is not an executable file", candidate.display());
        }
    }
    Found { program: None, note }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

impl Operation<'_> {
    /// Calls a plugin; an ADD that answers "try again later" is repeated until the deadline.
    pub(crate) fn call(&self, kind: &str, who: &Resolved, input: &Object) -> Result<Answer, Box<Failure>> {
        let mut pause = FIRST_RETRY;
        loop {
            let answer = self.call_once(kind, who, input, self.verb);
            match answer {
                Err(failure)
                    if self.verb == Verb::Add
                        && failure.code == Some(Code::TRY_AGAIN)
                        && Instant::now() + pause < self.deadline =>
                {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                // Nothing is known of the container, so nothing is left to clean.
                Err(failure) if self.verb == Verb::Del && failure.code == Some(Code::UNKNOWN_CONTAINER) => {
                    return Ok(Answer { raw: None, result: AddResult::default() });
                }
                answer => return answer,
            }
        }
    }

    fn call_once(
        &self,
        kind: &str,
        who: &Resolved,
        input: &Object,
        verb: Verb,
    ) -> Result<Answer, Box<Failure>> {
        let started = Instant::now();
        match who {
            Resolved::Builtin(plugin) => self.call_builtin(*plugin, input, verb).map_err(|error| {
                let mut failure = self.failure(kind, verb, error.message);
                failure.code = Some(error.code);
                failure.details = error.details;
                failure.kind = error.code.kind();
                failure.elapsed = started.elapsed();
                failure
            }),
            Resolved::External(path) => self.call_external(kind, path, input, verb, started),
        }
    }

    fn call_builtin(&self, plugin: &dyn Plugin, input: &Object, verb: Verb) -> Result<Answer, PluginError> {
        plugin.supports(input).map_err(|why| PluginError::new(Code::UNSUPPORTED_FIELD, why))?;
        let placeholder = (ContainerId::parse("none"), IfName::parse("none"));
        let (Ok(no_container), Ok(no_interface)) = &placeholder else {
            return Err(PluginError::new(Code::INVALID_ENVIRONMENT, "no placeholder"));
        };
        let previous =
            input.raw("prevResult").map(|raw| AddResult::parse(raw.get(), self.version)).transpose();
        let previous =
            previous.map_err(|error| PluginError::new(Code::DECODE, format!("prevResult: {error}")))?;
        let subject = self.subject;
        let request = Request {
            network: self.network,
            version: self.version,
            container: subject.map_or(no_container, |subject| subject.container),
            if_name: subject.map_or(no_interface, |subject| subject.if_name),
            netns: subject.and_then(|subject| subject.netns).map(Path::to_path_buf),
            netns_fate: subject.map_or(NetnsFate::Stays, |subject| subject.fate),
            args: subject.map_or(&[], |subject| subject.args),
            config: input,
            previous,
            delegate: &Delegation { operation: self, input },
        };
        let nothing = |()| AddResult::default();
        let result = match verb {
            Verb::Add => plugin.add(&request),
            Verb::Del => plugin.del(&request).map(nothing),
            Verb::Check => plugin.check(&request).map(nothing),
            Verb::Gc => plugin.gc(&request).map(nothing),
            Verb::Status | Verb::Version => plugin.status(&request).map(nothing),
        }?;
        let raw = if verb == Verb::Add { Some(print(&result, self.version)?) } else { None };
        Ok(Answer { raw, result })
    }

    fn call_external(
        &self,
        kind: &str,
        path: &Path,
        input: &Object,
        verb: Verb,
        started: Instant,
    ) -> Result<Answer, Box<Failure>> {
        let left = self.deadline.saturating_duration_since(started).max(Duration::from_millis(1));
        let run = exec::run(path, &self.environment(verb), input.to_text().as_bytes(), left);
        let output = run.map_err(|error| {
            let interrupted = matches!(error, ExecError::Deadline(..));
            let mut failure = self.failure(kind, verb, error.to_string());
            if let ExecError::Deadline(_, tail) = error {
                failure.stderr_tail = tail;
            }
            failure.elapsed = started.elapsed();
            failure.kind = if interrupted { Kind::Interrupted } else { Kind::Internal };
            failure
        })?;
        self.read_output(kind, verb, &output)
    }

    fn read_output(&self, kind: &str, verb: Verb, output: &exec::Output) -> Result<Answer, Box<Failure>> {
        let stdout = String::from_utf8_lossy(&output.stdout);
        let fail = |message: String| {
            let mut failure = self.failure(kind, verb, message);
            failure.elapsed = output.elapsed;
            failure.stderr_tail.clone_from(&output.stderr_tail);
            failure
        };
        if let Some(said) = said_error(&stdout) {
            let mut failure =
                fail(if said.msg.is_empty() { "failed without a message".into() } else { said.msg });
            failure.code = Some(Code(said.code));
            failure.details = said.details;
            failure.kind = Code(said.code).kind();
            return Err(failure);
        }
        if !output.status.success() {
            return Err(fail(format!("ended with {}{}", output.status, excerpt(&stdout))));
        }
        if verb != Verb::Add {
            return Ok(Answer { raw: None, result: AddResult::default() });
        }
        let result = AddResult::parse(&stdout, self.version)
            .map_err(|error| fail(format!("its answer cannot be used: {error}{}", excerpt(&stdout))))?;
        let same_version = stdout.contains(&format!("\"{}\"", self.version));
        let raw = match serde_json::from_str::<Box<RawValue>>(stdout.trim()) {
            Ok(raw) if same_version && raw.get() != "null" => Ok(raw),
            _ => print(&result, self.version),
        };
        let raw = raw.map_err(|error| fail(error.message))?;
        Ok(Answer { raw: Some(raw), result })
    }

    fn failure(&self, kind: &str, verb: Verb, message: String) -> Box<Failure> {
        Box::new(Failure {
            plugin: kind.into(),
            verb,
            network: self.network.clone(),
            container: self.subject.map(|subject| subject.container.clone()),
            code: None,
            message,
            details: String::new(),
            elapsed: Duration::ZERO,
            stderr_tail: String::new(),
            kind: Kind::Internal,
        })
    }

    fn environment(&self, verb: Verb) -> Vec<(String, String)> {
        let options = &self.caller.options;
        let mut variables = vec![("PATH".to_owned(), PATH.to_owned())];
        let passed = PASSED.into_iter().chain(options.pass_environment.iter().map(String::as_str));
        variables.extend(passed.filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))));
        let plugin_path: Vec<_> = options.plugin_path.iter().map(|path| path.display().to_string()).collect();
        let subject = self.subject;
        let text = |value: Option<String>| value.unwrap_or_default();
        variables.extend([
            ("CNI_COMMAND".to_owned(), verb.to_string()),
            ("CNI_PATH".to_owned(), plugin_path.join(":")),
            ("CNI_CONTAINERID".to_owned(), text(subject.map(|subject| subject.container.to_string()))),
            ("CNI_IFNAME".to_owned(), text(subject.map(|subject| subject.if_name.to_string()))),
            ("CNI_ARGS".to_owned(), text(subject.map(|subject| joined(subject.args)))),
            (
                "CNI_NETNS".to_owned(),
                text(subject.and_then(|subject| subject.netns).map(|netns| netns.display().to_string())),
            ),
        ]);
        variables
    }
}

/// `CNI_ARGS`; plugins built on the reference helper refuse keys they do not know unless told not to.
fn joined(args: &[(String, String)]) -> String {
    let mut text = "IgnoreUnknown=1".to_owned();
    for (key, value) in args {
        text.push_str(&format!(";{key}={value}"));
    }
    text
}

struct Delegation<'a> {
    operation: &'a Operation<'a>,
    input: &'a Object,
}

impl Delegate for Delegation<'_> {
    fn call(&self, kind: &str, verb: Verb) -> Result<AddResult, PluginError> {
        let refused =
            |error: &dyn std::fmt::Display| PluginError::new(Code::INVALID_CONFIG, error.to_string());
        let operation = self.operation;
        if kind.is_empty() || kind.contains('/') {
            return Err(PluginError::config(format!("{kind:?} is no name of a plugin")));
        }
        let who =
            operation.caller.resolve(kind, self.input, operation.network).map_err(|error| refused(&error))?;
        let answer = operation.call_once(kind, &who, self.input, verb);
        answer.map(|answer| answer.result).map_err(|failure| PluginError {
            code: failure.code.unwrap_or(Code(999)),
            message: failure.message.clone(),
            details: failure.details.clone(),
        })
    }
}

fn print(result: &AddResult, version: Version) -> Result<Box<RawValue>, PluginError> {
    let text = result.to_text(version).map_err(|error| PluginError::new(Code::DECODE, error.to_string()))?;
    RawValue::from_string(text).map_err(|error| PluginError::new(Code::DECODE, error.to_string()))
}

/// An error as a plugin says it.
#[derive(Deserialize)]
pub(crate) struct SaidError {
    pub(crate) code: u32,
    #[serde(default)]
    pub(crate) msg: String,
    #[serde(default)]
    pub(crate) details: String,
}

/// The error among the JSON values of the output, whatever the exit status: some plugins print a result before it.
pub(crate) fn said_error(stdout: &str) -> Option<SaidError> {
    let values = serde_json::Deserializer::from_str(stdout).into_iter::<serde_json::Value>();
    let values = values.map_while(Result::ok).filter(|value| value.get("code").is_some());
    values.filter_map(|value| SaidError::deserialize(value).ok()).find(|error| error.code != 0)
}

/// The beginning of an answer that makes no sense, for the message.
fn excerpt(stdout: &str) -> String {
    const LONGEST_CHARS: usize = 200;
    let text = stdout.trim();
    if text.is_empty() {
        return String::new();
    }
    format!("; it printed: {:?}", text.chars().take(LONGEST_CHARS).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_is_the_configuration_with_what_the_caller_adds() {
        let text = r#"{"name":"n","cniVersion":"1.0","plugins":[{"type":"x","big":12345678901234567890,"f":1.0,
            "capabilities":{"mac":true,"ips":false}}]}"#;
        let list = NetworkList::parse(text, None).unwrap();
        let given: Object =
            serde_json::from_str(r#"{"mac":"m","ips":["10.0.0.1"],"aliases":["a"]}"#).unwrap();
        let derive = |extra| input(&list, &list.plugins[0], extra).unwrap().to_text();
        assert_eq!(
            derive(Extra { capabilities: Some(&given), ..Extra::default() }),
            r#"{"type":"x","big":12345678901234567890,"f":1.0,"cniVersion":"1.0.0","name":"n","runtimeConfig":{"mac":"m"}}"#
        );
        assert!(!derive(Extra::default()).contains("runtimeConfig"));
        let empty = RawValue::from_string("[]".into()).unwrap();
        let gc = derive(Extra { valid: Some(empty), ..Extra::default() });
        assert!(gc.contains(r#""cni.dev/attachments":[],"cni.dev/valid-attachments":[]"#), "{gc}");
    }

    #[test]
    fn an_error_is_found_behind_a_result_and_with_any_exit_status() {
        let said = said_error(r#"{"cniVersion":"1.0.0","ips":[]} {"code":8,"msg":"wrong netns"}"#).unwrap();
        assert_eq!((said.code, said.msg.as_str()), (8, "wrong netns"));
        assert!(said_error(r#"{"cniVersion":"1.0.0"}"#).is_none());
        assert!(said_error("").is_none());
        assert!(said_error("junk").is_none());
    }
}
