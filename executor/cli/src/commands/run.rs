//! `cofferdam run`: what was said becomes a [`TaskSpec`], which is launched and stood by.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cofferdam_executor::request::network::{NetworkRequest, mac};
use cofferdam_executor::request::port::PortMapping;
use cofferdam_executor::request::size::{MilliCpus, parse_bytes};
use cofferdam_executor::request::ulimit::Ulimit;
use cofferdam_executor::request::userns::UserNamespaceChoice;
use cofferdam_executor::request::volume::{Tmpfs, Volume};
use cofferdam_executor::request::{Refusal, env};
use cofferdam_executor::{
    AttachStreams, Executor, ImageRequest, Keep, Launched, NetworkChoice, PullWhen, RestartPolicy,
    SeccompChoice, Signal, Source, TaskId, TaskName, TaskSpec,
};

use super::Outcome;
use super::registry::FetchArgs;
use crate::failure::{self, Failure};
use crate::progress::Progress;
use crate::streams::{self, End, Wiring};
use crate::terminal;

/// Largest `--env-file` or seccomp profile: far above any sane one.
const FILE_LIMIT_BYTES: u64 = 4 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the task running and print its id
    #[arg(short, long)]
    detach: bool,
    /// Keep its standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Remove it when it is over
    #[arg(long)]
    rm: bool,
    /// Give it a name
    #[arg(long)]
    name: Option<String>,
    /// Set an environment variable; without a value, take the caller's
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User by name or number, and group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Add a supplementary group
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Mount something of the host's
    #[arg(short, long = "volume", value_name = "SOURCE:TARGET[:OPTIONS]")]
    volume: Vec<String>,
    /// Mount a file system in memory
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Limit what it may write to its root file system: size=BYTES
    #[arg(long, value_name = "KEY=VALUE")]
    storage_opt: Vec<String>,
    /// Make its root file system read-only
    #[arg(long)]
    read_only: bool,
    /// CPU time it may use
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Memory it may use
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Processes it may have; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// CPUs it may run on
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// seccomp=FILE, seccomp=unconfined, no-new-privileges[=false], apparmor=PROFILE, label=LABEL
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Let set-user-id programs gain privileges
    #[arg(long)]
    allow_new_privs: bool,
    /// Whose ids its ids are: host, auto, or auto:size=NUMBER of those in /etc/subuid and /etc/subgid
    #[arg(long, value_name = "MODE")]
    userns: Option<String>,
    /// Map user ids of the task to others of the host
    #[arg(long, value_name = "INSIDE:OUTSIDE[:COUNT]")]
    uidmap: Vec<String>,
    /// Map group ids; the same as --uidmap if left out
    #[arg(long, value_name = "INSIDE:OUTSIDE[:COUNT]")]
    gidmap: Vec<String>,
    /// Limit a resource of its processes
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// bridge, none, host, or a configured network, with options ip, ip6, mac, alias, interface_name, ingress_rate,
    /// egress_rate; may be given several times
    #[arg(long, visible_alias = "net", value_name = "NETWORK[:OPTION=VALUE,...]")]
    network: Vec<String>,
    /// Ask for this address; given several times, in the order of the networks
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<std::net::IpAddr>,
    /// Ask for this hardware address on the first network
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    /// Give it another name on every network
    #[arg(long, value_name = "NAME")]
    network_alias: Vec<String>,
    /// Ask this name server before those of its networks
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<std::net::IpAddr>,
    /// Search this domain before those of its networks
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Set an option of resolv.conf
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Lead a port of the host to it
    #[arg(short, long, value_name = "[IP:]HOST:TASK[/PROTOCOL]")]
    publish: Vec<String>,
    /// Replace the image's entry point
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Run a small init as its first process
    #[arg(long)]
    init: bool,
    /// First signal of a stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u64>,
    /// When to start it again: no, on-failure or on-failure:TIMES, always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    restart: String,
    /// Print every step of the launch with its time
    #[arg(long)]
    explain: bool,
    /// When to fetch the image
    #[arg(long, value_enum, default_value = "missing")]
    pull: PullArg,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Isolate a command of the host's by namespaces and cgroups only; no image
    #[arg(long)]
    host_rootfs: bool,
    /// Attach a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Write the task's id into a new file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Print nothing but results
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    fetch: FetchArgs,
    /// Image and command; only a command with --host-rootfs
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "IMAGE [COMMAND]"
    )]
    words: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum PullArg {
    Always,
    Missing,
    Never,
    Newer,
}

impl From<PullArg> for PullWhen {
    fn from(arg: PullArg) -> PullWhen {
        match arg {
            PullArg::Always => PullWhen::Always,
            PullArg::Missing => PullWhen::Missing,
            PullArg::Never => PullWhen::Never,
            PullArg::Newer => PullWhen::Newer,
        }
    }
}

