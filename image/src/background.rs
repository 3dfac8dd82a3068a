//! What a store does while nobody waits: deleting, and telling the disk.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long settling waits for more to settle. A command that ends sooner is not held up by its disk: the kernel would keep
/// the process until a sync has ended. Whoever opens the store next does it then.
const SETTLE_DELAY: Duration = Duration::from_secs(2);

/// Threads at work for a store.
#[derive(Debug, Default)]
pub(crate) struct Background {
    jobs: Mutex<Jobs>,
    hurry: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    running: Vec<JoinHandle<()>>,
    /// Settling waits for its time.
    is_pending: bool,
    /// Somebody waits for everything.
    is_hurried: bool,
}

impl Background {
    /// Does something at once.
    pub(crate) fn start(&self, job: impl FnOnce() + Send + 'static) {
        let thread = thread::Builder::new().name("cofferdam-store".to_owned()).spawn(job);
        let mut jobs = self.lock();
        jobs.running.retain(|job| !job.is_finished());
        // Without a thread the work is left to the next opening of the store, as after a crash.
        jobs.running.extend(thread.ok());
    }

    /// Does something soon, once for all who asked until then.
    pub(crate) fn start_soon(self: &Arc<Background>, job: impl FnOnce() + Send + 'static) {
        let mut jobs = self.lock();
        if std::mem::replace(&mut jobs.is_pending, true) {
            return;
        }
        drop(jobs);
        let own = Arc::clone(self);
        self.start(move || {
            let waits = |jobs: &mut Jobs| !jobs.is_hurried;
            let (mut jobs, _) = own
                .hurry
                .wait_timeout_while(own.lock(), SETTLE_DELAY, waits)
                .unwrap_or_else(PoisonError::into_inner);
            jobs.is_pending = false;
            drop(jobs);
            job();
        });
    }

    /// Waits until everything is done that was started.
    pub(crate) fn finish(&self) {
        let mut jobs = self.lock();
        jobs.is_hurried = true;
        self.hurry.notify_all();
        let running: Vec<_> = jobs.running.drain(..).collect();
        drop(jobs);
        for job in running {
            // A job that panicked left its work undone, which whoever waits does again.
            drop(job.join());
        }
        self.lock().is_hurried = false;
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
