//! What a command line and its environment say of a network and of an attachment.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_cni::{
    Attachment, Call, Caller, Capabilities, ContainerId, Error, IfName, Implementation, InvalidName,
    NetworkList, Networks, Observer, Options, Prefer, Undeclared,
};
use cofferdam_cni_plugins::BUILTINS;
use sha2::{Digest, Sha512};

use crate::args::PlaceArgs;
use crate::escape::escape;
use crate::failure::Failure;

/// How these commands end when they fail, as `cnitool` does.
const FAILED: u8 = 1;

/// Which of two implementations of a plugin does the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// The built-in one if it can do all that is asked
    #[default]
    Auto,
    /// The built-in one
    Builtin,
    /// The program on the plugin path
    Path,
}

/// A network, and what goes with every call of its plugins.
#[derive(Debug, clap::Args)]
pub(crate) struct NetworkArgs {
    /// Directory with network configurations, instead of --cni-config
    #[arg(long, env = "NETCONFPATH", value_name = "DIR")]
    config_path: Option<PathBuf>,
    /// One configuration file, list or single plugin
    #[arg(long, value_name = "FILE", conflicts_with = "config_path")]
    config: Option<PathBuf>,
    /// Directories with plugins, joined by colons, instead of --cni-plugins
    #[arg(long, env = "CNI_PATH", value_name = "DIR:DIR")]
    plugin_path: Option<String>,
    /// Arguments for the plugins
    #[arg(long, env = "CNI_ARGS", value_name = "KEY=VALUE;...")]
    args: Option<String>,
    /// Arguments for capabilities, as a JSON object
    #[arg(long, env = "CAP_ARGS", value_name = "JSON")]
    cap_args: Option<String>,
    /// Name of the interface
    #[arg(long, env = "CNI_IFNAME", value_name = "NAME", default_value = "eth0")]
    if_name: String,
    /// Name of the container; made from the path of its namespace as cnitool makes it if none
    #[arg(long, value_name = "ID")]
    container_id: Option<String>,
    /// Who does the work of a plugin that is built in and on the path
    #[arg(long, value_enum, default_value = "auto")]
    by: By,
    /// Only warn of capabilities that no plugin declares
    #[arg(long)]
    allow_undeclared: bool,
    /// Tell every call of a plugin: input, output, standard error, time
    #[arg(short, long)]
    verbose: bool,
    /// Name of the network
    #[arg(value_name = "NETWORK")]
    network: String,
}

/// A network and the caller to use it with.
pub(crate) struct Request<'a> {
    pub(crate) caller: Caller,
    pub(crate) list: NetworkList,
    args: &'a NetworkArgs,
}

