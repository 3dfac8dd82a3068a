//! 14: what a plugin may say and leave running.

use cofferdam_cni::{Verb, Version};
use serde_json::json;

use super::case;
use crate::case::Severity::{Must, Should};
use crate::case::{Case, Tried, ensure};
use crate::process::Said;
use crate::stage::{Changes, Stage};

pub(super) const CASES: &[Case] = &[
    case(Must, "14.one-value", "5", "ADD prints exactly one JSON value", one_value),
    case(Should, "14.silent", "2", "CHECK, DEL, GC and STATUS print nothing when they succeed", silent),
    case(
        Should,
        "14.one-error",
        "5 Error",
        "an error is exactly one JSON object and exit status 1",
        one_error,
    ),
    case(Should, "14.error-version", "5 Error", "an error says its cniVersion", error_version),
    case(
        Should,
        "14.own-netns",
        "5 Error",
        "a call aimed at the plugin's own namespace is an error, once",
        own_netns,
    ),
    case(Must, "14.children", "2", "nothing that it starts outlives it", children),
];

/// Every verb that the plugin has, in an order in which all succeed.
fn every_verb(stage: &Stage<'_>) -> Result<Vec<(Verb, Said)>, crate::case::End> {
    let attached = stage.attach()?;
    let mut said = Vec::new();
    if stage.has_check() {
        said.push((Verb::Check, stage.check(&attached)));
    }
    if stage.newest() >= Version::V1_1_0 {
        let valid = json!([{ "containerID": attached.container.id, "ifname": attached.container.ifname }]);
        let config = Some(json!({ "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid }));
        let changes = Changes { config, ..Changes::default() };
        said.push((Verb::Gc, stage.call(Verb::Gc, &attached.container, changes)));
        said.push((Verb::Status, stage.call(Verb::Status, &attached.container, Changes::default())));
    }
    said.push((Verb::Del, stage.del(&attached)));
    Ok(said)
}

fn one_value(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let said = stage.call(Verb::Add, &container, Changes::default());
    ensure(said.succeeded() && said.value().is_object(), || said.text())
}

fn silent(stage: &Stage<'_>) -> Tried {
    for (_, said) in every_verb(stage)?.iter().filter(|(_, said)| said.succeeded()) {
        ensure(said.stdout.trim().is_empty(), || said.text())?;
    }
    Ok(())
}

/// Errors that every plugin has.
fn errors(stage: &Stage<'_>) -> Result<Vec<Said>, crate::case::End> {
    let container = stage.container()?;
    let nowhere = Changes { environment: vec![("CNI_NETNS", "/nowhere".into())], ..Changes::default() };
    let unknown = Changes { config: Some(json!({ "cniVersion": "9.0.0" })), ..Changes::default() };
    Ok(vec![stage.call(Verb::Add, &container, nowhere), stage.call(Verb::Add, &container, unknown)])
}

fn one_error(stage: &Stage<'_>) -> Tried {
    for said in errors(stage)? {
        let is_one = said.value().is_object() && said.code().is_some() && said.value()["msg"].is_string();
        let status = said.status.and_then(|status| status.code());
        ensure(is_one && status == Some(1), || said.text())?;
    }
    Ok(())
}

fn error_version(stage: &Stage<'_>) -> Tried {
    for said in errors(stage)? {
        ensure(said.value()["cniVersion"].is_string(), || said.text())?;
    }
    Ok(())
}

fn own_netns(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let environment = || vec![("CNI_NETNS", "/proc/self/ns/net".to_owned())];
    let verbs = [Some(Verb::Add), Some(Verb::Check).filter(|_| stage.has_check()), Some(Verb::Del)];
    for verb in verbs.into_iter().flatten() {
        let previous = container.given.as_ref();
        let said = stage.call(
            verb,
            &container,
            Changes { previous, environment: environment(), ..Changes::default() },
        );
        ensure(said.code() == Some(8), || format!("code 8 wanted: {}", said.text()))?;
    }
    Ok(())
}

fn children(stage: &Stage<'_>) -> Tried {
    let attached = stage.attach()?;
    let add = stage.call(Verb::Add, &stage.container()?, Changes::default());
    for said in [add, stage.del(&attached), stage.version()] {
        ensure(!said.left_children, || format!("a process of its group lives on: {}", said.text()))?;
    }
    let strays = stage.strays();
    ensure(strays.is_empty(), || format!("out of its process group, this lives on: {}", strays.join(", ")))
}
