//! podman and `ctr`, each with a container that talks to its host and is talked to.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use cofferdam_tests::callers::containerd::{Containerd, IMAGE};
use cofferdam_tests::callers::podman::Podman;
use cofferdam_tests::callers::{Caller, cgroup_parent, step, take};

use crate::{Host, with_plugins};

/// How long a server in a new container may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a web server on the port says to a request for a file.
fn fetch(port: u16) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /word HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        });
        match asked {
            Ok(text) if !text.is_empty() => return text,
            other => assert!(Instant::now() < deadline, "port {port}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn b20_podmans_cni_backend_runs_publishes_and_removes_containers_with_our_plugins() {
    with_plugins(&["podman", "conmon"], |host, runtime| {
        let podman = Podman::start(host.ground, runtime).unwrap();
        let settings = podman.folder().join("containers.conf");
        let mut text = std::fs::read_to_string(&settings).unwrap();
        text += &format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{:?}]\nnetwork_config_dir = {:?}\n",
            host.plugins, host.networks
        );
        std::fs::write(&settings, text).unwrap();
        let parent = format!("/{}", cgroup_parent());
        let options = ["--network", "matrix", "--cgroup-parent", &parent];
        let serve = "echo answered >/word; exec httpd -f -p 80 -h /";
        let run = |flags: &[&'static str], command: &[&'static str]| {
            [&["run"][..], flags, &options, &["busybox"], command].concat()
        };
        let steps = [
            step(&["info", "--format", "{{.Host.NetworkBackend}}"]).says("cni"),
            step(&["network", "ls"]).says("matrix"),
            step(&run(&["-d", "--name", "one", "-p", "8070:80"], &["sh", "-c", serve])),
            step(&["exec", "one", "ip", "-4", "address", "show", "eth0"]).says("10.70.0.2/24"),
            // A neighbour asks by address, the host's port, and sees the world by the gateway.
            step(&run(&["--rm"], &["wget", "-q", "-O", "-", "http://10.70.0.2/word"])).says("answered"),
            step(&run(&["--rm"], &["wget", "-q", "-O", "-", "http://10.70.0.1:8070/word"])).says("answered"),
            step(&run(&["--rm"], &["ip", "route"])).says("default via 10.70.0.1"),
        ];
        take(&podman, runtime, &steps).unwrap();
        assert!(fetch(8070).contains("answered"));
        let said = podman.call(&run(&["--rm", "-p", "8070:80"], &["true"])).unwrap();
        assert_ne!(said.status, Some(0), "the port is taken: {said:?}");
        let steps =
            [step(&["restart", "--time", "0", "one"]), step(&["rm", "--force", "--time", "0", "one"])];
        take(&podman, runtime, &steps).unwrap();
        assert_eq!(host.left(), Vec::<String>::new());
    });
}

#[test]
fn b20_ctr_runs_and_removes_a_container_with_our_plugins() {
    with_plugins(&["containerd", "ctr", "containerd-shim-runc-v2"], |host, runtime| {
        place(host);
        let containerd = Containerd::start(host.ground, runtime).unwrap();
        let options = containerd.options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let run = |id: &'static str, command: &[&'static str]| {
            step(&[&["run", "--rm", "--cni"][..], &options, &[IMAGE, id], command].concat())
        };
        let steps = [
            run("shown", &["ip", "-4", "address", "show", "eth0"]).says("10.70.0.2/24"),
            run("routed", &["ip", "route"]).says("default via 10.70.0.1"),
            run("asked", &["ping", "-c", "1", "10.70.0.1"]).says("1 packets received"),
        ];
        take(&containerd, runtime, &steps).unwrap();
        assert_eq!(host.left(), Vec::<String>::new());
    });
}

/// `ctr` looks in the default folders and nowhere else.
fn place(host: &Host<'_>) {
    let folder = std::path::Path::new("/etc/cni/net.d");
    std::fs::create_dir_all(folder).unwrap();
    for other in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(other.unwrap().path()).unwrap();
    }
    let name = "10-matrix.conflist";
    std::fs::copy(host.networks.join(name), folder.join(name)).unwrap();
    std::fs::create_dir_all("/opt/cni").unwrap();
    std::os::unix::fs::symlink(&host.plugins, "/opt/cni/bin").unwrap();
}
