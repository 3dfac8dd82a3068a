//! Mount options: words to flags. runtime-spec config.md, "Linux mount options".

use cofferdam_plan::{MountAttributes, Propagation};

/// What a mount's options ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `bind` or `rbind`.
    pub bind: Option<Bind>,
    /// Attributes of the mount itself.
    pub attributes: MountAttributes,
    /// When access times are written, where a word says it; as one of [`MountAttributes::ATIME_MASK`].
    access_time: Option<u64>,
    /// Whether any word speaks of attributes.
    speaks: bool,
    /// Attributes of the whole tree, from the r-forms.
    pub recursive: MountAttributes,
    /// Propagation, and whether it goes for the whole tree.
    pub propagation: Option<(Propagation, bool)>,
    /// Change what is mounted there instead of mounting.
    pub remount: bool,
    /// Do not follow a symbolic link at the source.
    pub source_no_follow: bool,
    /// Do not follow a symbolic link at the destination.
    pub destination_no_follow: bool,
    /// Make a source that is a symbolic link anew instead of mounting it.
    pub copy_symlink: bool,
    /// Show owners through an id map: that of the mount, or else of the container.
    pub idmap: Option<Bind>,
    /// Fill a new tmpfs with what it covers.
    pub copy_up: bool,
    /// Fill a bound directory with what it covers, where it is empty.
    pub fill_empty: bool,
    /// Options of the file system: `key` or `key=value`.
    pub data: Vec<String>,
    /// Words that mean nothing any more, for a warning.
    pub ignored: Vec<String>,
}

/// How much of the source a bind takes, or an id map covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// The one mount.
    One,
    /// The whole tree of mounts.
    Tree,
}

/// Words that set or clear attribute bits: (word, set, clear).
const ATTRIBUTES: &[(&str, u64, u64)] = {
    type A = MountAttributes;
    &[
        ("ro", A::READ_ONLY, 0),
        ("rw", 0, A::READ_ONLY),
        ("nosuid", A::NO_SUID, 0),
        ("suid", 0, A::NO_SUID),
        ("nodev", A::NO_DEV, 0),
        ("dev", 0, A::NO_DEV),
        ("noexec", A::NO_EXEC, 0),
        ("exec", 0, A::NO_EXEC),
        ("noatime", A::NO_ATIME, A::ATIME_MASK),
        ("atime", 0, A::ATIME_MASK),
        ("strictatime", A::STRICT_ATIME, A::ATIME_MASK),
        ("nostrictatime", 0, A::ATIME_MASK),
        ("relatime", 0, A::ATIME_MASK),
        // The kernel has had no other default since 2.6.30: what is taken back is what remains.
        ("norelatime", 0, 0),
        ("nodiratime", A::NO_DIR_ATIME, 0),
        ("diratime", 0, A::NO_DIR_ATIME),
        ("nosymfollow", A::NO_SYMLINK_FOLLOW, 0),
        ("symfollow", 0, A::NO_SYMLINK_FOLLOW),
    ]
};

/// Words for propagation: (word, propagation, whole tree).
const PROPAGATIONS: &[(&str, Propagation, bool)] = &[
    ("private", Propagation::Private, false),
    ("rprivate", Propagation::Private, true),
    ("slave", Propagation::Slave, false),
    ("rslave", Propagation::Slave, true),
    ("shared", Propagation::Shared, false),
    ("rshared", Propagation::Shared, true),
    ("unbindable", Propagation::Unbindable, false),
    ("runbindable", Propagation::Unbindable, true),
];

/// What a word does to the options of its mount.
type Verb = fn(&mut MountOptions);

/// Words with a meaning of their own.
const VERBS: &[(&str, Verb)] = &[
    ("bind", |options| options.bind = options.bind.or(Some(Bind::One))),
    ("rbind", |options| options.bind = Some(Bind::Tree)),
    ("remount", |options| options.remount = true),
    ("idmap", |options| options.idmap = options.idmap.or(Some(Bind::One))),
    ("ridmap", |options| options.idmap = Some(Bind::Tree)),
    ("tmpcopyup", |options| options.copy_up = true),
    // Of our own: a volume begins with what the image has in its place.
    ("copyup", |options| options.fill_empty = true),
    // crun's.
    ("copy-symlink", |options| options.copy_symlink = true),
    ("src-nofollow", |options| options.source_no_follow = true),
    ("dest-nofollow", |options| options.destination_no_follow = true),
];

