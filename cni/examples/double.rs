//! A test double: a plugin that does what its configuration says, for tests of runtimes and of other plugins.
//!
//! ```json
//! { "type": "double", "log": "/tmp/calls", "script": {
//!     "ADD":   { "result": { "ips": [{ "address": "10.0.0.2/24" }] } },
//!     "CHECK": { "error": { "code": 102, "msg": "gone" } },
//!     "DEL":   { "sleepMs": 500, "print": "some text", "panic": "on purpose" } } }
//! ```
//!
//! Every call is appended to the log as one JSON line: verb, container, interface, configuration. Steps of a script happen
//! in the order print, sleep, panic, error. Without a script ADD passes on what it got, and everything else succeeds.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_cni::{AddResult, Code, Plugin, PluginError, Program, Request};
use serde::Deserialize;

struct Double;

#[derive(Deserialize)]
struct Config {
    log: Option<PathBuf>,
    #[serde(default)]
    script: BTreeMap<String, Steps>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Steps {
    print: Option<String>,
    sleep_ms: u64,
    panic: Option<String>,
    error: Option<Wrong>,
    result: Option<AddResult>,
}

#[derive(Deserialize)]
struct Wrong {
    code: u32,
    msg: String,
}

fn act(verb: &str, request: &Request<'_>) -> Result<AddResult, PluginError> {
    let mut config: Config = request.settings()?;
    if let Some(path) = &config.log {
        let line = serde_json::json!({
            "verb": verb,
            "container": request.container,
            "ifname": request.if_name,
            "netns": request.netns,
            "config": request.config,
        });
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let logged = log.and_then(|mut log| log.write_all(format!("{line}\n").as_bytes()));
        logged.map_err(|error| PluginError::new(Code::IO, format!("{}: {error}", path.display())))?;
    }
    let steps = config.script.remove(verb).unwrap_or_default();
    if let Some(text) = steps.print {
        println!("{text}");
    }
    std::thread::sleep(Duration::from_millis(steps.sleep_ms));
    if let Some(text) = steps.panic {
        panic!("{text}");
    }
    if let Some(Wrong { code, msg }) = steps.error {
        return Err(PluginError::new(Code(code), msg));
    }
    Ok(steps.result.or_else(|| request.previous.clone()).unwrap_or_default())
}

impl Plugin for Double {
    fn kind(&self) -> &'static str {
        "double"
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        act("ADD", request)
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        act("DEL", request).map(drop)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        act("CHECK", request).map(drop)
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        act("GC", request).map(drop)
    }

    fn status(&self, request: &Request<'_>) -> Result<(), PluginError> {
        act("STATUS", request).map(drop)
    }
}

fn main() -> std::process::ExitCode {
    Program::new("does what its configuration says", &[&Double]).run()
}
