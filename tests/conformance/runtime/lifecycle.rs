//! runtime.md, "Lifecycle" and "Operations".

use anyhow::{Result, ensure};
use serde_json::json;

use crate::case::{Bench, Case, chapter, check, same};

#[test]
fn operations_are_as_the_specification_says() {
    chapter("runtime.md: lifecycle, operations, errors", cases());
}

fn status(bench: &Bench<'_>) -> Result<String> {
    Ok(bench.runtime.state(&bench.id)?["status"].as_str().unwrap_or_default().to_owned())
}

fn refused(bench: &Bench<'_>, arguments: &[&str]) -> Result<()> {
    let outcome = bench.call(arguments)?;
    ensure!(outcome.status != Some(0), "{} succeeded", arguments.join(" "));
    Ok(())
}

/// A container whose program has ended.
fn stopped(bench: &Bench<'_>) -> Result<()> {
    bench.created("true", |_| {})?;
    bench.succeed(&["start"])?;
    bench.runtime.wait(&bench.id, "stopped")
}

fn cases() -> Vec<Case> {
    let mut cases = steps();
    cases.extend(errors());
    cases
}

fn steps() -> Vec<Case> {
    vec![
        check(
            "create does not run the program",
            "runtime.md, Create: MUST NOT run the user-specified program",
            |bench| {
                bench.created("touch /ran", |_| {})?;
                same("status", status(bench)?.as_str(), "created")?;
                ensure!(!bench.folder.join("bundle/rootfs/ran").exists(), "it ran");
                Ok(())
            },
        ),
        check("start runs it, and it ends", "runtime.md, Start", |bench| {
            stopped(bench)?;
            bench.succeed(&["delete"])?;
            refused(bench, &["state"])
        }),
        check(
            "a change of the bundle after create has no effect",
            "runtime.md, Create: any changes MUST NOT affect",
            |bench| {
                let bundle = bench.bundle("touch /before; sleep 100", |_| {})?;
                bench.runtime.create(&bench.id, bundle.path())?;
                std::fs::write(bundle.path().join("config.json"), "{}")?;
                bench.succeed(&["start"])?;
                let mark = bundle.rootfs().join("before");
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
                while !mark.exists() {
                    ensure!(std::time::Instant::now() < deadline, "the old program did not run");
                    std::thread::yield_now();
                }
                bench.succeed(&["kill"]).map(drop)
            },
        ),
        check("kill sends the signal that it is told", "runtime.md, Kill", |bench| {
            let script = "trap 'echo hup > /got; exit' HUP; touch /ready; while :; do sleep 0.02; done";
            let bundle = bench.bundle(script, |_| {})?;
            bench.runtime.create(&bench.id, bundle.path())?;
            bench.succeed(&["start"])?;
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while !bundle.rootfs().join("ready").exists() {
                ensure!(std::time::Instant::now() < deadline, "the program is not ready");
                std::thread::yield_now();
            }
            bench.runtime.succeed(&["kill", &bench.id, "HUP"])?;
            bench.runtime.wait(&bench.id, "stopped")?;
            same("signal", std::fs::read_to_string(bundle.rootfs().join("got"))?.trim(), "hup")
        }),
        check(
            "delete leaves what create did not make",
            "runtime.md, Delete: MUST delete the resources of create",
            |bench| {
                let bundle = bench.bundle("true", |_| {})?;
                std::fs::write(bundle.path().join("extra"), "x")?;
                bench.runtime.create(&bench.id, bundle.path())?;
                bench.succeed(&["delete", "--force"])?;
                ensure!(bundle.path().join("extra").exists() && bundle.rootfs().exists(), "too much is gone");
                Ok(())
            },
        ),
        check("an id is free again after delete", "runtime.md, Delete: the id MAY be used again", |bench| {
            bench.created("true", |_| {})?;
            bench.succeed(&["delete", "--force"])?;
            bench.runtime.create(&bench.id, &bench.folder.join("bundle")).map(drop)
        }),
    ]
}

fn errors() -> Vec<Case> {
    vec![
        check(
            "an id that is taken is refused",
            "runtime.md, Create: MUST generate an error if the id is not unique",
            |bench| {
                bench.created("true", |_| {})?;
                ensure!(
                    bench.runtime.create(&bench.id, &bench.folder.join("bundle")).is_err(),
                    "created twice"
                );
                same("the first one's status", status(bench)?.as_str(), "created")
            },
        ),
        check("state of what does not exist is an error", "runtime.md, Query State", |bench| {
            refused(bench, &["state"])
        }),
        check("start of what does not exist is an error", "runtime.md, Start", |bench| {
            refused(bench, &["start"])
        }),
        check("kill of what does not exist is an error", "runtime.md, Kill", |bench| {
            refused(bench, &["kill"])
        }),
        check("delete of what does not exist is an error", "runtime.md, Delete", |bench| {
            refused(bench, &["delete"])
        }),
        check(
            "a second start is an error and changes nothing",
            "runtime.md, Start: not created MUST have no effect",
            |bench| {
                bench.created("sleep 100", |_| {})?;
                bench.succeed(&["start"])?;
                refused(bench, &["start"])?;
                same("status", status(bench)?.as_str(), "running")
            },
        ),
        check("start of a stopped container is an error", "runtime.md, Start", |bench| {
            stopped(bench)?;
            refused(bench, &["start"])
        }),
        check(
            "kill of a stopped container is an error",
            "runtime.md, Kill: neither created nor running",
            |bench| {
                stopped(bench)?;
                refused(bench, &["kill"])
            },
        ),
        check(
            "delete of a running container is an error",
            "runtime.md, Delete: not stopped MUST have no effect",
            |bench| {
                bench.created("sleep 100", |_| {})?;
                bench.succeed(&["start"])?;
                refused(bench, &["delete"])?;
                same("status", status(bench)?.as_str(), "running")
            },
        ),
        check(
            "create of a bundle without a configuration is an error",
            "bundle.md: config.json MUST reside in the root",
            |bench| {
                ensure!(bench.runtime.create(&bench.id, &bench.folder).is_err(), "created");
                refused(bench, &["state"])
            },
        ),
        check(
            "create that fails leaves nothing",
            "runtime.md, Errors: the state of the environment as before",
            |bench| {
                let bundle = bench.bundle("true", |config| config["process"]["args"] = json!(["/absent"]))?;
                ensure!(bench.runtime.create(&bench.id, bundle.path()).is_err(), "created");
                refused(bench, &["state"])
            },
        ),
        check("an id with a slash is an error", "runtime.md, State, id", |bench| {
            let bundle = bench.bundle("true", |_| {})?;
            ensure!(bench.runtime.create("../up", bundle.path()).is_err(), "created");
            Ok(())
        }),
    ]
}
