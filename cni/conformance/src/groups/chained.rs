//! 15: a plugin behind another.

use cofferdam_cni::{Verb, Version};
use serde_json::{Value, json};

use super::case;
use crate::case::Severity::{Must, Quality};
use crate::case::{Case, Tried, applies, ensure};
use crate::stage::{Changes, Stage};

pub(super) const CASES: &[Case] = &[
    case(Must, "15.passes-on", "4", "a chained plugin passes on what the plugins before it gave", passes_on),
    case(
        Quality,
        "15.unknown-fields",
        "5",
        "a chained plugin passes on fields that it does not know",
        unknown,
    ),
    case(Must, "15.first", "5 Error", "a chained plugin that comes first says so, and makes nothing", first),
];

fn chained(stage: &Stage<'_>) -> Tried {
    applies(stage.subject.profile.chained, "it is no chained plugin")?;
    applies(stage.newest() >= Version::V0_3_0, "it speaks no version with chains")
}

/// Whether all of `given` is in `got`: members of objects by key, of lists anywhere.
fn holds(got: &Value, given: &Value) -> bool {
    match (got, given) {
        (Value::Object(got), Value::Object(given)) => {
            given.iter().all(|(key, value)| got.get(key).is_some_and(|got| holds(got, value)))
        }
        (Value::Array(got), Value::Array(given)) => {
            given.iter().all(|value| got.iter().any(|got| holds(got, value)))
        }
        _ => got == given,
    }
}

fn passes_on(stage: &Stage<'_>) -> Tried {
    chained(stage)?;
    let attached = stage.attach()?;
    let given = attached.container.given.as_ref().cloned().unwrap_or_default();
    for key in ["ips", "routes", "dns"] {
        ensure(holds(&attached.result[key], &given[key]), || {
            format!("{key} of the result before is lost: {} became {}", given[key], attached.result[key])
        })?;
    }
    let names = |result: &Value| -> Vec<Value> {
        let interfaces = result["interfaces"].as_array().cloned().unwrap_or_default();
        interfaces.into_iter().map(|interface| json!([interface["name"], interface["sandbox"]])).collect()
    };
    let (got, given) = (names(&attached.result), names(&given));
    ensure(given.iter().all(|name| got.contains(name)), || format!("of {given:?} came {got:?}"))
}

fn unknown(stage: &Stage<'_>) -> Tried {
    chained(stage)?;
    let mut container = stage.container()?;
    if let Some(given) = &mut container.given {
        given["cofferdamTest"] = json!({ "a": [1] });
    }
    let attached = stage.add(container)?;
    ensure(attached.result["cofferdamTest"] == json!({ "a": [1] }), || {
        format!("a field of the result that it does not know is lost: {}", attached.result)
    })
}

fn first(stage: &Stage<'_>) -> Tried {
    chained(stage)?;
    let before = stage.warmed_up()?;
    let mut container = stage.container()?;
    container.given = None;
    let said = stage.call(Verb::Add, &container, Changes::default());
    if said.succeeded() {
        return applies(false, "it works without a plugin before it");
    }
    ensure(said.code().is_some(), || format!("the answer is no error object: {}", said.text()))?;
    stage.end(container);
    stage.ensure_as_before(&before, "after an ADD without prevResult")
}
