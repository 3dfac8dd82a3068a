//! An agent: a program that embeds the engine, launches three tasks, watches them and shuts down.
//!
//! Run it as root: `cargo run -p cofferdam-executor --example agent`. It keeps everything in a throw-away directory, so it
//! cannot disturb tasks of the machine's own. Images may be named as arguments; without any it runs the embedded one.

use std::error::Error;
use std::time::Duration;

use cofferdam_executor::{Config, Executor, Force, ImageRequest, NetworkChoice, TaskHandle, TaskSpec};

fn main() -> Result<(), Box<dyn Error>> {
    // This program is also the parent of each task that it launches. Then this call does not return.
    cofferdam_executor::init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(agent())
}

async fn agent() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let executor = Executor::open(Config::below(directory.path())).await?;

    // Statuses come on a stream, the same for everybody who watches; printing them is a task of its own.
    let mut events = executor.events(None)?;
    let watcher = tokio::spawn(async move {
        while let Ok(event) = events.next().await {
            println!("{} {} {} {}", event.time, event.name, event.state, event.message.unwrap_or_default());
        }
    });

    let tasks = launch_three(&executor).await?;

    // The first two end by themselves, the last one has to be asked.
    for task in &tasks[..2] {
        let status = task.wait().await?;
        println!("{} ended: {} {:?}", task.id().short(), status.state, status.exit);
    }
    let used = tasks[2].stats().await?;
    println!("{} uses {} bytes and {} processes", tasks[2].id().short(), used.memory_bytes, used.pids);
    tasks[2].stop(Some(Duration::from_secs(1))).await?;

    for task in &tasks {
        let mut logs = task.logs(Default::default())?;
        while let Some(line) = logs.next().await? {
            println!("{}: {}", task.id().short(), String::from_utf8_lossy(&line.payload));
        }
        task.remove(Force::No).await?;
    }
    watcher.abort();
    Ok(())
}

async fn launch_three(executor: &Executor) -> Result<Vec<TaskHandle>, Box<dyn Error>> {
    let named: Vec<String> = std::env::args().skip(1).collect();
    if !named.is_empty() {
        let mut tasks = Vec::new();
        for image in named.iter().cycle().take(3) {
            executor.image(ImageRequest::new(image.clone()), |_| {}).await?;
            tasks.push(executor.launch(TaskSpec::image(image.clone())).await?);
        }
        return Ok(tasks);
    }
    let mut tasks = Vec::new();
    for command in [&["args", "hello", "from", "a", "task"][..], &["exit", "3"], &["sleep", "1000"]] {
        let mut spec = TaskSpec::image("demo").command(command.iter().copied());
        spec.network = NetworkChoice::None;
        spec.resources.memory_bytes = Some(64 << 20);
        tasks.push(executor.launch(spec).await?);
    }
    Ok(tasks)
}
