//! The messages of CRIU's interface, by the field numbers of its `rpc.proto`.

use std::os::fd::{AsRawFd, OwnedFd};

use super::protobuf::{Value, Writer, fields};

/// What is asked of CRIU: `criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // CRIU's own words
pub(crate) enum Request {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
}

const NOTIFY: u64 = 6;

/// How CRIU treats cgroups: `criu_cg_mode`. The words are those of `--manage-cgroups-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupMode {
    /// Not at all.
    Ignore = 0,
    /// What CRIU itself makes gets its properties back.
    #[default]
    Soft = 3,
    /// Everything gets them.
    Full = 4,
    /// What is there already is an error.
    Strict = 5,
}

impl CgroupMode {
    /// Reads the option's word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "ignore" => Self::Ignore,
            "soft" => Self::Soft,
            "full" => Self::Full,
            "strict" => Self::Strict,
            _ => return None,
        })
    }
}

/// How CRIU keeps the network still: `criu_network_lock_method`. The words are those of `--network-lock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // CRIU's own words
pub enum NetworkLock {
    Iptables = 1,
    Nftables = 2,
    Skip = 3,
}

impl NetworkLock {
    /// Reads the option's word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "iptables" => Self::Iptables,
            "nftables" => Self::Nftables,
            "skip" => Self::Skip,
            _ => return None,
        })
    }
}

/// What both directions share on the command line.
#[derive(Debug, Clone, Default)]
pub struct Shared {
    /// Established TCP connections are kept.
    pub tcp_established: bool,
    /// Connected unix sockets whose other end is outside are allowed.
    pub external_unix_sockets: bool,
    /// The session and terminal of a shell may be outside.
    pub shell_job: bool,
    /// File locks are kept; only for a container whose files nobody else uses.
    pub file_locks: bool,
    /// Pages that an image's parent holds are removed from it.
    pub auto_dedup: bool,
    /// How cgroups are treated.
    pub cgroup_mode: CgroupMode,
    /// Namespaces of these kinds (clone flags) are left empty: whoever restores fills them.
    pub empty_namespaces: u32,
    /// Memory is fetched when it is touched.
    pub lazy_pages: bool,
    /// How the network is kept still meanwhile.
    pub network_lock: Option<NetworkLock>,
}

/// The options of one request: `criu_opts`.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub shared: Shared,
    pub pid: i32,
    pub leave_running: bool,
    pub tcp_skip_in_flight: bool,
    pub tcp_close: bool,
    pub link_remap: bool,
    pub log_file: &'static str,
    pub page_server: Option<(String, u16)>,
    pub root: String,
    pub parent_images: Option<String>,
    pub track_memory: bool,
    pub restore_as_sibling: bool,
    /// `KEY` and the descriptor that takes its place; CRIU inherits it under the same number.
    pub inherited: Vec<(String, i32)>,
    /// In CRIU's own words: `mnt[KEY]:VALUE`, `net[INODE]:KEY`.
    pub external: Vec<String>,
    /// Kind and path of a namespace to join.
    pub joined: Vec<(&'static str, String)>,
    pub freeze_cgroup: Option<String>,
    pub cgroup_root: Option<String>,
    pub config_file: Option<String>,
    pub lsm_profile: Option<String>,
    pub lsm_mount_context: Option<String>,
    pub status_fd: Option<i32>,
    /// Kept open for CRIU; [`Options::inherited`] names them.
    pub descriptors: Vec<OwnedFd>,
}

/// Directories that CRIU inherits.
#[derive(Debug)]
pub(crate) struct Folders {
    pub images: OwnedFd,
    pub work: Option<OwnedFd>,
}

/// Everything that CRIU can tell.
const LOG_LEVEL: i32 = 4;

impl Options {
    fn write(&self, folders: &Folders, to: &mut Writer) {
        to.signed(1, folders.images.as_raw_fd());
        if let Some(work) = &folders.work {
            to.signed(17, work.as_raw_fd());
        }
        if self.pid != 0 {
            to.signed(2, self.pid);
        }
        self.write_switches(to);
        self.write_texts(to);
        self.write_lists(to);
        if let Some((address, port)) = &self.page_server {
            to.message(11, |server| {
                server.bytes(1, address.as_bytes());
                server.number(2, u64::from(*port));
            });
        }
        if let Some(path) = &self.cgroup_root {
            to.message(25, |root| root.bytes(2, path.as_bytes()));
        }
    }

    fn write_switches(&self, to: &mut Writer) {
        let shared = &self.shared;
        for (field, flag) in [
            (3, self.leave_running),
            (4, shared.external_unix_sockets),
            (5, shared.tcp_established),
            (6, true), // devices that are not where they were opened, such as a terminal's
            (7, shared.shell_job),
            (8, shared.file_locks),
            (12, true), // tell us of every stage
            (15, self.track_memory),
            (16, shared.auto_dedup),
            (18, self.link_remap),
            (24, shared.cgroup_mode != CgroupMode::Ignore),
            (26, self.restore_as_sibling),
            (46, self.tcp_skip_in_flight),
            (48, shared.lazy_pages),
            (50, true), // the master of a terminal is handed to us
            (52, self.tcp_close),
        ] {
            to.flag(field, flag);
        }
        to.signed(9, LOG_LEVEL);
        to.number(34, shared.cgroup_mode as u64);
        if shared.empty_namespaces != 0 {
            to.number(38, u64::from(shared.empty_namespaces));
        }
        if let Some(descriptor) = self.status_fd {
            to.signed(49, descriptor);
        }
        if let Some(method) = &shared.network_lock {
            to.number(65, *method as u64);
        }
    }

