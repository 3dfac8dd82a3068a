//! Cases as data: a configuration that differs from the ordinary one, a script that looks at it from inside, and what it
//! has to print.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::oci::{Outcome, Runtime};
use cofferdam_tests::world::World;
use cofferdam_tests::{needs, pace};
use serde_json::Value;

/// Names the file that the table of differences is added to.
const TABLE_VARIABLE: &str = "COFFERDAM_CONFORMANCE";

/// How many cases of a chapter an emulated machine does whose subject is not its cgroups.
const EMULATED_CASES: u32 = 9;

/// One statement of the specification.
pub(crate) struct Case {
    name: &'static str,
    clause: &'static str,
    check: Box<Check>,
}

/// What holds a runtime to the statement.
type Check = dyn Fn(&Bench<'_>) -> Result<()> + Sync;

/// Where a case runs: one runtime, a folder and a container id of its own.
pub(crate) struct Bench<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) folder: PathBuf,
    pub(crate) id: String,
}

impl Bench<'_> {
    /// A bundle that runs a script of busybox, its configuration changed.
    pub(crate) fn bundle(&self, script: &str, change: impl FnOnce(&mut Value)) -> Result<Bundle> {
        Bundle::make(&self.folder.join("bundle"), &["sh", "-c", script], |config| {
            let cgroup = format!("/cofferdam-conformance-{}-{}", std::process::id(), self.folder_name());
            config["linux"]["cgroupsPath"] = Value::from(cgroup);
            change(config);
        })
    }

    fn folder_name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A container that was created from such a bundle, and its state.
    pub(crate) fn created(&self, script: &str, change: impl FnOnce(&mut Value)) -> Result<Value> {
        let bundle = self.bundle(script, change)?;
        self.runtime.create(&self.id, bundle.path())?;
        self.runtime.state(&self.id)
    }

    /// A call about this container.
    pub(crate) fn call(&self, arguments: &[&str]) -> Result<Outcome> {
        self.runtime.call(&[arguments, &[&self.id]].concat())
    }

    /// A call about this container that has to succeed.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> Result<Outcome> {
        self.runtime.succeed(&[arguments, &[&self.id]].concat())
    }
}

/// A case that is checked by a function.
pub(crate) fn check(
    name: &'static str,
    clause: &'static str,
    check: impl Fn(&Bench<'_>) -> Result<()> + Sync + 'static,
) -> Case {
    Case { name, clause, check: Box::new(check) }
}

/// A case that is a configuration and a script.
pub(crate) fn case(name: &'static str, clause: &'static str) -> Draft {
    Draft { name, clause, edits: Vec::new(), script: "true" }
}

/// A case in the making.
pub(crate) struct Draft {
    name: &'static str,
    clause: &'static str,
    edits: Vec<Edit>,
    script: &'static str,
}

enum Edit {
    Set(&'static str, Value),
    Push(&'static str, Value),
    File(&'static str, &'static str),
    Folder(&'static str),
    Link(&'static str, &'static str),
}

impl Draft {
    /// Gives the value at a JSON pointer; what is missing on the way is made.
    pub(crate) fn set(mut self, pointer: &'static str, value: Value) -> Self {
        self.edits.push(Edit::Set(pointer, value));
        self
    }

    /// Adds to the list at a JSON pointer.
    pub(crate) fn push(mut self, pointer: &'static str, value: Value) -> Self {
        self.edits.push(Edit::Push(pointer, value));
        self
    }

    /// Adds a mount.
    pub(crate) fn mount(self, mount: Value) -> Self {
        self.push("/mounts", mount)
    }

    /// Makes a file below the bundle.
    pub(crate) fn file(mut self, path: &'static str, text: &'static str) -> Self {
        self.edits.push(Edit::File(path, text));
        self
    }

    /// Makes a folder below the bundle.
    pub(crate) fn folder(mut self, path: &'static str) -> Self {
        self.edits.push(Edit::Folder(path));
        self
    }

    /// Makes a symbolic link below the bundle.
    pub(crate) fn link(mut self, path: &'static str, target: &'static str) -> Self {
        self.edits.push(Edit::Link(path, target));
        self
    }

    /// What the container runs.
    pub(crate) fn probe(mut self, script: &'static str) -> Self {
        self.script = script;
        self
    }

    /// The container has to print exactly this and end well.
    pub(crate) fn prints(self, expected: &'static str) -> Case {
        self.outcome(move |_, outcome| {
            ensure!(outcome.status == Some(0), "{}", brief(outcome));
            ensure!(outcome.stdout.trim_end() == expected.trim_end(), "{}", brief(outcome));
            Ok(())
        })
    }

    /// The container has to print each of these somewhere.
    pub(crate) fn shows(self, expected: &'static [&'static str]) -> Case {
        self.outcome(move |_, outcome| {
            for word in expected {
                ensure!(outcome.stdout.contains(word), "{word:?} is missing: {}", brief(outcome));
            }
            Ok(())
        })
    }

    /// Nothing may run. Ours has to name the place in the configuration, or whatever else these words are.
    pub(crate) fn refused(self, words: &'static str) -> Case {
        self.outcome(move |bench, outcome| {
            ensure!(outcome.status != Some(0), "it was accepted: {}", brief(outcome));
            ensure!(outcome.stdout.is_empty(), "something ran: {}", brief(outcome));
            ensure!(!bench.runtime.is_ours() || outcome.stderr.contains(words), "{}", brief(outcome));
            Ok(())
        })
    }

    /// The outcome of `run` is judged by a function.
    pub(crate) fn outcome(self, judge: impl Fn(&Bench<'_>, &Outcome) -> Result<()> + Sync + 'static) -> Case {
        let Draft { name, clause, edits, script } = self;
        check(name, clause, move |bench| {
            let bundle = bench.bundle(script, |config| apply(config, &edits))?;
            lay_out(bundle.path(), &edits)?;
            judge(bench, &bench.runtime.run(&bench.id, bundle.path())?)
        })
    }
}

fn brief(outcome: &Outcome) -> String {
    let cut = |text: &str| text.trim().chars().take(200).collect::<String>();
    format!(
        "status {:?}, printed {:?}, said {:?}",
        outcome.status,
        cut(&outcome.stdout),
        cut(&outcome.stderr)
    )
}

fn apply(config: &mut Value, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Set(pointer, value) => *place(config, pointer) = value.clone(),
            Edit::Push(pointer, value) => match place(config, pointer) {
                Value::Array(list) => list.push(value.clone()),
                other => *other = Value::Array(vec![value.clone()]),
            },
            Edit::File(..) | Edit::Folder(_) | Edit::Link(..) => {}
        }
    }
}

/// The value at a pointer of plain keys and indices.
fn place<'a>(config: &'a mut Value, pointer: &str) -> &'a mut Value {
    pointer.split('/').skip(1).fold(config, |value, key| match (value, key.parse::<usize>()) {
        (Value::Array(list), Ok(index)) => &mut list[index],
        (value, _) => &mut value[key.replace("~1", "/")],
    })
}

