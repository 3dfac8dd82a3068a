//! `cofferdam image settle`, and how a command leaves that to a process of its own.
//!
//! What is removed is out of sight at once and deleted later: a large image takes seconds. A command that removes waits for a
//! moment, which is all that most take, and then starts this program again to go on. Whatever ends that one, the next that
//! opens the store goes on where it stopped.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use cofferdam_executor::Store;

use crate::commands::Outcome;
use crate::failure::Failure;

/// How long a command waits for what it removed to be deleted.
const PATIENCE: Duration = Duration::from_millis(15);
const PROGRAM: &str = "/proc/self/exe";

/// Does it now.
pub(crate) fn run(store: &Store) -> Outcome {
    store.settle().map_err(|error| Failure::plain(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// Does it, or leaves it to another process if it takes long.
pub(crate) fn leave(store: &Store) -> Result<(), Failure> {
    let (done, waits) = mpsc::channel();
    let own = store.clone();
    let thread = std::thread::Builder::new().spawn(move || drop(done.send(own.settle())));
    let settled = match (thread, waits.recv_timeout(PATIENCE)) {
        (Ok(_), Ok(settled)) => settled,
        // Where it cannot be left to anybody it is waited for.
        _ if spawn(store).is_err() => store.settle(),
        _ => Ok(()),
    };
    settled.map_err(|error| Failure::plain(error.to_string()))
}

fn spawn(store: &Store) -> std::io::Result<()> {
    let root = store.root().parent().unwrap_or(store.root());
    let mut command = Command::new(PROGRAM);
    // In a group of its own, or Ctrl-C for a later command would end it.
    command.arg("--root").arg(root).args(["image", "settle"]).env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(drop)
}
