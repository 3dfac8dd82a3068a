//! 13: calls that make no sense.

use cofferdam_cni::Verb;
use serde_json::json;

use super::case;
use crate::case::Severity::{Must, Should};
use crate::case::{Case, Tried, ensure};
use crate::process::Said;
use crate::stage::{Changes, Stage};

pub(super) const CASES: &[Case] = &[
    case(Must, "13.input", "5 Error", "input that is no configuration is an error with a code", input),
    case(Should, "13.input-code", "5 Error", "input that is no JSON object is code 6", input_code),
    case(Must, "13.duplicates", "1", "a key that is there twice does not break it", duplicates),
    case(Must, "13.environment", "2", "missing variables are an error", environment),
    case(
        Should,
        "13.environment-code",
        "5 Error",
        "missing variables are code 4, all named at once",
        environment_code,
    ),
    case(Must, "13.names", "2", "container ids and interface names that are none are refused", names),
    case(Must, "13.verb", "2", "an unknown CNI_COMMAND is an error", verb),
    case(Must, "13.version", "5 Error", "a version that it does not speak is code 1", version),
    case(Must, "13.capability", "1", "a runtimeConfig that it does not know does not break it", capability),
    case(Must, "13.arguments", "2", "unknown CNI_ARGS with IgnoreUnknown=1 do not break it", arguments),
    case(
        Should,
        "13.strict-arguments",
        "2",
        "unknown CNI_ARGS without IgnoreUnknown=1 do not matter, or are refused in an error object",
        strict_arguments,
    ),
    case(
        Must,
        "13.extra-keys",
        "1",
        "keys that it does not know, cni.dev/ ones too, do not break it",
        extra_keys,
    ),
];

/// As much as no runtime sends.
const MUCH_BYTES: usize = 10 * 1024 * 1024;
const DEEP: usize = 20_000;

fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    let junk = |byte: u8| vec![byte; MUCH_BYTES];
    vec![
        ("nothing", Vec::new()),
        ("half an object", br#"{"cniVersion":"1.0.0","na"#.to_vec()),
        ("a list", b"[]".to_vec()),
        ("a number", b"7".to_vec()),
        ("ten megabytes of junk", junk(b'x')),
        ("ten megabytes of brackets", junk(b'[')),
        ("deep nesting without an end", b"{\"a\":".repeat(DEEP)),
        ("a NUL", b"{\"name\":\0}".to_vec()),
        ("invalid UTF-8", b"{\"name\":\xff\xfe}".to_vec()),
    ]
}

/// An error as it has to be: not by a signal, and with a code.
fn is_error(what: &str, said: &Said) -> Tried {
    let code = said.status.and_then(|status| status.code());
    ensure(code.is_some_and(|code| code != 0), || format!("{what}: {}", said.text()))?;
    ensure(said.code().is_some() && said.value()["msg"].is_string(), || {
        format!("{what}: the answer is no error object: {}", said.text())
    })
}

fn input(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    for (what, bytes) in inputs() {
        is_error(what, &stage.call_raw(Verb::Add, &container, &bytes))?;
    }
    Ok(())
}

fn input_code(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    for (what, bytes) in inputs() {
        let said = stage.call_raw(Verb::Add, &container, &bytes);
        ensure(said.code() == Some(6), || format!("{what}: {}", said.text()))?;
    }
    Ok(())
}

fn duplicates(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let config = stage.config(Verb::Add, &container, &Changes::default()).to_string();
    let twice = format!("{{\"name\":\"other\",\"dns\":{{}},{}", &config[1..]);
    let said = stage.call_raw(Verb::Add, &container, twice.as_bytes());
    ensure(said.status.is_some_and(|status| status.code().is_some_and(|code| code < 2)), || said.text())
}

const VARIABLES: [&str; 3] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];

fn environment(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    for variable in VARIABLES {
        let environment = vec![(variable, String::new())];
        let said = stage.call(Verb::Add, &container, Changes { environment, ..Changes::default() });
        is_error(&format!("without {variable}"), &said)?;
    }
    Ok(())
}

fn environment_code(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let environment = VARIABLES.map(|variable| (variable, String::new())).to_vec();
    let said = stage.call(Verb::Add, &container, Changes { environment, ..Changes::default() });
    ensure(said.code() == Some(4), || said.text())?;
    let unnamed: Vec<_> = VARIABLES.into_iter().filter(|variable| !said.stdout.contains(variable)).collect();
    ensure(unnamed.is_empty(), || format!("not named: {}: {}", unnamed.join(", "), said.text()))
}

fn names(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let bad = [
        ("CNI_CONTAINERID", "../../x"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "sixteen-letters-"),
    ];
    for (variable, value) in bad {
        let environment = vec![(variable, value.to_owned())];
        let said = stage.call(Verb::Add, &container, Changes { environment, ..Changes::default() });
        is_error(&format!("{variable}={value}"), &said)?;
    }
    Ok(())
}

fn verb(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    for verb in ["LIST", "add"] {
        let environment = vec![("CNI_COMMAND", verb.to_owned())];
        let said = stage.call(Verb::Add, &container, Changes { environment, ..Changes::default() });
        is_error(verb, &said)?;
    }
    Ok(())
}

fn version(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let config = Some(json!({ "cniVersion": "9.0.0" }));
    let said = stage.call(Verb::Add, &container, Changes { config, ..Changes::default() });
    ensure(said.code() == Some(1), || said.text())
}

fn still_works(stage: &Stage<'_>, changes: impl Fn() -> Changes<'static>) -> Tried {
    let container = stage.container()?;
    for verb in [Verb::Add, Verb::Del] {
        let said = stage.call(verb, &container, changes());
        ensure(said.succeeded(), || said.text())?;
    }
    Ok(())
}

fn capability(stage: &Stage<'_>) -> Tried {
    let mut arguments = stage.subject.profile.runtime_config.clone().unwrap_or_else(|| json!({}));
    arguments["cofferdam.test/unknown"] = json!([{ "a": 1 }]);
    let text = arguments.to_string().replace("\"@PORT@\"", "20999");
    let arguments: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    still_works(stage, || Changes {
        config: Some(json!({ "runtimeConfig": arguments })),
        ..Changes::default()
    })
}

fn arguments(stage: &Stage<'_>) -> Tried {
    let text = "IgnoreUnknown=1;K8S_POD_NAME=pod;K8S_POD_NAMESPACE=default;COFFERDAM_TEST=1".to_owned();
    still_works(stage, || Changes { environment: vec![("CNI_ARGS", text.clone())], ..Changes::default() })
}

fn strict_arguments(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let changes =
        || Changes { environment: vec![("CNI_ARGS", "COFFERDAM_TEST=1".into())], ..Changes::default() };
    let added = stage.call(Verb::Add, &container, changes());
    if !added.succeeded() {
        is_error("COFFERDAM_TEST=1", &added)?;
    }
    // A runtime that cannot know deletes as it added.
    let deleted = stage.call(Verb::Del, &container, changes());
    if deleted.succeeded() { Ok(()) } else { is_error("COFFERDAM_TEST=1", &deleted) }
}

fn extra_keys(stage: &Stage<'_>) -> Tried {
    let keys = json!({
        "cofferdamTest": { "a": [1, 2] },
        "cni.dev/unknown": true,
        "args": { "cni": { "labels": [{ "key": "app", "value": "x" }] }, "org.example": { "a": 1 } },
    });
    still_works(stage, || Changes { config: Some(keys.clone()), ..Changes::default() })
}
