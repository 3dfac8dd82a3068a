//! kill -9 of a program that embeds the library, at many moments of pull and launch: what leaks, the next start cleans; a
//! task that runs goes on; an exit code is kept though the program that launched its task is gone.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cofferdam_executor::{
    Config, Executor, Exit, Force, ImageBuilder, ImageRequest, Reason, TaskHandle, TaskName, TaskSpec,
    TaskState,
};
use cofferdam_tests::killed::{Moments, kill_after};
use cofferdam_tests::registry::{Options, Registry, noise};
use cofferdam_tests::world::World;
use cofferdam_tests::{needs, pace};

use super::{AGENT, block_on};

/// Names the image that the agent pulls and runs.
pub(super) const IMAGE: &str = "COFFERDAM_TEST_IMAGE";

/// What it runs in it, as one word a line.
const COMMAND: &str = "COFFERDAM_TEST_COMMAND";

const VICTIM: &str = "victim";

/// The agent: pulls, launches, tells of it, and is killed at some moment.
pub(super) async fn agent(directory: &Path, image: &str) {
    let executor = Executor::open(Config::below(directory)).await.unwrap();
    executor.image(ImageRequest::new(image), |_| {}).await.unwrap();
    let command = std::env::var(COMMAND).unwrap();
    let spec = TaskSpec::image(image).command(command.lines()).named(TaskName::parse(VICTIM).unwrap());
    executor.launch(spec).await.unwrap();
}

/// The same agent, not started yet.
fn embedding_program(world: &World, image: &str, command: &str) -> Command {
    let mut agent = Command::new(std::env::current_exe().unwrap());
    agent.env(AGENT, world.folder()).env(IMAGE, image).env(COMMAND, command);
    agent
}

/// The next start of a program that embeds the library.
fn next_start<T>(world: &World, then: impl AsyncFnOnce(Executor) -> T) -> T {
    block_on(async { then(Executor::open(Config::below(world.folder())).await.unwrap()).await })
}

/// In a thread of its own: a world has no way back.
pub(super) fn sweep() {
    std::thread::scope(|scope| scope.spawn(sweep_in_a_world).join().unwrap());
}

fn sweep_in_a_world() {
    if !needs::root() || !needs::programs(&["ip", "docker-registry", "skopeo"]) {
        return;
    }
    let world = World::enter().unwrap();
    let registry = Registry::start(&world.files().join("registry"), Options::default()).unwrap();
    let image = ImageBuilder::new()
        .file("bin/guest", 0o755, cofferdam_guest::PROGRAM)
        .file("noise", 0o644, noise(4 << 20))
        .build()
        .unwrap();
    let image = registry.push(&image, VICTIM).unwrap();
    let (sleeps, exits) = ("/bin/guest\nsleep\n1000", "/bin/guest\nexit\n7");
    let witness = next_start(&world, async |executor| {
        let witness = executor.launch(TaskSpec::image("demo").command(["sleep", "1000"])).await.unwrap();
        witness.id().clone()
    });
    let moments = Moments::measure(pace::rounds(100, 12), || {
        assert!(embedding_program(&world, &image, sleeps).status().unwrap().success());
    });
    let clean = async |executor: Executor| {
        forget(&executor).await;
        let store = executor.images().unwrap();
        let _ = store.remove(&image, true);
        // Lock files of layers that never came go with a collection, and what was removed leaves the disk in the background.
        store.gc().unwrap();
        store.settle().unwrap();
    };
    next_start(&world, clean);
    let watch = world.watch();
    let (mut ran_on, mut codes) = (0, 0);
    for (round, moment) in moments.iter() {
        let command = if round % 2 == 0 { sleeps } else { exits };
        kill_after(&mut embedding_program(&world, &image, command), moment).unwrap();
        next_start(&world, async |executor| {
            if let Ok(victim) = executor.task(VICTIM).await {
                match round % 2 {
                    0 => ran_on += u32::from(runs_on(&victim).await),
                    _ => codes += u32::from(kept_its_code(&victim).await),
                }
            }
            let witness = executor.task(&witness.to_string()).await.unwrap();
            assert_eq!(witness.status().await.unwrap().state, TaskState::Running, "round {round}");
            forget(&executor).await;
            // What is half pulled is taken up by the next now and then.
            if round % 5 != 4 {
                let _ = executor.images().unwrap().remove(&image, true);
            }
        });
    }
    assert!(ran_on + codes > 0, "no kill came after a launch");
    println!("{ran_on} tasks ran on and {codes} exit codes were kept");
    next_start(&world, clean);
    let left = watch.settle();
    let left: Vec<_> =
        left.iter().map(ToString::to_string).filter(|line| !line.contains("/events")).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
    next_start(&world, async |executor| {
        executor.task(&witness.to_string()).await.unwrap().remove(Force::Kill).await.unwrap();
    });
}

/// A task that was handed over runs; one that was not is final, and says that its launcher is gone.
async fn runs_on(victim: &TaskHandle) -> bool {
    let status = victim.status().await.unwrap();
    match status.state {
        TaskState::Starting | TaskState::Running => true,
        // Handed over just before the kill, and taken back by its supervisor just now.
        _ => {
            let lost = matches!(status.reason, Some(Reason::LauncherLost | Reason::LaunchCancelled) | None);
            assert!(lost, "{status:?}");
            false
        }
    }
}

/// The task ends by itself, with nobody there that launched it: whoever comes next gets to know how.
async fn kept_its_code(victim: &TaskHandle) -> bool {
    let limit = pace::limit(Duration::from_secs(20));
    let status = tokio::time::timeout(limit, victim.wait()).await.unwrap().unwrap();
    match status.reason {
        Some(Reason::CommandExited) => {
            assert_eq!((status.state, status.exit), (TaskState::Failed, Some(Exit::Code(7))));
            true
        }
        Some(Reason::LauncherLost | Reason::LaunchCancelled) => false,
        _ => panic!("{status:?}"),
    }
}

/// Removes the victim, if there is one.
async fn forget(executor: &Executor) {
    if let Ok(victim) = executor.task(VICTIM).await {
        // It may go away by itself, if its launch was just taken back.
        let removed = victim.remove(Force::Kill).await;
        assert!(removed.is_ok() || executor.task(VICTIM).await.is_err(), "{removed:?}");
    }
}
