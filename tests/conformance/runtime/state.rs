//! runtime.md, "State".

use anyhow::ensure;
use serde_json::json;

use crate::case::{Case, chapter, check, same};

#[test]
fn the_state_is_as_the_specification_says() {
    chapter("runtime.md: state", cases());
}

fn cases() -> Vec<Case> {
    vec![
        check("a created container", "runtime.md, State", |bench| {
            let state = bench.created("sleep 100", |_| {})?;
            same("id", state["id"].as_str(), Some(bench.id.as_str()))?;
            same("status", state["status"].as_str(), Some("created"))?;
            same("bundle", state["bundle"].as_str(), bench.folder.join("bundle").to_str())?;
            let version = state["ociVersion"].as_str().unwrap_or_default();
            ensure!(version.split('.').count() >= 3, "{version:?} is no version");
            let pid = state["pid"].as_i64().unwrap_or_default();
            ensure!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "no process {pid}");
            Ok(())
        }),
        check("a running container", "runtime.md, State, status running and pid", |bench| {
            let created = bench.created("sleep 100", |_| {})?;
            bench.succeed(&["start"])?;
            let state = bench.runtime.state(&bench.id)?;
            same("status", state["status"].as_str(), Some("running"))?;
            same("pid", &state["pid"], &created["pid"])
        }),
        check("a stopped container", "runtime.md, State, status stopped", |bench| {
            bench.created("true", |_| {})?;
            bench.succeed(&["start"])?;
            bench.runtime.wait(&bench.id, "stopped")?;
            let state = bench.runtime.state(&bench.id)?;
            same("bundle", state["bundle"].as_str(), bench.folder.join("bundle").to_str())
        }),
        check("annotations are in the state", "runtime.md, State, annotations", |bench| {
            let state =
                bench.created("true", |config| config["annotations"] = json!({ "org.example": "x" }))?;
            same("annotations", &state["annotations"]["org.example"], &json!("x"))
        }),
        check(
            "no annotations are none or an empty list",
            "runtime.md, State, annotations: MAY be absent or empty",
            |bench| {
                let state = bench.created("true", |_| {})?;
                let annotations = &state["annotations"];
                ensure!(
                    annotations.is_null() || annotations.as_object().is_some_and(|list| list.is_empty()),
                    "{state}"
                );
                Ok(())
            },
        ),
    ]
}
