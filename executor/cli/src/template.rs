//! How a listing is printed: a table, JSON, or a line by a template in the style of docker and podman.

use std::str::FromStr;

use serde_json::{Map, Value};

use crate::failure::Failure;

/// What can be given to `--format` where a thing has many fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// For people.
    Table,
    /// For programs: one JSON object a line.
    Json,
    /// `{{.field}}` stands for a field, `{{json .field}}` for the same as JSON; a dot leads into it.
    Template(Vec<Piece>),
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Field { path: Vec<String>, as_json: bool },
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Shape, String> {
        match text {
            "table" => Ok(Shape::Table),
            "json" => Ok(Shape::Json),
            template if template.contains("{{") => pieces(template).map(Shape::Template),
            _ => Err("expected table, json or a template such as '{{.id}} {{.names}}'".to_owned()),
        }
    }
}

fn pieces(template: &str) -> Result<Vec<Piece>, String> {
    let template = template.replace("\\t", "\t").replace("\\n", "\n");
    let mut rest = template.as_str();
    let mut pieces = Vec::new();
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, behind) = after.split_once("}}").ok_or("{{ without }}")?;
        let inside = inside.trim();
        let (as_json, path) = match inside.strip_prefix("json ") {
            Some(path) => (true, path.trim()),
            None => (false, inside),
        };
        let path = path.strip_prefix('.').ok_or_else(|| {
            format!("{{{{{inside}}}}} is not supported: expected {{{{.field}}}} or {{{{json .field}}}}")
        })?;
        pieces.push(Piece::Text(before.to_owned()));
        let path = path.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        pieces.push(Piece::Field { path, as_json });
        rest = behind;
    }
    pieces.push(Piece::Text(rest.to_owned()));
    Ok(pieces)
}

/// Fills a template in from an object. Capital letters do not count, and docker's names of fields work beside ours. A field
/// that some things have and this one has not is empty; one that nothing has is refused.
pub(crate) fn fill(pieces: &[Piece], object: &Value) -> Result<String, Failure> {
    let mut line = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => line.push_str(text),
            Piece::Field { path, as_json } => line.push_str(&show(lookup(path, object)?, *as_json)),
        }
    }
    Ok(line)
}

fn lookup<'a>(path: &[String], object: &'a Value) -> Result<&'a Value, Failure> {
    let mut value = object;
    for (depth, name) in path.iter().enumerate() {
        let Value::Object(fields) = value else { return Ok(&Value::Null) };
        match field(fields, &plain(name)) {
            Some(inner) => value = inner,
            None if depth > 0 => return Ok(&Value::Null),
            None => {
                let known = fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(Failure::plain(format!("--format: there is no field {name}; there are {known}")));
            }
        }
    }
    Ok(value)
}

/// A field under our name or docker's. What an image lacks is its configuration's, and what that lacks is of the part that
/// docker calls `Config`: `{{.Architecture}}` and `{{.Config.Env}}` are what they are there.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let by = |asked: &str| fields.iter().find(|(field, _)| plain(field) == asked).map(|(_, value)| value);
    let within = |outer: &str| field(by(outer)?.as_object()?, name);
    by(name)
        .or_else(|| by(docker_name(name)))
        .or_else(|| within("configuration"))
        .or_else(|| within("config"))
}

fn plain(name: &str) -> String {
    name.replace('_', "").to_lowercase()
}

/// Our name of a field that docker calls otherwise.
fn docker_name(name: &str) -> &str {
    match name {
        "repotags" => "names",
        "size" => "sizebytes",
        "config" => "configuration",
        name => name,
    }
}

fn show(value: &Value, as_json: bool) -> String {
    match value {
        value if as_json => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(items) => items.iter().map(|item| show(item, false)).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_are_filled_in_and_what_they_lack_is_named() {
        let object = json!({ "id": "sha256:1", "names": ["a:1", "b:2"], "size_bytes": 3,
            "configuration": { "config": { "Labels": { "k": "v" }, "Cmd": null, "Env": ["A=b"] },
                "architecture": "amd64" } });
        for (template, expected) in [
            ("{{.ID}} {{ .names }}", "sha256:1 a:1 b:2"),
            ("{{.Config.Env}} {{.Architecture}} {{.Config.Labels.k}}", "A=b amd64 v"),
            ("{{json .Names}}\\t{{.Size}}", "[\"a:1\",\"b:2\"]\t3"),
            ("{{.Config.Config.Labels.k}}|{{.configuration.config.Cmd}}|{{.config.nothing.here}}", "v||"),
        ] {
            let Shape::Template(pieces) = template.parse().unwrap() else { panic!("{template}") };
            assert_eq!(fill(&pieces, &object).unwrap(), expected, "{template}");
        }
        let Shape::Template(pieces) = "{{.nosuch}}".parse().unwrap() else { panic!() };
        assert!(format!("{:?}", fill(&pieces, &object)).contains("no field nosuch; there are "));
        for wrong in ["yaml", "{{.id", "{{range .names}}"] {
            wrong.parse::<Shape>().unwrap_err();
        }
        assert_eq!("json".parse(), Ok(Shape::Json));
    }
}
