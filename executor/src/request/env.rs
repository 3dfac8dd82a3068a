//! Environment variables: `-e NAME=VALUE`, `-e NAME`, and files of them.

use super::Refusal;

/// Checks `NAME=VALUE`. A bare `NAME` takes its value from `lookup` (the caller's own environment, and only because the
/// caller names it) and is `None` when it is not set there.
pub fn parse_variable(
    text: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, Refusal> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, lookup(text)),
    };
    check_name(name).map_err(|problem| Refusal::new("environment variable", text, problem))?;
    let Some(value) = value else { return Ok(None) };
    if value.contains('\0') {
        return Err(Refusal::new("environment variable", text, "its value holds a NUL"));
    }
    Ok(Some(format!("{name}={value}")))
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it has no name");
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("its name holds white space or a control character");
    }
    Ok(())
}

/// Reads the content of an `--env-file`: one variable a line, `#` begins a comment line, quotes are kept as they are.
pub fn parse_file(content: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, Refusal> {
    let content = content.strip_prefix('\u{feff}').unwrap_or(content);
    let mut variables = Vec::new();
    for line in content.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        variables.extend(parse_variable(line, &lookup)?);
    }
    Ok(variables)
}

/// Lays `over` over `base`: a variable keeps its first place and takes its last value. Entries without `=` are dropped:
/// in an image they would mean "whatever the host has".
pub fn merge<'a>(
    base: impl IntoIterator<Item = &'a str>,
    over: impl IntoIterator<Item = &'a str>,
) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    for entry in base.into_iter().chain(over) {
        let Some((name, _)) = entry.split_once('=') else { continue };
        if name.is_empty() || entry.contains('\0') {
            continue;
        }
        let same = |other: &String| other.split_once('=').is_some_and(|(other, _)| other == name);
        match merged.iter().position(same) {
            Some(at) => merged[at] = entry.to_owned(),
            None => merged.push(entry.to_owned()),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_variables_come_from_the_caller() {
        let lookup = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        assert_eq!(parse_variable("HOME", lookup), Ok(Some("HOME=/root".into())));
        assert_eq!(parse_variable("NOPE", lookup), Ok(None));
        assert_eq!(parse_variable("A=b=c", lookup), Ok(Some("A=b=c".into())));
        for bad in ["", "=x", "A B=c", "A=\0"] {
            assert!(parse_variable(bad, lookup).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn files_hold_a_variable_a_line() {
        let variables = parse_file("\u{feff}# comment\nA=1\n\n  B='x y'\nC\n", |_| None).unwrap();
        assert_eq!(variables, ["A=1", "B='x y'"]);
    }

    #[test]
    fn later_values_win_and_entries_without_value_are_dropped() {
        let merged = merge(["PATH=/bin", "AWS_SECRET", "A=1"], ["A=2", "B=3"]);
        assert_eq!(merged, ["PATH=/bin", "A=2", "B=3"]);
    }
}
