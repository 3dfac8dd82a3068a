//! The I/O thread: a single-threaded runtime that a blocking caller hands its requests to.

use std::future::Future;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::error::Error;

/// Runs futures on its own thread; dropping it ends the thread and whatever still runs there.
pub(crate) struct IoThread {
    handle: Handle,
    /// Dropped to stop.
    _stop: oneshot::Sender<()>,
}

impl IoThread {
    pub(crate) fn start() -> Result<IoThread, Error> {
        let failed = |error: std::io::Error| Error::Thread { reason: error.to_string() };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let work = move || {
            // Either way the sender is gone.
            drop(runtime.block_on(stopped));
            runtime.shutdown_background();
        };
        thread::Builder::new().name("cofferdam-registry".to_owned()).spawn(work).map_err(failed)?;
        Ok(IoThread { handle, _stop: stop })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs a future there and waits for it here.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.handle.spawn(async move {
            // A caller that is gone needs no answer.
            drop(sender.send(future.await));
        });
        receiver.recv().map_err(|_| Error::Thread { reason: "it ended before it answered".to_owned() })
    }
}
