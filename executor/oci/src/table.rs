//! Every command and every option, as data: what is not in a table does not exist, and help is printed from them.

use crate::arguments::Said;
use crate::commands::{Call, checkpoint, create, events, exec, features, list, manage, spec, update};
use crate::failed::Failed;

/// One option.
#[derive(Debug)]
pub(crate) struct Flag {
    pub name: &'static str,
    pub letter: Option<char>,
    pub takes: Takes,
    /// One line of help; empty for an option that is taken and not advertised.
    pub about: &'static str,
}

/// Whether an option has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    Nothing,
    /// A value, under this name in the help.
    Value(&'static str),
}

/// One command.
pub(crate) struct Command {
    pub name: &'static str,
    pub about: &'static str,
    pub words: Words,
    pub flags: &'static [&'static [Flag]],
    pub run: fn(&Call<'_>) -> Result<i32, Failed>,
}

/// The words that a command takes beside its options.
pub(crate) struct Words {
    pub usage: &'static str,
    least: usize,
    most: usize,
    /// Says after a word whether all that follows belongs to another program.
    pub rest_after: Option<fn(&Said) -> bool>,
}

const fn switch(name: &'static str, about: &'static str) -> Flag {
    Flag { name, letter: None, takes: Takes::Nothing, about }
}

const fn valued(name: &'static str, value: &'static str, about: &'static str) -> Flag {
    Flag { name, letter: None, takes: Takes::Value(value), about }
}

impl Flag {
    const fn short(mut self, letter: char) -> Self {
        self.letter = Some(letter);
        self
    }
}

const NONE: Words = words("", 0, 0);
const ID: Words = words("ID", 1, 1);

const fn words(usage: &'static str, least: usize, most: usize) -> Words {
    Words { usage, least, most, rest_after: None }
}

const HELP: &[Flag] = &[switch("help", "show help").short('h')];

/// Options before the command.
pub(crate) const GLOBALS: &[Flag] = &[
    valued("root", "DIR", "where the state of containers is kept"),
    valued("log", "FILE", "append messages to this file; journald:NAME and syslog:NAME tell the system"),
    valued("log-format", "FORMAT", "text or json"),
    valued("log-level", "LEVEL", "error, warning or debug"),
    switch("debug", "as --log-level debug"),
    switch("systemd-cgroup", "have systemd make the cgroups"),
    valued("cgroup-manager", "MANAGER", "cgroupfs, systemd or disabled"),
    // What containerd sets as CriuPath; runc takes it still, and uses the one on the search path.
    valued("criu", "FILE", ""),
    valued("rootless", "BOOL", "do without cgroups that cannot be made: true, false or auto"),
    switch("version", "print the version").short('v'),
    switch("help", "show help").short('h'),
];

const CREATE: &[Flag] = &[
    valued("bundle", "DIR", "the bundle, by default the working directory").short('b'),
    valued("config", "FILE", "the configuration, by default the bundle's config.json").short('f'),
    valued("console-socket", "SOCKET", "send the terminal's master to this unix socket"),
    valued("pidfd-socket", "SOCKET", "send a pidfd of the first process to this unix socket"),
    valued("pid-file", "FILE", "write the first process's pid here"),
    switch("no-pivot", "move the root instead of pivoting to it"),
    switch("no-new-keyring", "keep the caller's session keyring"),
    valued("preserve-fds", "N", "pass N descriptors from 3 (and LISTEN_FDS) on"),
    switch("no-subreaper", ""),
    switch("explain", "print each step with its time"),
    valued("fail-step", "N", ""),
];

const RUN: &[Flag] = &[
    switch("detach", "return as soon as the program runs").short('d'),
    switch("keep", "keep the container after its process has ended"),
];

const EXEC: &[Flag] = &[
    valued("console-socket", "SOCKET", "send the terminal's master to this unix socket"),
    valued("pidfd-socket", "SOCKET", "send a pidfd of the process to this unix socket"),
    valued("cwd", "DIR", "working directory"),
    valued("env", "NAME=VALUE", "one more variable; may be repeated").short('e'),
    switch("tty", "give the process a terminal").short('t'),
    valued("user", "UID[:GID]", "as this user").short('u'),
    valued("additional-gids", "GID", "one more group; may be repeated").short('g'),
    valued("process", "FILE", "the process as JSON, in place of these options").short('p'),
    switch("detach", "return as soon as the program runs").short('d'),
    valued("pid-file", "FILE", "write the process's pid here"),
    valued("process-label", "LABEL", "SELinux label of the process"),
    valued("apparmor", "PROFILE", "AppArmor profile of the process"),
    switch("no-new-privs", "the process gains no privileges"),
    valued("cap", "CAPABILITY", "one more capability; may be repeated").short('c'),
    valued("preserve-fds", "N", "pass N descriptors from 3 on"),
    valued("cgroup", "[CONTROLLER:]PATH", "a cgroup below the container's; may be repeated"),
    switch("ignore-paused", "also in a paused container"),
];

