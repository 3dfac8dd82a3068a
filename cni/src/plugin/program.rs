//! A plugin, or several, as a program that any CNI runtime can execute.
//!
//! ```text
//! standard output taken away ─▶ environment ─▶ standard input ─▶ version ─▶ name ─▶ namespace ─▶ handler ─▶ one JSON object
//!        (handlers' prints go       4               5, 6            1          7         8
//!         to standard error)                                                        codes of what is refused before it
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use serde_json::json;

use super::environment::Environment;
use super::{Code, Plugin, PluginError, Request, install};
use crate::caller::NetnsFate;
use crate::error::Verb;
use crate::name::NetworkName;
use crate::object::Object;
use crate::result::{AddResult, unknown};
use crate::version::Version;

/// Configurations are kilobytes; whoever sends more is not a runtime.
const LONGEST_INPUT_BYTES: u64 = 16 * 1024 * 1024;

/// One plugin or several as a program: reads the call, refuses what is wrong with it, calls the plugin, answers.
///
/// A program with several plugins is the one that it is called by: by the name of a link to it, or by its first argument.
/// Called as itself it can put such links into a folder (`install DIR`).
///
/// What the handler of a plugin can rely on, because it is not called otherwise: the environment is complete and names are
/// valid, the configuration is an object with a name in a version that the plugin speaks and that has the verb, and for ADD
/// and CHECK the namespace is one, and not the program's own. What the handler need not care for: it may print (standard
/// output is standard error while it runs), and a panic becomes an error with code 999 and a backtrace on standard error.
/// A panic ends the program at once, whatever the profile says of unwinding: what ADD has made by then is left to DEL.
///
/// | what is wrong | code |
/// |---|---|
/// | no `CNI_COMMAND` | none: prints what it is to standard error, status 0 |
/// | unknown verb; variables missing (all are named), or invalid | 4 |
/// | standard input cannot be read | 5 |
/// | it is no JSON object; `cniVersion` is no text; `prevResult` is none | 6 |
/// | the version is not among the plugin's; or it has no such verb | 1 |
/// | `name` is missing or invalid; GC without `cni.dev/valid-attachments` | 7 |
/// | the namespace is none (ADD, CHECK), or the program's own (ADD, DEL, CHECK) | 8 |
/// | the plugin says that it cannot do what the configuration asks (not for DEL and GC: nothing was made of it) | 2 |
///
/// ```no_run
/// # use cofferdam_cni::{AddResult, Plugin, PluginError, Program, Request};
/// struct Nothing;
///
/// impl Plugin for Nothing {
///     fn kind(&self) -> &'static str { "nothing" }
///     fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> { request.chained() }
///     fn del(&self, _: &Request<'_>) -> Result<(), PluginError> { Ok(()) }
///     fn check(&self, _: &Request<'_>) -> Result<(), PluginError> { Ok(()) }
///     fn gc(&self, _: &Request<'_>) -> Result<(), PluginError> { Ok(()) }
///     fn status(&self, _: &Request<'_>) -> Result<(), PluginError> { Ok(()) }
/// }
///
/// fn main() -> std::process::ExitCode {
///     Program::new("passes on what it gets", &[&Nothing]).run()
/// }
/// ```
pub struct Program<'a> {
    about: &'a str,
    plugins: &'a [&'a dyn Plugin],
}

impl<'a> Program<'a> {
    /// A program of these plugins. `about` is one line that says what it is.
    pub fn new(about: &'a str, plugins: &'a [&'a dyn Plugin]) -> Self {
        Self { about, plugins }
    }

    /// Does what the environment asks, and returns the exit status: 0, or 1 after an error.
    ///
    /// To be called once, first thing in `main`: it takes standard output away.
    pub fn run(&self) -> ExitCode {
        let arguments: Vec<_> = std::env::args_os().collect();
        let Some(plugin) = self.chosen(&arguments) else { return self.run_as_itself(&arguments) };
        let answer = match Answer::take_stdout() {
            Ok(answer) => Arc::new(answer),
            Err(errno) => {
                eprintln!("{}: cannot take standard output away: {errno}", plugin.kind());
                return ExitCode::FAILURE;
            }
        };
        end_on_panic(Arc::clone(&answer));
        match self.serve(plugin, &answer) {
            Ok(None) => ExitCode::SUCCESS,
            Ok(Some(text)) => answer.say(&text),
            Err(error) => {
                answer.say(&error_text(&error, answer.version()));
                ExitCode::FAILURE
            }
        }
    }

    /// The only plugin, or the one that is called by name.
    fn chosen(&self, arguments: &[std::ffi::OsString]) -> Option<&'a dyn Plugin> {
        if let [only] = self.plugins {
            return Some(*only);
        }
        let named = |name: &OsStr| self.plugins.iter().copied().find(|plugin| plugin.kind() == name);
        let own = arguments.first().and_then(|own| Path::new(own).file_name());
        own.and_then(named).or_else(|| named(arguments.get(1)?))
    }

