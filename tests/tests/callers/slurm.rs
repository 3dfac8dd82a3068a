//! Slurm's `srun --container`: oci.conf names the runtime's run, state, kill and delete.

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::callers::slurm::Slurm;
use cofferdam_tests::callers::{step, take};
use cofferdam_tests::needs;

use crate::{On, with_callers};

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
    });
}