const UPDATE: &[Flag] = &[
    valued("resources", "FILE", "limits as JSON, - for standard input").short('r'),
    valued("blkio-weight", "N", "weight of block I/O, 10 to 1000"),
    valued("cpu-period", "US", "length of a period of processor time, in microseconds"),
    valued("cpu-quota", "US", "processor time in a period, -1 for no limit"),
    valued("cpu-burst", "US", "processor time that may be saved up for later"),
    valued("cpu-share", "N", "weight of processor time, 1024 for one share"),
    valued("cpu-idle", "0|1", "run only when nobody else does"),
    valued("cpu-rt-period", "US", "length of a period of real-time scheduling"),
    valued("cpu-rt-runtime", "US", "real-time scheduling in a period"),
    valued("cpuset-cpus", "LIST", "processors that it may run on, such as 0-3,7"),
    valued("cpuset-mems", "LIST", "memory nodes that it may use"),
    valued("memory", "BYTES", "most memory, with k, m, g …; -1 for no limit"),
    valued("memory-reservation", "BYTES", "memory that it keeps when the host runs short"),
    valued("memory-swap", "BYTES", "most memory and swap together"),
    valued("pids-limit", "N", "most processes and threads, -1 for no limit"),
    valued("l3-cache-schema", "SCHEMA", "share of the last level of cache, such as L3:0=f"),
    valued("mem-bw-schema", "SCHEMA", "share of memory bandwidth, such as MB:0=50"),
    valued("kernel-memory", "BYTES", ""),
    valued("kernel-memory-tcp", "BYTES", ""),
];

/// What checkpoint and restore both take.
const CRIU: &[Flag] = &[
    valued("image-path", "DIR", "where the images are, by default ./checkpoint"),
    valued("work-path", "DIR", "where CRIU writes its log, by default where the images are"),
    switch("tcp-established", "keep established TCP connections"),
    switch("ext-unix-sk", "allow unix sockets that are connected to the outside"),
    switch("shell-job", "allow the session and the terminal of a shell"),
    switch("file-locks", "keep file locks"),
    switch("auto-dedup", "take pages out of an image that a later one has"),
    switch("lazy-pages", "move memory when it is touched"),
    valued("manage-cgroups-mode", "MODE", "soft, full, strict or ignore"),
    valued("empty-ns", "KIND", "leave a namespace empty: network"),
    valued("network-lock", "METHOD", "iptables, nftables or skip"),
];

const CHECKPOINT: &[Flag] = &[
    switch("leave-running", "let the container go on"),
    switch("pre-dump", "write memory alone, and let the container go on"),
    valued("parent-path", "DIR", "images of an earlier pre-dump, relative to these"),
    switch("tcp-skip-in-flight", "leave out connections that are being made"),
    switch("link-remap", "link files again that were unlinked while open"),
    valued("page-server", "ADDRESS:PORT", "send memory to CRIU's page server"),
    valued("status-fd", "FD", "say on this descriptor that pages can be asked for"),
];

const RESTORE: &[Flag] = &[
    BUNDLE,
    valued("console-socket", "SOCKET", "send the terminal's master to this unix socket"),
    valued("pid-file", "FILE", "write the first process's pid here"),
    switch("detach", "return as soon as the processes go on").short('d'),
    valued("lsm-profile", "TYPE:NAME", "the security profile that takes the place of the checkpoint's"),
    valued("lsm-mount-context", "CONTEXT", "the same for mounts"),
    switch("tcp-close", "close connections instead of keeping them"),
    switch("no-subreaper", ""),
    switch("no-pivot", ""),
];

const BUNDLE: Flag = valued("bundle", "DIR", "the bundle, by default the working directory").short('b');
const FORMAT: Flag = valued("format", "FORMAT", "table or json").short('f');

const REGEX: Flag = switch("regex", "every container whose id this regular expression matches").short('r');

