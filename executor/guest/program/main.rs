//! A program of many parts that runs inside a task: `demo`, `init`, and probes for tests.
//!
//! The part is the name that the program was started under, or else its first argument. It uses std and the C library that
//! std links, so it runs in an empty root file system; what std lacks is in `isolators/linux/src/guest`, where unsafe
//! code is allowed.

mod applets;
mod demo;
mod guest;
mod init;

use std::env;
use std::process::ExitCode;

/// A part: its name and what runs it.
type Applet = (&'static str, Run);

/// Runs a part with the arguments that are left for it.
type Run = fn(&[String]) -> ExitCode;

/// Every part. `cofferdam_guest::APPLETS` lists the same names.
const APPLETS: [Applet; 20] = [
    ("args", applets::args),
    ("cat", applets::cat),
    ("connect", applets::connect),
    ("demo", demo::run),
    ("env", applets::env),
    ("exit", applets::exit),
    ("false", applets::r#false),
    ("forks", applets::forks),
    ("hog", applets::hog),
    ("hold", applets::hold),
    ("id", applets::id),
    ("init", init::run),
    ("listen", applets::listen),
    ("parent", applets::parent),
    ("signals", applets::signals),
    ("sleep", applets::sleep),
    ("spin", applets::spin),
    ("true", applets::r#true),
    ("tty", applets::tty),
    ("write", applets::write),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    match choose(&arguments) {
        Some((applet, rest)) => applet(rest),
        None => {
            let names: Vec<&str> = APPLETS.iter().map(|(name, _)| *name).collect();
            applets::complain(applets::USAGE, &format!("no such part; there are: {}", names.join(" ")))
        }
    }
}

/// The part that was asked for, and the arguments that are left for it.
fn choose(arguments: &[String]) -> Option<(Run, &[String])> {
    let (program, rest) = arguments.split_first()?;
    let program = program.rsplit('/').next().unwrap_or(program);
    if let Some(applet) = find(program) {
        return Some((applet, rest));
    }
    let (first, rest) = rest.split_first()?;
    Some((find(first)?, rest))
}

fn find(name: &str) -> Option<Run> {
    APPLETS.iter().find(|(known, _)| *known == name).map(|(_, applet)| *applet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_library_lists_every_part() {
        let names: Vec<&str> = APPLETS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, cofferdam_guest::APPLETS);
    }

    #[test]
    fn the_part_is_the_name_of_the_program_or_its_first_argument() {
        assert_eq!(choose(&words("/bin/sleep 3")).expect("found").1, ["3"]);
        assert_eq!(choose(&words("/guest sleep 3")).expect("found").1, ["3"]);
        assert!(choose(&words("/guest nonsense")).is_none());
        assert!(choose(&words("/guest")).is_none());
    }
}
