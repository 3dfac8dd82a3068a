//! 1: VERSION.

use std::time::Duration;

use cofferdam_cni::Version;

use super::case;
use crate::case::Severity::{Must, Quality, Should};
use crate::case::{Case, Tried, ensure};
use crate::process::Said;
use crate::stage::Stage;

pub(super) const CASES: &[Case] = &[
    case(Must, "1.answer", "2 VERSION", "VERSION answers with its versions, without standard input", answer),
    case(Must, "1.junk", "2 VERSION", "VERSION does not mind what is on standard input", junk),
    case(Should, "1.known", "2 VERSION", "the versions exist, in order, each once", known),
    case(Quality, "1.quick", "2 VERSION", "VERSION answers within a second", quick),
];

/// What old plugins may take a second for, a runtime does for every network it loads.
const QUICK: Duration = Duration::from_secs(1);

fn answer(stage: &Stage<'_>) -> Tried {
    is_answer(&stage.version())
}

fn is_answer(said: &Said) -> Tried {
    ensure(said.succeeded(), || said.text())?;
    let value = said.value();
    ensure(value["cniVersion"].is_string(), || format!("there is no cniVersion: {}", said.text()))?;
    let list = value["supportedVersions"].as_array();
    ensure(list.is_some_and(|list| list.iter().all(|version| version.is_string())), || {
        format!("supportedVersions is no list of texts: {}", said.text())
    })
}

fn junk(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    for junk in [&b"{ this is not"[..], b"\xff\xfe\0", b"[]"] {
        is_answer(&stage.call_raw(cofferdam_cni::Verb::Version, &container, junk))?;
    }
    Ok(())
}

fn known(stage: &Stage<'_>) -> Tried {
    let value = stage.version().value();
    let list = value["supportedVersions"].as_array().cloned().unwrap_or_default();
    let texts: Vec<&str> = list.iter().filter_map(|version| version.as_str()).collect();
    let supported = Version::SUPPORTED.map(|version| version.to_string());
    for text in &texts {
        ensure(supported.iter().any(|version| version == text), || format!("there is no version {text:?}"))?;
    }
    let versions: Vec<Option<Version>> = texts.iter().map(|text| Version::parse(text)).collect();
    ensure(versions.windows(2).all(|pair| pair[0] < pair[1]), || format!("not in order: {texts:?}"))
}

fn quick(stage: &Stage<'_>) -> Tried {
    let said = stage.version();
    stage.note(format!("{} ms", said.elapsed.as_millis()));
    ensure(said.elapsed < QUICK, || format!("took {} ms", said.elapsed.as_millis()))
}