/// Every command.
pub(crate) const COMMANDS: &[Command] = &[
    Command {
        name: "checkpoint",
        about: "write the processes of a container to files, by CRIU",
        words: ID,
        flags: &[CRIU, CHECKPOINT, HELP],
        run: checkpoint::checkpoint,
    },
    Command {
        name: "create",
        about: "create a container",
        words: ID,
        flags: &[CREATE, HELP],
        run: create::create,
    },
    Command {
        name: "delete",
        about: "remove what a container holds",
        words: ID,
        flags: &[&[switch("force", "also a running one; none is no error").short('f'), REGEX], HELP],
        run: manage::delete,
    },
    Command {
        name: "events",
        about: "follow a container's use of resources",
        words: ID,
        flags: &[
            &[
                valued("interval", "DURATION", "time between two statistics, such as 5s"),
                switch("stats", "print statistics once"),
            ],
            HELP,
        ],
        run: events::events,
    },
    Command {
        name: "exec",
        about: "run one more process in a container",
        words: Words {
            usage: "ID COMMAND [ARGUMENTS]",
            least: 1,
            most: usize::MAX,
            rest_after: Some(|said| said.words.len() > 1 || said.text("process").is_some()),
        },
        flags: &[EXEC, HELP],
        run: exec::exec,
    },
    Command {
        name: "features",
        about: "print what is supported, as JSON",
        words: NONE,
        flags: &[HELP],
        run: features::features,
    },
    Command {
        name: "kill",
        about: "send a signal, by default TERM",
        words: words("ID [SIGNAL]", 1, 2),
        flags: &[&[switch("all", "").short('a'), REGEX], HELP],
        run: manage::kill,
    },
    Command {
        name: "list",
        about: "list containers",
        words: NONE,
        flags: &[&[FORMAT, switch("quiet", "ids only").short('q')], HELP],
        run: list::list,
    },
    Command {
        name: "pause",
        about: "freeze every process of a container",
        words: ID,
        flags: &[HELP],
        run: manage::pause,
    },
    Command {
        name: "plan",
        about: "print the steps that create would take",
        words: words("[ID]", 0, 1),
        flags: &[CREATE, HELP],
        run: create::plan,
    },
    Command {
        name: "ps",
        about: "list the processes of a container",
        words: Words { usage: "ID [PS OPTIONS]", least: 1, most: usize::MAX, rest_after: Some(|_| true) },
        flags: &[&[FORMAT], HELP],
        run: list::ps,
    },
    Command {
        name: "restore",
        about: "let the processes of a checkpoint go on in a new container",
        words: ID,
        flags: &[CRIU, RESTORE, HELP],
        run: checkpoint::restore,
    },
    Command {
        name: "resume",
        about: "thaw a paused container",
        words: ID,
        flags: &[HELP],
        run: manage::resume,
    },
    Command {
        name: "run",
        about: "create and start a container",
        words: ID,
        flags: &[CREATE, RUN, HELP],
        run: create::run,
    },
    Command {
        name: "spec",
        about: "write an example config.json",
        words: NONE,
        flags: &[
            &[
                BUNDLE,
                valued("file", "FILE", "the file to write, by default config.json").short('f'),
                switch("rootless", "for a user without privileges"),
            ],
            HELP,
        ],
        run: spec::spec,
    },
    Command {
        name: "start",
        about: "run the program of a created container",
        words: ID,
        flags: &[HELP],
        run: manage::start,
    },
    Command {
        name: "state",
        about: "print the state of a container, as JSON",
        words: ID,
        flags: &[HELP],
        run: list::state,
    },
    Command {
        name: "update",
        about: "change the limits of a container",
        words: ID,
        flags: &[UPDATE, HELP],
        run: update::update,
    },
];

impl Command {
    /// The command of a name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        COMMANDS.iter().find(|command| command.name == name)
    }

    /// How many words are too few or too many, in runc's words.
    pub(crate) fn check_words(&self, count: usize) -> Result<(), Failed> {
        let Words { least, most, .. } = self.words;
        let wanted = match (least, most) {
            (least, most) if (least..=most).contains(&count) => return Ok(()),
            (least, most) if least == most => format!("exactly {least}"),
            (least, _) if count < least => format!("a minimum of {least}"),
            (_, most) => format!("a maximum of {most}"),
        };
        Err(Failed::usage(format!("{:?} requires {wanted} argument(s)", self.name)))
    }
}
