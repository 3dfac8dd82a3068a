//! The process: what runs, as whom, with which environment and limits.

use std::path::PathBuf;

use oci_spec::image::Config;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User};

use super::{Ingredients, confinement, hostname, is_host_rootfs};
use crate::passwd::Identity;
use crate::request::ulimit::{UNLIMITED, Ulimit};
use crate::request::{Refusal, env};

/// Where our init appears in the task: `/dev` is a file system of the task's own, so nothing of the image changes.
pub(super) const INIT: &str = "/dev/init";

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files: what programs expect that close every descriptor on start; the hard limit is for those that ask.
const DEFAULT_NOFILE: (u64, u64) = (1024, 524_288);

fn image_config<'a>(from: &Ingredients<'a>) -> Option<&'a Config> {
    from.image.and_then(|image| image.config().as_ref())
}

pub(super) fn identity(from: &Ingredients<'_>) -> Result<Identity, Refusal> {
    let of_image = || image_config(from).and_then(|config| config.user().clone()).unwrap_or_default();
    let user = from.spec.user.clone().unwrap_or_else(of_image);
    from.accounts.resolve(user.trim(), &from.spec.groups)
}

pub(super) fn process(
    from: &Ingredients<'_>,
    identity: &Identity,
    notes: &mut Vec<String>,
) -> Result<Process, Refusal> {
    let mut user = User::default();
    user.set_uid(identity.uid)
        .set_gid(identity.gid)
        .set_umask(Some(0o022))
        .set_additional_gids(Some(identity.groups.clone()));
    let mut process = Process::default();
    process
        .set_terminal(Some(from.spec.terminal))
        .set_user(user)
        .set_args(Some(arguments(from)?))
        .set_env(Some(environment(from, identity)?))
        .set_cwd(workdir(from)?)
        .set_capabilities(Some(confinement::capabilities(from, identity)?))
        .set_rlimits(Some(rlimits(from, notes)?))
        .set_no_new_privileges(Some(from.spec.security.no_new_privileges))
        .set_apparmor_profile(from.spec.security.apparmor.clone())
        .set_selinux_label(from.spec.security.selinux_label.clone())
        .set_oom_score_adj(None);
    Ok(process)
}

/// Entry point and command as Docker combines them: an entry point of the request's own discards the image's command.
fn arguments(from: &Ingredients<'_>) -> Result<Vec<String>, Refusal> {
    let config = image_config(from);
    let of_image = |part: fn(&Config) -> &Option<Vec<String>>| config.and_then(|config| part(config).clone());
    let mut args = match &from.spec.entrypoint {
        Some(entrypoint) => entrypoint.clone(),
        None => of_image(Config::entrypoint).unwrap_or_default(),
    };
    if !from.spec.command.is_empty() {
        args.extend(from.spec.command.iter().cloned());
    } else if from.spec.entrypoint.is_none() {
        args.extend(of_image(Config::cmd).unwrap_or_default());
    }
    if args.first().is_none_or(String::is_empty) {
        return Err(Refusal::new("command", "", "neither the image nor the request says what to run"));
    }
    if let Some(bad) = args.iter().find(|arg| arg.contains('\0')) {
        return Err(Refusal::new("command", bad, "an argument holds a NUL"));
    }
    if from.init.is_some() {
        args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
    }
    Ok(args)
}

fn environment(from: &Ingredients<'_>, identity: &Identity) -> Result<Vec<String>, Refusal> {
    let mut base = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", hostname(from.id, from.spec)?)];
    if from.spec.terminal {
        base.push("TERM=xterm".to_owned());
    }
    let home = identity.home.as_deref().unwrap_or(if identity.uid == 0 { "/root" } else { "/" });
    base.push(format!("HOME={home}"));
    base.extend(from.extra_env.iter().cloned());
    let of_image = image_config(from).and_then(|config| config.env().clone()).unwrap_or_default();
    let below = base.iter().chain(&of_image).map(String::as_str);
    Ok(env::merge(below, from.spec.env.iter().map(String::as_str)))
}

fn workdir(from: &Ingredients<'_>) -> Result<PathBuf, Refusal> {
    let of_image = || image_config(from).and_then(|config| config.working_dir().clone());
    let asked = from.spec.workdir.clone().or_else(of_image).filter(|dir| !dir.is_empty());
    let workdir = asked.unwrap_or_else(|| "/".to_owned());
    if !workdir.starts_with('/') || workdir.contains('\0') {
        return Err(Refusal::new("working directory", &workdir, "it must be an absolute path"));
    }
    Ok(PathBuf::from(workdir))
}

fn rlimits(from: &Ingredients<'_>, notes: &mut Vec<String>) -> Result<Vec<PosixRlimit>, Refusal> {
    let mut limits = Vec::new();
    if !is_host_rootfs(from) {
        limits.push(Ulimit { name: "core".to_owned(), soft: 0, hard: 0 });
        limits.push(default_nofile(from, notes));
    }
    for asked in &from.spec.ulimits {
        let ceiling = ceiling(from, &asked.name);
        if asked.hard > ceiling {
            let text = format!("{}={}", asked.name, show(asked.hard));
            let problem = format!("this host allows at most {} and we may not raise it", show(ceiling));
            return Err(Refusal::new("ulimit", &text, problem));
        }
        limits.retain(|other| other.name != asked.name);
        limits.push(asked.clone());
    }
    limits.iter().map(to_oci).collect()
}

fn default_nofile(from: &Ingredients<'_>, notes: &mut Vec<String>) -> Ulimit {
    let ceiling = ceiling(from, "nofile");
    let (soft, hard) = (DEFAULT_NOFILE.0.min(ceiling), DEFAULT_NOFILE.1.min(ceiling));
    if hard < DEFAULT_NOFILE.1 {
        notes.push(format!("open files are limited to {hard}: this host's hard limit"));
    }
    Ulimit { name: "nofile".to_owned(), soft, hard }
}

/// The highest limit that a task can have. Limits are set inside its namespaces, and nobody raises one in a user namespace of
/// his own: setrlimit(2) asks for CAP_SYS_RESOURCE in the host's.
fn ceiling(from: &Ingredients<'_>, name: &str) -> u64 {
    if from.host.may_raise_limits && from.user.is_none() {
        return UNLIMITED;
    }
    from.host.hard_limits.get(name).copied().unwrap_or(UNLIMITED)
}

fn show(limit: u64) -> String {
    if limit == UNLIMITED { "unlimited".to_owned() } else { limit.to_string() }
}

fn to_oci(limit: &Ulimit) -> Result<PosixRlimit, Refusal> {
    let refuse = || Refusal::new("ulimit", &limit.name, "there is no limit of this name");
    let name = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
    let kind: PosixRlimitType = name.parse().map_err(|_| refuse())?;
    PosixRlimitBuilder::default().typ(kind).soft(limit.soft).hard(limit.hard).build().map_err(|_| refuse())
}
