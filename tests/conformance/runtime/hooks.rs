//! config.md, "POSIX-platform Hooks"; runtime.md, "Lifecycle".

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::case::{Bench, Case, chapter, check, same};

#[test]
fn hooks_are_as_the_specification_says() {
    chapter("config.md: hooks", cases());
}

/// A hook that adds a line to a file of the case.
fn writes(bench: &Bench<'_>, line: &str) -> Value {
    let script = format!("echo {line} >> {}", bench.folder.join("log").display());
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

/// A hook that keeps the state that it is given.
fn keeps(bench: &Bench<'_>, name: &str) -> Value {
    let script = format!("cat > {}", bench.folder.join(name).display());
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

fn fails() -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 3"] })
}

fn log(bench: &Bench<'_>) -> String {
    std::fs::read_to_string(bench.folder.join("log"))
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn state(bench: &Bench<'_>, name: &str) -> Result<Value> {
    let text =
        std::fs::read_to_string(bench.folder.join(name)).with_context(|| format!("state for {name}"))?;
    Ok(serde_json::from_str(&text)?)
}

fn cases() -> Vec<Case> {
    vec![
        check("hooks run in the order of the lifecycle", "runtime.md, Lifecycle, steps 3 to 12", |bench| {
            let hooks = json!({
                "prestart": [writes(bench, "prestart1"), writes(bench, "prestart2")],
                "createRuntime": [writes(bench, "createRuntime")],
                "poststart": [writes(bench, "poststart")],
                "poststop": [writes(bench, "poststop1"), writes(bench, "poststop2")],
            });
            bench.created("sleep 100", |config| config["hooks"] = hooks)?;
            same("after create", log(bench).as_str(), "prestart1 prestart2 createRuntime")?;
            bench.succeed(&["start"])?;
            same("after start", log(bench).as_str(), "prestart1 prestart2 createRuntime poststart")?;
            bench.succeed(&["delete", "--force"])?;
            let all = "prestart1 prestart2 createRuntime poststart poststop1 poststop2";
            same("after delete", log(bench).as_str(), all)
        }),
        check(
            "hooks are given the state",
            "config.md, Hooks: the state MUST be passed over stdin",
            |bench| {
                let hooks = json!({ "createRuntime": [keeps(bench, "creating")], "poststart": [keeps(bench, "running")],
                "poststop": [keeps(bench, "stopped")] });
                let known = bench.created("sleep 100", |config| {
                    config["hooks"] = hooks;
                    config["annotations"] = json!({ "a": "b" });
                })?;
                bench.succeed(&["start"])?;
                bench.succeed(&["kill"]).and(bench.call(&["delete", "--force"]))?;
                for status in ["creating", "running", "stopped"] {
                    let state = state(bench, status)?;
                    same("id", &state["id"], &known["id"])?;
                    same("bundle", &state["bundle"], &known["bundle"])?;
                    same("status", state["status"].as_str(), Some(status))?;
                    ensure!(state["ociVersion"].is_string(), "{state}");
                    same("annotations", &state["annotations"]["a"], &json!("b"))?;
                    ensure!(status == "stopped" || state["pid"] == known["pid"], "{state}");
                }
                Ok(())
            },
        ),
        check(
            "createContainer runs in the container's mounts",
            "config.md, CreateContainer Hooks",
            |bench| {
                let script = "cat > rootfs/state; readlink /proc/self/ns/mnt > rootfs/namespace";
                let bundle = bench.folder.join("bundle");
                let hook = json!({ "path": "/bin/sh",
                "args": ["sh", "-c", format!("cd {} && {{ {script}; }}", bundle.display())] });
                let state = bench
                    .created("sleep 100", |config| config["hooks"] = json!({ "createContainer": [hook] }))?;
                let seen = std::fs::read_to_string(bundle.join("rootfs/namespace"))?;
                let theirs = std::fs::read_link(format!("/proc/{}/ns/mnt", state["pid"]))?;
                same("mount namespace", seen.trim(), &*theirs.to_string_lossy())
            },
        ),
        check(
            "startContainer runs in the container before its program",
            "config.md, StartContainer Hooks",
            |bench| {
                let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo hook > /order"] });
                let bundle = bench.bundle("echo program >> /order; cat /order", |config| {
                    config["hooks"] = json!({ "startContainer": [hook] });
                })?;
                let outcome = bench.runtime.run(&bench.id, bundle.path())?;
                same("order", outcome.stdout.as_str(), "hook\nprogram\n")
            },
        ),
        check(
            "a hook has its arguments and only its environment",
            "config.md, Hooks, args and env",
            |bench| {
                let out = bench.folder.join("log");
                let script = format!(
                    "echo $0 $WORD $(env | grep -vcE '^(WORD|PWD|SHLVL|_|OLDPWD)=') > {}",
                    out.display()
                );
                // Not sh, which may be a busybox: that goes by the name that it is given.
                let hook = json!({ "path": "/bin/bash", "args": ["name", "-c", script, "zero"], "env": ["WORD=set"] });
                bench.created("true", |config| config["hooks"] = json!({ "createRuntime": [hook] }))?;
                same("what it sees", log(bench).as_str(), "zero set 0")
            },
        ),
        check(
            "a failing createRuntime hook ends the creation",
            "runtime.md, Lifecycle, step 3: MUST generate an error",
            |bench| {
                let hooks = json!({ "createRuntime": [fails()], "poststop": [writes(bench, "poststop")] });
                let bundle = bench.bundle("true", |config| config["hooks"] = hooks)?;
                ensure!(bench.runtime.create(&bench.id, bundle.path()).is_err(), "created");
                ensure!(bench.call(&["state"])?.status != Some(0), "it is still there");
                Ok(())
            },
        ),
        check("a failing startContainer hook ends the container", "runtime.md, Lifecycle, step 8", |bench| {
            let bundle = bench
                .bundle("echo ran", |config| config["hooks"] = json!({ "startContainer": [fails()] }))?;
            let outcome = bench.runtime.run(&bench.id, bundle.path())?;
            ensure!(outcome.status != Some(0) && outcome.stdout.is_empty(), "{outcome:?}");
            Ok(())
        }),
        check(
            "a failing poststart hook is an error",
            "runtime.md, Lifecycle, step 10 (since 1.3)",
            |bench| {
                bench.created("sleep 100", |config| config["hooks"] = json!({ "poststart": [fails()] }))?;
                ensure!(bench.call(&["start"])?.status != Some(0), "start succeeded");
                Ok(())
            },
        ),
        check(
            "a failing poststop hook is a warning",
            "runtime.md, Lifecycle, step 13: MUST log a warning",
            |bench| {
                let hooks = json!({ "poststop": [fails(), writes(bench, "second")] });
                bench.created("true", |config| config["hooks"] = hooks)?;
                bench.succeed(&["delete", "--force"])?;
                same("the next hook", log(bench).as_str(), "second")
            },
        ),
        check("a hook that takes too long is ended", "config.md, Hooks, timeout", |bench| {
            let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "exec sleep 1000"], "timeout": 1 });
            let bundle =
                bench.bundle("true", |config| config["hooks"] = json!({ "createRuntime": [hook] }))?;
            let begin = std::time::Instant::now();
            ensure!(bench.runtime.create(&bench.id, bundle.path()).is_err(), "created");
            ensure!(begin.elapsed().as_secs() < 900, "it took {:?}", begin.elapsed());
            Ok(())
        }),
        check(
            "a hook with a relative path is refused",
            "config.md, Hooks, path: MUST be absolute",
            |bench| {
                let hook = json!({ "path": "sh" });
                let bundle =
                    bench.bundle("true", |config| config["hooks"] = json!({ "createRuntime": [hook] }))?;
                ensure!(bench.runtime.create(&bench.id, bundle.path()).is_err(), "created");
                Ok(())
            },
        ),
    ]
}
