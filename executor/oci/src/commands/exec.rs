//! exec: one more process of a container.

use std::path::Path;

use cofferdam_runtime::{Console, Exec, Process, Spec, bundle, listen};

use super::{Call, seal};
use crate::failed::Failed;
use crate::foreground::{Foreground, console, take_our_size};
use crate::pidfd_socket::PidfdSocket;

pub(crate) fn exec(call: &Call<'_>) -> Result<i32, Failed> {
    seal()?;
    execute(call).map_err(Failed::of_exec)
}

fn execute(call: &Call<'_>) -> Result<i32, Failed> {
    let said = call.said;
    let (runtime, id) = (call.global.runtime()?, said.id()?);
    let spec = runtime.spec(&id)?;
    let process = match said.path("process") {
        Some(path) => {
            let (process, warnings) = bundle::read_json_warned(&path)?;
            call.warn(&warnings);
            confined_alike(process, &spec)
        }
        None => {
            let (process, warnings) = Wanted { said, spec: &spec }.process()?;
            call.warn(&warnings);
            process
        }
    };
    let detached = said.has("detach");
    let terminal = process.terminal().unwrap_or(false);
    let mut exec = Exec::new(process);
    exec.console = console(terminal, detached, said.path("console-socket"))?;
    if matches!(exec.console, Console::Front) {
        take_our_size(&mut exec.process);
    }
    exec.pid_file = said.path("pid-file");
    exec.preserve_fds = said.number("preserve-fds")?.unwrap_or(0);
    exec.ignore_paused = said.has("ignore-paused");
    exec.cgroups = said.texts("cgroup");
    let socket = said.path("pidfd-socket").map(|path| PidfdSocket::connect(&path)).transpose()?;
    let executed = runtime.exec(&id, exec)?;
    call.warn(&executed.warnings);
    call.remark(&executed.remarks);
    socket.map_or(Ok(()), |socket| socket.send(&executed.pidfd, "setns"))?;
    if detached {
        return Ok(0);
    }
    Foreground { process: &executed.pidfd, terminal: executed.console }.wait()
}

/// What a process by itself does not say of its confinement is as the container's configuration has it, as with runc and crun.
fn confined_alike(mut process: Process, spec: &Spec) -> Process {
    let Some(first) = spec.process() else { return process };
    if process.capabilities().is_none() {
        process.set_capabilities(first.capabilities().clone());
    }
    if process.rlimits().is_none() {
        process.set_rlimits(first.rlimits().clone());
    }
    if process.apparmor_profile().is_none() {
        process.set_apparmor_profile(first.apparmor_profile().clone());
    }
    if process.selinux_label().is_none() {
        process.set_selinux_label(first.selinux_label().clone());
    }
    process
}

/// The process that the command line describes: the container's own, with what is said otherwise.
struct Wanted<'a> {
    said: &'a crate::arguments::Said,
    spec: &'a Spec,
}

impl Wanted<'_> {
    fn process(&self) -> Result<(Process, Vec<String>), Failed> {
        let said = self.said;
        let missing = || Failed::new("the container has no process");
        let mut process = self.spec.process().clone().ok_or_else(missing)?;
        let arguments = said.words.get(1..).unwrap_or_default().to_vec();
        if arguments.is_empty() {
            return Err(Failed::new("process args cannot be empty"));
        }
        process.set_args(Some(arguments));
        process.set_terminal(Some(said.has("tty")));
        let mut env = listen::without_announcements(process.env().clone().unwrap_or_default());
        env.extend(said.texts("env"));
        process.set_env(Some(env));
        if let Some(cwd) = said.path("cwd") {
            process.set_cwd(cwd);
        }
        if let Some(label) = said.text("process-label") {
            process.set_selinux_label(Some(label));
        }
        if let Some(profile) = said.text("apparmor") {
            process.set_apparmor_profile(Some(profile));
        }
        if said.has("no-new-privs") {
            process.set_no_new_privileges(Some(true));
        }
        self.user(&mut process)?;
        self.with_capabilities(process)
    }

    /// Added to every set but the inheritable; ambient ones need inheritable ones, so only where there are some.
    fn with_capabilities(&self, process: Process) -> Result<(Process, Vec<String>), Failed> {
        let names = self.said.texts("cap");
        if names.is_empty() {
            return Ok((process, Vec::new()));
        }
        let mut process = serde_json::to_value(process)?;
        let sets = &mut process["capabilities"];
        let inherits = sets["inheritable"].as_array().is_some_and(|set| !set.is_empty());
        let changed = ["bounding", "effective", "permitted"].into_iter().chain(inherits.then_some("ambient"));
        for set in changed {
            let mut list = sets[set].as_array().cloned().unwrap_or_default();
            list.extend(names.iter().map(|name| serde_json::Value::from(name.to_uppercase())));
            sets[set] = list.into();
        }
        // A name that nobody knows is warned of, here as in a configuration.
        Ok(bundle::parse_json_warned(&process.to_string(), Path::new("--cap"))?)
    }

    fn user(&self, process: &mut Process) -> Result<(), Failed> {
        let mut user = process.user().clone();
        if let Some(text) = self.said.text("user") {
            let (uid, gid) =
                text.split_once(':').map_or((text.as_str(), None), |(uid, gid)| (uid, Some(gid)));
            user.set_uid(number(uid, "user")?);
            if let Some(gid) = gid {
                user.set_gid(number(gid, "user")?);
            }
        }
        let more = self.said.texts("additional-gids");
        if !more.is_empty() {
            let mut groups = user.additional_gids().clone().unwrap_or_default();
            for gid in &more {
                groups.push(number(gid, "additional-gids")?);
            }
            user.set_additional_gids(Some(groups));
        }
        process.set_user(user);
        Ok(())
    }
}

/// Digits only: `parse` would take a plus sign.
fn number(text: &str, option: &str) -> Result<u32, Failed> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u32>().ok().filter(|_| digits);
    number.ok_or_else(|| Failed::new(format!("--{option}: {text:?} is not a number")))
}