    fn run_as_itself(&self, arguments: &[std::ffi::OsString]) -> ExitCode {
        let words: Vec<_> = arguments.iter().skip(1).map(|word| word.to_string_lossy()).collect();
        let kinds: Vec<&str> = self.plugins.iter().map(|plugin| plugin.kind()).collect();
        let (folder, others) = match &words.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..] {
            ["install", folder] => ((*folder).to_owned(), install::Others::Kept),
            ["install", "--replace", folder] => ((*folder).to_owned(), install::Others::Replaced),
            _ => {
                eprintln!(
                    "{}\nplugins: {}\n{}\nusage: call it by the name of a plugin, or `install [--replace] DIR` \
                     to put it there with a link for each plugin",
                    self.about,
                    kinds.join(" "),
                    versions_text(&Version::SUPPORTED)
                );
                // Asked for a plugin, it must not look like one that did its work.
                let is_asked = std::env::var_os("CNI_COMMAND").is_some() || !words.is_empty();
                return if is_asked { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            }
        };
        match install::install(Path::new(&folder), &kinds, others) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        }
    }

    /// What is to be printed, if anything.
    fn serve(&self, plugin: &dyn Plugin, answer: &Answer) -> Result<Option<String>, PluginError> {
        answer.set_version(newest(plugin));
        let Some(environment) = Environment::read(|name| std::env::var(name).ok())? else {
            eprintln!("CNI plugin {}: {}\n{}", plugin.kind(), self.about, versions_text(plugin.versions()));
            return Ok(None);
        };
        if environment.verb == Verb::Version {
            return Ok(Some(version_text(plugin)));
        }
        let config = read_config(std::io::stdin())?;
        let version = version_of(&config)?;
        answer.set_version(version);
        refuse_version(plugin, version, environment.verb)?;
        let name: Option<String> =
            config.get("name").map_err(|error| PluginError::config(format!("name: {error}")))?;
        let name = name.ok_or_else(|| PluginError::config("the configuration has no \"name\""))?;
        let network = NetworkName::parse(&name).map_err(|error| PluginError::config(error.to_string()))?;
        let mut call = Call { plugins: self.plugins, environment, config, version, network };
        call.settle_netns()?;
        let result = call.handle(plugin, call.environment.verb)?;
        if call.environment.verb != Verb::Add {
            return Ok(None);
        }
        let previous = call.config.raw("prevResult");
        let text = result.to_text(version).map(|text| Some(unknown::keep(text, previous)));
        text.map_err(|error| {
            // What cannot be told must not stay. The first failure is the one worth telling.
            let _ = call.handle(plugin, Verb::Del);
            PluginError::new(Code::INCOMPATIBLE_VERSION, error.to_string())
        })
    }
}

/// A call that is known to make sense.
pub(super) struct Call<'a> {
    pub(super) plugins: &'a [&'a dyn Plugin],
    pub(super) environment: Environment,
    pub(super) config: Object,
    pub(super) version: Version,
    pub(super) network: NetworkName,
}

impl Call<'_> {
    /// Calls a handler of this program.
    pub(super) fn handle(&self, plugin: &dyn Plugin, verb: Verb) -> Result<AddResult, PluginError> {
        super::refuse_unsupported(plugin, &self.config, verb)?;
        let request = self.request(self.previous()?);
        let nothing = |()| AddResult::default();
        match verb {
            Verb::Add => plugin.add(&request),
            Verb::Del => plugin.del(&request).map(nothing),
            Verb::Check => plugin.check(&request).map(nothing),
            Verb::Gc => {
                request.valid_owners()?;
                plugin.gc(&request).map(nothing)
            }
            Verb::Status | Verb::Version => plugin.status(&request).map(nothing),
        }
    }

    fn request(&self, previous: Option<AddResult>) -> Request<'_> {
        Request {
            network: &self.network,
            version: self.version,
            container: &self.environment.container,
            if_name: &self.environment.if_name,
            netns: self.environment.netns.clone(),
            netns_fate: NetnsFate::Stays,
            args: &self.environment.args,
            config: &self.config,
            previous,
            delegate: self,
        }
    }

    /// DEL must not fail because somebody stored a result badly: it then does without.
    fn previous(&self) -> Result<Option<AddResult>, PluginError> {
        let Some(raw) = self.config.raw("prevResult") else { return Ok(None) };
        match AddResult::parse(raw.get(), self.version) {
            Ok(_) if raw.get() == "null" => Ok(None),
            Ok(previous) => Ok(Some(previous)),
            Err(error) if self.environment.verb == Verb::Del => {
                eprintln!("prevResult is passed over: {error}");
                Ok(None)
            }
            Err(error) => Err(PluginError::new(Code::DECODE, format!("prevResult: {error}"))),
        }
    }

    /// Looks at the namespace before any handler does: ADD and CHECK need one, DEL takes one that is gone for none, and
    /// nobody may be aimed at the host's own.
    fn settle_netns(&mut self) -> Result<(), PluginError> {
        let Some(path) = self.environment.netns.clone() else { return Ok(()) };
        if self.environment.verb == Verb::Del {
            let opened = cofferdam_linux::namespace::open_netns(&path);
            if matches!(opened, Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL)) {
                self.environment.netns = None;
                return Ok(());
            }
        }
        self.request(None).open_netns().map(drop)
    }
}