pub(crate) async fn run(args: Args, executor: &Executor) -> Outcome {
    let mut spec = to_spec(&args)?;
    if args.tty && args.interactive && !args.detach && !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return Err(Failure::plain("-t with -i needs a terminal, and standard input is none; leave out -t"));
    }
    let mut cidfile = args.cidfile.as_deref().map(CidFile::new).transpose()?;
    if let Source::Image(reference) = &spec.source {
        let request = ImageRequest {
            when: args.pull.into(),
            platform: args.platform.clone(),
            pull: Some(args.fetch.over(executor.pull_config())),
            ..ImageRequest::new(reference.clone())
        };
        let progress = Progress::new(args.quiet);
        super::pull::fetch(executor, request, move |event| progress.tell(&event)).await?;
        // It is here now; asking again would ask the registry again.
        spec.pull = PullWhen::Never;
    }
    let launched = executor.launch_with(spec, wanted_streams(&args)).await?;
    if let Some(file) = &mut cidfile {
        file.tell(launched.task.id())?;
    }
    tell(&args, &launched);
    stand_by(&args, launched).await
}

fn tell(args: &Args, launched: &Launched) {
    if args.explain {
        for step in &launched.steps {
            eprintln!("{:>10.3} ms  {}", step.nanos as f64 / 1e6, step.step);
        }
        launched.notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
}

async fn stand_by(args: &Args, launched: Launched) -> Outcome {
    let Some(attachment) = launched.attachment else {
        println!("{}", launched.task.id());
        return Ok(ExitCode::SUCCESS);
    };
    let wiring = Wiring { stdin: args.interactive, terminal: args.tty };
    match streams::connect(attachment, wiring, Some(&launched.task)).await? {
        End::Over(status) => {
            if status.exit.is_none() || status.limitation.is_some() {
                let message = status.message.clone().unwrap_or_default();
                Failure::plain(message).report();
            }
            Ok(failure::exit_code(status.shell_code()))
        }
        End::Ended(exit) => Ok(failure::exit_code(exit.shell_code())),
        End::Detached => Ok(ExitCode::SUCCESS),
        End::Lost => {
            let status = launched.task.wait().await?;
            Failure::plain(status.message.clone().unwrap_or_default()).report();
            Ok(failure::exit_code(status.shell_code()))
        }
    }
}

fn wanted_streams(args: &Args) -> Option<AttachStreams> {
    (!args.detach).then(|| AttachStreams {
        stdin: args.interactive,
        output: true,
        size: if args.tty { terminal::size() } else { None },
    })
}

fn to_spec(args: &Args) -> Result<TaskSpec, Failure> {
    let (source, command) = source(args)?;
    let mut spec = TaskSpec::image("");
    spec.source = source;
    spec.command = command;
    spec.name = args
        .name
        .as_deref()
        .map(TaskName::parse)
        .transpose()
        .map_err(|error| Failure::plain(error.to_string()))?;
    spec.platform.clone_from(&args.platform);
    spec.entrypoint =
        args.entrypoint.as_ref().map(|entry| if entry.is_empty() { vec![] } else { vec![entry.clone()] });
    spec.env = environment(args)?;
    spec.workdir.clone_from(&args.workdir);
    spec.user.clone_from(&args.user);
    spec.groups.clone_from(&args.group_add);
    spec.hostname.clone_from(&args.hostname);
    spec.terminal = args.tty;
    spec.stdin = args.interactive;
    spec.read_only = args.read_only;
    spec.volumes = each(&args.volume, Volume::parse)?;
    spec.tmpfs = each(&args.tmpfs, Tmpfs::parse)?;
    for option in &args.storage_opt {
        spec.writable_bytes = Some(cofferdam_executor::request::storage::parse(option)?);
    }
    if let Some(size) = &args.shm_size {
        spec.shm_bytes = parse_bytes(size)?;
    }
    spec.resources.memory_bytes = args.memory.as_deref().map(parse_bytes).transpose()?;
    spec.resources.cpus = args.cpus.as_deref().map(MilliCpus::parse).transpose()?;
    spec.resources.cpuset.clone_from(&args.cpuset_cpus);
    spec.resources.pids = args.pids_limit;
    confine(args, &mut spec)?;
    spec.user_namespace = UserNamespaceChoice::parse(args.userns.as_deref(), &args.uidmap, &args.gidmap)?;
    spec.ulimits = each(&args.ulimit, Ulimit::parse)?;
    spec.network = network(args)?;
    spec.dns.servers.clone_from(&args.dns);
    spec.dns.search.clone_from(&args.dns_search);
    spec.dns.options.clone_from(&args.dns_option);
    spec.ports = each(&args.publish, PortMapping::parse)?.concat();
    spec.init = args.init;
    spec.stop_signal = args
        .stop_signal
        .as_deref()
        .map(Signal::parse)
        .transpose()
        .map_err(|error| Failure::plain(error.to_string()))?;
    if let Some(seconds) = args.stop_timeout {
        spec.stop_grace = Duration::from_secs(seconds);
    }
    spec.restart = RestartPolicy::parse(&args.restart)?;
    spec.keep = if args.rm { Keep::Nothing } else { Keep::UntilRemoved };
    if args.rm && spec.restart != RestartPolicy::No {
        return Err(Failure::plain("--rm and --restart contradict each other: choose one"));
    }
    spec.labels = labels(args);
    Ok(spec)
}

fn source(args: &Args) -> Result<(Source, Vec<String>), Failure> {
    if args.host_rootfs {
        return Ok((Source::HostRootfs, args.words.clone()));
    }
    match args.words.split_first() {
        Some((image, command)) => Ok((Source::Image(image.clone()), command.to_vec())),
        None => Err(Failure::plain("say which image to run")),
    }
}

fn each<T>(texts: &[String], parse: fn(&str) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
    texts.iter().map(|text| parse(text)).collect()
}

fn environment(args: &Args) -> Result<Vec<String>, Failure> {
    let lookup = |name: &str| std::env::var(name).ok();
    let mut variables = Vec::new();
    for path in &args.env_file {
        variables.extend(env::parse_file(&read_file(path)?, lookup)?);
    }
    for text in &args.env {
        variables.extend(env::parse_variable(text, lookup)?);
    }
    Ok(variables)
}

fn confine(args: &Args, spec: &mut TaskSpec) -> Result<(), Failure> {
    let security = &mut spec.security;
    security.capabilities_add.clone_from(&args.cap_add);
    security.capabilities_drop.clone_from(&args.cap_drop);
    security.no_new_privileges = !args.allow_new_privs;
    for option in &args.security_opt {
        // Docker takes both signs.
        let (key, value) = option.split_once(['=', ':']).unwrap_or((option, "true"));
        match (key, value) {
            ("seccomp", "unconfined") => security.seccomp = SeccompChoice::Unconfined,
            ("seccomp", file) => security.seccomp = SeccompChoice::Profile(read_file(&PathBuf::from(file))?),
            ("no-new-privileges", "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("apparmor", "unconfined") => security.apparmor = None,
            ("apparmor", profile) => security.apparmor = Some(profile.to_owned()),
            ("label", "disable") => security.selinux_label = None,
            ("label", label) => security.selinux_label = Some(label.to_owned()),
            _ => return Err(Refusal::new("security option", option, "there is none of this name").into()),
        }
    }
    Ok(())
}

fn network(args: &Args) -> Result<NetworkChoice, Failure> {
    let names = &args.network;
    if let Some(special) = names.iter().find(|name| matches!(name.as_str(), "none" | "host"))
        && names.len() > 1
    {
        return Err(Failure::plain(format!("--network {special} cannot be combined with other networks")));
    }
    let asks = !args.ip.is_empty() || args.mac_address.is_some() || !args.network_alias.is_empty();
    let mut requests = match names.first().map(String::as_str) {
        Some("none" | "host") if asks => {
            let message = "--ip, --mac-address and --network-alias need a network of the task's own";
            return Err(Failure::plain(message));
        }
        Some("none") => return Ok(NetworkChoice::None),
        Some("host") => return Ok(NetworkChoice::Host),
        Some(_) => each(names, NetworkRequest::parse)?,
        // A command of the host's is isolated from the host's other processes, not from its network.
        None if args.host_rootfs && !asks => return Ok(NetworkChoice::Host),
        None => vec![NetworkRequest::named("bridge")],
    };
    if args.ip.len() > requests.len() {
        return Err(Failure::plain("there are more --ip than networks; write --network NAME:ip=...,ip6=..."));
    }
    for (request, ip) in requests.iter_mut().zip(&args.ip) {
        request.ips.push(*ip);
    }
    for request in &mut requests {
        request.aliases.extend(args.network_alias.iter().cloned());
    }
    if let Some(address) = &args.mac_address {
        requests[0].mac = Some(mac(address).map_err(Failure::plain)?);
    }
    Ok(NetworkChoice::Networks(requests))
}

fn labels(args: &Args) -> std::collections::BTreeMap<String, String> {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    args.label.iter().map(pair).collect()
}

fn read_file(path: &PathBuf) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::plain(format!("cannot read {}: {error}", path.display()));
    let meta = std::fs::metadata(path).map_err(failed)?;
    if meta.len() > FILE_LIMIT_BYTES {
        return Err(Failure::plain(format!("{} is larger than 4 MiB", path.display())));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// The file for the task's id. Until that is in it, it is removed again: a file that names no task helps nobody.
struct CidFile<'a> {
    path: &'a Path,
    file: std::fs::File,
    is_told: bool,
}

impl<'a> CidFile<'a> {
    fn new(path: &'a Path) -> Result<Self, Failure> {
        let made = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
        let file = made.map_err(|error| {
            Failure::plain(format!("cannot make the id file {}: {error}", path.display()))
        })?;
        Ok(Self { path, file, is_told: false })
    }

    fn tell(&mut self, id: &TaskId) -> Result<(), Failure> {
        self.is_told = true;
        Ok(write!(self.file, "{id}")?)
    }
}

impl Drop for CidFile<'_> {
    fn drop(&mut self) {
        if !self.is_told {
            let _ = std::fs::remove_file(self.path);
        }
    }
}
