//! Classes of service and monitoring groups: directories of resctrl, by path, since only root can make any there.

use std::io::ErrorKind;
use std::path::Path;

use cofferdam_plan::{HostPath, Text};
use rustix::io::Errno;

use crate::host::Outcome;

/// Makes the class with its limits, or checks that the one that is there has them. One of the container's `own` is given
/// them in any case: it was left behind.
pub(crate) fn enter_class(
    root: &HostPath,
    class: &HostPath,
    own: bool,
    make: bool,
    limits: &[Text],
) -> Outcome {
    let (root, class) = (root.as_path(), class.as_path());
    let made = match make.then(|| std::fs::create_dir(class)) {
        Some(Ok(())) => true,
        Some(Err(error)) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(words(root, class, &error));
        }
        _ => false,
    };
    if !made && !class.is_dir() {
        let problem =
            format!("the class {} does not exist, and no limits are given to make it with", class.display());
        return Err((Errno::NOENT, Some(problem)));
    }
    if made || own {
        // A class that was made and cannot be given its limits has nobody in it: it goes again.
        return write(root, class, limits).inspect_err(|_| drop(std::fs::remove_dir(class)));
    }
    let has = read(root, class)?;
    match limits.iter().find(|line| !holds(&has, &line.to_string())) {
        None => Ok(()),
        Some(line) => {
            let problem =
                format!("the class {} has other limits than {line}: {}", class.display(), has.trim());
            Err((Errno::EXIST, Some(problem)))
        }
    }
}

/// Gives a class that is there other limits, a line at a time, as the kernel takes them.
pub(crate) fn limit(root: &HostPath, class: &HostPath, lines: &[impl std::fmt::Display]) -> Outcome {
    write(root.as_path(), class.as_path(), lines)
}

/// The limits that a class has, in lines that can be written again.
pub(crate) fn limits(root: &HostPath, class: &HostPath) -> Result<Vec<String>, (Errno, Option<String>)> {
    let has = read(root.as_path(), class.as_path())?;
    Ok(has.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

fn write(root: &Path, class: &Path, lines: &[impl std::fmt::Display]) -> Outcome {
    let file = class.join("schemata");
    lines.iter().try_for_each(|line| {
        std::fs::write(&file, format!("{line}\n")).map_err(|error| words(root, &file, &error))
    })
}

fn read(root: &Path, class: &Path) -> Result<String, (Errno, Option<String>)> {
    let file = class.join("schemata");
    std::fs::read_to_string(&file).map_err(|error| words(root, &file, &error))
}

/// Makes a monitoring group, unless it is there.
pub(crate) fn make_monitor(group: &HostPath) -> Outcome {
    match std::fs::create_dir(group.as_path()) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            let problem = format!("making {group}: {error}; this host may have no monitoring");
            Err((Errno::from_io_error(&error).unwrap_or(Errno::IO), Some(problem)))
        }
        _ => Ok(()),
    }
}

/// Puts a process into groups: its class first, since a monitoring group takes members of its class only.
pub(crate) fn attach(root: &HostPath, groups: &[HostPath], pid: i32) -> Outcome {
    groups.iter().try_for_each(|group| {
        let file = group.as_path().join("tasks");
        std::fs::write(&file, pid.to_string()).map_err(|error| words(root.as_path(), &file, &error))
    })
}

/// The kernel keeps the reason of the last refusal in a file.
fn words(root: &Path, path: &Path, error: &std::io::Error) -> (Errno, Option<String>) {
    let reason = std::fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
    let reason = Some(reason.trim()).filter(|reason| !reason.is_empty() && *reason != "ok");
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let problem = format!("{}: {error}{reason}", path.display());
    (Errno::from_io_error(error).unwrap_or(Errno::IO), Some(problem))
}

/// Whether the schemata of a class say what a line asks for: `L3:0=f;1=3` against lines in the kernel's own notation.
fn holds(schemata: &str, wanted: &str) -> bool {
    let split = |line: &str| {
        line.trim().split_once(':').map(|(name, rest)| (name.trim().to_owned(), rest.to_owned()))
    };
    let Some((name, domains)) = split(wanted) else { return false };
    let Some((_, has)) = schemata.lines().filter_map(split).find(|(other, _)| *other == name) else {
        return false;
    };
    let value = |domain: &str| {
        let (id, value) = domain.split_once('=')?;
        // Bit masks are hexadecimal, and printed with as many digits as the widest; bandwidth is decimal.
        let (radix, value) = match name.starts_with("MB") || name.starts_with("SMBA") {
            true => (10, value.trim()),
            false => (16, value.trim().trim_start_matches("0x")),
        };
        Some((id.trim().parse::<u32>().ok()?, u64::from_str_radix(value, radix).ok()?))
    };
    let has: Vec<_> = has.split(';').filter_map(value).collect();
    domains.split(';').all(|domain| value(domain).is_some_and(|domain| has.contains(&domain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_compared_by_what_they_mean() {
        let has = "    MB:0=100;1= 50\n    L3:0=fffff;1=00ff0\n";
        for (wanted, same) in [
            ("L3:0=fffff", true),
            ("L3:1=ff0;0=fffff", true),
            ("L3:1=0xff0", true),
            ("L3:0=ffff", false),
            ("L3:2=f", false),
            ("MB:0=100", true),
            ("MB:1=50;0=100", true),
            ("MB:1=0x50", false),
            ("L2:0=f", false),
            ("nonsense", false),
        ] {
            assert_eq!(holds(has, wanted), same, "{wanted}");
        }
    }
}
