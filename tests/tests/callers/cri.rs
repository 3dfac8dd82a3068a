//! containerd as Kubernetes calls it: the runtime is `BinaryName` in containerd's configuration.

use std::time::{Duration, Instant};

use cofferdam_tests::callers::cri::{Cri, Status};

use crate::{On, POLITE, with_callers};

/// How long a container may take to be as it was told to be.
const LIMIT: Duration = Duration::from_secs(30);

fn wait(cri: &Cri, id: &str, wanted: Status) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = cri.status(id).unwrap();
        if status == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{status:?} instead of {wanted:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn kubernetes_interface_runs_a_pod_and_its_containers() {
    const RUNNING: Status = Status { state: 1, exit_code: 0 };
    with_callers(&["containerd", "ctr", "containerd-shim-runc-v2", "umoci"], On::Both, |ground, runtime| {
        let cri = Cri::start(ground, runtime).unwrap();
        let pod = cri.run_pod().unwrap();
        let polite = cri.create(&pod, "polite", POLITE).unwrap();
        assert_eq!(cri.status(&polite).unwrap().state, 0, "created");
        cri.act("StartContainer", &polite).unwrap();
        wait(&cri, &polite, RUNNING);
        assert_eq!(cri.exec(&polite, &["sh", "-c", "echo in; exit 9"]).unwrap(), ("in\n".into(), 9));
        let short = cri.create(&pod, "short", "echo out; exit 7").unwrap();
        cri.act("StartContainer", &short).unwrap();
        wait(&cri, &short, Status { state: 2, exit_code: 7 });
        assert!(cri.log("short").contains("stdout F out"), "{}", cri.log("short"));
        let absent = cri.create(&pod, "absent", "true").unwrap();
        cri.act("RemoveContainer", &absent).unwrap();
        // Without a time to wait it is killed.
        cri.act("StopContainer", &polite).unwrap();
        wait(&cri, &polite, Status { state: 2, exit_code: 137 });
        for container in [&polite, &short] {
            cri.act("RemoveContainer", container).unwrap();
            assert!(cri.status(container).is_err(), "still there");
        }
        cri.act("StopPodSandbox", &pod).unwrap();
        cri.act("RemovePodSandbox", &pod).unwrap();
    });
}