impl<'a> Request<'a> {
    pub(crate) fn new(args: &'a NetworkArgs, places: &PlaceArgs) -> Result<Request<'a>, Failure> {
        let list = args.list(places)?;
        Ok(Request { caller: caller(args, places)?, list, args })
    }

    /// The same, telling every call.
    pub(crate) fn telling(args: &'a NetworkArgs, places: &PlaceArgs) -> Result<Request<'a>, Failure> {
        let list = args.list(places)?;
        Ok(Request { caller: caller_that(args, places, true)?, list, args })
    }

    pub(crate) fn attachment(&self, netns: &str) -> Result<Attachment, Failure> {
        self.args.attachment(netns)
    }
}

/// A caller with a state of its own: what tasks are attached to is none of its business.
pub(crate) fn caller(args: &NetworkArgs, places: &PlaceArgs) -> Result<Caller, Failure> {
    caller_that(args, places, args.verbose)
}

fn caller_that(args: &NetworkArgs, places: &PlaceArgs, verbose: bool) -> Result<Caller, Failure> {
    let mut options = Options::new(places.state.join("cni"));
    options.plugin_path = match &args.plugin_path {
        Some(path) => std::env::split_paths(path).collect(),
        None => places.cni_plugins.clone(),
    };
    options.builtins = BUILTINS;
    options.prefer = match args.by {
        By::Auto => Prefer::Auto,
        By::Builtin => Prefer::Builtin,
        By::Path => Prefer::External,
    };
    options.observer = Some(Arc::new(Teller { verbose }));
    Caller::open(options).map_err(failed)
}

impl NetworkArgs {
    /// The network's name as it was said.
    pub(crate) fn name(&self) -> &str {
        &self.network
    }

    fn list(&self, places: &PlaceArgs) -> Result<NetworkList, Failure> {
        if let Some(file) = &self.config {
            let wrong = |why: String| invalid(format!("{}: {why}", file.display()));
            let list = NetworkList::load(file).map_err(|error| wrong(error.to_string()))?;
            let is_meant = list.name.as_str() == self.name();
            return if is_meant {
                Ok(list)
            } else {
                Err(wrong(format!("the network in it is {}", list.name)))
            };
        }
        let directories = self.config_path.as_ref().map_or(&*places.cni_config, std::slice::from_ref);
        let networks = Networks::load(directories);
        networks.get(self.name()).cloned().ok_or_else(|| self.unknown(&networks, directories))
    }

    fn unknown(&self, networks: &Networks, directories: &[PathBuf]) -> Failure {
        let paths: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
        let names: Vec<_> = networks.iter().map(|list| list.name.as_str()).collect();
        let mut message = format!("there is no network {:?} in {}", self.name(), paths.join(", "));
        if !names.is_empty() {
            message.push_str(&format!("; there are {}", names.join(", ")));
        }
        networks.problems().iter().for_each(|problem| message.push_str(&format!("; {problem}")));
        invalid(message)
    }

    pub(crate) fn attachment(&self, netns: &str) -> Result<Attachment, Failure> {
        let netns =
            if netns.contains('/') { PathBuf::from(netns) } else { Path::new("/run/netns").join(netns) };
        let netns =
            std::path::absolute(&netns).map_err(|error| invalid(format!("{}: {error}", netns.display())))?;
        let container = match &self.container_id {
            Some(id) => named(ContainerId::parse(id))?,
            None => named(ContainerId::parse(&id_of(&netns)))?,
        };
        let mut attachment = Attachment::new(container, netns, named(IfName::parse(&self.if_name))?);
        attachment.args = self.args.as_deref().map_or(Ok(Vec::new()), pairs)?;
        attachment.capabilities = self.capabilities()?;
        if self.allow_undeclared {
            attachment.undeclared = Undeclared::Warn;
        }
        Ok(attachment)
    }

    fn capabilities(&self) -> Result<Capabilities, Failure> {
        let Some(text) = self.cap_args.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(Capabilities::default());
        };
        serde_json::from_str(text)
            .map_err(|error| invalid(format!("the capability arguments are not understood: {error}")))
    }
}

/// Reads `K=V;K=V`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, Failure> {
    let pair = |part: &str| {
        let (key, value) =
            part.split_once('=').ok_or_else(|| invalid(format!("{part:?} is no KEY=VALUE")))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    // Every caller says this by itself.
    let said = text.split(';').filter(|part| !part.is_empty() && *part != "IgnoreUnknown=1");
    said.map(pair).collect()
}

/// The id that `cnitool` gives a namespace, so that what one of us has attached the other detaches.
fn id_of(netns: &Path) -> String {
    let digest = Sha512::digest(netns.as_os_str().as_encoded_bytes());
    let start: String = digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
    format!("cnitool-{start}")
}

pub(crate) fn named<T>(parsed: Result<T, InvalidName>) -> Result<T, Failure> {
    parsed.map_err(|error| invalid(error.to_string()))
}

pub(crate) fn invalid(message: String) -> Failure {
    Failure::plain(message).with_code(FAILED)
}

pub(crate) fn failed(error: Error) -> Failure {
    invalid(error.to_string())
}

/// Who does something, in words.
pub(crate) fn show(implementation: &Implementation) -> String {
    match implementation {
        Implementation::Builtin => "(built in)".to_owned(),
        Implementation::Path(path) => path.display().to_string(),
    }
}

/// JSON for people; what is none stays as it is.
pub(crate) fn pretty(text: &str) -> String {
    let value: Result<serde_json::Value, _> = serde_json::from_str(text);
    value.and_then(|value| serde_json::to_string_pretty(&value)).unwrap_or_else(|_| text.to_owned())
}

/// Tells the person at the terminal, on standard error: standard output is for results.
struct Teller {
    verbose: bool,
}

impl Observer for Teller {
    fn called(&self, call: &Call<'_>) {
        if !self.verbose {
            return;
        }
        let by = show(call.implementation);
        eprintln!("{} {} {by} {:.3} ms", call.verb, call.plugin, call.elapsed.as_secs_f64() * 1e3);
        for (mark, text) in
            [("<", call.input), (">", call.output.trim_end()), ("!", call.stderr_tail.trim_end())]
        {
            text.lines().for_each(|line| eprintln!("  {mark} {}", escape(line)));
        }
    }

    fn warning(&self, text: &str) {
        eprintln!("cofferdam: warning: {}", escape(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_the_environment_carries_them() {
        let read = |text: &str| pairs(text).unwrap();
        assert_eq!(read("IgnoreUnknown=1;A=b;C="), [("A".into(), "b".into()), ("C".into(), String::new())]);
        assert!(read("").is_empty());
        assert!(pairs("A").is_err());
    }

    #[test]
    fn a6_a_namespace_has_the_container_that_cnitool_makes_of_its_path() {
        assert_eq!(id_of(Path::new("/run/netns/c1")), "cnitool-20b4ff582526573bbe7d");
    }
}
