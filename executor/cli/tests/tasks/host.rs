//! What every test here needs: a world, the program under test in it, and what it answered.

use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cofferdam_tests::census::Watch;
use cofferdam_tests::world::World;
use cofferdam_tests::{needs, programs};

/// A world, and the turn of this test: a census counts the whole process, so tests go one after the other.
pub(crate) struct Scene {
    world: World,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Scene {
    type Target = World;
    fn deref(&self) -> &World {
        &self.world
    }
}

/// A private world, or `None` (and a line that says so) where there can be none.
pub(crate) fn world() -> Option<Scene> {
    static TURN: Mutex<()> = Mutex::new(());
    if !needs::root() || !needs::programs(&["ip"]) {
        return None;
    }
    // A test that failed has ended, and its world with it.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Some(Scene { world: World::enter().unwrap(), _turn: turn })
}

/// The program under test: where cargo put it, or the virtual machine did.
pub(crate) fn program() -> PathBuf {
    match std::env::var_os(programs::FOLDER_VARIABLE) {
        Some(_) => programs::path("cofferdam"),
        None => env!("CARGO_BIN_EXE_cofferdam").into(),
    }
}

/// The program under test with the world's folders.
pub(crate) fn cofferdam(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("--state").arg(world.state()).arg("--root").arg(world.root());
    // Configurations of the machine's own have no place in a world.
    command.arg("--cni-config").arg(world.files()).args(arguments).stdin(Stdio::null());
    command
}

/// What the program answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Answer {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Answer { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// Runs the program to its end. What it removed of images may be left to a process of its own, which is waited for: a census
/// would see it at work.
pub(crate) fn call(world: &World, arguments: &[&str]) -> Answer {
    let answer = cofferdam(world, arguments).output().unwrap().into();
    if matches!(arguments, ["rmi", ..] | ["image", "rm" | "prune", ..]) {
        cofferdam(world, &["image", "settle"]).status().unwrap();
    }
    answer
}

/// Runs the program, which must succeed; its standard output without the last newline.
pub(crate) fn succeed(world: &World, arguments: &[&str]) -> String {
    let answer = call(world, arguments);
    assert_eq!(answer.code, Some(0), "{arguments:?}: {answer:?}");
    answer.stdout.trim_end().to_owned()
}

/// Runs a command of the embedded image without network, and removes the task.
pub(crate) fn run(world: &World, options: &[&str], command: &[&str]) -> Answer {
    call(world, &[&["run", "--rm", "--network", "none"], options, &["demo"], command].concat())
}

/// A world whose store has the embedded image and whose engine was opened once, so that a census counts only tasks.
pub(crate) fn settled_world() -> Option<Scene> {
    let world = world()?;
    succeed(&world, &["run", "--rm", "demo", "true"]);
    Some(world)
}

/// Asserts that nothing was left behind. The event log grows by design, and what went away was not ours.
pub(crate) fn settle(watch: &Watch) {
    let left: Vec<_> = watch.settle().iter().map(ToString::to_string).collect();
    let left: Vec<_> =
        left.iter().filter(|line| line.starts_with('+') && !line.contains("/events")).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
}
