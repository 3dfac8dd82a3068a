//! Reading a bundle. runtime-spec bundle.md, config.md.

mod place;

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::Spec;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// Largest configuration that is read, in bytes.
pub const CONFIG_MAX_BYTES: u64 = 16 << 20;

/// What one with a profile takes, in bytes: room for it from the start, where reads would begin with 32 and double.
const CONFIG_USUAL_BYTES: usize = 16 << 10;

/// Reads `config.json` of a bundle. The error names the file, and the JSON path of what is wrong.
pub fn load(bundle: &Path) -> Result<Spec, Error> {
    read_json(&bundle.join("config.json"))
}

/// Reads a JSON file of a caller.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    read_json_warned(path).map(|(value, _)| value)
}

/// Reads a JSON file of a caller, and says what in it is passed over.
pub fn read_json_warned<T: DeserializeOwned>(path: &Path) -> Result<(T, Vec<String>), Error> {
    let problem = |problem: String| Error::Bundle { path: path.to_owned(), problem };
    let file = std::fs::File::open(path).map_err(|error| problem(words(&error)))?;
    let mut text = String::with_capacity(CONFIG_USUAL_BYTES);
    let size =
        file.take(CONFIG_MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| problem(words(&error)))?;
    if size as u64 > CONFIG_MAX_BYTES {
        return Err(problem(format!("larger than {CONFIG_MAX_BYTES} bytes")));
    }
    parse_json_warned(&text, path)
}

/// Parses JSON text that came from `path`.
pub fn parse_json<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, Error> {
    parse_json_warned(text, path).map(|(value, _)| value)
}

/// As [`parse_json`], and says what in the text is passed over. Where in it an error lies is asked when there is one: keeping
/// track of that takes longer than the parsing.
pub fn parse_json_warned<T: DeserializeOwned>(text: &str, path: &Path) -> Result<(T, Vec<String>), Error> {
    if !misread(text)
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok((value, Vec::new()));
    }
    let mut warnings = Vec::new();
    // Only what was refused, or read otherwise than it was meant, is looked at again: an ordinary document is read once.
    let first = parse(text, path);
    let Ok(mut value) = serde_json::from_str(text) else { return first.map(|value| (value, warnings)) };
    let corrected = crate::specified::correct(&mut value, &mut warnings);
    let read = if corrected { parse(&value.to_string(), path) } else { first };
    read.map(|value| (value, warnings))
}

/// Whether a document may have a limit of processes without a figure, which the types of `oci-spec` would take for 0: no
/// limit, where none was asked for. Tells by the text, once too often rather than never: that costs a second reading.
fn misread(text: &str) -> bool {
    let mut objects = text.split("\"pids\"").skip(1).map(|rest| rest.split('}').next().unwrap_or_default());
    objects.any(|object| !object.contains("\"limit\""))
}

/// What callers expect to be told of some objects: where they are, and the words.
const WORDS: &[(&str, &str)] = &[
    ("linux.memoryPolicy.flags", "invalid memory policy flag: "),
    ("linux.memoryPolicy", "invalid memory policy mode: "),
];

fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| {
        let at = place::path(text, error.line(), error.column());
        let words = WORDS.iter().find(|(prefix, _)| at.starts_with(prefix)).map_or("", |(_, words)| words);
        let at = if at.is_empty() { at } else { format!("at {at}: {words}") };
        Error::Bundle { path: path.to_owned(), problem: format!("invalid JSON: {at}{error}") }
    })
}

fn words(error: &std::io::Error) -> String {
    rustix::io::Errno::from_io_error(error).map_or_else(|| error.to_string(), cofferdam_apply::in_words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_type_is_named_by_its_path() {
        let text = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","user":{"uid":"zero"}}}"#;
        let error = parse_json::<Spec>(text, Path::new("/b/config.json")).unwrap_err().to_string();
        assert!(error.contains("/b/config.json") && error.contains("process.user.uid"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let process = r#""process":{"cwd":"/","user":{"uid":0,"gid":0}}"#;
        for (text, at) in [
            (r#"{"ociVersion":1}"#.to_owned(), "ociVersion"),
            (r#"{"ociVersion":"1.0.2","process":{"args":[]}}"#.to_owned(), "process"),
            (
                format!(r#"{{"ociVersion":"1.0.2",{process},"mounts":[{{"destination":7}}]}}"#),
                "mounts[0].destination",
            ),
            (
                format!(
                    r#"{{"ociVersion":"1.0.2",{process},"linux":{{"namespaces":[{{"type":"pid"}},{{"type":"moon"}}]}}}}"#
                ),
                "linux.namespaces[1].type",
            ),
            (
                format!(
                    "{{\"ociVersion\":\"1.0.2\",\n{process},\n\"linux\":{{\"resources\":{{\"cpu\":{{\"shares\":-1}}}}}}}}"
                ),
                "linux.resources.cpu.shares",
            ),
        ] {
            let error = parse_json::<Spec>(&text, Path::new("/b")).unwrap_err().to_string();
            assert!(error.contains(&format!("at {at}: ")), "{at}: {error}");
        }
    }

    /// config-linux.md, "PIDs": `limit` may be left out.
    #[test]
    fn a_limit_of_processes_without_a_figure_is_none() {
        let read =
            |text: &str| parse_json::<oci_spec::runtime::LinuxResources>(text, Path::new("/b")).unwrap();
        for (text, limit) in [
            (r#"{ "pids": {} }"#, None),
            (r#"{ "pids" : { "limit": null } }"#, None),
            (r#"{ "pids": null, "cpu": { "shares": 2 } }"#, None),
            (r#"{ "pids": { "limit": 0 } }"#, Some(0)),
            (r#"{ "pids": { "limit": 7 }, "cpu": {} }"#, Some(7)),
        ] {
            assert_eq!(read(text).pids().map(|pids| pids.limit()), limit, "{text}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("/nonexistent")).unwrap_err().to_string();
        assert_eq!(error, "/nonexistent/config.json: no such file or directory");
    }
}
