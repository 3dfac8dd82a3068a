use serde_json::json;

use super::*;
use crate::request::size::MilliCpus;
use crate::request::ulimit::Ulimit;
use crate::request::volume::{Tmpfs, Volume};

fn image(config: serde_json::Value) -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [] },
    }))
    .unwrap()
}

fn host() -> HostLimits {
    HostLimits {
        memory_bytes: 8 << 30,
        cpus: vec![0, 1],
        hard_limits: [("nofile", 20_000)].into(),
        may_raise_limits: false,
    }
}

fn try_build(spec: &TaskSpec, image: &ImageConfiguration, accounts: &Accounts) -> Result<Built, Refusal> {
    let id = TaskId::parse("0123456789abcdef0123456789abcdef").unwrap();
    build(&Ingredients {
        id: &id,
        spec,
        image: Some(image),
        accounts,
        host: &host(),
        netns: Some(Path::new("/run/netns/x")),
        user: None,
        etc: None,
        volumes: &[],
        init: None,
        extra_env: &[],
    })
}

fn built(spec: &TaskSpec) -> Built {
    try_build(spec, &image(json!({ "Cmd": ["sh"] })), &Accounts::default()).unwrap()
}

fn refused(spec: &TaskSpec) -> String {
    try_build(spec, &image(json!({ "Cmd": ["sh"] })), &Accounts::default()).unwrap_err().to_string()
}

fn args(spec: &TaskSpec, config: serde_json::Value) -> Vec<String> {
    let built = try_build(spec, &image(config), &Accounts::default()).unwrap();
    built.spec.process().as_ref().unwrap().args().clone().unwrap()
}

#[test]
fn entry_point_and_command_combine_as_in_docker() {
    let both = || json!({ "Entrypoint": ["e"], "Cmd": ["c"] });
    let plain = TaskSpec::image("x");
    assert_eq!(args(&plain, both()), ["e", "c"]);
    assert_eq!(args(&plain.clone().command(["a"]), both()), ["e", "a"]);
    let replaced = TaskSpec { entrypoint: Some(vec!["n".into()]), ..plain.clone() };
    assert_eq!(args(&replaced, both()), ["n"]);
    let cleared = TaskSpec { entrypoint: Some(vec![]), ..plain.command(["a"]) };
    assert_eq!(args(&cleared, both()), ["a"]);
}

#[test]
fn a_request_without_any_command_is_refused() {
    let error = try_build(&TaskSpec::image("x"), &image(json!({})), &Accounts::default()).unwrap_err();
    assert!(error.to_string().contains("what to run"), "{error}");
}

#[test]
fn the_environment_is_the_images_under_the_requests_and_nothing_of_ours() {
    let mut spec = TaskSpec::image("x");
    spec.env = vec!["A=request".into()];
    let config = json!({ "Cmd": ["sh"], "Env": ["A=image", "B=image", "AWS_SECRET"] });
    let built = try_build(&spec, &image(config), &Accounts::default()).unwrap();
    let env = built.spec.process().as_ref().unwrap().env().clone().unwrap();
    let names: Vec<_> = env.iter().map(|entry| entry.split('=').next().unwrap()).collect();
    assert_eq!(names, ["PATH", "HOSTNAME", "HOME", "A", "B"]);
    assert!(env.contains(&"A=request".to_owned()));
}

#[test]
fn a_user_who_is_not_root_holds_no_capability() {
    let spec = TaskSpec { user: Some("1000:1000".into()), ..TaskSpec::image("x") };
    let process = built(&spec).spec.process().clone().unwrap();
    let capabilities = process.capabilities().clone().unwrap();
    assert!(capabilities.effective().as_ref().unwrap().is_empty());
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 10);
    assert_eq!((process.user().uid(), process.user().gid()), (1000, 1000));
}