/// The real standard output, for the one answer.
struct Answer {
    stdout: Mutex<Option<OwnedFd>>,
    version: Mutex<Version>,
}

impl Answer {
    /// From here on what is printed goes to standard error, also by programs that are started.
    fn take_stdout() -> Result<Self, Errno> {
        let stdout = fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        Ok(Self { stdout: Mutex::new(Some(stdout)), version: Mutex::new(Version::NEWEST) })
    }

    fn version(&self) -> Version {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_version(&self, version: Version) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }

    /// Prints the answer, unless there was one.
    fn say(&self, text: &str) -> ExitCode {
        let stdout = self.stdout.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(stdout) = stdout else { return ExitCode::FAILURE };
        match File::from(stdout).write_all(format!("{text}\n").as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cannot print the answer: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// A hook and not `catch_unwind`: programs are often built to abort, and a panic may be on any thread.
fn end_on_panic(answer: Arc<Answer>) {
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or("(no text)");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("panic: {text} at {place}\n{}", std::backtrace::Backtrace::force_capture());
        let error = PluginError::new(Code(999), format!("the plugin has a bug and gave up: {text}"))
            .with_details(place);
        answer.say(&error_text(&error, answer.version()));
        std::process::exit(1);
    }));
}

fn error_text(error: &PluginError, version: Version) -> String {
    let PluginError { code: Code(code), message, details } = error;
    let mut object = json!({ "cniVersion": version.to_string(), "code": code, "msg": message });
    if !details.is_empty() {
        object["details"] = details.as_str().into();
    }
    object.to_string()
}

fn newest(plugin: &dyn Plugin) -> Version {
    plugin.versions().last().copied().unwrap_or(Version::NEWEST)
}

fn version_text(plugin: &dyn Plugin) -> String {
    let all: Vec<String> = plugin.versions().iter().map(ToString::to_string).collect();
    json!({ "cniVersion": newest(plugin).to_string(), "supportedVersions": all }).to_string()
}

fn versions_text(versions: &[Version]) -> String {
    let all: Vec<String> = versions.iter().map(ToString::to_string).collect();
    format!("CNI protocol versions supported: {}", all.join(", "))
}

fn read_config(input: impl Read) -> Result<Object, PluginError> {
    let mut bytes = Vec::new();
    let read = input.take(LONGEST_INPUT_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| PluginError::new(Code::IO, format!("cannot read standard input: {error}")))?;
    let wrong = |why: &dyn std::fmt::Display| {
        PluginError::new(Code::DECODE, format!("standard input is not a JSON object: {why}"))
    };
    if bytes.len() as u64 > LONGEST_INPUT_BYTES {
        return Err(wrong(&format!("it is longer than {LONGEST_INPUT_BYTES} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|error| wrong(&error))
}

/// The version of the configuration; without one it is the oldest.
fn version_of(config: &Object) -> Result<Version, PluginError> {
    let text: Option<String> = config
        .get("cniVersion")
        .map_err(|error| PluginError::new(Code::DECODE, format!("cniVersion: {error}")))?;
    match text.as_deref() {
        None | Some("") => Ok(Version::OLDEST),
        Some(text) => Version::parse(text).ok_or_else(|| {
            PluginError::new(Code::INCOMPATIBLE_VERSION, format!("cniVersion {text:?} is no version"))
        }),
    }
}

fn refuse_version(plugin: &dyn Plugin, version: Version, verb: Verb) -> Result<(), PluginError> {
    let refused = |message: &str, details| {
        Err(PluginError::new(Code::INCOMPATIBLE_VERSION, message).with_details(details))
    };
    if !plugin.versions().contains(&version) {
        let known = versions_text(plugin.versions());
        return refused("incompatible CNI versions", format!("the configuration is {version}; {known}"));
    }
    let since = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::Gc | Verb::Status => Version::V1_1_0,
        Verb::Add | Verb::Del | Verb::Version => Version::OLDEST,
    };
    if version < since {
        return refused(
            &format!("{verb} is not part of CNI {version}"),
            format!("{verb} exists since {since}, the configuration is {version}"),
        );
    }
    Ok(())
}
