//! The engines that call an OCI runtime by its command line, with cofferdam-oci as that runtime: every step is one that
//! their users type, with the exit status and the words that they get. The same steps run with runc as the control.
//!
//! Each engine lives in throw-away folders of a private world; the census after it says what the runtime left behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod containerd;
mod cri;
mod docker;
mod podman;
mod slurm;

use cofferdam_tests::callers::{Called, Ground};
use cofferdam_tests::needs;

/// A shell that ends with 3 and a word when asked to, and whose children do not keep it from that.
pub(crate) const POLITE: &str = "trap 'echo bye; exit 3' TERM; while :; do sleep 1 & wait; done";

/// On whom the steps are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// The control first, then the product's runtime.
    Both,
    /// The product's alone: the control cannot, or has shown it elsewhere.
    Ours,
}

/// Runs a body for each runtime in a world of its own callers, with a census.
pub(crate) fn with_callers(programs: &[&str], on: On, body: impl Fn(&Ground, &Called)) {
    if !Ground::is_there(programs) {
        return;
    }
    let ground = Ground::enter().unwrap();
    ground.archive().unwrap();
    // The control shows that the steps are right, which changes seldom.
    let control = Called::control().filter(|_| on == On::Both && needs::is_full());
    for runtime in control.into_iter().chain([Called::ours()]) {
        println!("with {}", runtime.name);
        let watch = ground.watch();
        body(&ground, &runtime);
        ground.sweep();
        watch.end();
    }
}
