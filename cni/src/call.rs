//! One call of one plugin: its input, its environment, who does it, and what it answered.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::caller::{Caller, NetnsFate};
use crate::config::{NetworkList, PluginConfig};
use crate::error::{Failure, Kind, Verb};
use crate::exec::{self, ExecError};
use crate::name::{ContainerId, IfName, NetworkName};
use crate::object::Object;
use crate::observe::Call;
use crate::plugin::{Code, Delegate, Plugin, PluginError, Request};
use crate::resolve::Resolved;
use crate::result::{AddResult, ResultError, unknown};
use crate::tree::Tree;
use crate::version::Version;

/// Variables of our environment that every plugin may see; beside them those that begin with `LC_`.
const PASSED: [&str; 12] = [
    "HOME",
    "TZ",
    "LANG",
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
    /// Where the programs run that do it.
    pub(crate) tree: &'a Tree,
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
            Resolved::Builtin(plugin) => {
                let answer = self.call_builtin(*plugin, input, verb);
                let told = match &answer {
                    Ok(answer) => answer.raw.as_deref().map_or("", RawValue::get).to_owned(),
                    Err(error) => error.to_string(),
                };
                self.tell(kind, who, verb, &input.to_text(), &told, "", started.elapsed());
                answer.map_err(|error| {
                    let mut failure = self.failure(kind, verb, error.message);
                    failure.code = Some(error.code);
                    failure.details = error.details;
                    failure.kind = error.code.kind();
                    failure.elapsed = started.elapsed();
                    failure
                })
            }
            Resolved::External(path) => self.call_external(kind, path, input, verb, started),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one value that is made here alone")]
    fn tell(
        &self,
        plugin: &str,
        who: &Resolved,
        verb: Verb,
        input: &str,
        output: &str,
        stderr_tail: &str,
        elapsed: Duration,
    ) {
        let Some(observer) = &self.caller.options.observer else { return };
        let container = self.subject.map(|subject| subject.container);
        let implementation = &who.implementation();
        let network = self.network;
        observer.called(&Call {
            plugin,
            verb,
            network,
            container,
            implementation,
            input,
            output,
            stderr_tail,
            elapsed,
        });
    }

    fn call_builtin(&self, plugin: &dyn Plugin, input: &Object, verb: Verb) -> Result<Answer, PluginError> {
        crate::plugin::refuse_unsupported(plugin, input, verb)?;
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
        let previous = input.raw("prevResult");
        let raw = if verb == Verb::Add { Some(print(&result, self.version, previous)?) } else { None };
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
        let text = input.to_text();
        let run = exec::run(path, &self.environment(verb), text.as_bytes(), left, self.tree);
        let (stdout, tail) = match &run {
            Ok(output) => (String::from_utf8_lossy(&output.stdout), output.stderr_tail.as_str()),
            Err(error) => ("".into(), error.stderr_tail()),
        };
        let who = Resolved::External(path.into());
        self.tell(kind, &who, verb, &text, &stdout, tail, started.elapsed());
        let output = run.as_ref().map_err(|error| {
            let interrupted = matches!(error, ExecError::Deadline(..));
            let mut failure = self.failure(kind, verb, error.to_string());
            failure.stderr_tail = error.stderr_tail().into();
            failure.elapsed = started.elapsed();
            failure.kind = if interrupted { Kind::Interrupted } else { Kind::Internal };
            failure
        })?;
        self.read_output(kind, verb, output)
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
        let (raw, result) = accept(&stdout, self.version)
            .map_err(|error| fail(format!("its answer cannot be used: {error}{}", excerpt(&stdout))))?;
        Ok(Answer { raw: Some(raw), result })
    }

    pub(crate) fn failure(&self, kind: &str, verb: Verb, message: String) -> Box<Failure> {
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

    pub(crate) fn environment(&self, verb: Verb) -> Vec<(String, String)> {
        let options = &self.caller.options;
        let mut variables = vec![("PATH".to_owned(), PATH.to_owned())];
        let passed = |name: &str| {
            PASSED.contains(&name)
                || name.starts_with("LC_")
                || options.pass_environment.iter().any(|passed| passed == name)
        };
        let text = |value: std::ffi::OsString| value.into_string().ok();
        let ours = std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?)));
        variables
            .extend(ours.filter(|(name, _)| passed(name) && name != "PATH" && !name.starts_with("CNI_")));
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

/// Reads a result, and puts it into the network's version; what nobody knows in it stays.
pub(crate) fn accept(text: &str, version: Version) -> Result<(Box<RawValue>, AddResult), ResultError> {
    let result = AddResult::parse(text, version)?;
    let text = text.trim();
    let mut object: Object =
        if matches!(text, "" | "null") { Object::new() } else { serde_json::from_str(text)? };
    let said = object.get::<String>("cniVersion")?.and_then(|said| Version::parse(&said));
    if said.is_none_or(|said| said == version) {
        object.set("cniVersion", &version.to_string())?;
        return Ok((RawValue::from_string(object.to_text())?, result));
    }
    let said = RawValue::from_string(object.to_text())?;
    Ok((RawValue::from_string(unknown::keep(result.to_text(version)?, Some(&said)))?, result))
}

/// What a plugin of this process answers, with what the plugins before it said that it does not know.
fn print(
    result: &AddResult,
    version: Version,
    previous: Option<&RawValue>,
) -> Result<Box<RawValue>, PluginError> {
    let wrong = |error: &dyn std::fmt::Display| PluginError::new(Code::DECODE, error.to_string());
    let text = result.to_text(version).map_err(|error| wrong(&error))?;
    RawValue::from_string(unknown::keep(text, previous)).map_err(|error| wrong(&error))
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
    let values = serde_json::Deserializer::from_str(stdout).into_iter::<&RawValue>();
    let mut said = values.map_while(Result::ok).filter_map(|value| serde_json::from_str(value.get()).ok());
    said.find(|error: &SaidError| error.code != 0)
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
    fn r2_what_nobody_knows_in_a_result_stays_whatever_its_version() {
        let accept = |text: &str| accept(text, Version::V1_0_0).unwrap().0.get().to_owned();
        let odd = r#"{"cniVersion":"","ips":[{"interface":-1,"address":"10.0.0.2/24"}],"vendor":{"big":12345678901234567890}}"#;
        assert_eq!(accept(odd), odd.replace(r#""cniVersion":"""#, r#""cniVersion":"1.0.0""#));
        assert_eq!(accept(""), r#"{"cniVersion":"1.0.0"}"#);
        assert_eq!(accept("null"), r#"{"cniVersion":"1.0.0"}"#);
        assert_eq!(
            accept(
                r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24","interface":7}],"dns":{},"x":1e400}"#
            ),
            r#"{"cniVersion":"1.0.0","ips":[{"interface":7,"address":"10.0.0.2/24"}],"x":1e400}"#
        );
        // The version of another value is no version of the result.
        assert!(accept(r#"{"cniVersion":"0.4.0","x":"1.0.0"}"#).starts_with(r#"{"cniVersion":"1.0.0""#));
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
