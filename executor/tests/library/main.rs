//! The library from inside a program that embeds it. No test harness: this program is also the parent of its tasks, so its
//! `main` must begin with `init`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod killed;

use std::future::Future;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cofferdam_executor::{
    AttachStreams, Config, Error, ExecSpec, Executor, Exit, Force, Keep, Kind, NetworkChoice, Output, Reason,
    TaskName, TaskSpec, TaskState,
};
use cofferdam_tests::pace;

/// The directory of a copy of this program that launches a task and is then killed.
const AGENT: &str = "COFFERDAM_TEST_AGENT";

type Test = (&'static str, fn(&Path));

fn main() {
    cofferdam_executor::init();
    if let Some(directory) = std::env::var_os(AGENT) {
        let directory = Path::new(&directory);
        return match std::env::var(killed::IMAGE) {
            Ok(image) => block_on(killed::agent(directory, &image)),
            Err(_) => block_on(agent(directory)),
        };
    }
    let tests: [Test; 8] = [
        ("statuses_come_in_order_and_once", |dir| block_on(statuses(dir))),
        ("an_attached_task_is_heard_from_its_first_byte", |dir| block_on(attached(dir))),
        ("a_launch_that_is_dropped_leaves_nothing", |dir| block_on(dropped(dir))),
        ("a_task_outlives_its_agent_and_is_met_again", |dir| block_on(outlives(dir))),
        ("errors_have_kinds", |dir| block_on(kinds(dir))),
        ("an_agent_that_is_killed_at_any_moment_leaves_nothing_that_stays", |_| killed::sweep()),
        ("a_launch_does_not_pay_for_the_agent_s_heap", |dir| block_on(heap(dir))),
        ("a_hundred_launches_leave_descriptors_as_they_were", |dir| block_on(many(dir))),
    ];
    let asked = Asked::parse(std::env::args().skip(1));
    if asked.lists {
        tests.iter().filter(|(name, _)| asked.wants(name)).for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    for (name, test) in tests.into_iter().filter(|(name, _)| asked.wants(name)) {
        let directory = tempfile::tempdir().unwrap();
        test(directory.path());
        println!("test {name} ... ok");
    }
}

/// What test runners ask of a test program: the part of libtest's command line that they use.
#[derive(Default)]
struct Asked {
    lists: bool,
    ignored: bool,
    exact: bool,
    names: Vec<String>,
    skips: Vec<String>,
}

impl Asked {
    fn parse(mut words: impl Iterator<Item = String>) -> Asked {
        let mut asked = Asked::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => asked.lists = true,
                "--ignored" => asked.ignored = true,
                "--exact" => asked.exact = true,
                // Options with a value: no test is meant.
                "--format" | "--test-threads" => drop(words.next()),
                "--skip" => asked.skips.extend(words.next()),
                _ if word.starts_with('-') => {}
                _ => asked.names.push(word),
            }
        }
        asked
    }

    /// No test here is ignored.
    fn wants(&self, name: &str) -> bool {
        let is_named =
            |asked: &String| if self.exact { asked == name } else { name.contains(asked.as_str()) };
        let is_skipped = self.skips.iter().any(|part| name.contains(part.as_str()));
        !self.ignored && !is_skipped && (self.names.is_empty() || self.names.iter().any(is_named))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn demo(command: &[&str]) -> TaskSpec {
    let mut spec = TaskSpec::image("demo").command(command.iter().copied());
    spec.network = NetworkChoice::None;
    spec
}

async fn open(directory: &Path) -> Executor {
    Executor::open(Config::below(directory)).await.unwrap()
}

/// What a task may hold, below the throw-away directory: nothing of it may be left.
fn assert_empty(directory: &Path) {
    for path in ["state/tasks", "state/netns", "state/runtime", "root/tasks", "root/names", "root/removed"] {
        let left: Vec<_> = std::fs::read_dir(directory.join(path))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    // The last act of a shim is to close its connections; the process ends a moment later.
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while let Some(shim) = find_shim(directory) {
        assert!(std::time::Instant::now() < deadline, "the shim {shim} is left");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A shim whose state is below the directory.
fn find_shim(directory: &Path) -> Option<String> {
    let place = directory.display().to_string();
    let line_of = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_shim = |pid: &String| {
        let line = line_of(pid);
        let line = String::from_utf8_lossy(&line);
        line.starts_with("cofferdam-shim\0") && line.contains(&place)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).find(is_shim)
}

async fn statuses(directory: &Path) {
    let executor = open(directory).await;
    let mut events = executor.events(None).unwrap();
    let task = executor.launch(demo(&["exit", "3"])).await.unwrap();
    let status = task.wait().await.unwrap();
    assert_eq!((status.state, status.exit), (TaskState::Failed, Some(Exit::Code(3))));
    assert_eq!(status.reason, Some(Reason::CommandExited));
    for state in [TaskState::Staging, TaskState::Starting, TaskState::Running, TaskState::Failed] {
        let event = events.next().await.unwrap();
        assert_eq!((&event.task, event.state), (task.id(), state));
    }
    assert!(events.try_next().unwrap().is_none());
    task.remove(Force::No).await.unwrap();
    assert_empty(directory);
}

async fn attached(directory: &Path) {
    let executor = open(directory).await;
    let streams = AttachStreams { stdin: true, output: true, size: None };
    let spec = TaskSpec { stdin: true, keep: Keep::Nothing, ..demo(&["cat"]) };
    let launched = executor.launch_with(spec, Some(streams)).await.unwrap();
    let (mut output, mut input) = launched.attachment.unwrap().split();
    input.write(b"to the task and back").await.unwrap();
    input.end().await.unwrap();
    let mut heard = Vec::new();
    let status = loop {
        match output.next().await.unwrap() {
            Output::Stdout(bytes) => heard.extend(bytes),
            Output::Over(status) => break status,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(heard, b"to the task and back");
    assert_eq!(status.state, TaskState::Finished);
    assert!(output.next().await.is_none());
    assert_empty(directory);
}

async fn dropped(directory: &Path) {
    let executor = open(directory).await;
    executor.launch(TaskSpec { keep: Keep::Nothing, ..demo(&["true"]) }).await.unwrap().wait().await.unwrap();
    for millis in (0..80).step_by(3) {
        let launch = executor.launch(TaskSpec { keep: Keep::Nothing, ..demo(&["sleep", "1000"]) });
        if let Ok(launched) = tokio::time::timeout(Duration::from_millis(millis), launch).await {
            launched.unwrap().remove(Force::Kill).await.unwrap();
        }
    }
    // What was dropped is undone by worker threads and shims: wait until they have, also on an emulated machine.
    let deadline = std::time::Instant::now() + Duration::from_secs(90);
    let living = || std::fs::read_dir(directory.join("state/tasks")).unwrap().count();
    while living() > 0 && std::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_empty(directory);
}

/// What the copy of this program does until it is killed.
async fn agent(directory: &Path) {
    let executor = open(directory).await;
    let spec = demo(&["sleep", "1000"]).named(TaskName::parse("survivor").unwrap());
    executor.launch(spec).await.unwrap();
    println!("launched");
    std::future::pending::<()>().await;
}

async fn outlives(directory: &Path) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(AGENT, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "launched\n");
    child.kill().unwrap();
    child.wait().unwrap();
    let executor = open(directory).await;
    let task = executor.task("survivor").await.unwrap();
    assert_eq!(task.status().await.unwrap().state, TaskState::Running);
    let spec = ExecSpec { command: vec!["exit".into(), "4".into()], ..ExecSpec::default() };
    let attachment = task.exec(spec, AttachStreams { stdin: false, output: true, size: None }).await.unwrap();
    let (mut output, _input) = attachment.split();
    assert!(matches!(output.next().await, Some(Output::Ended(Exit::Code(4)))));
    let status = task.stop(Some(Duration::ZERO)).await.unwrap();
    assert_eq!((status.state, status.reason), (TaskState::Killed, Some(Reason::KillRequested)));
    task.remove(Force::No).await.unwrap();
    assert_empty(directory);
}

async fn kinds(directory: &Path) {
    let executor = open(directory).await;
    let kind = |result: Result<_, Error>| result.map(drop).unwrap_err().kind();
    assert_eq!(kind(executor.task("nosuch").await.map(drop)), Kind::NotFound);
    assert_eq!(kind(executor.launch(demo(&["nosuch"])).await.map(drop)), Kind::NotFound);
    assert_eq!(kind(executor.launch(demo(&["/etc/passwd"])).await.map(drop)), Kind::InvalidInput);
    let mut greedy = demo(&["true"]);
    greedy.resources.memory_bytes = Some(1 << 60);
    assert_eq!(kind(executor.launch(greedy).await.map(drop)), Kind::InvalidInput);
    let name = TaskName::parse("one").unwrap();
    let first = executor.launch(demo(&["sleep", "1000"]).named(name.clone())).await.unwrap();
    assert_eq!(kind(executor.launch(demo(&["true"]).named(name)).await.map(drop)), Kind::AlreadyExists);
    assert_eq!(kind(first.remove(Force::No).await), Kind::Conflict);
    first.remove(Force::Kill).await.unwrap();
    assert_empty(directory);
}

/// Cloning this process would copy the page tables of its heap: 140 ms for 2 GiB. A shim is spawned without that, so the time
/// must not grow by more than a fifth. The shortest of several launches is compared: other load only ever adds. Whoever is
/// cloned pays once more when it next writes to its pages, each of which has to be made writable again: that is counted.
async fn heap(directory: &Path) {
    const HEAP_BYTES: usize = 2 << 30;
    const PAGE_BYTES: usize = 4096;
    let available = std::fs::read_to_string("/proc/meminfo").unwrap();
    let available = available.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let available_kib: usize = available.trim().trim_end_matches(" kB").parse().unwrap();
    if available_kib < 2 * HEAP_BYTES / 1024 {
        println!("skipped: needs 4 GiB of memory, {available_kib} KiB are there");
        return;
    }
    let executor = open(directory).await;
    let shortest = async || {
        let mut shortest = Duration::MAX;
        for _ in 0..12 {
            let begun = std::time::Instant::now();
            let task = executor.launch(TaskSpec { keep: Keep::Nothing, ..demo(&["true"]) }).await.unwrap();
            shortest = shortest.min(begun.elapsed());
            assert_eq!(task.wait().await.unwrap().state, TaskState::Finished);
        }
        shortest
    };
    shortest().await;
    let without = shortest().await;
    let mut heap = vec![0_u8; HEAP_BYTES];
    heap.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    let with = shortest().await;
    let before = minor_faults();
    heap.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 2);
    let faults = minor_faults() - before;
    drop(std::hint::black_box(heap));
    println!(
        "launch without heap {without:?}; {faults} pages of {HEAP_BYTES} bytes had to be made writable again"
    );
    // A copy would cost one for each page of 2 MiB at the least.
    assert!(faults < 500, "{faults} pages had to be made writable again: this process was cloned");
    pace::held("launch with a heap", with, without.mul_f64(1.2));
}

/// Of this thread, which is the one that writes.
fn minor_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // The tenth field; the second is a name in parentheses.
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(7).unwrap().parse().unwrap()
}

async fn many(directory: &Path) {
    let executor = open(directory).await;
    let once = async || {
        let task = executor.launch(TaskSpec { keep: Keep::Nothing, ..demo(&["true"]) }).await.unwrap();
        assert_eq!(task.wait().await.unwrap().state, TaskState::Finished);
    };
    once().await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for _ in 0..pace::rounds(100, 30) {
        once().await;
    }
    assert_eq!(descriptors(), before);
    assert_empty(directory);
}
