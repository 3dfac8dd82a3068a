//! Socket activation: listening sockets that the caller's caller passed on, sd_listen_fds(3).

use oci_spec::runtime::Spec;

/// Variables that are meant for the first process alone.
const FOR_THE_FIRST: [&str; 3] = ["LISTEN_FDS=", "LISTEN_PID=", "NOTIFY_SOCKET="];

/// How many descriptors from 3 on were passed to this process, by its environment; the container's program, which is
/// process 1, is told of them.
pub fn announce(spec: &mut Spec) -> u32 {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let count = match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => 0,
    };
    if count > 0
        && let Some(process) = spec.process_mut()
    {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
    }
    count
}

/// The environment of a later process: descriptors and sockets of the first one mean nothing to it.
pub fn without_announcements(mut env: Vec<String>) -> Vec<String> {
    env.retain(|pair| !FOR_THE_FIRST.iter().any(|name| pair.starts_with(name)));
    env
}