fn lay_out(bundle: &Path, edits: &[Edit]) -> Result<()> {
    for edit in edits {
        match edit {
            Edit::File(path, text) => {
                let path = bundle.join(path);
                std::fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
                std::fs::write(path, text)?;
            }
            Edit::Folder(path) => std::fs::create_dir_all(bundle.join(path))?,
            Edit::Link(path, target) => std::os::unix::fs::symlink(target, bundle.join(path))?,
            Edit::Set(..) | Edit::Push(..) => {}
        }
    }
    Ok(())
}

/// The cases of a chapter that the host's cgroups have no part in: in an emulated machine a few of them, from its first to
/// its last.
pub(crate) fn sampled(cases: Vec<Case>) -> Vec<Case> {
    let count = cases.len();
    let wanted = pace::rounds(count as u32, EMULATED_CASES) as usize;
    // Whatever falls into another one of `wanted` equal parts than the case before it.
    let part = |index: usize| index * wanted / count;
    let begins = |index: usize| index == 0 || part(index) != part(index - 1);
    let numbered = cases.into_iter().enumerate();
    numbered.filter(|(index, _)| wanted >= count || begins(*index)).map(|(_, case)| case).collect()
}

/// Runs a chapter on every runtime that is here. Ours has to pass; where a peer does not, the difference is printed.
///
/// # Panics
/// If ours fails a case.
pub(crate) fn chapter(title: &str, cases: Vec<Case>) {
    if !needs::root() || !needs::programs(&["busybox", "ip", "unshare"]) {
        return;
    }
    let world = World::enter().unwrap();
    let runtimes = Runtime::all(&world.state());
    let (begin, files) = (Instant::now(), world.files());
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for (index, case) in cases.iter().enumerate() {
        // All at once: most of the time of a container is waiting for the kernel.
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let files = &files;
            let run = |runtime| scope.spawn(move || one(case, index, runtime, files));
            let threads: Vec<_> = runtimes.iter().map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut cells = Vec::new();
        for (runtime, result) in runtimes.iter().zip(results) {
            if let Err(error) = &result {
                let line = format!("{}: {} ({}): {error:#}", runtime.name(), case.name, case.clause);
                println!("{line}");
                if runtime.is_ours() {
                    failures.push(line);
                }
            }
            cells.push((runtime.name(), result.is_ok()));
        }
        if cells.iter().any(|(_, passed)| !passed) {
            rows.push((case, cells));
        }
    }
    println!("{title}: {} cases on {} runtimes in {:?}", cases.len(), runtimes.len(), begin.elapsed());
    table(title, cases.len(), &rows).unwrap();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// Runs a case on one runtime, in a folder of its own, and removes what it left.
fn one(case: &Case, index: usize, runtime: &Runtime, files: &Path) -> Result<()> {
    let folder = files.join(format!("{}-{index}", runtime.name()));
    std::fs::create_dir(&folder)?;
    let bench = Bench { runtime, folder, id: format!("case-{index}") };
    let result = (case.check)(&bench);
    let _ = bench.call(&["delete", "--force"]);
    result
}

type Row<'a> = (&'a Case, Vec<(&'static str, bool)>);

/// Prints the differences, and adds them to the file that was asked for.
fn table(title: &str, cases: usize, rows: &[Row<'_>]) -> Result<()> {
    let mut text = format!("\n## {title}\n\n{cases} cases.\n");
    if let Some((_, cells)) = rows.first() {
        let names: Vec<&str> = cells.iter().map(|(name, _)| *name).collect();
        text += &format!(
            "\n| case | clause | {} |\n|---|---|{}\n",
            names.join(" | "),
            "---|".repeat(names.len())
        );
    }
    for (case, cells) in rows {
        let marks: Vec<&str> =
            cells.iter().map(|(_, passed)| if *passed { "yes" } else { "**no**" }).collect();
        text += &format!("| {} | {} | {} |\n", case.name, case.clause, marks.join(" | "));
    }
    println!("{text}");
    if let Some(path) = std::env::var_os(TABLE_VARIABLE) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let file = file.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", path.to_string_lossy()))?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// An error unless two values are the same.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<()> {
    if found != expected {
        bail!("{what} is {found:?}, not {expected:?}");
    }
    Ok(())
}
