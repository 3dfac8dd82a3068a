//! Child processes of the gate: never a standard input, always a line that says what runs.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// Makes a command without standard input; `arguments` are split at spaces.
pub(crate) fn command(program: &str, arguments: &str) -> Command {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

/// Runs with the gate's own output and says whether it exited with 0.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(announce(command).status().with_context(|| format!("starting {command:?}"))?.success())
}

/// Runs with the gate's own output; any exit but 0 is an error.
pub(crate) fn demand(command: &mut Command) -> Result<()> {
    if !succeeds(command)? {
        bail!("failed: {command:?}");
    }
    Ok(())
}

/// Runs quietly and returns what it wrote to standard output; any exit but 0 is an error.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("failed: {command:?}: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {command:?}"))
}

/// Runs, repeats every line of standard output as it comes, and shows each to `look`.
pub(crate) fn watch(command: &mut Command, mut look: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child =
        announce(command).stdout(Stdio::piped()).spawn().with_context(|| format!("starting {command:?}"))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("reading the output of {command:?}"))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            look(&line);
        }
    }
    child.wait().with_context(|| format!("waiting for {command:?}"))
}

/// Whether a program of that name is on the search path.
pub(crate) fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

fn announce(command: &mut Command) -> &mut Command {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    println!("  $ {}", words.join(" "));
    command
}
