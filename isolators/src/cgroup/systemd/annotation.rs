//! `org.systemd.property.NAME`: any property of the unit, its value in GVariant's text form, as runc and crun take it.
//!
//! The forms that unit properties have: `true`, numbers, `uint64 5`, `'text'`, `['a', 'b']`. A name that ends in `Sec` is in
//! seconds here and in microseconds, with another name, on the bus.

use cofferdam_plan::Refusal;
use cofferdam_plan::op::{UnitProperty, UnitValue};

/// What such an annotation's key begins with.
pub(super) const PREFIX: &str = "org.systemd.property.";

/// The property that the annotation `key` asks for.
pub(super) fn property(key: &str, name: &str, text: &str) -> Result<UnitProperty, Refusal> {
    let pointer = format!("/annotations/{key}");
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Refusal::invalid(pointer, "names no property"));
    }
    let value = value(text.trim()).ok_or_else(|| {
        Refusal::invalid(
            &pointer,
            format!("{text:?} is no value such as true, uint64 5, 'text' or ['a', 'b']"),
        )
    })?;
    match name.strip_suffix("Sec").filter(|name| !name.ends_with('U')) {
        None => Ok(UnitProperty { name: name.to_owned(), value }),
        Some(stem) => {
            let value = microseconds(&value)
                .ok_or_else(|| Refusal::invalid(pointer, format!("{text:?} is no number of seconds")))?;
            Ok(UnitProperty { name: format!("{stem}USec"), value: UnitValue::Uint64(value) })
        }
    }
}

fn microseconds(value: &UnitValue) -> Option<u64> {
    let seconds = match value {
        UnitValue::Int32(seconds) => u64::try_from(*seconds).ok()?,
        UnitValue::Int64(seconds) => u64::try_from(*seconds).ok()?,
        UnitValue::Uint32(seconds) => u64::from(*seconds),
        UnitValue::Uint64(seconds) => *seconds,
        _ => return None,
    };
    seconds.checked_mul(1_000_000)
}

fn value(text: &str) -> Option<UnitValue> {
    if let Some(inside) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return texts(inside).map(UnitValue::Texts);
    }
    if let Some((text, rest)) = quoted(text) {
        return rest.is_empty().then_some(UnitValue::Text(text));
    }
    match text {
        "true" => return Some(UnitValue::Boolean(true)),
        "false" => return Some(UnitValue::Boolean(false)),
        _ => {}
    }
    let Some((kind, number)) = text.split_once(' ') else { return text.parse().ok().map(UnitValue::Int32) };
    let number = number.trim();
    match kind {
        "int32" | "@i" => number.parse().ok().map(UnitValue::Int32),
        "uint32" | "@u" => number.parse().ok().map(UnitValue::Uint32),
        "int64" | "@x" => number.parse().ok().map(UnitValue::Int64),
        "uint64" | "@t" => number.parse().ok().map(UnitValue::Uint64),
        "boolean" | "@b" => number.parse().ok().map(UnitValue::Boolean),
        "string" | "@s" => {
            quoted(number).filter(|(_, rest)| rest.is_empty()).map(|(text, _)| UnitValue::Text(text))
        }
        "@as" => value(number).filter(|value| matches!(value, UnitValue::Texts(_))),
        _ => None,
    }
}

fn texts(mut rest: &str) -> Option<Vec<String>> {
    let mut all = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Some(all);
        }
        let (text, after) = quoted(rest)?;
        all.push(text);
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => {}
            None => return None,
        }
    }
}

/// A text in single or double quotes with backslash escapes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut letters = text.char_indices();
    let (_, quote) = letters.next().filter(|(_, letter)| matches!(letter, '\'' | '"'))?;
    let mut inside = String::new();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => inside.push(match letters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other => other,
            }),
            letter if letter == quote => return Some((inside, &text[at + 1..])),
            letter => inside.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_values() {
        for (name, text, expected) in [
            ("CollectMode", "'inactive-or-failed'", Some("CollectMode=inactive-or-failed")),
            ("TimeoutStopUSec", "uint64 123456789", Some("TimeoutStopUSec=123456789")),
            ("TimeoutStopSec", "5", Some("TimeoutStopUSec=5000000")),
            ("TimeoutStopSec", "'5'", None),
            ("SendSIGHUP", "true", Some("SendSIGHUP=true")),
            ("CPUWeight", "@t 7", Some("CPUWeight=7")),
            ("OOMScoreAdjust", "-5", Some("OOMScoreAdjust=-5")),
            ("After", "['a.service', \"b\\\"c\"]", Some("After=[\"a.service\", \"b\\\"c\"]")),
            ("After", "[]", Some("After=[]")),
            ("After", "['a' 'b']", None),
            ("X", "nonsense", None),
            ("X", "'open", None),
            ("X", "uint64 -1", None),
            ("", "true", None),
            ("a/b", "true", None),
        ] {
            let key = format!("{PREFIX}{name}");
            let property = property(&key, name, text).ok().map(|property| property.to_string());
            assert_eq!(property.as_deref(), expected, "{name}: {text}");
        }
    }
}
