//! What the user said, read along the tables of [`crate::table`]. Options may stand before and after the container id,
//! `--x y` and `--x=y` alike; a switch also takes `--x=false`. One dash before a name does as well as two.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use cofferdam_runtime::ContainerId;
use lexopt::prelude::*;

use crate::failed::Failed;
use crate::table::{Command, Flag, GLOBALS, Takes};

/// Options that were given, with their values, and the words between them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Said {
    values: Vec<(&'static str, OsString)>,
    /// What is not an option, in order.
    pub words: Vec<String>,
}

impl Said {
    /// Whether a switch is on.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.last(name).is_some_and(|value| value != "false")
    }

    /// The value of an option; the last one wins.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.last(name).map(|value| value.to_string_lossy().into_owned())
    }

    /// Every value of an option that may be repeated.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        let named = self.values.iter().filter(|(key, _)| *key == name);
        named.map(|(_, value)| value.to_string_lossy().into_owned()).collect()
    }

    /// The value as a path; an empty one is none.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.last(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// The value as a number.
    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Failed> {
        let wrong = |text: &String| Failed::new(format!("invalid value {text:?} for flag -{name}"));
        self.text(name).map(|text| text.parse().map_err(|_| wrong(&text))).transpose()
    }

    /// The first word, as a container's id.
    pub(crate) fn id(&self) -> Result<ContainerId, Failed> {
        let id = self.words.first().map_or("", String::as_str);
        ContainerId::parse(id).map_err(|error| Failed::new(error.to_string()))
    }

    fn last(&self, name: &str) -> Option<&OsString> {
        self.values.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// Reads up to the command's name, which comes back.
pub(crate) fn globals(parser: &mut lexopt::Parser) -> Result<(Said, Option<String>), Failed> {
    let mut said = Said::default();
    while let Some(next) = next(parser, &[GLOBALS])? {
        match next {
            Next::Word(word) => return Ok((said, Some(word))),
            Next::Option(flag, form) => take(&mut said, flag, form, parser)?,
        }
    }
    Ok((said, None))
}

/// Reads what comes after the command's name.
pub(crate) fn command(parser: &mut lexopt::Parser, command: &Command) -> Result<Said, Failed> {
    let mut said = Said::default();
    while let Some(next) = next(parser, command.flags)? {
        match next {
            Next::Word(word) => said.words.push(word),
            Next::Option(flag, form) => {
                take(&mut said, flag, form, parser)?;
                continue;
            }
        }
        if command.words.rest_after.is_some_and(|after| after(&said)) {
            // From here on everything belongs to the program that is named.
            let rest = parser.raw_args().map_err(Failed::usage)?;
            said.words.extend(rest.map(|word| word.to_string_lossy().into_owned()));
        }
    }
    if !said.has("help") {
        command.check_words(said.words.len())?;
    }
    Ok(said)
}

/// What stands next on the line.
enum Next {
    Word(String),
    Option(&'static Flag, Form),
}

/// How an option was written: what follows the letter of a switch is more letters.
enum Form {
    Short,
    Long,
    /// Its name behind one dash, with the value that an equals sign gave it.
    OneDash(Option<OsString>),
}

fn next(parser: &mut lexopt::Parser, flags: &[&'static [Flag]]) -> Result<Option<Next>, Failed> {
    if let Some((flag, value)) = with_one_dash(parser, flags) {
        return Ok(Some(Next::Option(flag, Form::OneDash(value))));
    }
    Ok(match parser.next().map_err(Failed::usage)? {
        None => None,
        Some(Value(word)) => Some(Next::Word(word.to_string_lossy().into_owned())),
        Some(Short(letter)) => Some(Next::Option(by_letter(flags, letter)?, Form::Short)),
        Some(Long(name)) => Some(Next::Option(by_name(flags, name)?, Form::Long)),
    })
}

/// Takes `-name` and `-name=value` off the line, which are options for runc too: containerd says `-no-subreaper`.
fn with_one_dash(
    parser: &mut lexopt::Parser,
    flags: &[&'static [Flag]],
) -> Option<(&'static Flag, Option<OsString>)> {
    let mut line = parser.try_raw_args()?;
    let word = line.peek()?.to_str()?.strip_prefix('-')?;
    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value.into())));
    let flag = flags.iter().copied().flatten().find(|flag| flag.name == name)?;
    line.next();
    Some((flag, value))
}

fn take(said: &mut Said, flag: &'static Flag, form: Form, parser: &mut lexopt::Parser) -> Result<(), Failed> {
    let needs = |_| Failed::usage(format!("flag needs an argument: -{}", flag.name));
    let value = match (flag.takes, form) {
        (_, Form::OneDash(Some(value))) => value,
        (Takes::Value(_), _) => parser.value().map_err(needs)?,
        (Takes::Nothing, Form::Long) => parser.optional_value().unwrap_or_else(|| "true".into()),
        (Takes::Nothing, _) => "true".into(),
    };
    if flag.takes == Takes::Nothing && value != "true" && value != "false" {
        return Err(Failed::usage(format!("invalid boolean value {value:?} for -{}", flag.name)));
    }
    said.values.push((flag.name, value));
    Ok(())
}

fn by_name(flags: &[&'static [Flag]], name: &str) -> Result<&'static Flag, Failed> {
    let found = flags.iter().copied().flatten().find(|flag| flag.name == name);
    found.ok_or_else(|| Failed::usage(format!("flag provided but not defined: -{name}")))
}

fn by_letter(flags: &[&'static [Flag]], letter: char) -> Result<&'static Flag, Failed> {
    let found = flags.iter().copied().flatten().find(|flag| flag.letter == Some(letter));
    found.ok_or_else(|| Failed::usage(format!("flag provided but not defined: -{letter}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, words: &str) -> Result<Said, String> {
        let mut parser = lexopt::Parser::from_args(words.split_whitespace());
        command(&mut parser, Command::find(name).unwrap()).map_err(|failed| failed.words)
    }

    #[test]
    fn options_stand_on_either_side_of_the_id() {
        for words in ["--bundle /b -d c1", "c1 --bundle=/b --detach", "--detach=true c1 -b /b", "-db /b c1"] {
            let said = read("run", words).unwrap();
            assert_eq!(said.words, ["c1"], "{words}");
            assert_eq!(said.path("bundle"), Some("/b".into()), "{words}");
            assert!(said.has("detach"), "{words}");
        }
        assert!(!read("run", "--detach=false c1").unwrap().has("detach"));
    }

    #[test]
    fn what_follows_a_program_is_the_program_s() {
        let said = read("exec", "--env A=1 c1 --env B=2 ls --all -t").unwrap();
        assert_eq!(said.words, ["c1", "ls", "--all", "-t"]);
        assert_eq!(said.texts("env"), ["A=1", "B=2"]);
        let said = read("exec", "--process p.json c1").unwrap();
        assert_eq!(said.words, ["c1"]);
        let said = read("ps", "--format json c1 -ef").unwrap();
        assert_eq!(said.words, ["c1", "-ef"]);
    }

    /// What runc 1.5 and crun 1.29 take, command by command: options with a value, and those without.
    const PEERS: &[(&str, &str, &str)] = &[
        (
            "create",
            "bundle config console-socket pidfd-socket pid-file preserve-fds",
            "no-pivot no-new-keyring no-subreaper",
        ),
        (
            "run",
            "bundle config console-socket pidfd-socket pid-file preserve-fds",
            "no-pivot no-new-keyring no-subreaper detach keep",
        ),
        ("start", "", ""),
        ("state", "", ""),
        ("kill", "", "all regex"),
        ("delete", "", "force regex"),
        (
            "exec",
            "console-socket pidfd-socket cwd env user additional-gids process pid-file process-label apparmor cap \
             preserve-fds cgroup",
            "tty detach no-new-privs ignore-paused",
        ),
        ("list", "format", "quiet"),
        ("ps", "format", ""),
        ("pause", "", ""),
        ("resume", "", ""),
        ("spec", "bundle file", "rootless"),
        ("events", "interval", "stats"),
        (
            "update",
            "resources blkio-weight cpu-period cpu-quota cpu-burst cpu-share cpu-idle cpu-rt-period cpu-rt-runtime \
             cpuset-cpus cpuset-mems memory memory-reservation memory-swap pids-limit l3-cache-schema mem-bw-schema \
             kernel-memory kernel-memory-tcp",
            "",
        ),
        (
            "checkpoint",
            "image-path work-path manage-cgroups-mode parent-path status-fd page-server empty-ns network-lock",
            "leave-running tcp-established ext-unix-sk shell-job file-locks pre-dump tcp-skip-in-flight link-remap \
             lazy-pages auto-dedup",
        ),
        (
            "restore",
            "console-socket image-path work-path manage-cgroups-mode bundle pid-file lsm-profile lsm-mount-context \
             empty-ns network-lock",
            "tcp-established ext-unix-sk shell-job file-locks detach no-subreaper no-pivot auto-dedup lazy-pages \
             tcp-close",
        ),
        ("features", "", ""),
    ];

    #[test]
    fn every_option_of_the_peers_is_taken_in_every_form_on_either_side_of_the_id() {
        for (command, valued, switches) in PEERS {
            let words = if matches!(*command, "list" | "spec" | "features") { "" } else { "c1" };
            // What follows the id of these is another program's.
            let after = !matches!(*command, "exec" | "ps");
            let check = |option: &str, form: String, expected: &str| {
                let mut lines = vec![format!("{form} {words}")];
                lines.extend(after.then(|| format!("{words} {form}")));
                for line in lines {
                    let said =
                        read(command, &line).unwrap_or_else(|failed| panic!("{command} {line}: {failed}"));
                    assert_eq!(said.text(option).as_deref(), Some(expected), "{command} {line}");
                    assert_eq!(said.words.join(" "), words, "{command} {line}");
                }
            };
            for dashes in ["--", "-"] {
                for option in valued.split_whitespace() {
                    check(option, format!("{dashes}{option} v=1"), "v=1");
                    check(option, format!("{dashes}{option}=v=1"), "v=1");
                }
                for option in switches.split_whitespace() {
                    check(option, format!("{dashes}{option}"), "true");
                    check(option, format!("{dashes}{option}=true"), "true");
                    check(option, format!("{dashes}{option}=false"), "false");
                }
            }
        }
    }

    #[test]
    fn every_option_before_the_command_is_taken_in_both_forms() {
        let read = |line: &str| {
            let mut parser = lexopt::Parser::from_args(line.split_whitespace());
            globals(&mut parser).map_err(|failed| failed.words)
        };
        for option in ["root", "log", "log-format", "log-level", "cgroup-manager", "rootless"] {
            let lines = ["--", "-"]
                .map(|dashes| [format!("{dashes}{option} v list"), format!("{dashes}{option}=v list")]);
            for line in lines.concat() {
                let (said, command) = read(&line).unwrap();
                assert_eq!(
                    (said.text(option).as_deref(), command.as_deref()),
                    (Some("v"), Some("list")),
                    "{line}"
                );
            }
        }
        for option in ["debug", "systemd-cgroup", "version", "help"] {
            let (said, command) = read(&format!("--{option} list")).unwrap();
            assert!(said.has(option) && command.as_deref() == Some("list"), "{option}");
        }
    }

    #[test]
    fn mistakes_are_told_in_runc_s_words() {
        for (name, words, expected) in [
            ("state", "", "\"state\" requires exactly 1 argument(s)"),
            ("kill", "", "\"kill\" requires a minimum of 1 argument(s)"),
            ("kill", "a b c", "\"kill\" requires a maximum of 2 argument(s)"),
            ("list", "a", "\"list\" requires exactly 0 argument(s)"),
            ("state", "--bogus a", "flag provided but not defined: -bogus"),
            ("state", "-z a", "flag provided but not defined: -z"),
            ("run", "a --bundle", "flag needs an argument: -bundle"),
            ("run", "--detach=perhaps a", "invalid boolean value \"perhaps\" for -detach"),
        ] {
            assert_eq!(read(name, words).unwrap_err(), expected, "{name} {words}");
        }
    }
}
