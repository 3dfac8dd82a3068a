//! Another process in a running task: confined as the task's first process is, never looser.

use cofferdam_image::Lower;
use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process, Spec};

use crate::error::Error;
use crate::id::TaskId;
use crate::images;
use crate::release::Places;
use crate::request::{Refusal, env};
use crate::rootfs_file::read_accounts;

/// A process to run in a task.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// What to run.
    pub command: Vec<String>,
    /// `NAME=VALUE`, over the task's.
    pub env: Vec<String>,
    /// Replaces the task's working directory.
    pub workdir: Option<String>,
    /// Replaces the task's user.
    pub user: Option<String>,
    /// It gets a terminal.
    pub terminal: bool,
}

/// The process as the runtime takes it: the task's own with the changes asked for.
pub(crate) fn process(places: &Places, id: &TaskId, task: &Spec, spec: &ExecSpec) -> Result<Process, Error> {
    let first = task.process().as_ref();
    let mut process =
        first.ok_or_else(|| Error::Worker("the task's configuration has no process".to_owned()))?.clone();
    if spec.command.first().is_none_or(String::is_empty) {
        return Err(Refusal::new("command", "", "the request does not say what to run").into());
    }
    let base = process.env().clone().unwrap_or_default();
    let term = spec.terminal.then_some("TERM=xterm");
    let over = term.into_iter().chain(spec.env.iter().map(String::as_str));
    process
        .set_args(Some(spec.command.clone()))
        .set_env(Some(env::merge(base.iter().map(String::as_str), over)))
        .set_terminal(Some(spec.terminal));
    if let Some(workdir) = &spec.workdir {
        if !workdir.starts_with('/') {
            return Err(Refusal::new("working directory", workdir, "it must be an absolute path").into());
        }
        process.set_cwd(workdir.into());
    }
    if let Some(user) = &spec.user {
        change_user(places, id, &mut process, user)?;
    }
    Ok(process)
}

/// Another user gets no more than the bounding set; one that is not root holds nothing.
fn change_user(places: &Places, id: &TaskId, process: &mut Process, text: &str) -> Result<(), Error> {
    let layers = match images::layers(places, id)? {
        layers if layers.is_empty() => vec![Lower::Directory("/".into())],
        layers => layers,
    };
    let identity = read_accounts(layers).resolve(text, &[])?;
    let mut user = process.user().clone();
    user.set_uid(identity.uid).set_gid(identity.gid).set_additional_gids(Some(identity.groups));
    process.set_user(user);
    if let Some(capabilities) = process.capabilities() {
        let sets = capabilities_for(capabilities, identity.uid);
        process.set_capabilities(Some(sets));
    }
    Ok(())
}

fn capabilities_for(of_task: &LinuxCapabilities, uid: u32) -> LinuxCapabilities {
    let bounding = of_task.bounding().clone().unwrap_or_default();
    let held = if uid == 0 { bounding } else { Capabilities::default() };
    let mut sets = of_task.clone();
    sets.set_effective(Some(held.clone()))
        .set_permitted(Some(held))
        .set_inheritable(Some(Capabilities::default()))
        .set_ambient(Some(Capabilities::default()));
    sets
}
