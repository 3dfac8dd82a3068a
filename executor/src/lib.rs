//! The task engine: launch, watch, exec, attach, stats, kill, recover. One async API, typed errors, no daemon of ours and no
//! state but what is on disk.
//!
//! ```no_run
//! use cofferdam_executor::{Config, Executor, TaskSpec};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // This program is also started once for each task, as its parent. Then this does not return.
//!     cofferdam_executor::init();
//!     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//!     runtime.block_on(async {
//!         let executor = Executor::open(Config::default()).await?;
//!         let task = executor.launch(TaskSpec::image("busybox").command(["echo", "hello"])).await?;
//!         let status = task.wait().await?;
//!         println!("{} {:?}", status.state, status.exit);
//!         let mut logs = task.logs(Default::default())?;
//!         while let Some(line) = logs.next().await? {
//!             println!("{}", String::from_utf8_lossy(&line.payload));
//!         }
//!         task.remove(cofferdam_executor::Force::No).await?;
//!         Ok(())
//!     })
//! }
//! ```
//!
//! Read first: [`transition`](mod@transition) (the life of a task as a pure function), [`disk`] (what is where and who owns
//! it), `launch` (from a request to a created container), `supervisor` (what facts mean, in the shim's process),
//! `recover` (after a kill).
//!
//! It is the only place where images, networks and the runtime meet. Privileges: root. Threads: the caller's tokio runtime;
//! what blocks runs on its blocking threads. Every number of executors, in every number of processes, may use the same
//! directories at the same time.

mod attach;
pub mod bundle;
mod containers;
mod control;
mod demo;
pub mod disk;
pub mod doctor;
mod error;
mod etc;
mod event;
mod exec;
mod executor;
pub mod host;
mod id;
mod images;
mod launch;
mod logs;
mod networks;
pub mod passwd;
mod recover;
mod release;
pub mod request;
mod restart;
mod rootfs_file;
mod signal;
mod spec;
mod status;
pub mod subordinate;
mod supervisor;
mod task;
pub mod transition;
mod volumes;
mod watch;

pub use attach::{AttachedInput, AttachedOutput, Attachment, Output};
pub use cofferdam_image::Error as StoreError;
pub use cofferdam_image::{
    Artifacts, Backend, Cancel, Change, ChangeKind, Collected, Damaged, Digest, Durability, Export,
    ExportOptions, Finding, Image, ImageBuilder, ImageLayer, ImageRef, ImageUsage, ImportOptions, KeepBlobs,
    Layout as ImageLayout, Limits, Naming, PruneOptions, Pruned, PullConfig, PullEvent, PushEvent, Pushed,
    Removed, Store, StoreOptions, Taken, Unused, Usage, Verdict, Verified, VerifyOptions, Watermarks,
};
pub use cofferdam_shim::log::{LineEnd, LogLimits, Record, Stream};
pub use cofferdam_shim::protocol::{AttachStreams, StepTime, WindowSize};
pub use cofferdam_shim::{Exit, Timestamp};
pub use containers::{InterfaceStats, Stats};
pub use disk::TaskRecord;
pub use error::{Error, Kind};
pub use event::{Events, TaskEvent};
pub use exec::ExecSpec;
pub use executor::{Config, Executor, Launched, ShimBinary, TaskInfo};
pub use id::{InvalidName, TaskId, TaskName};
pub use images::{ImageRequest, PushRequest, PushSource, find_stored, open_store, remove_stored};
pub use logs::{LogRequest, Logs};
pub use networks::{NetworkAttachment, NetworkDetails, NetworkDriver, NetworkInfo, NetworkSpec, Reloaded};
pub use recover::Recovered;
pub use restart::RestartPolicy;
pub use signal::{InvalidSignal, Signal};
pub use spec::{
    DEFAULT_PIDS_LIMIT, DnsRequest, Keep, NetworkChoice, PullWhen, Resources, SeccompChoice, Security,
    Source, TaskSpec,
};
pub use status::{KillProgress, Limitation, Reason, Status, TaskState};
pub use supervisor::init;
pub use task::{Force, TaskHandle};