/// Words that every file system takes as they are.
const OF_EVERY_FILE_SYSTEM: &[&str] = &["sync", "dirsync", "lazytime"];

/// Words of mount(8) that the kernel no longer heeds, or that are the default.
const IGNORED: &[&str] = &[
    "defaults",
    "mand",
    "nomand",
    "loud",
    "iversion",
    "noiversion",
    "async",
    "silent",
    "nolazytime",
    "rasync",
];

/// Every word that [`parse`] knows, for `features`.
pub fn known_words() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().flat_map(|(word, _, _)| [(*word).to_owned(), format!("r{word}")]);
    let propagations = PROPAGATIONS.iter().map(|(word, _, _)| (*word).to_owned());
    let verbs = VERBS.iter().map(|(word, _)| *word);
    let rest = verbs.chain(OF_EVERY_FILE_SYSTEM.iter().copied()).map(str::to_owned);
    let mut words: Vec<String> = attributes
        .chain(propagations)
        .chain(rest)
        .chain(IGNORED.iter().map(|word| (*word).to_owned()))
        .collect();
    words.sort();
    words.dedup();
    words
}

/// Reads the options of one mount. Later words win over earlier ones, as with mount(8).
pub fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    for word in options.iter().filter(|word| !word.is_empty()) {
        if !word_known(&mut parsed, word) {
            parsed.data.push(word.clone());
        }
    }
    parsed
}

fn word_known(parsed: &mut MountOptions, word: &str) -> bool {
    if let Some((_, verb)) = VERBS.iter().find(|(name, _)| *name == word) {
        verb(parsed);
    } else if IGNORED.contains(&word) {
        parsed.ignored.push(word.to_owned());
    } else if let Some((_, propagation, tree)) = PROPAGATIONS.iter().find(|(name, _, _)| *name == word) {
        parsed.propagation = Some((*propagation, *tree));
    } else if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, _, _)| *name == word) {
        change(&mut parsed.attributes, *set, *clear);
        parsed.access_time = access_time(word, parsed.access_time);
        parsed.speaks = true;
    } else if let Some((_, set, clear)) =
        ATTRIBUTES.iter().find(|(name, _, _)| word.strip_prefix('r') == Some(name))
    {
        change(&mut parsed.recursive, *set, *clear);
        parsed.recursive.recursive = true;
    } else {
        return false;
    }
    true
}

/// What a word makes of the access times of a bind. A word that takes another back leaves them as the source has them.
fn access_time(word: &str, before: Option<u64>) -> Option<u64> {
    let unless = |taken_back: u64| before.filter(|mode| *mode != taken_back);
    match word {
        "noatime" => Some(MountAttributes::NO_ATIME),
        "strictatime" => Some(MountAttributes::STRICT_ATIME),
        "relatime" => Some(0),
        "atime" => unless(MountAttributes::NO_ATIME),
        "nostrictatime" => unless(MountAttributes::STRICT_ATIME),
        "norelatime" => unless(0),
        _ => before,
    }
}

/// What a mount may not lose in a user namespace, beside its access times, mount_namespaces(7).
const KEPT: u64 = MountAttributes::READ_ONLY
    | MountAttributes::NO_SUID
    | MountAttributes::NO_DEV
    | MountAttributes::NO_EXEC;

/// What may not be changed there.
pub(crate) const LOCKABLE: u64 = KEPT | MountAttributes::ATIME_MASK | MountAttributes::NO_DIR_ATIME;

impl MountOptions {
    /// What a bind gets: without a word it is as its source. With one, it is what is said and nothing else, as mount(2)
    /// remounts a bind, and so runc and crun; access times stay unless one says otherwise. What is `locked` stays too.
    pub fn of_bind(mut self, locked: bool) -> Self {
        if !self.speaks {
            return self;
        }
        let all = KEPT | MountAttributes::NO_SYMLINK_FOLLOW;
        let own = self.attributes;
        let unsaid = if locked { all & !KEPT } else { all };
        let mut set = own.set & (all | MountAttributes::NO_DIR_ATIME);
        let mut clear = (own.clear & all | unsaid) & !set;
        if self.access_time.is_some() || set & MountAttributes::NO_DIR_ATIME != 0 {
            clear |= MountAttributes::ATIME_MASK | MountAttributes::NO_DIR_ATIME & !set;
            set |= self.access_time.unwrap_or(0);
        }
        self.attributes = MountAttributes { set, clear, ..own };
        self
    }