    fn write_texts(&self, to: &mut Writer) {
        to.bytes(10, self.log_file.as_bytes());
        to.bytes(13, self.root.as_bytes());
        for (field, text) in [
            (14, &self.parent_images),
            (44, &self.freeze_cgroup),
            (51, &self.config_file),
            (53, &self.lsm_profile),
            (64, &self.lsm_mount_context),
        ] {
            if let Some(text) = text {
                to.bytes(field, text.as_bytes());
            }
        }
    }

    fn write_lists(&self, to: &mut Writer) {
        for (key, descriptor) in &self.inherited {
            to.message(27, |inherit| {
                inherit.bytes(1, key.as_bytes());
                inherit.signed(2, *descriptor);
            });
        }
        for external in &self.external {
            to.bytes(37, external.as_bytes());
        }
        for (kind, path) in &self.joined {
            to.message(39, |join| {
                join.bytes(1, kind.as_bytes());
                join.bytes(2, path.as_bytes());
            });
        }
    }
}

/// A request with its options: `criu_req`.
pub(crate) fn request(request: Request, folders: &Folders, options: &Options) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.number(1, request as u64);
    writer.message(2, |to| options.write(folders, to));
    writer.finish()
}

/// The reply to a notification.
pub(crate) fn notified(success: bool) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.number(1, NOTIFY);
    writer.number(3, u64::from(success));
    writer.finish()
}

/// A stage that CRIU has reached: `criu_notify`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Notice {
    /// Which, such as `post-restore`.
    pub script: String,
    /// The first process, once it is there.
    pub pid: i32,
}

/// What CRIU says: `criu_resp`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A stage is reached, and CRIU waits.
    Notice(Notice),
    /// Done; with the restored process.
    Done { pid: i32 },
    /// Not done.
    Failed { errno: i32, words: String },
}

/// Reads a response; `None` when it is not one.
pub(crate) fn answer(text: &[u8]) -> Option<Answer> {
    let (mut kind, mut success, mut pid, mut errno) = (None, false, 0, 0);
    let (mut words, mut notice) = (String::new(), None);
    for (field, value) in fields(text)? {
        match (field, value) {
            (1, Value::Number(number)) => kind = Some(number),
            (2, Value::Number(number)) => success = number != 0,
            (4, Value::Bytes(inner)) => pid = number(inner, 1)?,
            (5, Value::Bytes(inner)) => notice = Some(read_notice(inner)?),
            (7, Value::Number(number)) => errno = number as i32,
            (9, Value::Bytes(inner)) => words = String::from_utf8_lossy(inner).into_owned(),
            _ => {}
        }
    }
    match (kind?, success) {
        (NOTIFY, _) => notice.map(Answer::Notice),
        (_, true) => Some(Answer::Done { pid }),
        (_, false) => Some(Answer::Failed { errno, words }),
    }
}

fn read_notice(text: &[u8]) -> Option<Notice> {
    let script = fields(text)?.into_iter().find_map(|(field, value)| match (field, value) {
        (1, Value::Bytes(script)) => Some(String::from_utf8_lossy(script).into_owned()),
        _ => None,
    });
    Some(Notice { script: script?, pid: number(text, 2)? })
}

/// A number of an inner message, 0 where it says none.
fn number(text: &[u8], wanted: u32) -> Option<i32> {
    let found = fields(text)?.into_iter().find_map(|(field, value)| match value {
        Value::Number(number) if field == wanted => Some(number as i32),
        _ => None,
    });
    Some(found.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let write = |fill: &dyn Fn(&mut Writer)| {
            let mut writer = Writer::default();
            fill(&mut writer);
            writer.finish()
        };
        let restored = write(&|to| {
            to.number(1, 2);
            to.number(2, 1);
            to.message(4, |inner| inner.number(1, 77));
        });
        let stage = write(&|to| {
            to.number(1, NOTIFY);
            to.number(2, 1);
            to.message(5, |inner| {
                inner.bytes(1, b"post-restore");
                inner.number(2, 77);
            });
        });
        let failed = write(&|to| {
            to.number(1, 1);
            to.number(2, 0);
            to.number(7, 3);
        });
        assert_eq!(answer(&restored), Some(Answer::Done { pid: 77 }));
        let notice = Notice { script: "post-restore".into(), pid: 77 };
        assert_eq!(answer(&stage), Some(Answer::Notice(notice)));
        assert_eq!(answer(&failed), Some(Answer::Failed { errno: 3, words: String::new() }));
        assert_eq!(answer(b"\x12\x07cut"), None);
        assert_eq!(answer(b""), None);
    }

    #[test]
    fn modes_are_read_by_their_words() {
        assert_eq!(CgroupMode::parse("strict"), Some(CgroupMode::Strict));
        assert_eq!(CgroupMode::parse("none"), None);
    }
}
