//! Slurm's `srun --container`: oci.conf names the runtime's run, state, kill and delete.

use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::callers::slurm::Slurm;
use cofferdam_tests::callers::{Called, Caller, step, take};
use cofferdam_tests::needs;
use cofferdam_tests::oci::outcome;

use crate::{On, with_callers};

/// How long a step may take to start, and to end when it is told to.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn slurm_runs_a_step_in_a_container() {
    if !needs::full("Slurm's two daemons") {
        return;
    }
    with_callers(&["slurmctld", "slurmd", "srun"], On::Both, |ground, runtime| {
        let slurm = Slurm::start(ground, runtime).unwrap();
        let bundle = Bundle::make(&slurm.folder().join("bundle"), &["true"], |_| {}).unwrap();
        let container = format!("--container={}", bundle.path().display());
        let srun = |command: &[&'static str]| step(&[&["srun", &container], command].concat());
        let steps = [
            srun(&["hostname"]).says("isolated"),
            srun(&["sh", "-c", "echo out; exit 7"]).ends(7).says("out\n"),
            srun(&["sh", "-c", "echo $SLURM_JOB_ID"]).says("3"),
        ];
        take(&slurm, runtime, &steps).unwrap();
        cancel(&slurm, runtime, &container);
    });
}

/// scancel ends a step whose process 1 is deaf to SIGTERM: it signals the processes below its own and kills the runtime, of
/// which the container is no part. Slurm 22.05 has no word for it then; an epilog deletes it, and nothing may stay.
fn cancel(slurm: &Slurm, runtime: &Called, container: &str) {
    let mut srun = slurm.command(&["srun", container, "sleep", "1000"]).spawn().unwrap();
    let call = |arguments: &[&str]| {
        let mut call = Command::new(&runtime.path);
        outcome(call.arg("--root").arg(slurm.state()).args(arguments)).unwrap().stdout
    };
    let wait = |what: &str, is_so: &mut dyn FnMut() -> bool| {
        let deadline = Instant::now() + LIMIT;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}: {}", call(&["list"]));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait("it does not run", &mut || call(&["list"]).contains("running"));
    let jobs = slurm.call(&["squeue", "--noheader", "--format", "%i"]).unwrap().stdout;
    step(&["scancel", jobs.trim()]).take(slurm).unwrap();
    wait("srun does not end", &mut || srun.try_wait().unwrap().is_some());
    for id in call(&["list", "--quiet"]).lines() {
        call(&["delete", "--force", id]);
    }
    assert_eq!(call(&["list", "--quiet"]), "");
}