    /// What a new file system gets: it has no mounts below it, so its own attributes and those of the tree are one.
    pub fn of_new(self) -> Self {
        let (own, tree) = (self.attributes, self.recursive);
        let set = own.set & !tree.clear | tree.set;
        let attributes = MountAttributes { set, clear: (own.clear | tree.clear) & !set, ..own };
        Self { attributes, recursive: MountAttributes::default(), ..self }
    }
}

fn change(attributes: &mut MountAttributes, set: u64, clear: u64) {
    attributes.set = attributes.set & !clear | set;
    // The access-time modes are one field: it must be cleared whole to be set, mount_setattr(2).
    let mask = if (set | clear) & MountAttributes::ATIME_MASK != 0 { MountAttributes::ATIME_MASK } else { 0 };
    attributes.clear = (attributes.clear | clear) & !set | mask;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> MountOptions {
        parse(&words.split(',').map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_bind_has_what_is_said_and_keeps_its_access_times() {
        type A = MountAttributes;
        let all = KEPT | A::NO_SYMLINK_FOLLOW;
        for (words, locked, set, clear) in [
            ("bind", false, 0, 0),
            ("rbind,rprivate", false, 0, 0),
            ("bind,ro", false, A::READ_ONLY, all & !A::READ_ONLY),
            ("bind,ro", true, A::READ_ONLY, A::NO_SYMLINK_FOLLOW),
            ("bind,dev", true, 0, A::NO_DEV | A::NO_SYMLINK_FOLLOW),
            ("bind,atime", false, 0, all),
            ("bind,relatime", false, 0, all | A::ATIME_MASK | A::NO_DIR_ATIME),
            ("bind,noatime,atime", false, 0, all),
            ("bind,norelatime", false, 0, all),
            ("bind,strictatime", false, A::STRICT_ATIME, all | A::ATIME_MASK | A::NO_DIR_ATIME),
            ("bind,nodiratime", false, A::NO_DIR_ATIME, all | A::ATIME_MASK),
        ] {
            let attributes = parsed(words).of_bind(locked).attributes;
            assert_eq!((attributes.set, attributes.clear), (set, clear), "{words} {locked}");
        }
    }

    #[test]
    fn words_become_flags_and_the_last_one_wins() {
        for (words, attributes, recursive) in [
            ("ro,nosuid", "ro,nosuid", ""),
            ("ro,rw", "-ro", ""),
            ("rw,ro", "ro", ""),
            ("noatime", "noatime", ""),
            ("noatime,relatime", "relatime", ""),
            ("norelatime", "", ""),
            ("noatime,norelatime", "noatime", ""),
            ("rnoatime,rnorelatime", "", "noatime recursive"),
            ("rro,rnoexec", "", "ro,noexec recursive"),
        ] {
            let parsed = parsed(words);
            assert_eq!(parsed.attributes.to_string(), attributes, "{words}");
            assert_eq!(parsed.recursive.to_string(), recursive, "{words}");
        }
    }

    #[test]
    fn the_rest_is_for_the_file_system() {
        let parsed = parsed("rbind,rslave,mode=755,size=64k,defaults");
        assert_eq!(parsed.bind, Some(Bind::Tree));
        assert_eq!(parsed.propagation, Some((Propagation::Slave, true)));
        assert_eq!(parsed.data, ["mode=755", "size=64k"]);
        assert_eq!(parsed.ignored, ["defaults"]);
    }

    #[test]
    fn a_new_file_system_takes_the_words_for_trees_as_its_own() {
        for (words, attributes) in
            [("rro,rnoexec", "ro,noexec"), ("ro,rrw", "-ro"), ("nosuid,rro,rnoatime", "ro,nosuid,noatime")]
        {
            assert_eq!(parsed(words).of_new().attributes.to_string(), attributes, "{words}");
        }
    }

    /// config.md, "Linux mount options".
    #[test]
    fn every_word_of_the_specification_is_known() {
        let specified = "async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand noatime \
            nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private \
            ratime rbind rdev rdiratime relatime remount rexec ridmap rnoatime rnodev rnodiratime rnoexec \
            rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave \
            rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid symfollow sync \
            tmpcopyup unbindable";
        let known = known_words();
        for word in specified.split_whitespace() {
            assert!(known.iter().any(|known| known == word), "{word}");
        }
    }

    #[test]
    fn words_of_the_table_are_unambiguous() {
        let words = known_words();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]));
        for word in words {
            assert!(parsed(&word).data.is_empty() || OF_EVERY_FILE_SYSTEM.contains(&word.as_str()), "{word}");
        }
    }
}