#[test]
fn the_image_user_is_resolved_in_the_images_accounts() {
    let accounts = Accounts { passwd: "app:x:7:8::/app:\n".into(), group: "log:x:4:app\n".into() };
    let built =
        try_build(&TaskSpec::image("x"), &image(json!({ "Cmd": ["sh"], "User": "app" })), &accounts).unwrap();
    let process = built.spec.process().clone().unwrap();
    assert_eq!((process.user().uid(), process.user().additional_gids().clone()), (7, Some(vec![4])));
    assert!(process.env().as_ref().unwrap().contains(&"HOME=/app".to_owned()));
}

#[test]
fn more_than_the_host_has_is_refused_by_name() {
    let base = TaskSpec::image("x");
    let with = |change: fn(&mut TaskSpec)| {
        let mut spec = base.clone();
        change(&mut spec);
        refused(&spec)
    };
    for (text, part) in [
        (with(|spec| spec.resources.memory_bytes = Some(9 << 30)), "the host has only 8.0GiB"),
        (with(|spec| spec.resources.memory_bytes = Some(1 << 20)), "the least is 6.0MiB"),
        (with(|spec| spec.resources.cpus = Some(MilliCpus(2001))), "the host has only 2"),
        (with(|spec| spec.resources.cpuset = Some("0-7".into())), "no CPU 2 online"),
        (with(|spec| spec.resources.pids = Some(0)), "expected a number"),
        (with(|spec| spec.ulimits = vec![Ulimit::parse("nofile=1:30000").unwrap()]), "at most 20000"),
        (with(|spec| spec.security.capabilities_add = vec!["NOPE".into()]), "NOPE"),
        (with(|spec| spec.workdir = Some("rel".into())), "absolute"),
        (with(|spec| spec.hostname = Some("a\nb".into())), "labels"),
        (with(|spec| spec.tmpfs = vec![Tmpfs::parse("/x").unwrap(); 2]), "two mounts"),
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_default_above_the_hosts_limit_is_clamped_and_told() {
    let built = built(&TaskSpec::image("x"));
    assert_eq!(built.notes.len(), 1);
    let limits = built.spec.process().as_ref().unwrap().rlimits().clone().unwrap();
    assert!(limits.iter().any(|limit| limit.hard() == 20_000));
}

#[test]
fn limits_become_numbers_of_the_runtime() {
    let mut spec = TaskSpec::image("x");
    spec.resources.memory_bytes = Some(64 << 20);
    spec.resources.cpus = Some(MilliCpus(1500));
    let linux = built(&spec).spec.linux().clone().unwrap();
    let resources = linux.resources().clone().unwrap();
    assert_eq!(resources.memory().unwrap().limit(), Some(64 << 20));
    assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(150_000));
    assert_eq!(resources.pids().as_ref().unwrap().limit(), 4096);
}

#[test]
fn hosts_network_means_no_network_namespace_and_no_sysctl() {
    let spec = TaskSpec { network: NetworkChoice::Host, ..TaskSpec::image("x") };
    let linux = built(&spec).spec.linux().clone().unwrap();
    assert!(linux.sysctl().is_none());
    assert!(linux.namespaces().as_ref().unwrap().iter().all(|ns| ns.typ() != LinuxNamespaceType::Network));
}

#[test]
fn volumes_are_mounted_last_and_the_outer_first() {
    let id = TaskId::random().unwrap();
    let volumes = ["/b/c", "/b"].map(|target| {
        let volume = Volume::parse(target).unwrap();
        BoundVolume { source: "/src".into(), target: volume.target, access: volume.access, options: vec![] }
    });
    let spec = TaskSpec::image("x");
    let from = Ingredients {
        id: &id,
        spec: &spec,
        image: Some(&image(json!({ "Cmd": ["sh"] }))),
        accounts: &Accounts::default(),
        host: &host(),
        netns: None,
        user: None,
        etc: None,
        volumes: &volumes,
        init: Some(Path::new("/lib/init")),
        extra_env: &[],
    };
    let mounts = build(&from).unwrap().spec.mounts().clone().unwrap();
    let targets: Vec<_> = mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect();
    assert_eq!(targets.iter().rev().take(3).collect::<Vec<_>>(), [&"/b/c", &"/b", &"/dev/init"]);
    assert!(mounts.last().unwrap().options().as_ref().unwrap().contains(&"nodev".to_owned()));
}
