//! Mount options: words to flags. runtime-spec config.md, "Linux mount options".

use cofferdam_plan::{MountAttributes, Propagation, Refusal};

/// What a mount's options ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `bind` or `rbind`.
    pub bind: Option<Bind>,
    /// Attributes of the mount itself.
    pub attributes: MountAttributes,
    /// Attributes of the whole tree, from the r-forms.
    pub recursive: MountAttributes,
    /// Propagation, and whether it goes for the whole tree.
    pub propagation: Option<(Propagation, bool)>,
    /// Change what is mounted there instead of mounting.
    pub remount: bool,
    /// Do not follow a symbolic link at the source.
    pub source_no_follow: bool,
    /// Options of the file system: `key` or `key=value`.
    pub data: Vec<String>,
    /// Words that mean nothing any more, for a warning.
    pub ignored: Vec<String>,
}

/// How much of the source a bind takes.
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
        ("norelatime", A::STRICT_ATIME, A::ATIME_MASK),
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
    let rest = ["bind", "rbind", "remount", "sync", "dirsync", "lazytime", "src-nofollow"].map(String::from);
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
pub fn parse(options: &[String], pointer: &str) -> Result<MountOptions, Refusal> {
    let mut parsed = MountOptions::default();
    for word in options.iter().filter(|word| !word.is_empty()) {
        if !word_known(&mut parsed, word, pointer)? {
            parsed.data.push(word.clone());
        }
    }
    Ok(parsed)
}

fn word_known(parsed: &mut MountOptions, word: &str, pointer: &str) -> Result<bool, Refusal> {
    match word {
        "bind" => parsed.bind = parsed.bind.or(Some(Bind::One)),
        "rbind" => parsed.bind = Some(Bind::Tree),
        "remount" => parsed.remount = true,
        "src-nofollow" => parsed.source_no_follow = true,
        "idmap" | "ridmap" | "tmpcopyup" => {
            return Err(Refusal::unsupported(pointer, format!("mount option {word:?}")));
        }
        _ if IGNORED.contains(&word) => parsed.ignored.push(word.to_owned()),
        _ => {
            if let Some((_, propagation, tree)) = PROPAGATIONS.iter().find(|(name, _, _)| *name == word) {
                parsed.propagation = Some((*propagation, *tree));
            } else if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, _, _)| *name == word) {
                change(&mut parsed.attributes, *set, *clear);
            } else if let Some((_, set, clear)) =
                ATTRIBUTES.iter().find(|(name, _, _)| word.strip_prefix('r') == Some(name))
            {
                change(&mut parsed.recursive, *set, *clear);
                parsed.recursive.recursive = true;
            } else {
                return Ok(false);
            }
        }
    }
    Ok(true)
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
        parse(&words.split(',').map(String::from).collect::<Vec<_>>(), "/mounts/0/options").unwrap()
    }

    #[test]
    fn words_become_flags_and_the_last_one_wins() {
        for (words, attributes, recursive) in [
            ("ro,nosuid", "ro,nosuid", ""),
            ("ro,rw", "-ro", ""),
            ("rw,ro", "ro", ""),
            ("noatime", "noatime", ""),
            ("noatime,relatime", "relatime", ""),
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
    fn words_of_the_table_are_unambiguous() {
        let words = known_words();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]));
        for word in words {
            assert!(
                parsed(&word).data.is_empty() || ["sync", "dirsync", "lazytime"].contains(&word.as_str()),
                "{word}"
            );
        }
    }
}
