//! The harness itself: a world leaves nothing behind, the registry serves what others pushed.

use std::process::Command;

use cofferdam_tests::census::Census;
use cofferdam_tests::images::Images;
use cofferdam_tests::needs;
use cofferdam_tests::registry::{Access, Options, PASSWORD, Registry, Transport, USER};
use cofferdam_tests::world::{World, run, succeed};

#[test]
fn a_world_has_a_loopback_link_and_nothing_of_the_machines() {
    if !needs::root() {
        return;
    }
    let world = World::enter().unwrap();
    let watch = world.watch();
    let census = Census::take(&[]);
    let links: Vec<_> = census.of(cofferdam_tests::census::Kind::Link).collect();
    // A kernel may put its own fixed devices (tunnels, ifb) into every namespace.
    assert!(links.contains(&"lo") && !links.contains(&"eth0"), "{links:?}");
    watch.end();
}

#[test]
fn a_bridge_and_a_mount_left_behind_are_found() {
    if !needs::root() || !needs::programs(&["ip"]) {
        return;
    }
    let world = World::enter().unwrap();
    let watch = world.watch();
    succeed(Command::new("ip").args(["link", "add", "left0", "type", "bridge"])).unwrap();
    let folder = world.files();
    succeed(Command::new("mount").args(["-t", "tmpfs", "left"]).arg(&folder)).unwrap();
    let found: Vec<_> = watch.settle().iter().map(ToString::to_string).collect();
    assert!(found.contains(&"+ Link: left0".to_owned()), "{found:?}");
    assert!(found.contains(&format!("+ Mount: tmpfs on {}", folder.display())), "{found:?}");
}

#[test]
fn the_registry_serves_the_images_of_other_programs() {
    if !needs::root() || !needs::programs(&["skopeo", "docker-registry"]) || !Images::are_available() {
        return;
    }
    let images = Images::get().unwrap();
    let _world = World::enter().unwrap();
    let registry = images.serve().unwrap();
    for name in ["busybox:latest", "busybox:docker", "busybox:zstd", "debian:latest", "nginx:latest"] {
        let image = format!("docker://{}/{name}", registry.address());
        succeed(Command::new("skopeo").args(["inspect", "--tls-verify=false", &image])).unwrap();
    }
}

#[test]
fn the_registry_asks_for_its_password_over_tls() {
    if !needs::root() || !needs::programs(&["docker-registry", "openssl", "curl"]) {
        return;
    }
    let world = World::enter().unwrap();
    let options = Options { access: Access::Password, transport: Transport::Tls, ..Options::default() };
    let registry = Registry::start(&world.files(), options).unwrap();
    let ask = |user: &str| {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            "--user",
            user,
            "--cacert",
        ])
        .arg(registry.authority())
        .arg(format!("https://{}/v2/", registry.address()));
        String::from_utf8(run(&mut curl).unwrap().stdout).unwrap()
    };
    assert_eq!(ask(&format!("{USER}:{PASSWORD}")), "200");
    assert_eq!(ask(&format!("{USER}:wrong")), "401");
}
